"""``memsim devices calibrate``: this machine as a device file."""

import mmap
import time
import tomllib
from collections.abc import Callable, Mapping, Sequence
from statistics import median

import psutil

from memsim.calibration.fit_rates import StepSamples, fit_rates
from memsim.calibration.measure_steps import measure_steps, throw_away
from memsim.calibration.measure_storage import measure_storage
from memsim.cap.linux import require_linux
from memsim.errors import InputError
from memsim.files import cache_dir, write_text
from memsim.host import host_info
from memsim.runtime.config import RunConfig
from memsim.runtime.prepare import prepare_kernels
from memsim.simulator.device import UNITS, Confidence, Device, Quantity, Source
from memsim.simulator.device_file import HOST, format_device, host_file, parse_device

_MODEL = "qwen2.5-0.5b"
_RUNS = (("tiled", 32), ("tiled", 256), ("mebp", 32), ("mebp", 256))
"""Schedules and sequence lengths: products with packed weights, and with floats, short and long."""
_STEPS = 4
_BUDGET_BYTES = 10**9

_FAULT_AROUND_BYTES = 64 << 10
_READ_AHEAD_BYTES = 128 << 10


def calibrate(threads: int, compute: str, progress: Callable[[str], None]) -> Device:
    """Measure this machine, keep it as the device ``host``, and return it.

    Args:
        threads: Kernel threads.
        compute: ``f32``, ``bf16``, or ``auto`` for the faster: of products with packed weights.
        progress: Called with what is measured now.

    Raises:
        WorkerError: The kernels or the runs fail.
        InputError: This is not Linux, the cache or its disk cannot be used, or the processor has no such compute path.
    """
    require_linux("measuring this machine")
    kernels = prepare_kernels(threads, progress)
    chosen = kernels.fastest if compute == "auto" else compute
    if chosen not in kernels.footprint_bytes:
        raise InputError(f"--compute {chosen} needs a processor with avx512_bf16; use --compute f32")
    progress("measuring the disk")
    samples = measure_storage(cache_dir())
    samples |= _step_rates(threads, chosen, progress)
    samples["app_baseline_bytes"] = [float(kernels.footprint_bytes[chosen])]
    device = host_device(samples, threads, chosen)
    text = format_device(device)
    try:
        host_file().parent.mkdir(exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot write the cache {host_file().parent}: {error.strerror}; set MEMSIM_CACHE") from error
    write_text(host_file(), text)
    return device


def _step_rates(threads: int, compute: str, progress: Callable[[str], None]) -> dict[str, list[float]]:
    runs = []
    with throw_away() as directory:
        for index, (schedule, seq_len) in enumerate(_RUNS):
            progress(f"run {index + 1}/{len(_RUNS)}: {_MODEL}, {schedule}, seq {seq_len}")
            path = compute if schedule == "tiled" else "auto"  # whatever multiplies floats
            config = RunConfig(
                budget_bytes=_BUDGET_BYTES, model=_MODEL, schedule=schedule, seq_len=seq_len, steps=_STEPS,
                compute=path, threads=threads, out=directory / str(index),
            )  # fmt: skip
            measured = measure_steps(config, progress)
            runs.append(StepSamples(measured.samples, measured.between_s))
    return fit_rates(runs, compute)


def host_device(samples: Mapping[str, Sequence[float]], threads: int, compute: str) -> Device:
    """Return the device of these samples: least, median and largest; what is not measured is known or assumed.

    Raises:
        InputError: A rate came out as zero or below.
    """
    memory = psutil.virtual_memory()
    ram, used = float(memory.total), float(memory.total - memory.available)
    host = host_info()
    sources = {
        "measured": Source(
            f"memsim devices calibrate on {host.cpu}, {threads} threads, packed products in {compute}",
            time.strftime("%Y-%m-%d"),
        ),
        "system": Source("What the system says of itself", time.strftime("%Y-%m-%d")),
        "linux": Source("Linux: fault-around 64 KiB, default readahead 128 KiB", "2026-11"),
        "assumed": Source("Assumed: nothing throttles, and no meter for power or wear", "2026-11"),
    }
    numbers = {name: _quantity(name, values) for name, values in samples.items()}

    def known(name: str, source: str, confidence: Confidence, *values: float) -> None:
        low, nominal, high = values if len(values) == 3 else values * 3
        numbers[name] = Quantity(low, nominal, high, UNITS[name], source, confidence)

    known("threads", "system", "H", threads)
    known("ram_bytes", "system", "H", ram)
    known("system_bytes", "system", "M", used)
    known("page_bytes", "system", "H", mmap.PAGESIZE)
    for name in ("foreground_limit_bytes", "entitled_limit_bytes", "background_limit_bytes"):
        known(name, "system", "M", ram - used)
    known("cluster_min_bytes", "linux", "M", _FAULT_AROUND_BYTES)
    known("cluster_max_bytes", "linux", "M", _READ_AHEAD_BYTES)
    known("warning_fraction", "assumed", "L", 0.8)
    known("flash_hot_multiplier", "assumed", "L", 1.0)
    known("write_budget_bytes_per_day", "assumed", "L", 50e9, 200e9, 1e12)
    known("thermal_hold_s", "assumed", "L", 600.0)
    known("thermal_ramp_s", "assumed", "L", 60.0)
    known("thermal_floor", "assumed", "L", 1.0)
    known("active_power_w", "assumed", "L", 15.0, 65.0, 200.0)
    # As a file and back: what is written can be read.
    device = Device(HOST, f"this machine: {host.cpu}, {threads} threads", "linux", numbers, sources)
    return parse_device(tomllib.loads(format_device(device)), HOST, "the calibration")


def _quantity(name: str, samples: Sequence[float]) -> Quantity:
    return Quantity(min(samples), median(samples), max(samples), UNITS[name], "measured", "H")
