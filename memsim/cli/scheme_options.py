"""The options that choose a fine-tuning scheme, and what they mean."""

from collections.abc import Callable, Sequence
from typing import Any

import click
from click.core import ParameterSource

from memsim.errors import UsageError
from memsim.models.lora import ALL_PROJECTIONS, LoraConfig
from memsim.models.scheme import Scheme
from memsim.models.schemes import SCHEMES, make_scheme

Command = Callable[..., Any]

_OF_LORA, _OF_VIRTUAL_TOKENS = ("lora",), ("prefix", "prompt")
_BELONGS = {
    "lora_rank": _OF_LORA,
    "lora_alpha": _OF_LORA,
    "target_modules": _OF_LORA,
    "virtual_tokens": _OF_VIRTUAL_TOKENS,
}

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
    """Add the options to a command; ``scheme_settings`` reads them."""
    return _with_options(command, _ONE)


def schemes_options(command: Command) -> Command:
    """Add them to a command that takes several schemes, as its parameter ``schemes``."""
    return _with_options(command, _SEVERAL)


def _with_options(command: Command, choice: Callable[[Command], Command]) -> Command:
    for option in reversed((choice, *_OPTIONS)):
        command = option(command)
    return command


def scheme_settings(options: dict[str, Any]) -> dict[str, Any]:
    """Return what the options mean: ``scheme``, ``lora`` and ``virtual_tokens``, as ``RunConfig`` calls them.

    Raises:
        UsageError: An option of another scheme was given.
    """
    return {"scheme": options["scheme"], **settings_of_schemes(options, [options["scheme"]])}


def settings_of_schemes(options: dict[str, Any], schemes: Sequence[str]) -> dict[str, Any]:
    """Return the same without ``scheme``, for all of ``schemes``.

    Raises:
        UsageError: An option was given that none of them has.
    """
    context = click.get_current_context()
    for key, owners in _BELONGS.items():
        stray = key in options and not set(schemes) & set(owners)
        if stray and context.get_parameter_source(key) is not ParameterSource.DEFAULT:
            wanted = " or ".join(owners)
            raise UsageError(f"--{key.replace('_', '-')} belongs to --scheme {wanted}, not to {', '.join(schemes)}")
    modules = tuple(module for module in options["target_modules"].split(",") if module)
    lora = LoraConfig(options["lora_rank"], options["lora_alpha"], modules)
    return {"lora": lora, "virtual_tokens": options["virtual_tokens"]}


def scheme_options_without_task(command: Command) -> Command:
    """Add the options to a command that plans and has no examples to count labels in; ``chosen_scheme`` reads them."""
    return scheme_options(_LABELS(command))


def chosen_scheme(options: dict[str, Any]) -> Scheme:
    """Return the scheme that the options of ``scheme_options_without_task`` mean.

    Raises:
        UsageError: An option of another scheme was given.
    """
    settings = scheme_settings(options)
    labels = options["labels"]
    if labels is None:
        labels = 2 if settings["scheme"] == "head" else 0
    return make_scheme(settings["scheme"], settings["lora"], settings["virtual_tokens"], labels)
