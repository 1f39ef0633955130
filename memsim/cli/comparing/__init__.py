"""Commands that set runs side by side."""
