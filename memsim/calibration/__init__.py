"""What short runs teach about this machine."""
