"""What long work tells whoever waits for it: functions that are called and may do nothing."""

from collections.abc import Callable

StageProgress = Callable[[str], None]
"""Called with a line about what begins."""

BytesProgress = Callable[[str, int, int], None]
"""Called with (label, bytes done, bytes in all)."""

CountProgress = Callable[[int, int], None]
"""Called with (parts done, parts in all)."""
