"""The planner: live ranges, arena offsets, and the exact peak of a step program."""
