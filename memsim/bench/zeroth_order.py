"""``bench zo``: what sharing one stream of the weights saves a zeroth-order step, beside MeZO as people run it.

Five runs of ours take turns with the peers: ``mezo`` and ``mezo-naive`` with the weights in the page cache, both with
every part dropped from it at each eviction, so that each forward reads the disk, and ``tiled``, for its footprint.
"""

import resource
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from memsim.bench.runs import timed_run
from memsim.bench.step import PeerStep, peer_steps, peers
from memsim.bench.timing import Timing, summarise
from memsim.calibration.measure_steps import throw_away
from memsim.planner.run_plan import TrainingSetup, plan_run
from memsim.progress_types import StageProgress
from memsim.results import Band, Result
from memsim.runtime.config import RunConfig, scheme_of
from memsim.runtime.prepare import prepare_kernels
from memsim.simulator.device import CORNERS, Device
from memsim.simulator.simulate import simulate
from memsim.simulator.trace import trace_program
from memsim.weights.cache import find_model
from memsim.weights.pack import Pack

SHARED, NAIVE, BESIDE = "mezo", "mezo-naive", "tiled"
OURS = ((SHARED, False), (NAIVE, False), (SHARED, True), (NAIVE, True), (BESIDE, False))
"""(schedule, whether its page cache is cold), in the order of a round."""

MOST_ABOVE_TILED_BYTES = 15_000_000
FASTER_THAN_PEER = 2.0
BF16_PEER = "transformers+PEFT MeZO bf16"


@dataclass(frozen=True, slots=True, kw_only=True)
class ZoRun:
    """One schedule with a warm or a cold page cache.

    Attributes:
        run: The record of its last run.
        time: Of its steps in all rounds, without the first of each.
        peak_footprint_bytes: The highest of all rounds.
        disk_bytes: What the kernel read from disk for a step of the last round, by its own count of the whole run, less
            one reading of the pack, which is checked before the first step. Adapters are in it, and what is read ahead.
    """

    run: Result
    time: Timing
    peak_footprint_bytes: int
    disk_bytes: int

    @property
    def paged_in_bytes(self) -> int:
        """Weight bytes that a step asks for."""
        return self.run.steps[-1].bytes_paged_in or 0

    @property
    def unpacked_bytes(self) -> int:
        """Packed bytes that a step turns into floats."""
        return self.run.steps[-1].bytes_unpacked or 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One figure and what it should be.

    Attributes:
        unit: ``share``, ``times`` or ``bytes``.
        band: With the device's numbers at their worst and best, for what is simulated.
        at_most: What it should not exceed; None for none.
        at_least: What it should reach; None for none.
    """

    name: str
    value: float
    unit: str = "share"
    band: Band | None = None
    at_most: float | None = None
    at_least: float | None = None

    @property
    def holds(self) -> bool | None:
        """Whether it is as it should be; None where nothing is asked."""
        if self.at_most is None and self.at_least is None:
            return None
        return (self.at_most is None or self.value <= self.at_most) and (
            self.at_least is None or self.value >= self.at_least
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ZoReport:
    """Everything that ``bench zo`` found; peers are there if torch is."""

    runs: tuple[ZoRun, ...]
    peers: tuple[PeerStep, ...]
    device: str
    findings: tuple[Finding, ...]


def bench_zo(config: RunConfig, rounds: int, device: Device, progress: StageProgress) -> ZoReport:
    """Run ``rounds`` times: each of ``OURS`` for ``config.steps`` steps and one more, and one turn of each peer.

    Raises:
        MemsimError: A run was refused or ended early, or a process ended.
    """
    pack, _ = find_model(config.model, lambda *_: None)
    prepare_kernels(config.threads, progress)
    gathered = {contestant: _Gathered() for contestant in OURS}
    theirs: dict[str, list[float]] = {}
    config = replace(config, schedule=SHARED)
    with throw_away() as directory, peers(config, pack.config.to_dict(), progress) as others:
        for turn in range(rounds):
            for number, contestant in enumerate(OURS):
                progress(f"round {turn + 1}/{rounds}: {_name(*contestant)}")
                gathered[contestant].run(config, contestant, directory / f"{turn}-{number}", progress)
            for name, peer in others.items():
                progress(f"round {turn + 1}/{rounds}: {name}")
                theirs.setdefault(name, []).extend(peer.time(config.steps, 0 if turn else 1)["step"])
        memory = {name: peer.peak_rss_bytes for name, peer in others.items()}
    runs = {contestant: made.finished(pack.n_bytes) for contestant, made in gathered.items()}
    beside = peer_steps(theirs, memory, runs[SHARED, False].time.median_s)
    findings = (*_findings(runs), _on_device(config, pack, device), *_against_peers(beside))
    return ZoReport(runs=tuple(runs.values()), peers=beside, device=device.title, findings=findings)


class _Gathered:
    """The runs of one contestant so far."""

    def __init__(self) -> None:
        self._seconds: list[float] = []
        self._peaks: list[int] = []
        self._last: Result | None = None
        self._read_bytes = 0

    def run(self, config: RunConfig, contestant: tuple[str, bool], out: Path, progress: StageProgress) -> None:
        schedule, cold = contestant
        before = _disk_blocks()
        own = replace(config, schedule=schedule, cold=cold, steps=config.steps + 1, out=out)
        self._last = timed_run(own, progress).result
        self._read_bytes = 512 * (_disk_blocks() - before)
        self._seconds += [step.step_s for step in self._last.steps[1:] if step.step_s is not None]
        self._peaks.append(self._last.peak_footprint_bytes or 0)

    def finished(self, pack_bytes: int) -> ZoRun:
        assert self._last is not None
        return ZoRun(
            run=self._last,
            time=summarise(self._seconds),
            peak_footprint_bytes=max(self._peaks),
            disk_bytes=max(self._read_bytes - pack_bytes, 0) // len(self._last.steps),
        )


def _disk_blocks() -> int:
    """Return the blocks of 512 bytes that processes which have ended read from disks for this one."""
    return resource.getrusage(resource.RUSAGE_CHILDREN).ru_inblock


def _name(schedule: str, cold: bool) -> str:
    return f"memsim {schedule}{', cold page cache' if cold else ''}"


def _findings(runs: Mapping[tuple[str, bool], ZoRun]) -> tuple[Finding, ...]:
    """Return what our own runs show of each other."""
    shared, naive, beside = runs[SHARED, False], runs[NAIVE, False], runs[BESIDE, False]
    cold, cold_naive = runs[SHARED, True], runs[NAIVE, True]
    above_bytes = shared.peak_footprint_bytes - beside.peak_footprint_bytes
    ratios = {
        "weights paged in": (shared.paged_in_bytes, naive.paged_in_bytes, 0.5),
        "weights unpacked": (shared.unpacked_bytes, naive.unpacked_bytes, 0.5),
        "seconds": (shared.time.median_s, naive.time.median_s, 1.0),
        "seconds, cold": (cold.time.median_s, cold_naive.time.median_s, 1.0),
        "read from disk, cold": (cold.disk_bytes, cold_naive.disk_bytes, None),
    }
    return (
        *(
            Finding(name=f"{name}, of mezo-naive's", value=ours / theirs if theirs else 0.0, at_most=bound)
            for name, (ours, theirs, bound) in ratios.items()
        ),
        Finding(name="footprint above tiled's", value=above_bytes, unit="bytes", at_most=MOST_ABOVE_TILED_BYTES),
    )


def _on_device(config: RunConfig, pack: Pack, device: Device) -> Finding:
    """Return the ratio of cold steps on a device: the evicted parts leave its page cache, too."""
    seconds = []
    for schedule in (SHARED, NAIVE):
        setup = TrainingSetup(
            config=pack.config,
            packing=pack.formats,
            scheme=scheme_of(config),
            schedule=schedule,
            n_tokens=config.seq_len,
            optimizer=config.optimizer,
            threads=max(1, int(device.at("nominal").threads)),
        )
        plan = plan_run(setup, "")
        simulation = simulate(trace_program(plan.train.program, plan.memory), device, n_steps=1, dropping=True)
        seconds.append({corner: simulation.corners[corner].cold.split.total_s for corner in CORNERS})
    ratios = {corner: seconds[0][corner] / seconds[1][corner] for corner in CORNERS}
    band = Band(min(ratios.values()), ratios["nominal"], max(ratios.values()))
    return Finding(name="seconds, cold, of mezo-naive's, simulated", value=band.nominal, band=band)


def _against_peers(beside: tuple[PeerStep, ...]) -> tuple[Finding, ...]:
    asked = {BF16_PEER: FASTER_THAN_PEER}
    return tuple(
        Finding(name=f"faster than {peer.name}", value=peer.speedup, unit="times", at_least=asked.get(peer.name))
        for peer in beside
    )
