"""Virtual servers of an F5, served by the nodes themselves: their addresses, their monitors, their traffic."""
