"""``profile decompression``, measured: what unpacking takes of real capped steps.

Where a schedule has nodes that only unpack (``unpack_q4``), their time is in the run's own events. Where products
unpack inside, each shape is timed whole and with its unpacking left out, in turns, in a process of its own; the
difference is the share of such a node's time in the run.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from statistics import median

from memsim.bench.cases import HEAD, PRODUCTS, KernelCase
from memsim.bench.contestant import Contestant
from memsim.bench.runs import timed_run
from memsim.calibration.measure_steps import throw_away
from memsim.errors import UsageError
from memsim.execution.compile_cache import kernel_environment
from memsim.file_names import EVENTS_FILE, PROGRAM_FILE
from memsim.ir.matrix_format import ROWS_PER_PANEL
from memsim.ir.op import Effect
from memsim.ir.ops import effect_of
from memsim.ir.ops.loss import HEAD_ROWS
from memsim.ir.program import Node, Program, TensorType
from memsim.ir.serialize import load_program
from memsim.planner.work import node_work
from memsim.progress_types import StageProgress
from memsim.results import Band
from memsim.run_directory.events import read_events
from memsim.runtime.config import RunConfig
from memsim.runtime.prepare import prepare_kernels
from memsim.simulator.unpack_share import HERE, PARTS, UnpackShare, Way, shares

_REPEATS = 7
_MOST_MATRIX_ROWS = 16_384
"""Taller matrices are timed as if they had so many rows: unpacking and products both cost the same again for each."""


@dataclass(frozen=True, slots=True)
class _Shape:
    """A product that unpacks inside, as far as it decides what that costs."""

    op: str
    n_tokens: int
    n_rows: int
    n_columns: int
    packed: tuple[TensorType, TensorType]
    group_size: int


@dataclass(frozen=True, slots=True)
class _Ablation:
    """What was timed of a shape.

    Attributes:
        share: 1 - seconds without unpacking / seconds.
        weight_s: Seconds of unpacking a weight: what leaving it out saves.
    """

    share: float
    weight_s: float


class _Ablations:
    """What unpacking costs in every shape that was met so far: a shape is timed once."""

    def __init__(self, kernels: Contestant) -> None:
        self._kernels = kernels
        self._known: dict[tuple[str, _Shape], _Ablation] = {}

    def of(self, shape: _Shape, compute: str) -> _Ablation:
        if (compute, shape) not in self._known:
            self._known[compute, shape] = _ablate(self._kernels, shape, compute)
        return self._known[compute, shape]


def measured_shares(
    config: RunConfig, lengths: Sequence[int], ways: Mapping[Way, str], progress: StageProgress
) -> Iterator[UnpackShare]:
    """Run every schedule at every length and yield the share of unpacking.

    Args:
        config: Of every run but for length and schedule; its first step is not counted, ``steps`` are.
        lengths: Tokens in a sequence.
        ways: The schedule of each way to unpack; ``naive`` runs in f32, what it unpacks to.
        progress: Told what is being done.

    Raises:
        MemsimError: A run was refused or ended early, a kernel is wrong, or a schedule does not unpack that way.
    """
    prepare_kernels(config.threads, progress)
    with throw_away() as directory, ExitStack() as stack:
        arguments = [str(config.threads)]
        kernels = stack.enter_context(Contestant("memsim.bench.kernel_calls", arguments, kernel_environment()))
        ablations = _Ablations(kernels)
        for seq_len in lengths:
            for way, schedule in ways.items():
                progress(f"measuring {schedule}, seq {seq_len}")
                compute = config.compute if way == "fused" else "f32"
                chosen = replace(config, schedule=schedule, seq_len=seq_len, compute=compute)
                yield _measure(replace(chosen, out=directory / f"{schedule}-{seq_len}"), way, ablations)


def _measure(config: RunConfig, way: Way, ablations: _Ablations) -> UnpackShare:
    assert config.out is not None
    result = timed_run(replace(config, steps=config.steps + 1), lambda _: None).result
    compute = result.compute or config.compute
    program = load_program(config.out / PROGRAM_FILE).program
    _check_way(way, config.schedule, program)
    shapes = [_shape(program, node) for node in program.nodes]
    steps: dict[int, list[tuple[str, float, float]]] = {}
    for event in read_events(config.out / EVENTS_FILE):
        shape = shapes[event.node]
        ablation = ablations.of(shape, compute) if shape else None
        unpack_s = _unpack_s(program, program.nodes[event.node], event.seconds, ablation)
        steps.setdefault(event.step, []).append((event.phase, event.seconds, unpack_s))
    timed = [nodes for step, nodes in steps.items() if step]
    each = [shares(nodes) for nodes in timed]
    return UnpackShare(
        seq_len=config.seq_len,
        way=way,
        schedule=config.schedule,
        compute=compute,
        where=HERE,
        share={part: _spread([one[part] for one in each]) for part in PARTS},
        step_s=_spread([sum(seconds for _, seconds, _ in nodes) for nodes in timed]),
    )


def _check_way(way: Way, schedule: str, program: Program) -> None:
    unpacks = any(Effect.UNPACKS in effect_of(node) for node in program.nodes)
    if unpacks == (way == "fused"):
        what = "unpacks a block at a time" if unpacks else "never unpacks a whole block"
        raise UsageError(f"--schedule {schedule} {what}; it cannot stand for the {way} way of unpacking")


def _shape(program: Program, node: Node) -> _Shape | None:
    if node.op not in (*PRODUCTS, HEAD):
        return None
    n_tokens = program.values[node.inputs[0]].type.shape[0]
    rows, group_size = min(int(node.attrs["n_rows"]), _MOST_MATRIX_ROWS), int(node.attrs["group_size"])
    at = 2 if node.op == HEAD else 1  # after x, and the head's labels
    q, scales = (program.values[name].type for name in node.inputs[at : at + 2])
    panels = -(-rows // ROWS_PER_PANEL)
    packed = (
        TensorType((panels, *q.shape[1:]), q.dtype),
        TensorType((scales.shape[0], panels * ROWS_PER_PANEL), scales.dtype),
    )
    # Of a head, one unpacking of a tile serves both of its products: time the first of them.
    op, tokens = (PRODUCTS[0], min(n_tokens, HEAD_ROWS)) if node.op == HEAD else (node.op, n_tokens)
    return _Shape(op, tokens, rows, int(node.attrs["n_columns"]), packed, group_size)


def _ablate(kernels: Contestant, shape: _Shape, compute: str) -> _Ablation:
    width = shape.n_columns if shape.op == PRODUCTS[0] else shape.n_rows
    inputs = (TensorType((shape.n_tokens, width)), *shape.packed)
    attrs = {"n_rows": shape.n_rows, "n_columns": shape.n_columns, "group_size": shape.group_size}
    kernels.prepare(KernelCase(shape.op, "", "", compute, "", inputs, attrs).to_dict())
    seconds = {name: median(times) for name, times in kernels.time(_REPEATS).items()}
    saved_s = max(seconds["whole"] - seconds["without_unpacking"], 0.0)
    return _Ablation(saved_s / seconds["whole"], saved_s / (shape.n_rows * shape.n_columns))


def _unpack_s(program: Program, node: Node, seconds: float, ablation: _Ablation | None) -> float:
    """Return what unpacking took of a node that took ``seconds``."""
    if Effect.UNPACKS in effect_of(node):
        return seconds
    if ablation is None:
        return 0.0
    if node.op == HEAD:
        return min(node_work(program, node).unpacked_weights * ablation.weight_s, seconds)
    return seconds * ablation.share


def _spread(values: list[float]) -> Band:
    return Band(min(values), median(values), max(values))
