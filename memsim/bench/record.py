"""The JSON record of a bench: what was measured, on which machine, with which versions."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from memsim.host import host_info, installed_versions, versions

SCHEMA = "memsim.bench/1"
CACHES = Path("/sys/devices/system/cpu/cpu0/cache")
FEATURES = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "neon", "asimd")


def record(command: str, report: Any, settings: dict[str, Any]) -> dict[str, Any]:
    """Return a report, a dataclass or a dict, as plain data, with the machine and the versions that made it."""
    plain = report if isinstance(report, dict) else asdict(report)
    return {"schema": SCHEMA, "command": command, "settings": settings} | plain | machine()


def machine() -> dict[str, Any]:
    """Return what decides a timing: processor, its features and caches, cores, memory, versions."""
    host = asdict(host_info())
    return {
        "host": host | {"cpu_features": cpu_features(), "caches": caches()},
        "versions": versions() | installed_versions("torch", "transformers", "peft") | {"blas": blas_name()},
    }


def cpu_features() -> list[str]:
    """Return which of the instruction sets that matter here the first processor lists."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").partition("\n\n")[0]
    except OSError:
        return []
    return [name for name in FEATURES if name in text.split()]


def caches() -> dict[str, str]:
    """Return the sizes of the first processor's data caches, as the kernel writes them: ``{"L1d": "48K", ...}``."""
    found = {}
    for index in sorted(CACHES.glob("index*")):
        try:
            level, kind, size = ((index / name).read_text().strip() for name in ("level", "type", "size"))
        except OSError:
            continue
        if kind != "Instruction":
            found[f"L{level}{'d' if kind == 'Data' else ''}"] = size
    return found


def blas_name() -> str:
    """Return NumPy's BLAS: name and version."""
    built: Any = np.show_config(mode="dicts")
    blas = built["Build Dependencies"]["blas"]
    return f"{blas['name']} {blas['version']}"
