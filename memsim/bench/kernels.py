"""``bench kernels``: single kernels against the measured roofs of this machine, torch and NumPy, in turns.

Over 250 lines: what is timed and what is said of it.
"""

import importlib.util
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from statistics import median

from memsim.bench.cases import HEAD, PRODUCTS, KernelCase, head_case, other_cases, product_cases
from memsim.bench.contestant import Contestant
from memsim.bench.timing import Timing, summarise
from memsim.errors import UsageError
from memsim.execution.compile_cache import kernel_environment
from memsim.models.presets import preset
from memsim.progress_types import StageProgress
from memsim.runtime.prepare import prepare_kernels

Seconds = dict[str, list[float]]

KERNELS, TORCH, NUMPY = "memsim", "torch", "numpy"


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelsConfig:
    """What ``bench kernels`` was asked for.

    Attributes:
        models: Presets whose shapes are timed.
        rows: Tokens: M of the products.
        computes: Compute paths; empty for all that this processor has.
        rounds: Turns of each contestant at each row.
        repeats: Timed calls a turn.
        quick: Only the products.
        threads: Of every contestant.
    """

    models: tuple[str, ...]
    rows: int = 256
    computes: tuple[str, ...] = ()
    rounds: int = 5
    repeats: int = 3
    quick: bool = False
    threads: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One kernel at one shape.

    Attributes:
        compute: Compute path, which decides what roof ``share_of_roof`` means first.
        gflop_per_s: By the median time; None for what has no products.
        gb_per_s: Operands once, by the median time; None where products bound it.
        share_of_roof: By roof (``f32``, ``avx512_bf16``, ``amx``), measured in the same rounds.
        unpack_share: 1 - time without unpacking / whole time; None for what does not unpack.
        unpack_alone_share: Time of the unpacking alone / whole time, which need not be the same: part of it hides
            behind products.
        speedup: Over each peer (``torch``, ``numpy``) on the same work: its median time / ours.
    """

    op: str
    label: str
    model: str
    compute: str
    shape: str
    flops: int
    time: Timing
    gflop_per_s: float | None
    gb_per_s: float | None
    share_of_roof: Mapping[str, float] = field(default_factory=dict)
    unpack_share: float | None = None
    unpack_alone_share: float | None = None
    speedup: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Total:
    """Rows of one op and compute path, weighted by their operations: all FLOPs over all seconds."""

    op: str
    compute: str
    models: tuple[str, ...]
    gflop_per_s: float
    share_of_roof: Mapping[str, float]
    unpack_share: float | None
    speedup: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class KernelsReport:
    """Rows, totals of the products, and what the roofs were: GFLOP/s by engine over all rounds."""

    rows: tuple[Row, ...]
    totals: tuple[Total, ...]
    roofs_gflop_per_s: Mapping[str, float]
    peers: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Measured:
    """Medians of one case: seconds of its calls by contestant, and GFLOP/s of the roofs in the same rounds."""

    case: KernelCase
    ours: Mapping[str, float]
    time: Timing
    peers: Mapping[str, float]
    roofs: Mapping[str, float]


def torch_is_here() -> bool:
    """Return whether the extra ``torch`` is installed; does not import it."""
    return importlib.util.find_spec("torch") is not None


def peer_environment() -> dict[str, str]:
    """Return the environment of a process that runs other people's kernels: theirs to choose, but for threads."""
    return {key: value for key, value in os.environ.items() if key not in ("GOMP_SPINCOUNT", "OPENBLAS_NUM_THREADS")}


def bench_kernels(config: KernelsConfig, progress: StageProgress) -> KernelsReport:
    """Verify and time every row.

    Raises:
        UsageError: A compute path that this processor lacks.
        InputError: An unknown model.
        WorkerError: A kernel is wrong, or a process ended.
    """
    available = tuple(prepare_kernels(config.threads, progress).footprint_bytes)
    if missing := set(config.computes) - set(available):
        raise UsageError(f"--compute {missing.pop()} needs a processor with avx512_bf16; use --compute f32")
    cases = list(_cases(config, config.computes or available))
    threads = str(config.threads)
    with ExitStack() as stack:
        ours, roofs = (
            stack.enter_context(Contestant("memsim.bench.kernel_calls", [threads], kernel_environment()))
            for _ in range(2)
        )
        names = [*([TORCH] if torch_is_here() else []), NUMPY]
        environment = peer_environment() | {"OPENBLAS_NUM_THREADS": threads}
        peers = {
            name: stack.enter_context(Contestant("memsim.bench.peer_calls", [threads, name], environment))
            for name in names
        }
        roof_flops = roofs.prepare({"op": "roofs"})
        measured = []
        for index, case in enumerate(cases, start=1):
            progress(f"{index}/{len(cases)} {case.model} {case.label}: {case.op} {case.compute} {case.shape}")
            measured.append(_measure(case, ours, peers, roofs, roof_flops, config))
    rows = [_row(one) for one in measured]
    best = {name: median([one.roofs[name] for one in measured]) for name in roof_flops}
    return KernelsReport(tuple(rows), tuple(_totals(measured)), best, tuple(names))


def _cases(config: KernelsConfig, computes: Sequence[str]) -> Iterator[KernelCase]:
    for compute in computes:
        for model in config.models:
            yield from product_cases(model, preset(model), config.rows, compute)
    if config.quick:
        return
    for compute in computes:
        for model in config.models:
            yield head_case(model, preset(model), config.rows, compute, config.threads)
    for model in config.models:
        yield from other_cases(model, preset(model), config.rows)


def _peer_case(case: KernelCase) -> dict[str, object]:
    n, k = case.attrs["n_rows"], case.attrs["n_columns"]
    rows, backward = case.inputs[0].shape[0], case.op == PRODUCTS[1]
    return {"rows": rows, "n": n, "k": k, "compute": case.compute, "backward": backward}


def _measure(
    case: KernelCase, ours: Contestant, peers: Mapping[str, Contestant], roofs: Contestant,
    roof_flops: Mapping[str, int], config: KernelsConfig,
) -> _Measured:  # fmt: skip
    contestants = {KERNELS: ours, "roofs": roofs}
    ours.prepare(case.to_dict())
    for name, peer in peers.items():
        if case.op in PRODUCTS and (case.compute == "f32" or name == TORCH):
            peer.prepare(_peer_case(case))
            contestants[name] = peer
    seconds: dict[str, Seconds] = {name: {} for name in contestants}
    for _ in range(config.rounds):
        for name, contestant in contestants.items():
            for call, times in contestant.time(config.repeats).items():
                seconds[name].setdefault(call, []).extend(times)
    return _Measured(
        case,
        {call: median(times) for call, times in seconds[KERNELS].items()},
        summarise(seconds[KERNELS]["whole"]),
        {name: median(seconds[name]["whole"]) for name in contestants if name in peers},
        {engine: flops / median(seconds["roofs"][engine]) / 1e9 for engine, flops in roof_flops.items()},
    )


def _row(one: _Measured) -> Row:
    case, work, whole = one.case, one.case.work(), one.ours["whole"]
    rate = work.flops / whole / 1e9 if work.flops else None
    bound_by_bytes = work.flops < 16 * work.moved_bytes  # what no cache of this size feeds at the roof
    return Row(
        op=case.op,
        label=case.label,
        model=case.model,
        compute=case.compute,
        shape=case.shape,
        flops=work.flops,
        time=one.time,
        gflop_per_s=rate,
        gb_per_s=work.moved_bytes / whole / 1e9 if bound_by_bytes else None,
        share_of_roof=_shares(rate, case.compute, one.roofs),
        unpack_share=_less(one, "without_unpacking"),
        unpack_alone_share=one.ours["unpacking"] / whole if "unpacking" in one.ours else None,
        speedup={name: seconds / whole for name, seconds in one.peers.items()},
    )


def _less(one: _Measured, call: str) -> float | None:
    return 1 - one.ours[call] / one.ours["whole"] if call in one.ours else None


def _shares(rate: float | None, compute: str, roofs: Mapping[str, float]) -> dict[str, float]:
    """Return the share of every roof of a compute path: f32 has one, bf16 may have two."""
    if rate is None:
        return {}
    return {name: rate / roof for name, roof in roofs.items() if (name == "f32") == (compute == "f32")}


def _totals(measured: Sequence[_Measured]) -> Iterator[Total]:
    """Yield the sums over the products, forward and backward apart and together, and over the heads."""
    computes = dict.fromkeys(one.case.compute for one in measured)
    for compute in computes:
        for ops in ((PRODUCTS[0],), (PRODUCTS[1],), PRODUCTS, (HEAD,)):
            chosen = [one for one in measured if one.case.compute == compute and one.case.op in ops]
            if chosen:
                yield _total(" + ".join(ops), compute, chosen)


def _total(name: str, compute: str, chosen: Sequence[_Measured]) -> Total:
    flops, seconds = sum(one.case.work().flops for one in chosen), sum(one.ours["whole"] for one in chosen)
    at_roof = {
        engine: sum(one.case.work().flops / one.roofs[engine] for one in chosen) / 1e9
        for engine in _shares(1.0, compute, chosen[0].roofs)
    }
    ablated = sum(one.ours.get("without_unpacking", one.ours["whole"]) for one in chosen)
    return Total(
        op=name,
        compute=compute,
        models=tuple(dict.fromkeys(one.case.model for one in chosen)),
        gflop_per_s=flops / seconds / 1e9,
        share_of_roof={engine: fastest / seconds for engine, fastest in at_roof.items()},
        unpack_share=1 - ablated / seconds if "without_unpacking" in chosen[0].ours else None,
        speedup={peer: sum(one.peers[peer] for one in chosen) / seconds for peer in chosen[0].peers},
    )
