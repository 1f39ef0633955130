"""``memsim run``: one fine-tuning run in a capped process."""

import sys
from pathlib import Path

import click
from click.core import ParameterSource

from memsim.cli.drawing import SYNTHETIC, drawn
from memsim.errors import InputError, UsageError
from memsim.models.lora import ALL_PROJECTIONS, LoraConfig
from memsim.models.presets import PRESETS
from memsim.regression.baseline import from_run, write_baseline
from memsim.results import Result, emit_json
from memsim.runtime.cap import ENFORCEMENTS
from memsim.runtime.run import RunConfig, run
from memsim.runtime.supervise import exit_code
from memsim.schedules.catalog import SCHEDULE_NAMES
from memsim.schedules.optimizers import STATE_PER_PARAMETER, OptimizerConfig
from memsim.schedules.zeroth_order import MASKS, METHODS, NOISES, ZeroOrder
from memsim.units import format_bytes, is_decimal, parse_bytes


class _Grouped(click.Command):
    """A command whose help lists the options of zeroth-order schedules apart."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        groups: dict[str, list[tuple[str, str]]] = {"Options": [], "Zeroth-order schedules": []}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None:
                zeroth_order = (parameter.name or "").startswith("zo_")
                groups["Zeroth-order schedules" if zeroth_order else "Options"].append(record)
        for title, records in groups.items():
            with formatter.section(title):
                formatter.write_dl(records)


@click.command(name="run", cls=_Grouped, context_settings={"show_default": True})
@click.option("--budget", required=True, metavar="SIZE", help="Kernel limit on the whole process: 1GB, 512MiB.")
@click.option(
    "--model",
    default="qwen2.5-0.5b",
    metavar="NAME|PATH|HUB_ID",
    help=f"A preset ({', '.join(PRESETS)}), a pack, a checkpoint (Hugging Face, MLX, GGUF), or owner/model on the hub.",
)
@click.option(
    "--schedule", type=click.Choice(SCHEDULE_NAMES), default="mebp", help="What a step keeps, spills and recomputes."
)
@click.option("--seq-len", type=int, default=256, metavar="TOKENS", help="Tokens in a sequence.")
@click.option("--steps", type=int, default=5, metavar="N", help="Optimizer steps.")
@click.option(
    "--data",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="UTF-8 text or JSONL (field `text`) to train on.  [default: CPython's own documentation]",
)
@click.option("--lora-rank", type=int, default=8, metavar="R", help="Rank of the adapters.")
@click.option("--lora-alpha", type=float, default=16.0, metavar="ALPHA", help="Adapters are scaled by alpha / rank.")
@click.option(
    "--target-modules",
    default=",".join(ALL_PROJECTIONS),
    metavar="LIST",
    help="Projections with an adapter; a family's own names (query, fc1) will do.",
)
@click.option(
    "--optimizer", type=click.Choice(list(STATE_PER_PARAMETER)), default="adamw", help="What updates the adapters."
)
@click.option("--lr", type=float, default=1e-4, metavar="RATE", help="Learning rate.")
@click.option("--accumulate", type=int, default=1, metavar="N", help="Sequences whose gradients are summed in a step.")
@click.option(
    "--seed", type=int, default=0, metavar="N", help="Of the adapters' initial values and the order of the data."
)
@click.option("--threads", type=int, default=0, metavar="N", help="Kernel threads; 0 takes every processor.")
@click.option(
    "--compute",
    type=click.Choice(["auto", "f32", "bf16"]),
    default="auto",
    help="Products with packed weights in f32 or bf16 (sums are f32); auto takes the faster.",
)
@click.option(
    "--page-cache",
    type=click.Choice(["warm", "cold"]),
    default="warm",
    help="Cold drops weight pages from the page cache at every eviction.",
)
@click.option(
    "--lcsb-groups",
    type=int,
    metavar="K",
    help="lcsb: block b is trained in every K-th step, from step b mod K on.  [default: 4]",
)
@click.option(
    "--zo-eps",
    type=float,
    metavar="EPS",
    help="Size of the perturbation, in units of the adapters' weights.  [default: 0.001; fzoo: 0.0001]",
)
@click.option("--zo-directions", type=int, metavar="Q", help="Directions a step.  [default: 1; fzoo: 8]")
@click.option("--zo-noise", type=click.Choice(NOISES), help="Distribution of z.  [default: gaussian; fzoo: rademacher]")
@click.option(
    "--zo-sparsity",
    type=float,
    default=0.0,
    metavar="SHARE",
    help="Share of the elements that are neither perturbed nor updated.",
)
@click.option("--zo-mask", type=click.Choice(MASKS), default="random", help="Leave out elements, or rows of a tensor.")
@click.option("--zo-resample", type=int, default=1, metavar="N", help="Steps after which the mask is drawn anew.")
@click.option(
    "--zo-lr", type=float, metavar="RATE", help="hybrid: learning rate below the top blocks.  [default: --lr]"
)
@click.option(
    "--hybrid-k", "zo_hybrid_k", type=int, default=1, metavar="K", help="hybrid: blocks that backpropagation trains."
)
@click.option("--eval-data", type=click.Path(path_type=Path), metavar="FILE", help="Text to evaluate on.")
@click.option("--eval-every", type=int, default=0, metavar="N", help="Evaluate every N steps; 0 only at the end.")
@click.option("--eval-first", is_flag=True, help="Evaluate before the first step too.")
@click.option("--eval-sequences", type=int, default=8, metavar="N", help="Sequences of an evaluation, at most.")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="New directory for the results.  [default: runs/<time>-<model>-<schedule>]",
)
@click.option(
    "--scratch",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Where spilled values and optimizer state go; a disk, not tmpfs.  [default: the --out directory]",
)
@click.option("--plan-check/--no-plan-check", default=True, help="Refuse a plan that does not fit the budget.")
@click.option(
    "--enforcement", type=click.Choice(list(ENFORCEMENTS)), help="Cap in this way only.  [default: the best available]"
)
@click.option("--json", "json_path", metavar="PATH|-", help="Write the result record to PATH, or to stdout.")
@click.option(
    "--save-baseline", type=click.Path(path_type=Path), metavar="FILE", help="Store the run for `memsim check`."
)
@click.option("--test-balloon", hidden=True, metavar="SIZE", help="Touch this much unplanned memory in every step.")
def command(
    budget: str,
    model: str,
    schedule: str,
    seq_len: int,
    steps: int,
    data: Path | None,
    lora_rank: int,
    lora_alpha: float,
    target_modules: str,
    optimizer: str,
    lr: float,
    accumulate: int,
    seed: int,
    threads: int,
    compute: str,
    page_cache: str,
    lcsb_groups: int | None,
    zo_eps: float | None,
    zo_directions: int | None,
    zo_noise: str | None,
    zo_sparsity: float,
    zo_mask: str,
    zo_resample: int,
    zo_lr: float | None,
    zo_hybrid_k: int,
    eval_data: Path | None,
    eval_every: int,
    eval_first: bool,
    eval_sequences: int,
    out: Path | None,
    scratch: Path | None,
    plan_check: bool,
    enforcement: str | None,
    json_path: str | None,
    save_baseline: Path | None,
    test_balloon: str | None,
) -> None:
    """Fine-tune a model with LoRA in a process that the kernel kills at --budget.

    Without --data the text is CPython's own documentation; a preset without weights gets seeded synthetic ones of the
    same shapes and bytes. A masked language model (RoBERTa) learns to guess 15 % of the tokens, the others the next
    token. The adapter is written in PEFT's format, beside result.json and events.jsonl.
    """
    for path in (json_path if json_path != "-" else None, save_baseline):
        if path is not None and not Path(path).absolute().parent.is_dir():
            raise InputError(f"cannot write {path}: its directory does not exist")
    budget_bytes, decimal = parse_bytes(budget), is_decimal(budget)
    _check_options_of(schedule)
    config = RunConfig(
        budget_bytes=budget_bytes,
        decimal=decimal,
        model=model,
        schedule=schedule,
        seq_len=seq_len,
        steps=steps,
        data=data,
        eval_data=eval_data,
        eval_every=eval_every,
        eval_sequences=eval_sequences,
        eval_first=eval_first,
        lora=LoraConfig(lora_rank, lora_alpha, tuple(name for name in target_modules.split(",") if name)),
        optimizer=OptimizerConfig(optimizer, lr),
        accumulate=accumulate,
        seed=seed,
        threads=threads,
        compute=compute,
        cold=page_cache == "cold",
        out=out,
        scratch=scratch,
        plan_check=plan_check,
        enforcement=enforcement,
        balloon_bytes=parse_bytes(test_balloon) if test_balloon else 0,
        lcsb_groups=lcsb_groups,
        zeroth_order=ZeroOrder(zo_eps, zo_directions, zo_noise, zo_sparsity, zo_mask, zo_resample, zo_lr, zo_hybrid_k),
    )
    with drawn(config) as progress:
        outcome = run(config, progress)
    result = outcome.result
    if save_baseline is not None and result.exit_reason == "done":
        write_baseline(save_baseline, from_run(outcome.directory, config, result))
    if json_path is not None:
        emit_json(result, json_path)
    if json_path != "-":
        click.echo(_summary(result, decimal))
        click.echo(f"{outcome.directory}: result.json, events.jsonl" + (", adapter" if result.fits else ""))
    if outcome.message:
        click.echo(f"memsim: {outcome.message}", err=True)
    if result.exit_reason is not None and result.exit_reason != "done":
        sys.exit(exit_code(result.exit_reason))


def _check_options_of(schedule: str) -> None:
    """Refuse options that the schedule would ignore."""
    ctx = click.get_current_context()
    given = {name for name in ctx.params if ctx.get_parameter_source(name) is ParameterSource.COMMANDLINE}
    hybrid = schedule in METHODS and METHODS[schedule].hybrid
    if not hybrid and (name := next(iter(given & {"zo_lr", "zo_hybrid_k"}), "")):
        option = {"zo_lr": "--zo-lr", "zo_hybrid_k": "--hybrid-k"}[name]
        raise UsageError(f"{option} is for the schedule hybrid, not {schedule}")
    if schedule in METHODS and not hybrid and "optimizer" in given:
        raise UsageError(f"--optimizer: {schedule} updates by {METHODS[schedule].optimizer}, as its definition says")
    ignored = sorted(name for name in given if name.startswith("zo_"))
    if schedule != "lcsb" and "lcsb_groups" in given:
        raise UsageError(f"--lcsb-groups is for the schedule lcsb, not {schedule}")
    if schedule not in METHODS and ignored:
        option = f"--{ignored[0].replace('_', '-')}"
        raise UsageError(f"{option} is for zeroth-order schedules ({', '.join(METHODS)}), not {schedule}")


def _summary(result: Result, decimal: bool) -> str:
    """Return the result for people."""

    def size(n_bytes: int | None) -> str:
        return "unknown" if n_bytes is None else format_bytes(n_bytes, decimal)

    rows = [
        ("model", f"{result.model}, {result.schedule}, seq {result.seq_len}, LoRA rank {result.lora_rank}"),
        ("verdict", f"{result.exit_reason} under {size(result.budget_bytes)} ({result.enforcement})"),
        ("peak footprint", f"{size(result.peak_footprint_bytes)} (planned {size(result.planned_footprint_bytes)})"),
        ("  baseline", f"{size(result.baseline_footprint_bytes)} interpreter, libraries, kernels"),
        ("  working set", size(result.peak_working_set_bytes)),
        ("file floor", f"{size(result.file_floor_bytes)} of file pages beside it"),
    ]
    if result.step_s is not None:
        rows.append(("step", f"{result.step_s:.2f} s (median of {len(result.steps)})"))
    losses = [step.loss for step in result.steps if step.loss is not None]
    if losses:
        rows.append(("loss", f"{losses[0]:.4f} -> {losses[-1]:.4f}"))
    rows += [
        (f"eval at {e.step}", f"loss {e.loss:.4f}, accuracy {e.accuracy:.1%}")
        for e in result.evals
        if e.loss is not None and e.accuracy is not None
    ]
    if result.weights == "synthetic":
        rows.append(("weights", SYNTHETIC))
    return "\n".join(f"{name:<16}{text}" for name, text in rows)
