"""Names of the files in the directory of a run."""

RESULT_FILE = "result.json"
EVENTS_FILE = "events.jsonl"
"""A line for each node of each step."""

PROGRAM_FILE = "program.jsonl"
"""The step program that ran."""

CAPTURE_FILE = "memray.bin"
"""What memray recorded of it."""

SEEDS_FILE = "seeds.jsonl"
"""A line for each zeroth-order step."""
