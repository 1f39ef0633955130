"""The options that choose a fine-tuning scheme, and the scheme that they mean."""

from collections.abc import Callable
from typing import Any

import click
from click.core import ParameterSource

from memsim.errors import UsageError
from memsim.models.lora import ALL_PROJECTIONS, LoraConfig
from memsim.models.scheme import Scheme
from memsim.models.schemes import SCHEMES, Head, Norms, Prefix, Prompt
from memsim.tasks.task import Task

Command = Callable[..., Any]

_OF_LORA, _OF_VIRTUAL_TOKENS = ("lora",), ("prefix", "prompt")
_BELONGS = {
    "lora_rank": _OF_LORA,
    "lora_alpha": _OF_LORA,
    "target_modules": _OF_LORA,
    "virtual_tokens": _OF_VIRTUAL_TOKENS,
}

_OPTIONS = (
    click.option(
        "--scheme",
        type=click.Choice(list(SCHEMES)),
        default="lora",
        help="What is trained: adapters, virtual keys and values, virtual tokens, a classifier (needs --task), "
        "or norm weights and biases.",
    ),
    click.option("--lora-rank", type=int, default=8, metavar="R", help="Rank of the adapters."),
    click.option(
        "--lora-alpha", type=float, default=16.0, metavar="ALPHA", help="Adapters are scaled by alpha / rank."
    ),
    click.option(
        "--target-modules", default=",".join(ALL_PROJECTIONS), metavar="LIST", help="Projections with an adapter."
    ),
    click.option(
        "--virtual-tokens", type=int, default=20, metavar="P", help="Virtual tokens of the schemes prefix and prompt."
    ),
)


def scheme_options(command: Command) -> Command:
    """Add the options to a command; ``chosen_scheme`` reads them."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def chosen_scheme(options: dict[str, Any], task: Task | None = None, labels: int = 0) -> Scheme:
    """Return the scheme that ``options`` mean, and remove them.

    Args:
        options: The parameters of the running command.
        task: What a classifier tells apart are its options.
        labels: What it tells apart without a task; 0 where there is nothing to tell.

    Raises:
        UsageError: An option of another scheme was given, or a classifier for a task without classes.
    """
    name = options.pop("scheme")
    values = {key: options.pop(key) for key in _BELONGS}
    context = click.get_current_context()
    for key, schemes in _BELONGS.items():
        if name not in schemes and context.get_parameter_source(key) is not ParameterSource.DEFAULT:
            wanted = " or ".join(schemes)
            raise UsageError(f"--{key.replace('_', '-')} belongs to --scheme {wanted}, not to {name}")
    if name == "lora":
        modules = tuple(module for module in values["target_modules"].split(",") if module)
        return LoraConfig(values["lora_rank"], values["lora_alpha"], modules)
    if name in _OF_VIRTUAL_TOKENS:
        return {"prefix": Prefix, "prompt": Prompt}[name](values["virtual_tokens"])
    if name == "norms":
        return Norms()
    if task is not None and task.kind != "classification":
        raise UsageError("--scheme head needs classes, but every example of this task brings its own options")
    return Head(len(task.options) if task else labels)
