"""``memsim diff``: two runs side by side."""

from pathlib import Path
from typing import Any

import click

from memsim.cli.json_option import json_option


@click.command(name="diff")
@click.argument("a", type=click.Path(path_type=Path))
@click.argument("b", type=click.Path(path_type=Path))
@json_option("the comparison")
def command(**values: Any) -> None:
    """Show what run B does otherwise than run A.

    A and B are run directories, result records or baseline files. Nothing is required of them, so the exit code is 0.
    """
    from memsim.cli.comparing.diff_work import command as carry_out

    carry_out(**values)
