"""The configuration file: read, checked as a whole, every fault named with its place."""
