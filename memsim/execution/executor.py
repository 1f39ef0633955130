"""The executor: one loop over the nodes of a step program, on real arrays."""

import mmap
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import numpy as np

from memsim.execution.kernel_call import Kernel
from memsim.execution.kernels import KERNELS
from memsim.execution.storage.arrays import ArenaStorage
from memsim.execution.storage.mapped_weights import Array, MappedWeights
from memsim.execution.storage.scratch import ScratchFile
from memsim.ir.program import Node, Program, Space
from memsim.planner.staging import READ_AHEAD, scratch_reads

Observer = Callable[[int, float, float], None]
"""Called after each node with (node index, start, seconds)."""

NodeFrame = Callable[[Callable[[Node], None], Node], None]
"""Called with what executes a node, and the node: executes it in a Python frame of its own."""

Ahead = tuple[tuple[str, bool], ...]
"""Scratch sources to read soon, and whether a node will change them in place."""


class Host(Protocol):
    """Where batches come from and losses go to."""

    def next_batch(self, ids: Array, labels: Array, n_valid: Array | None = None) -> None:
        """Fill ids and labels (uint32 [T]) with the next micro-batch, and n_valid [1] with its length if asked for."""

    def emit_loss(self, stats: Array) -> None:
        """Take stats, f64 [3]: sum of losses, number correct, number of labels."""

    def emit_estimate(self, rho: Array) -> None:
        """Take the projected gradients of a step, f64 [n]."""


class Executor:
    """Runs one step program, again and again.

    Args:
        program: Verified.
        arena: Arrays of its ARENA values.
        pinned: Arrays of its PINNED values, by source.
        weights: Its MAPPED values.
        scratch: Its SCRATCH values.
        host: Source of batches, sink of losses.
        kernels: What executes each op; see ``kernels.load_kernels``.
        frames: For each node what executes it in its own frame; None for none, as in every run that is not recorded.
    """

    def __init__(
        self,
        program: Program,
        arena: ArenaStorage,
        pinned: Mapping[str, Array],
        weights: MappedWeights,
        scratch: ScratchFile,
        host: Host,
        kernels: Mapping[str, Kernel] = KERNELS,
        frames: Sequence[NodeFrame] | None = None,
    ) -> None:
        self._program = program
        self._arena = arena
        self._pinned = pinned
        self._weights = weights
        self._scratch = scratch
        self._host = host
        self._kernels = kernels
        self._frames = frames
        self._roots = {name: program.root(name) for name in program.values}
        self._ahead = [_reads_ahead(program, turn) for turn in range(program.turns)]

    def run(self, observe: Observer | None = None, step: int = 0) -> None:
        """Execute every node whose turn it is at ``step`` once, the repeated section as often as it says."""
        at_start, after = self._ahead[step % len(self._ahead)]
        self._look_ahead(at_start)
        done = -1
        for index in self._program.order(step):
            for skipped in range(done + 1, index):
                self._arena.release(skipped)
            done = index
            node = self._program.nodes[index]
            start = time.perf_counter()
            if self._frames is None:
                self._execute(node)
            else:
                self._frames[index](self._execute, node)
            if index in after:
                self._look_ahead(after[index])
            if observe is not None:
                observe(index, start, time.perf_counter() - start)
            self._arena.release(index)

    def array(self, name: str) -> Array:
        """Return the array of a value."""
        root = self._roots[name]
        value = self._program.values[root]
        if value.space is Space.ARENA:
            return self._arena.array(root)
        if value.space is Space.PINNED:
            return self._pinned[value.source]
        if value.space is Space.MAPPED:
            return self._weights.array(value.source)
        return self._scratch.array(value.source, value.type.dtype, value.type.shape)

    def _arrays(self, names: Sequence[str]) -> list[Array]:
        """Return what `array` would. Without a call for most: a step asks for ten thousand, and a tracer sees each."""
        held, roots = self._arena.held, self._roots
        return [held[root] if (root := roots[name]) in held else self.array(name) for name in names]

    def _look_ahead(self, sources: Ahead) -> None:
        for source, in_place in sources:
            (self._scratch.open_window if in_place else self._scratch.read_ahead)(source)

    def _execute(self, node: Node) -> None:
        kernel = self._kernels.get(node.op)
        if kernel is None:
            _STORAGE_OPS[node.op](self, node)
            return
        kernel(self._arrays(node.outputs), self._arrays(node.inputs), node.attrs)
        for name in node.outputs:
            value = self._program.values[name]
            if value.space is Space.SCRATCH:
                self._scratch.write_back(value.source)

    def _page_in(self, node: Node) -> None:
        everything = node.attrs["reads_bytes"] == sum(self._program.values[name].n_bytes for name in node.outputs)
        self._weights.page_in(str(node.attrs["part"]), everything)

    def _prefetch(self, node: Node) -> None:
        self._weights.prefetch(str(node.attrs["part"]), int(node.attrs["together_bytes"]))

    def _evict(self, node: Node) -> None:
        values = (self._program.values[name] for name in node.inputs)
        for part in sorted({value.source.split("/", 1)[0] for value in values if value.space is Space.MAPPED}):
            self._weights.evict(part)

    def _spill(self, node: Node) -> None:
        self._scratch.write(self._program.values[node.outputs[0]].source, [self.array(node.inputs[0])])

    def _load(self, node: Node) -> None:
        """Fill tensors, one after the other, from one value on the scratch file."""
        source = self._program.values[node.inputs[0]].source
        self._scratch.read(source, [self.array(name) for name in node.outputs])

    def _load_rows(self, node: Node) -> None:
        """Fill the rows of a matrix that are asked for, one by one, from its tiles on the scratch file."""
        (rows,) = (self.array(name) for name in node.outputs)
        sources = [self._program.values[name].source for name in node.inputs[1:]]
        tile_rows = int(node.attrs["tile_rows"])
        for row, index in zip(rows, self.array(node.inputs[0]).tolist(), strict=True):
            self._scratch.read_piece(sources[index // tile_rows], index % tile_rows * row.nbytes, row)

    def _store(self, node: Node) -> None:
        """Write tensors, one after the other, to one value on the scratch file."""
        source = self._program.values[node.outputs[0]].source
        self._scratch.write(source, [self.array(name) for name in node.inputs[1:]])

    def _zero(self, node: Node) -> None:
        self.array(node.outputs[0]).fill(0)

    def _next_batch(self, node: Node) -> None:
        self._host.next_batch(*(self.array(name) for name in node.outputs))

    def _emit_loss(self, node: Node) -> None:
        """Emit the loss of the lane that is not perturbed, or of all lanes together."""
        lanes, base = self.array(node.inputs[0]).reshape(-1, 3), int(node.attrs.get("base", -1))
        self._host.emit_loss(lanes.sum(axis=0) if base < 0 else lanes[base])

    def _emit_estimate(self, node: Node) -> None:
        self._host.emit_estimate(np.concatenate([self.array(name) for name in node.inputs]))

    def _balloon(self, node: Node) -> None:
        """Touch memory that no plan knows of, so that tests can break the cap."""
        rogue = mmap.mmap(-1, int(node.attrs["n_bytes"]), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        for offset in range(0, len(rogue), mmap.PAGESIZE):
            rogue[offset] = 1
        rogue.close()


_STORAGE_OPS: dict[str, Callable[[Executor, Node], None]] = {
    "page_in": Executor._page_in,
    "prefetch": Executor._prefetch,
    "evict": Executor._evict,
    "spill": Executor._spill,
    "restore": Executor._load,
    "load": Executor._load,
    "load_rows": Executor._load_rows,
    "store": Executor._store,
    "zero": Executor._zero,
    "next_batch": Executor._next_batch,
    "emit_loss": Executor._emit_loss,
    "emit_estimate": Executor._emit_estimate,
    "balloon": Executor._balloon,
}


def _reads_ahead(program: Program, turn: int) -> tuple[Ahead, dict[int, Ahead]]:
    """Return what to read ahead when a step of this turn starts and after which nodes.

    Of what is changed in place the next, since there is one window; of what is copied the ``READ_AHEAD`` next.
    """
    executed = set(program.order(turn))
    at_start: list[tuple[str, bool]] = []
    after: dict[int, Ahead] = {}
    for in_place, ahead in ((True, 1), (False, READ_AHEAD)):
        reads = [read for read in scratch_reads(program, in_place) if read[0] in executed]
        sources = [(program.values[name].source, in_place) for _, name in reads]
        at_start += sources[:ahead]
        after |= {index: (source,) for (index, _), source in zip(reads, sources[ahead:], strict=False)}
    return tuple(at_start), after
