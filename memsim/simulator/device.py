"""What the simulator must know of a device, each number with its unit, and in which direction it helps."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal

Corner = Literal["worse", "nominal", "better"]
CORNERS: tuple[Corner, ...] = ("worse", "nominal", "better")

Rule = Literal["ios", "linux"]
"""What a device charges to a process.

``ios``: phys_footprint: anonymous memory (compressed or not), GPU-owned buffers and page tables; no file pages, dirty
or clean (XNU osfmk/kern/task.c). ``linux``: anonymous memory; what a run writes
goes past the page cache.
"""

Confidence = Literal["H", "M", "L"]


def _number(unit: str, better: int) -> Any:
    """Declare a number: its unit, and whether more is better (1), worse (-1) or neither (0)."""
    return field(metadata={"unit": unit, "better": better})


@dataclass(frozen=True, slots=True, kw_only=True)
class Numbers:
    """One value for every number of a device.

    Attributes:
        matmul_flops_per_s: Products with packed weights, unpacking not included.
        dense_flops_per_s: Products with matrices of floats: unpacked weights and adapters.
        attention_flops_per_s: Products inside attention.
        unpack_weights_per_s: INT4 weights to floats, if memory is no limit.
        elementwise_bytes_per_s: Memory traffic of element-wise ops.
        vocabulary_bytes_per_s: Memory traffic of softmax, its sums and its gradient over all logits.
        memory_bytes_per_s: Memory traffic of everything else.
        op_launch_s: Cost of launching an op.
        threads: Threads that ops of the schedule ``tiled`` hold workspaces for.
        ram_bytes: All of it.
        system_bytes: What the system and other apps hold of it.
        page_bytes: A page of virtual memory.
        app_baseline_bytes: Footprint of an app that has loaded the runtime and no model.
        foreground_limit_bytes: Footprint at which an app on screen is killed.
        entitled_limit_bytes: The same with the system's permission for more memory.
        background_limit_bytes: The same for an app in the background.
        warning_fraction: Share of the limit at which the app is warned.
        fault_s: Processor time of a page fault.
        cluster_min_bytes: What the first of several page faults reads.
        cluster_max_bytes: What each of many sequential page faults reads in the end.
        flash_latency_s: Of one read.
        flash_read_bytes_per_s: Of long reads.
        flash_write_bytes_per_s: Of long writes.
        flash_hot_multiplier: Share of both rates that is left when the device is hot.
        write_budget_bytes_per_day: Beyond it the system reports the app, or the flash wears out early.
        thermal_hold_s: Seconds at full speed.
        thermal_ramp_s: Seconds after that until the speed is at its floor.
        thermal_floor: Share of full speed that is left then.
        active_power_w: Of the whole device at work.
    """

    matmul_flops_per_s: float = _number("FLOP/s", 1)
    dense_flops_per_s: float = _number("FLOP/s", 1)
    attention_flops_per_s: float = _number("FLOP/s", 1)
    unpack_weights_per_s: float = _number("weight/s", 1)
    elementwise_bytes_per_s: float = _number("B/s", 1)
    vocabulary_bytes_per_s: float = _number("B/s", 1)
    memory_bytes_per_s: float = _number("B/s", 1)
    op_launch_s: float = _number("s", -1)
    threads: float = _number("1", 0)
    ram_bytes: float = _number("B", 1)
    system_bytes: float = _number("B", -1)
    page_bytes: float = _number("B", 0)
    app_baseline_bytes: float = _number("B", -1)
    foreground_limit_bytes: float = _number("B", 1)
    entitled_limit_bytes: float = _number("B", 1)
    background_limit_bytes: float = _number("B", 1)
    warning_fraction: float = _number("1", 0)
    fault_s: float = _number("s", -1)
    cluster_min_bytes: float = _number("B", 0)
    cluster_max_bytes: float = _number("B", 0)
    flash_latency_s: float = _number("s", -1)
    flash_read_bytes_per_s: float = _number("B/s", 1)
    flash_write_bytes_per_s: float = _number("B/s", 1)
    flash_hot_multiplier: float = _number("1", 1)
    write_budget_bytes_per_day: float = _number("B/day", 0)
    thermal_hold_s: float = _number("s", 1)
    thermal_ramp_s: float = _number("s", 1)
    thermal_floor: float = _number("1", 1)
    active_power_w: float = _number("W", -1)


UNITS: dict[str, str] = {item.name: item.metadata["unit"] for item in fields(Numbers)}
BETTER: dict[str, int] = {item.name: item.metadata["better"] for item in fields(Numbers)}


@dataclass(frozen=True, slots=True)
class Quantity:
    """One number of a device: a range with the most likely value, and where that comes from.

    Attributes:
        source: A key of the device's sources.
        confidence: H: kernel source, raw measurements or the vendor's documentation; M: one credible measurement by
            others; L: leaked, derived or assumed.
    """

    low: float
    nominal: float
    high: float
    unit: str
    source: str
    confidence: Confidence


@dataclass(frozen=True, slots=True)
class Source:
    """Where numbers come from.

    Attributes:
        what: What was measured or written, or how it was derived.
        date: Of the measurement or publication, or else of reading: YYYY, YYYY-MM or YYYY-MM-DD.
        url: Where to read it; empty for a measurement of one's own.
    """

    what: str
    date: str
    url: str = ""


@dataclass(frozen=True, slots=True)
class Device:
    """A device file, checked.

    Attributes:
        name: The file's name without ``.toml``.
        title: For people.
        rule: What counts as footprint.
    """

    name: str
    title: str
    rule: Rule
    numbers: Mapping[str, Quantity]
    sources: Mapping[str, Source]

    def at(self, corner: Corner) -> Numbers:
        """Return every number at its nominal, or all of them at the end that is better, or worse, for a run."""
        chosen = {}
        for name, quantity in self.numbers.items():
            direction = {"worse": -1, "nominal": 0, "better": 1}[corner] * BETTER[name]
            chosen[name] = (quantity.low, quantity.nominal, quantity.high)[direction + 1]
        return Numbers(**chosen)
