"""Text in columns, for people."""

from collections.abc import Collection, Sequence


def aligned(rows: Sequence[Sequence[str]], text_columns: Collection[int] = (0,)) -> list[str]:
    """Return the rows as lines: ``text_columns`` begin at the left of their column, numbers end at the right of theirs.

    Args:
        rows: All of the same length.
        text_columns: By number, from 0.
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.ljust(width) if column in text_columns else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
