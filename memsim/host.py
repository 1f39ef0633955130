"""What a result was measured on: the machine, and the versions that decide it."""

import platform
from importlib import metadata
from pathlib import Path

import psutil

from memsim import __version__
from memsim.cap.processors import processors
from memsim.results import Host


def host_info() -> Host:
    """Describe this machine."""
    return Host(
        cpu=_cpu_name(),
        cores=processors(),
        ram_bytes=psutil.virtual_memory().total,
        kernel=platform.release(),
    )


def _cpu_name() -> str:
    try:
        with Path("/proc/cpuinfo").open(encoding="utf-8", errors="replace") as file:
            for line in file:
                key, _, value = line.partition(":")
                if key.strip() == "model name":
                    return value.strip()
    except OSError:
        pass
    return platform.machine()


def versions() -> dict[str, str]:
    """Return the versions that decide a result."""
    python = {"memsim": __version__, "python": platform.python_version()}
    return python | installed_versions("numpy", "numba", "llvmlite")


def installed_versions(*packages: str) -> dict[str, str]:
    """Return the versions of those that are installed, from their metadata, without importing them."""
    found = {}
    for name in packages:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found
