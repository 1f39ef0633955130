"""What memsim says to people: the only way by which text leaves it for a terminal, so that nothing can be forged."""

import click

from memsim.printable import printable

_unheard: list[str] = []


def say(*lines: object, err: bool = False) -> None:
    """Print ``lines``, each as one line whatever it holds.

    Args:
        lines: May hold names and texts of files that others wrote.
        err: To stderr, as progress and complaints, instead of stdout. What cannot be printed there ends nothing.

    Raises:
        OSError: Standard output is closed, or its disk is full.
    """
    text = "\n".join(map(printable, lines))
    try:
        click.echo(text, err=err)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else None
        if err:
            not_heard(reason or str(error))
            return
        if isinstance(error, OSError) and error.filename is None:
            error.filename = "standard output"
        raise


def not_heard(reason: str) -> None:
    """Take note that something could not be printed to stderr."""
    _unheard.append(reason)


def unheard() -> str | None:
    """Return why something could not be printed to stderr, if it was so."""
    return _unheard[0] if _unheard else None
