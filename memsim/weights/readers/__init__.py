"""Checkpoints of every format, as sources of rows."""
