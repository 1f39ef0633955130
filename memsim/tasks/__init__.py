"""Labelled tasks: what an example looks like as text, and which of its options is right."""
