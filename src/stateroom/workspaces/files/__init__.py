"""The server's own access to files that hostile programs can change at the same time."""
