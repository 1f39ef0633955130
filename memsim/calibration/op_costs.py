"""What each op costs on this machine, fitted to runs: a line through its work, for every op a line of its own.

A roofline has one rate for a kind of work. On one machine ops of a kind differ by more than that: a product with 128
rows waits for its threads, a skinny one for memory. So each op gets seconds a launch, a FLOP, an unpacked weight, a
byte of memory and a byte of file, none negative, which fit best what its nodes took, relative to what they took. The
same constants serve every model, schedule and length; what a model has of its own enters through its nodes' work.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, combinations

import numpy as np
from numpy.typing import NDArray

from memsim.errors import InputError
from memsim.ir.work import Kind
from memsim.planner.work import Work
from memsim.simulator.trace import StepTrace, TraceNode

Features = tuple[float, ...]
"""Of a node: 1, FLOPs, unpacked weights, bytes of memory, bytes of files."""

LAUNCH, FLOPS, WEIGHTS, BYTES, FILE_BYTES = range(5)
"""Where in ``Features`` each of them is."""

_SHORTEST_S = 2e-5
"""Shorter nodes count as if they took so long: a clock's jitter is no error worth a fit."""


@dataclass(frozen=True, slots=True)
class NodeSample:
    """Nodes of the same op and the same work in a run.

    Attributes:
        compute: The run's compute path; products with packed weights have another kernel in each.
        seconds: What one of them took, typically.
        count: How many a step has.
    """

    op: str
    kind: Kind
    compute: str
    features: Features
    seconds: float
    count: int


def features(node: TraceNode) -> Features:
    """Return what a node's seconds are linear in."""
    work: Work = node.work
    asked_bytes = sum(read.n_bytes for read in (node.page_in, node.prefetch) if read is not None)
    file_bytes = node.written_bytes + node.restored_bytes + node.evicted_bytes + asked_bytes
    return (1.0, float(work.flops), float(work.unpacked_weights), float(work.moved_bytes), float(file_bytes))


@dataclass(frozen=True, slots=True)
class OpCosts:
    """The fitted costs of one machine.

    Attributes:
        by_op: Seconds of each feature, by compute path and op.
        by_kind: The same of all ops of a kind, for those that no run had.
        between_s: Seconds between two nodes.
    """

    by_op: Mapping[tuple[str, str], Features]
    by_kind: Mapping[Kind, Features]
    between_s: float

    def node_s(self, node: TraceNode, compute: str) -> float:
        """Return the seconds of a node.

        Raises:
            InputError: No run that was fitted had an op of its kind.
        """
        found = self.by_op.get((compute, node.op)) or next(
            (costs for (_, op), costs in self.by_op.items() if op == node.op), self.by_kind.get(node.kind)
        )
        if found is None:
            raise InputError(f"nothing is known of {node.op}: no calibration run had an op of its kind, {node.kind}")
        return float(np.dot(found, features(node)))

    def step_s(self, trace: StepTrace, compute: str) -> float:
        """Return the seconds of a warm step."""
        return sum(self.node_s(node, compute) + self.between_s for node in trace.nodes)


def fit_costs(samples: Sequence[NodeSample], between_s: float) -> OpCosts:
    """Return the costs that fit ``samples`` best."""
    ops: dict[tuple[str, str], list[NodeSample]] = {}
    kinds: dict[Kind, list[NodeSample]] = {}
    for sample in samples:
        ops.setdefault((sample.compute, sample.op), []).append(sample)
        kinds.setdefault(sample.kind, []).append(sample)
    return OpCosts(
        {key: fit_line(found) for key, found in ops.items()},
        {kind: fit_line(found) for kind, found in kinds.items()},
        between_s,
    )


def fit_line(samples: Sequence[NodeSample], among: Sequence[int] = range(FILE_BYTES + 1)) -> Features:
    """Return the non-negative least squares of relative errors, each sample weighed by what its nodes took in all.

    Of so few features every subset is tried: the best one whose coefficients are all positive is the solution
    (Lawson and Hanson, "Solving Least Squares Problems", 1974, chapter 23).

    Args:
        samples: At least one.
        among: The features that may cost something; the others cost 0.
    """
    rows = np.array([sample.features for sample in samples])
    seconds = np.array([max(sample.seconds, _SHORTEST_S) for sample in samples])
    weights = np.sqrt(seconds * [sample.count for sample in samples]) / seconds
    scale = rows.max(axis=0)
    scale[scale == 0] = 1.0
    matrix, target = rows / scale * weights[:, None], seconds * weights
    present = [index for index in among if rows[:, index].any()]
    best, least = np.zeros(FILE_BYTES + 1), float("inf")
    for chosen in _subsets(present):
        solution, error = _solve(matrix, target, list(chosen))
        if error < least * (1 - 1e-9):
            best, least = solution, error
    return tuple((best / scale).tolist())


def _subsets(items: Sequence[int]) -> Iterable[tuple[int, ...]]:
    """Yield the non-empty subsets, small ones first: of two that fit alike the simpler one is kept."""
    return chain.from_iterable(combinations(items, size) for size in range(1, len(items) + 1))


def _solve(
    matrix: NDArray[np.float64], target: NDArray[np.float64], chosen: list[int]
) -> tuple[NDArray[np.float64], float]:
    """Return the least squares with only the ``chosen`` columns, and its error: infinite if one is negative."""
    found, *_ = np.linalg.lstsq(matrix[:, chosen], target, rcond=None)
    solution = np.zeros(matrix.shape[1])
    solution[chosen] = found
    if (found < 0).any():
        return solution, float("inf")
    return solution, float(np.square(matrix @ solution - target).sum())
