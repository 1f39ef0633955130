"""Which lines of a program hold its memory: allocations summed by the place in the program's own code.

A place is the innermost frame that belongs neither to the standard library nor to an installed package; where a stack
has none, as in a program that is itself installed, the innermost one outside the standard library, or else the
innermost of all.
"""

import re
from collections.abc import Iterable, Sequence
from pathlib import PurePath

Frame = tuple[str, str, int]
"""Function, file and line."""

OUTSIDE = "outside Python"
"""Where what no frame made was allocated: before the program, or in threads of a library."""

_INSTALLED = re.compile(r"[/\\](?:site|dist)-packages[/\\]")
_STANDARD = re.compile(r"[/\\]lib(?:32|64)?[/\\](?:python|pypy)\d\.\d+t?[/\\]|^<frozen |[/\\]python\d+\.zip[/\\]")


def own_frame(stack: Sequence[Frame]) -> Frame | None:
    """Return the frame that a stack, innermost first, is named by; None if it has no frame."""
    beyond = [frame for frame in stack if _INSTALLED.search(frame[1]) or not _STANDARD.search(frame[1])]
    own = (frame for frame in beyond if not _INSTALLED.search(frame[1]))
    return next(iter((*own, *beyond, *stack)), None)


def largest_holders(held: Iterable[tuple[Sequence[Frame], int]], limit: int) -> list[tuple[str, int]]:
    """Return the places that hold most, largest first.

    Args:
        held: The stack of each allocation, innermost frame first, and its bytes; they may repeat.
        limit: Places, at most.
    """
    sums: dict[Frame | None, int] = {}
    for stack, n_bytes in held:
        place = own_frame(stack)
        sums[place] = sums.get(place, 0) + n_bytes
    largest = sorted(sums.items(), key=lambda item: (-item[1], item[0] or ("", "", 0)))[:limit]
    return list(zip(_names([place for place, _ in largest]), (n_bytes for _, n_bytes in largest), strict=True))


def _names(places: Sequence[Frame | None]) -> list[str]:
    """Return ``function (file.py:12)`` for each place, with as many directories as tell it from the others."""
    longest = max((len(PurePath(place[1]).parts) for place in places if place), default=1)
    names = [_name(place, 1) for place in places]
    for parts in range(2, longest + 1):
        names = [
            _name(place, parts) if names.count(name) > 1 or _says_nothing(place, parts) else name
            for place, name in zip(places, names, strict=True)
        ]
    return names


def _name(place: Frame | None, parts: int) -> str:
    if place is None:
        return OUTSIDE
    function, file, line = place
    return f"{function} ({'/'.join(PurePath(file).parts[-parts:])}:{line})"


def _says_nothing(place: Frame | None, parts: int) -> bool:
    return parts == 2 and place is not None and PurePath(place[1]).name in ("__init__.py", "__main__.py")
