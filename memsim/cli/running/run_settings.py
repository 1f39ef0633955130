"""What the command line of ``memsim run`` asks for, as settings of a run."""

import shlex
import sys
from typing import Any

import click
from click.core import ParameterSource

from memsim.cli.scheme_options import scheme_values
from memsim.cli.zeroth_order_options import zeroth_order_values
from memsim.errors import UsageError
from memsim.json_file import shown
from memsim.runtime.config import RunConfig
from memsim.runtime.settings import BY_OPTION, CHANGE_BITS, KEEP_BITS, refuse_ignored
from memsim.schedules.names import AUTO
from memsim.schedules.optimizers import OptimizerConfig
from memsim.search.plan_file import PlanFile, read_plan
from memsim.units import is_decimal, parse_bytes
from memsim.weights.shipped import has_examples, shipped_examples

_MAX_COMMAND = 4096

_PLANNED = ("model", "seq_len", "scheme", "lora_rank", "target_modules", "virtual_tokens") + (
    ("optimizer", "accumulate", "threads")
)
"""Options that a plan decides."""

_AS_THEY_ARE = (
    *("model", "schedule", "seq_len", "steps", "task", "classifier", "template", "tokenizer", "bos"),
    *("eval_data", "eval_every", "eval_sequences", "eval_first", "scheme", "accumulate", "seed", "threads"),
    *("compute", "verify", "out", "scratch", "checkpoint_every", "plan_check", "enforcement", "lcsb_groups", "record"),
)
"""Parameters that ``RunConfig`` calls as the command line does."""


def command_line() -> str:
    """Return the command line of this process, for the record of a run."""
    text = shlex.join(["memsim", *sys.argv[1:]])
    return text.encode(errors="backslashreplace").decode()[:_MAX_COMMAND]


def given_settings(context: click.Context) -> set[str]:
    """Return the names of the settings that were given on the command line, by the options that ask for them."""
    given = [item for item in context.command.params if _given(context, item.name)]
    options = [option for item in given for option in (*item.opts, *item.secondary_opts)]
    return {BY_OPTION[option].name for option in options if option in BY_OPTION}


def _given(context: click.Context, name: str | None) -> bool:
    return context.get_parameter_source(name or "") is ParameterSource.COMMANDLINE


def asked_run(context: click.Context) -> RunConfig:
    """Return the run that a command line asks for.

    Raises:
        UsageError: A value that can never work, or one that would be ignored.
        InputError: A plan cannot be read.
    """
    options = context.params
    plan = read_plan(options["plan"]) if options["plan"] else None
    budget = options["budget"]
    if budget is None and plan is None:
        raise click.MissingParameter(ctx=context, param_hint="'--budget'", param_type="option")
    if options["allow_different_bits"]:
        raise UsageError("--allow-different-bits is for --resume")
    task, balloon = options["task"], options["test_balloon"]
    settings: dict[str, Any] = {name: options[name] for name in _AS_THEY_ARE}
    settings |= {
        "budget_bytes": parse_bytes(budget) if budget is not None else plan.budget_bytes if plan else 0,
        "decimal": budget is None or is_decimal(budget),
        "data": options["data"] or (shipped_examples(task, "train") if task and has_examples(task) else None),
        **scheme_values(options),
        "optimizer": OptimizerConfig(options["optimizer"], options["lr"]),
        "cold": options["page_cache"] == "cold",
        "balloon_bytes": parse_bytes(balloon) if balloon is not None else 0,
        "zeroth_order": zeroth_order_values(options),
    }
    if plan is not None:
        settings |= _decided(settings, plan, str(options["plan"]), context)
    config = RunConfig(**settings)
    refuse_ignored([config], given_settings(context))
    return config


def _decided(settings: dict[str, Any], plan: PlanFile, where: str, context: click.Context) -> dict[str, Any]:
    """Return the settings that a plan decides; what it leaves open is as asked.

    Raises:
        UsageError: An option was given that says something else than the plan.
    """
    decided = {"schedule": AUTO} | {name: getattr(plan, name) for name in _PLANNED}
    decided["target_modules"] = ",".join(plan.target_modules)
    for name, value in decided.items():
        if _given(context, name) and context.params[name] != value:
            option = f"--{name.replace('_', '-')}"
            asked = context.params[name]
            raise UsageError(f"{option} {asked} is not what {where} was made for, {shown(value)}; leave {option} out")
    own: dict[str, Any] = {"schedule": AUTO, "plan": plan}
    own |= {name: getattr(plan, name) for name in ("model", "seq_len", "scheme", "accumulate", "threads")}
    if plan.scheme == "lora":
        lora = settings["lora"]
        own["lora"] = type(lora)(plan.lora_rank, lora.alpha, plan.target_modules)
    if plan.virtual_tokens:
        own["virtual_tokens"] = plan.virtual_tokens
    return own | {"optimizer": OptimizerConfig(plan.optimizer, settings["optimizer"].lr)}


def asked_changes(context: click.Context) -> dict[str, Any]:
    """Return the settings that the command line gives a run that goes on.

    Raises:
        UsageError: One that it must keep.
    """
    given = {name for name in context.params if _given(context, name)}
    given -= {"resume", "allow_different_bits", "json_path", "save_baseline"}
    changes: dict[str, Any] = {}
    if "budget" in given:
        budget = context.params["budget"]
        changes = {"budget_bytes": parse_bytes(budget), "decimal": is_decimal(budget)}
        given.remove("budget")
    if "page_cache" in given:
        changes["cold"] = context.params["page_cache"] == "cold"
        given.remove("page_cache")
    kept = sorted(given - {*KEEP_BITS, *CHANGE_BITS})
    if kept:
        raise UsageError(f"--{kept[0].replace('_', '-')} is a setting that a run keeps; leave it out with --resume")
    return changes | {name: context.params[name] for name in given}
