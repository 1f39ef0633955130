"""Commands that list what memsim knows."""
