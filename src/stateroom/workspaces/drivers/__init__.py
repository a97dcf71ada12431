"""What keeps the processes of a workspace in: the drivers behind the seam, and what they are made of."""
