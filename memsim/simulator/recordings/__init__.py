"""Captures of memray, read back as traces that the simulator walks."""
