"""``bench step``: a whole capped training step against the measured roof and transformers with PEFT, in turns."""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from statistics import median
from typing import Any

from memsim.bench.contestant import Contestant
from memsim.bench.kernels import peer_environment, torch_is_here
from memsim.bench.runs import timed_run
from memsim.bench.timing import Timing, summarise
from memsim.calibration.measure_steps import throw_away
from memsim.execution.compile_cache import kernel_environment
from memsim.progress_types import StageProgress
from memsim.results import Result
from memsim.runtime.config import RunConfig
from memsim.runtime.prepare import prepare_kernels
from memsim.schedules.zeroth_order import METHODS
from memsim.weights.cache import find_model

Ways = Mapping[str, Mapping[str, Any]]

MEZO_PEERS: Ways = {
    "transformers+PEFT MeZO f32": {"dtype": "f32", "checkpointing": False, "mezo": True},
    "transformers+PEFT MeZO bf16": {"dtype": "bf16", "checkpointing": False, "mezo": True},
}
PEERS: Ways = {
    "transformers+PEFT f32, gradient checkpointing": {"dtype": "f32", "checkpointing": True},
    "transformers+PEFT bf16": {"dtype": "bf16", "checkpointing": False},
}


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerStep:
    """What a step by another program took.

    Attributes:
        peak_rss_bytes: Highest resident size of its process, libraries included; weights drawn before do not count.
        speedup: Its median time over ours.
    """

    name: str
    time: Timing
    peak_rss_bytes: int
    speedup: float


@dataclass(frozen=True, slots=True, kw_only=True)
class StepReport:
    """A whole step of ours, and the same of others.

    Attributes:
        run: The record of our last run.
        time: Of our steps in all rounds, without the first of each, which is the first touch of its pages.
        flops: Executed in one step: products of weights, adapters and attention.
        roofs_gflop_per_s: Measured in the same rounds, by engine.
        times_the_roof: Our median time over what these operations take at each roof of our compute path.
    """

    run: Result
    time: Timing
    flops: int
    roofs_gflop_per_s: Mapping[str, float]
    times_the_roof: Mapping[str, float]
    peers: tuple[PeerStep, ...]


def bench_step(config: RunConfig, rounds: int, progress: StageProgress) -> StepReport:
    """Run ``rounds`` times: our run of ``config.steps`` steps and one more, the roofs, one step of each peer.

    Raises:
        MemsimError: A run was refused or ended early, or a process ended.
    """
    threads = config.threads
    pack, _ = find_model(config.model, lambda *_: None)
    prepare_kernels(threads, progress)
    ours: list[float] = []
    theirs: dict[str, list[float]] = {}
    roof_rates: dict[str, list[float]] = {}
    with throw_away() as directory, ExitStack() as stack:
        roofs = stack.enter_context(Contestant("memsim.bench.kernel_calls", [str(threads)], kernel_environment()))
        roof_flops = roofs.prepare({"op": "roofs"})
        beside = stack.enter_context(peers(config, pack.config.to_dict(), progress))
        for turn in range(rounds):
            progress(f"round {turn + 1}/{rounds}: memsim")
            done = timed_run(replace(config, steps=config.steps + 1, out=directory / str(turn)), progress)
            ours += [step.step_s for step in done.result.steps[1:] if step.step_s is not None]
            for name, seconds in roofs.time(5).items():
                roof_rates.setdefault(name, []).append(roof_flops[name] / median(seconds) / 1e9)
            for name, peer in beside.items():
                progress(f"round {turn + 1}/{rounds}: {name}")
                # Its first step ever reserves memory; later rounds go on in the same process.
                theirs.setdefault(name, []).extend(peer.time(config.steps, 0 if turn else 1)["step"])
        memory = {name: peer.peak_rss_bytes for name, peer in beside.items()}
    return _report(done.result, done.flops, ours, theirs, memory, {n: median(r) for n, r in roof_rates.items()})


@contextmanager
def peers(config: RunConfig, model: dict[str, Any], progress: StageProgress) -> Iterator[dict[str, Contestant]]:
    """Yield a process for each peer of ``config``'s schedule, its model built; without torch there are none."""
    if not torch_is_here():
        yield {}
        return
    model = {key: value for key, value in model.items() if key != "attention_bias"}  # Qwen2 has it without asking
    lora = {"rank": config.lora.rank, "alpha": config.lora.alpha, "target_modules": list(config.lora.target_modules)}
    with ExitStack() as stack:
        built = {}
        for name, way in (MEZO_PEERS if config.schedule in METHODS else PEERS).items():
            progress(f"building {name}")
            built[name] = stack.enter_context(
                Contestant("memsim.bench.torch_step", [str(config.threads)], peer_environment())
            )
            built[name].prepare({"config": model, "seq_len": config.seq_len} | lora | dict(way))
        yield built


def _report(
    result: Result, flops: int, ours: list[float], theirs: Mapping[str, list[float]], memory: Mapping[str, int],
    roofs: Mapping[str, float],
) -> StepReport:  # fmt: skip
    time = summarise(ours)
    return StepReport(
        run=result,
        time=time,
        flops=flops,
        roofs_gflop_per_s=roofs,
        times_the_roof={
            name: time.median_s * rate * 1e9 / flops
            for name, rate in roofs.items()
            if (name == "f32") == (result.compute == "f32")
        },
        peers=peer_steps(theirs, memory, time.median_s),
    )


def peer_steps(
    seconds: Mapping[str, list[float]], memory: Mapping[str, int], our_median_s: float
) -> tuple[PeerStep, ...]:
    """Return what the steps of each peer took, and over ours.

    Args:
        seconds: Of all rounds, by peer.
        memory: Highest resident bytes, by peer.
        our_median_s: Of our steps.
    """
    return tuple(
        PeerStep(
            name=name,
            time=summarise(own),
            peak_rss_bytes=memory[name],
            speedup=median(own) / our_median_s,
        )
        for name, own in seconds.items()
    )
