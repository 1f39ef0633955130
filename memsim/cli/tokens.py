"""The options that decide what the tokens of a text are, of every command that trains."""

from collections.abc import Callable
from typing import Any

import click

Command = Callable[..., Any]


def token_options(command: Command) -> Command:
    """Give a command ``--tokenizer`` and ``--bos``, which are fields of ``RunConfig``."""
    bos = click.option(
        "--bos",
        type=click.Choice(["auto", "document", "never"]),
        default="auto",
        help="Begin every document as its tokenizer begins a text; auto: and every window of a longer one.",
    )
    tokenizer = click.option(
        "--tokenizer",
        metavar="FILE|bytes",
        help="tokenizer.json or tokenizer.model, or bytes for one id per byte.  [default: the model's own]",
    )
    return tokenizer(bos(command))
