"""The options that choose a fine-tuning scheme, and what they mean."""

from collections.abc import Callable
from typing import Any

import click
from click.core import ParameterSource

from memsim.errors import UsageError
from memsim.models.lora import ALL_PROJECTIONS, LoraConfig
from memsim.models.scheme import Scheme
from memsim.models.schemes import SCHEMES, make_scheme
from memsim.runtime.settings import SCHEMES_WITH, belongs

Command = Callable[..., Any]

_HELP = (
    "What is trained: adapters, virtual keys and values, virtual tokens, a classifier (run, compare: needs "
    "--task), norm weights and biases, or every weight (full: with zeroth-order schedules such as mezo)."
)

_ONE = click.option("--scheme", type=click.Choice(list(SCHEMES)), default="lora", help=_HELP)
_SEVERAL = click.option(
    "--scheme",
    "schemes",
    type=click.Choice(list(SCHEMES)),
    multiple=True,
    default=["lora"],
    help=f"{_HELP} Repeatable.",
)

_OPTIONS = (
    click.option("--lora-rank", type=int, default=8, metavar="R", help="Rank of the adapters."),
    click.option(
        "--lora-alpha", type=float, default=16.0, metavar="ALPHA", help="Adapters are scaled by alpha / rank."
    ),
    click.option(
        "--target-modules",
        default=",".join(ALL_PROJECTIONS),
        metavar="LIST",
        help="Projections with an adapter; a family's own names (query, fc1) will do.",
    ),
    click.option(
        "--virtual-tokens", type=int, default=20, metavar="P", help="Virtual tokens of the schemes prefix and prompt."
    ),
)


_LABELS = click.option(
    "--labels",
    type=int,
    metavar="N",
    help="Classes of the classifier that the scheme head trains, or RoBERTa beside any scheme.  [default: head: 2]",
)


def scheme_options(command: Command) -> Command:
    """Add the options to a command; ``scheme_values`` reads them."""
    return _with_options(command, _ONE)


def schemes_options(command: Command) -> Command:
    """Add them to a command that takes several schemes, as its parameter ``schemes``."""
    return _with_options(command, _SEVERAL)


def _with_options(command: Command, choice: Callable[[Command], Command]) -> Command:
    for option in reversed((choice, *_OPTIONS)):
        command = option(command)
    return command


def scheme_values(options: dict[str, Any]) -> dict[str, Any]:
    """Return ``lora`` and ``virtual_tokens``, as ``RunConfig`` calls them."""
    modules = tuple(module for module in options["target_modules"].split(",") if module)
    lora = LoraConfig(options["lora_rank"], options["lora_alpha"], modules)
    return {"lora": lora, "virtual_tokens": options["virtual_tokens"]}


def scheme_options_without_task(command: Command) -> Command:
    """Add the options to a command that plans and has no examples to count labels in; ``chosen_scheme`` reads them."""
    return scheme_options(_LABELS(command))


def chosen_scheme(options: dict[str, Any]) -> Scheme:
    """Return the scheme that the options of a command without examples mean.

    Raises:
        UsageError: An option of another scheme was given.
    """
    scheme = options["scheme"]
    context = click.get_current_context()
    for option, owners in SCHEMES_WITH.items():
        key = option.removeprefix("--").replace("-", "_")
        if scheme not in owners and context.get_parameter_source(key) is not ParameterSource.DEFAULT:
            raise UsageError(f"{option} {belongs(owners, scheme)}")
    labels = options.get("labels")
    if labels is None:
        labels = 2 if scheme == "head" else 0
    values = scheme_values(options)
    return make_scheme(scheme, values["lora"], values["virtual_tokens"], labels)
