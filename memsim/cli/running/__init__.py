"""Commands that make a run, or what it starts from or leaves."""
