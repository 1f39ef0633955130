"""Measuring this machine: that each figure is of the right thing, never that it is fast."""

from pathlib import Path

import pytest

from capped_runs import shared_cache, write_model
from memsim.calibration import calibrate, measure_storage
from memsim.calibration.calibrate import host_device
from memsim.errors import InputError
from memsim.runtime.kernels.marker import Prepared
from memsim.simulator.device import UNITS
from memsim.simulator.device_file import find_device, format_device, host_file

RATES = ("matmul", "dense", "attention")


def test_the_disk_is_measured_and_left_as_it_was(disk: Path) -> None:
    before = sorted(disk.iterdir())
    found = measure_storage.measure_storage(disk, file_bytes=8 << 20)
    assert set(found) == {"flash_write_bytes_per_s", "flash_read_bytes_per_s", "flash_latency_s", "fault_s"}
    assert all(value >= 0 for values in found.values() for value in values)
    assert sorted(disk.iterdir()) == before


def test_memory_is_no_disk() -> None:
    memory = Path("/dev/shm")
    if not memory.is_dir():
        pytest.skip("no tmpfs here")
    with pytest.raises(InputError, match="the calibration directory /dev/shm is on tmpfs"):
        measure_storage.measure_storage(memory)


def _samples(**changes: list[float]) -> dict[str, list[float]]:
    measured = {
        name: [3.0, 1.0, 2.0]
        for name in (
            *(f"{rate}_flops_per_s" for rate in RATES),
            *("unpack_weights_per_s", "elementwise_bytes_per_s", "vocabulary_bytes_per_s", "memory_bytes_per_s"),
            *("op_launch_s", "flash_write_bytes_per_s", "flash_read_bytes_per_s", "flash_latency_s", "fault_s"),
            "app_baseline_bytes",
        )
    }
    return measured | changes


def test_the_host_is_a_device_like_any_other() -> None:
    device = host_device(_samples(), threads=2, compute="f32")
    assert list(device.numbers) == list(UNITS)
    quantity = device.numbers["attention_flops_per_s"]
    assert (quantity.low, quantity.nominal, quantity.high, quantity.confidence) == (1.0, 2.0, 3.0, "H")
    assert device.numbers["threads"].nominal == 2
    assert "2 threads, packed products in f32" in device.sources["measured"].what
    assert device.at("nominal").foreground_limit_bytes < device.at("nominal").ram_bytes
    with pytest.raises(InputError, match="the calibration: memory_bytes_per_s must be above 0"):
        host_device(_samples(memory_bytes_per_s=[0.0]), threads=2, compute="f32")


def test_what_is_measured_is_kept_as_the_host(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MEMSIM_CACHE", str(tmp_path))
    kernels = Prepared("f32", {"f32": 77_000_000})  # the real one compiles for a minute
    monkeypatch.setattr(calibrate, "prepare_kernels", lambda threads, progress: kernels)
    monkeypatch.setattr(calibrate, "measure_storage", lambda directory: _storage())
    monkeypatch.setattr(calibrate, "_step_rates", lambda threads, compute, progress: _kernels())
    device = calibrate.calibrate(2, "auto", lambda text: None)
    assert find_device("host") == device
    assert host_file().read_text() == format_device(device)
    assert device.numbers["app_baseline_bytes"].nominal == 77_000_000
    with pytest.raises(InputError, match="--compute bf16 needs a processor with avx512_bf16"):
        calibrate.calibrate(2, "bf16", lambda text: None)


def test_the_rates_are_those_of_real_steps(disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = write_model(disk / "calibrated-model").directory
    monkeypatch.setattr(calibrate, "_MODEL", str(model))
    monkeypatch.setattr(calibrate, "_RUNS", (("tiled", 32), ("tiled", 64), ("mebp", 48)))
    monkeypatch.setenv("MEMSIM_CACHE", str(shared_cache()))
    told: list[str] = []
    rates = calibrate._step_rates(1, "f32", told.append)
    assert set(rates) == set(_kernels())
    assert all(0 < low <= nominal <= high for low, nominal, high in rates.values())
    assert f"run 3/3: {model}, mebp, seq 48" in told
    assert not list(shared_cache().glob("bench-*"))


def _storage() -> dict[str, list[float]]:
    return {key: value for key, value in _samples().items() if key.startswith(("flash", "fault"))}


def _kernels() -> dict[str, list[float]]:
    return {key: value for key, value in _samples().items() if key not in (*_storage(), "app_baseline_bytes")}
