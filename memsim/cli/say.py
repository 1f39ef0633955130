"""What memsim says to people: the only way by which text leaves it for a terminal, so that nothing can be forged."""

import click

from memsim.printable import printable


def say(*lines: object, err: bool = False) -> None:
    """Print ``lines``, each as one line whatever it holds.

    Args:
        lines: May hold names and texts of files that others wrote.
        err: To stderr, as progress and complaints, instead of stdout.
    """
    click.echo("\n".join(map(printable, lines)), err=err)
