"""Names of mounts, as the kernel writes them."""

import re


def unescaped(field: str) -> str:
    """Return a path of ``/proc/mounts`` or ``mountinfo`` as it is.

    The kernel writes a space, a tab, a line end and a backslash as three octal digits, and every other byte, such as
    those of letters beyond ASCII, as it is.
    """
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), field)
