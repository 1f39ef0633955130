"""The options of zeroth-order schedules, what they mean, and help that lists them apart."""

from collections.abc import Callable
from typing import Any

import click

from memsim.schedules.zeroth_order import MASKS, NOISES, ZeroOrder

Command = Callable[..., Any]

_TITLE = "Zeroth-order schedules"

_OPTIONS = (
    click.option(
        "--zo-eps",
        type=float,
        metavar="EPS",
        help="Size of the perturbation, in units of what is trained.  [default: 0.001; fzoo: 0.0001]",
    ),
    click.option("--zo-directions", type=int, metavar="Q", help="Directions a step.  [default: 1; fzoo: 8]"),
    click.option(
        "--zo-noise", type=click.Choice(NOISES), help="Distribution of z.  [default: gaussian; fzoo: rademacher]"
    ),
    click.option(
        "--zo-sparsity",
        type=float,
        default=0.0,
        metavar="SHARE",
        help="Share of the elements that are neither perturbed nor updated.",
    ),
    click.option(
        "--zo-mask", type=click.Choice(MASKS), default="random", help="Leave out elements, or rows of a tensor."
    ),
    click.option("--zo-resample", type=int, default=1, metavar="N", help="Steps after which the mask is drawn anew."),
    click.option(
        "--zo-lr",
        type=float,
        metavar="RATE",
        help="hybrid: learning rate below the top blocks.  [default: the one above]",
    ),
    click.option(
        "--hybrid-k",
        "zo_hybrid_k",
        type=int,
        default=1,
        metavar="K",
        help="hybrid: blocks that backpropagation trains.",
    ),
)


class GroupedCommand(click.Command):
    """A command whose help lists the options of zeroth-order schedules apart."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options in two lists."""
        groups: dict[str, list[tuple[str, str]]] = {"Options": [], _TITLE: []}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None:
                groups[_TITLE if (parameter.name or "").startswith("zo_") else "Options"].append(record)
        for title, records in groups.items():
            with formatter.section(title):
                formatter.write_dl(records)


def zeroth_order_options(command: Command) -> Command:
    """Add the options to a command; ``zeroth_order_values`` reads them."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def zeroth_order_values(options: dict[str, Any]) -> ZeroOrder:
    """Return what the options mean; values of a command's other parameters are left alone."""
    return ZeroOrder(**{name.removeprefix("zo_"): value for name, value in options.items() if name.startswith("zo_")})
