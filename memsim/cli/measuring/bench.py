"""``memsim bench``: kernels, whole steps, footprints and losses, measured against roofs and peers."""

from typing import Any

import click

from memsim.cli.json_option import json_option
from memsim.cli.options import (
    compute_option,
    device_option,
    model_option,
    models_option,
    number_option,
    path_option,
    schedule_option,
)
from memsim.schedules.names import AUTO, SCHEDULE_NAMES

_MODEL = model_option("A preset, a pack or a directory.")


_SCHEDULE = schedule_option([*SCHEDULE_NAMES, AUTO], "tiled", "What a step keeps and recomputes.")


_SEQ_LEN = number_option("--seq-len", 256, "Tokens a sequence.", least=1, metavar="TOKENS")


_BUDGET = click.option("--budget", default="1GB", metavar="SIZE", help="Cap of each run.")


_THREADS = number_option("--threads", 0, "Of every contestant; 0 takes every processor.", least=0)


_COMPUTE = compute_option("Compute path; auto: the faster.")


_JSON = json_option("the record")


@click.group(name="bench")
def command() -> None:
    """Time kernels and whole steps beside this machine's measured roofs and what people run today.

    Contestants are processes of their own and take turns, so that noise hits all alike. Torch's figures need the
    extra `torch`. Leave the machine idle.
    """


@command.command(name="kernels", context_settings={"show_default": True})
@models_option("Presets whose shapes are timed.", "qwen2.5-0.5b,qwen2.5-3b")
@click.option("--rows", "--seq-len", type=click.IntRange(1), default=256, metavar="TOKENS", help="M of the products.")
@click.option(
    "--compute", type=click.Choice(["all", "f32", "bf16"]), default="all", help="Compute paths of packed products."
)
@number_option("--rounds", 5, "Turns of each contestant at a row.", least=1)
@number_option("--repeats", 3, "Timed calls a turn.", least=1)
@click.option("--quick", is_flag=True, help="Only the products of a block, two rounds.")
@_THREADS
@_JSON
def kernels_command(**values: Any) -> None:
    """Verify every kernel against float64, then time it: GFLOP/s, share of the roof, unpacking, ratios to peers.

    Roofs are loops over registers. A wrong kernel ends the command with exit code 1 before anything is timed.
    """
    from memsim.cli.measuring.bench_work import kernels_command as carry_out

    carry_out(**values)


@command.command(name="step", context_settings={"show_default": True})
@_MODEL
@_SCHEDULE
@_SEQ_LEN
@number_option("--steps", 2, "Timed steps a round.", least=1)
@number_option("--rounds", 3, "Turns of each contestant.", least=1)
@_COMPUTE
@_BUDGET
@_THREADS
@_JSON
def step_command(**values: Any) -> None:
    """Time whole capped steps beside the roof and beside transformers with PEFT on the same shapes.

    The peers are f32 with gradient checkpointing and bf16 without, the fastest of what people run.
    """
    from memsim.cli.measuring.bench_work import step_command as carry_out

    carry_out(**values)


@command.command(name="zo", context_settings={"show_default": True})
@_MODEL
@_SEQ_LEN
@number_option("--steps", 2, "Timed steps a round.", least=1)
@number_option("--rounds", 3, "Turns of each contestant.", least=1)
@device_option("Simulated; see `memsim devices`.")
@_COMPUTE
@_BUDGET
@_THREADS
@_JSON
def zo_command(**values: Any) -> None:
    """Time MeZO with its forwards in one stream of the weights beside one stream each, and beside transformers.

    Each with the weights in the page cache, and again with every part dropped from it at each eviction, so that every
    forward reads the disk. Footprints are beside that of the schedule tiled, and the cold steps are simulated on
    --device. The peers, transformers with PEFT, move the adapters in place around two forwards, in f32 and in bf16, as
    MeZO's own code does. Another zeroth-order method beside them: `memsim bench step --schedule fzoo`.
    """
    from memsim.cli.measuring.bench_work import zo_command as carry_out

    carry_out(**values)


@command.command(name="footprint", context_settings={"show_default": True})
@models_option("Presets, packs or directories.", "qwen2.5-0.5b")
@click.option("--seq-lens", default="256,512,1024,2048", metavar="LIST", help="Tokens a sequence.")
@number_option("--steps", 2, "Steps of each run.", least=1)
@_SCHEDULE
@_COMPUTE
@_BUDGET
@_THREADS
@_JSON
def footprint_command(**values: Any) -> None:
    """Measure the peak footprint of capped runs, at several lengths and models."""
    from memsim.cli.measuring.bench_work import footprint_command as carry_out

    carry_out(**values)


@command.command(name="loss", context_settings={"show_default": True})
@path_option("--data", "Text.  [default: CPython's documentation]")
@_MODEL
@_SCHEDULE
@_SEQ_LEN
@number_option("--steps", 50, "Optimizer steps.", least=1)
@_BUDGET
@_THREADS
@_JSON
def loss_command(**values: Any) -> None:
    """Train twice on the same text, in f32 and in bf16, and compare the losses step by step."""
    from memsim.cli.measuring.bench_work import loss_command as carry_out

    carry_out(**values)
