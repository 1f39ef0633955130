"""The runtime: the capped worker that really executes step programs, and the parent that watches it."""
