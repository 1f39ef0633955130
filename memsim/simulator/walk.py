"""One step, node by node: when each node ends, what it waited for, and what the process holds."""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

from memsim.simulator.device import Numbers, Rule
from memsim.simulator.flash import Flash
from memsim.simulator.pagecache import PageCache
from memsim.simulator.roofline import op_time
from memsim.simulator.trace import StepTrace, TraceNode

_PAGE_TABLE_ENTRY_BYTES = 8


@dataclass(frozen=True, slots=True)
class Split:
    """Where the seconds of a step go.

    Attributes:
        compute_s: Arithmetic, element-wise work and launches.
        unpack_s: INT4 to floats.
        page_in_s: Waiting for weight files.
        spill_s: Waiting for the scratch file, both ways.
    """

    compute_s: float = 0.0
    unpack_s: float = 0.0
    page_in_s: float = 0.0
    spill_s: float = 0.0

    @property
    def total_s(self) -> float:
        """The whole step."""
        return self.compute_s + self.unpack_s + self.page_in_s + self.spill_s


@dataclass(frozen=True, slots=True)
class NodeTime:
    """A node on the timeline of its step.

    Attributes:
        start_s: Since the step began.
        footprint_bytes: What the device charges to the process during the node.
        cached_bytes: File pages in memory when it ends.
        read_bytes: Read from flash since the step began.
    """

    node: TraceNode
    start_s: float
    split: Split
    footprint_bytes: int
    cached_bytes: int
    read_bytes: int


@dataclass(frozen=True, slots=True)
class StepTime:
    """A simulated step.

    Attributes:
        split: Of the whole step.
        by_op_s: Seconds by op.
        read_bytes: Read from flash.
        written_bytes: Written to flash.
    """

    timeline: tuple[NodeTime, ...]
    split: Split
    by_op_s: Mapping[str, float]
    read_bytes: int
    written_bytes: int


def footprint(numbers: Numbers, rule: Rule, anonymous_bytes: int) -> int:
    """Return what a device charges to an app that holds this much beside its own baseline."""
    total = int(numbers.app_baseline_bytes) + anonymous_bytes
    if rule == "linux":
        return total
    return total + anonymous_bytes // int(numbers.page_bytes) * _PAGE_TABLE_ENTRY_BYTES


def file_cache(numbers: Numbers, footprint_bytes: int) -> int:
    """Return the bytes of RAM that are left for file pages."""
    return max(int(numbers.ram_bytes - numbers.system_bytes) - footprint_bytes, 0)


def walk(
    trace: StepTrace,
    numbers: Numbers,
    rule: Rule,
    cache: PageCache,
    advised: bool = True,
    first: bool = True,
    hot: bool = False,
    dropping: bool = False,
) -> StepTime:
    """Simulate one step.

    Args:
        trace: What is executed.
        numbers: Of the device.
        rule: What the device counts as footprint.
        cache: File pages from before; changed.
        advised: Whether page-ins ask for whole files in advance or fault their way through.
        first: Whether this is the first step: in later ones all memory is resident from the start.
        hot: Whether the device is at its thermal floor.
        dropping: Whether evicted pages leave the cache too, as in a run with a cold page cache.
    """
    speed = numbers.thermal_floor if hot else 1.0
    flash = Flash(numbers, cache, advised, numbers.flash_hot_multiplier if hot else 1.0)
    timeline: list[NodeTime] = []
    by_op: dict[str, float] = defaultdict(float)
    now_s = compute_s = unpack_s = page_in_s = spill_s = 0.0
    written_bytes = 0
    for node in trace.nodes:
        anonymous_bytes = node.anonymous_bytes if first else max(trace.resident_bytes, node.anonymous_bytes)
        held = footprint(numbers, rule, anonymous_bytes)
        cache.resize(file_cache(numbers, held))
        split = _node(node, numbers, flash, now_s, speed)
        for file in node.evicted_files if dropping else ():
            cache.drop(file)
        timeline.append(NodeTime(node, now_s, split, held, cache.held_bytes, flash.read_bytes))
        now_s += split.total_s
        by_op[node.op] += split.total_s
        written_bytes += node.written_bytes
        compute_s, unpack_s = compute_s + split.compute_s, unpack_s + split.unpack_s
        page_in_s, spill_s = page_in_s + split.page_in_s, spill_s + split.spill_s
    split = Split(compute_s, unpack_s, page_in_s, spill_s)
    return StepTime(tuple(timeline), split, dict(by_op), flash.read_bytes, written_bytes)


def _node(node: TraceNode, numbers: Numbers, flash: Flash, now_s: float, speed: float) -> Split:
    if node.prefetch:
        flash.prefetch(now_s, node.prefetch)
    page_in_s = flash.page_in(now_s, node.page_in) if node.page_in else 0.0
    spill_s = flash.restore(now_s, node.restored_bytes) if node.restored_bytes else 0.0
    time = op_time(node.kind, node.work, numbers, speed)
    if node.written_bytes:
        spill_s += flash.write(now_s + spill_s + time.compute_s, node.written_bytes)
    return Split(time.compute_s, time.unpack_s, page_in_s, spill_s)
