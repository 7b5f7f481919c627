"""The tests of the daemon: each tier is a package of its own."""
