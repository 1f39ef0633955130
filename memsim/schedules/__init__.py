"""Schedules: what a training step keeps, spills and recomputes, lowered into one step program."""
