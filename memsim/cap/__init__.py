"""Holding a process below a number of bytes, and watching what it takes: usable without the rest."""
