"""Recording a run with memray, so that each allocation in the capture says which node made it, and for which value."""

import ctypes
import mmap
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import FunctionType
from typing import Any

import numpy as np

from memsim.execution.executor import NodeFrame
from memsim.execution.storage.arrays import Buffer
from memsim.execution.storage.mapped_weights import Array
from memsim.ir.program import Node, Program, Space
from memsim.planner.arena import align
from memsim.simulator.recordings.frames import (
    MARK_BYTES,
    NODE_FILE,
    PADDING_BYTES,
    SMALLEST_BLOCK_BYTES,
    VALUE_FILE,
    node_frame,
)

_INTERVAL_MS = 100
"""Between two readings of the resident set by memray's own thread."""

_M_MMAP_THRESHOLD, _M_TRIM_THRESHOLD = -3, -1
_KEEP_BYTES = (1 << 31) - 1


def prepare_heap(mapped_from_bytes: int) -> None:
    """Have the C library keep the heap that it has.

    It would give the end of the heap back when that is free, and fault it in again a node later. It maps what it is
    asked for only where the heap has no room, so that large temporaries would find some among the small values, and
    those would go behind them: a limit that it does not raise itself keeps that rare.

    Args:
        mapped_from_bytes: Blocks of this size and more are mapped where the heap has no room.
    """
    with suppress(AttributeError):  # a C library that cannot be told
        libc = ctypes.CDLL(None)
        libc.mallopt(_M_MMAP_THRESHOLD, mapped_from_bytes)
        libc.mallopt(_M_TRIM_THRESHOLD, _KEEP_BYTES)


class Recorder:
    """memray's tracker, and the frames in which nodes run and values are allocated.

    Args:
        program: The step program of the run.
        capture: The file to write.
        mapped_from_bytes: Values of this size and more are mapped one by one, and gone when they are freed. The C
            library would put them into free room of the heap, and the heap would grow with each step.

    Attributes:
        nodes: A frame for each node.
    """

    def __init__(self, program: Program, capture: Path, mapped_from_bytes: int) -> None:
        # Both are loaded in recorded runs alone: memray brings rich, 4 MB.
        from memray import FileDestination, Tracker

        self.nodes: tuple[NodeFrame, ...] = tuple(
            _named(_run_node, NODE_FILE, node_frame(index, node)) for index, node in enumerate(program.nodes)
        )
        self._capture = capture
        self._mapped_from_bytes = mapped_from_bytes
        self._values: dict[str, FunctionType] = {}
        for name, value in program.values.items():
            if value.space is Space.ARENA and not value.alias_of:
                self._frame(name, align(value.n_bytes))
        # Not compressed: a capture is small, and a killed run leaves what it wrote.
        file = FileDestination(capture, overwrite=True, compress_on_exit=False)
        arguments, sys.argv = sys.argv, ["memsim", "run", "--record"]  # goes into the capture: no paths
        try:
            self._tracker: Any = Tracker(destination=file, memory_interval_ms=_INTERVAL_MS)
        finally:
            sys.argv = arguments
        self._running = False

    def start(self) -> None:
        """Record from now on."""
        self._tracker.__enter__()
        self._running = True

    def stop(self) -> None:
        """Finish the capture; nodes and values keep their frames."""
        if self._running:
            self._running = False
            self._tracker.__exit__(None, None, None)

    def write_back(self) -> None:
        """Have what is recorded so far on disk, after each recorded step: unwritten pages count under the cap.

        The kernel would leave up to half a minute of them there, a megabyte for each step of a large model.

        Raises:
            OSError: They cannot be written.
        """
        with self._capture.open("rb") as file:
            os.fdatasync(file.fileno())

    def allocate(self, name: str, n_bytes: int) -> Buffer:
        """Return memory of exactly ``n_bytes`` for the value ``name``; its content is undefined."""
        block: Buffer = self._frame(name, n_bytes)(n_bytes)
        return block

    def map(self, name: str, n_bytes: int) -> mmap.mmap:
        """Return zeroed whole pages for the value ``name``."""
        self._values[name] = frame = _named(_map, VALUE_FILE, name)  # kept: memray knows code by its address
        pages: mmap.mmap = frame(n_bytes)
        return pages

    def _frame(self, name: str, n_bytes: int) -> FunctionType:
        if name not in self._values:
            in_heap = SMALLEST_BLOCK_BYTES <= n_bytes < self._mapped_from_bytes
            self._values[name] = _named(_allocate if in_heap else _map, VALUE_FILE, name)
        return self._values[name]


def _run_node(execute: Callable[[Node], None], node: Node) -> None:
    np.empty(MARK_BYTES, np.uint8)
    execute(node)


def _allocate(n_bytes: int) -> Array:
    block = np.empty(n_bytes + PADDING_BYTES, np.uint8)
    start = -block.__array_interface__["data"][0] % PADDING_BYTES
    return block[start : start + n_bytes]


def _map(n_bytes: int) -> mmap.mmap:
    return mmap.mmap(-1, n_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)


def _named(function: Callable[..., Any], file: str, name: str) -> FunctionType:
    """Return a copy of ``function`` whose frames have this name and file."""
    code = function.__code__.replace(co_name=name, co_qualname=name, co_filename=file, co_firstlineno=1)
    return FunctionType(code, function.__globals__, name)
