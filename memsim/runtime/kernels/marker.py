"""The note in the cache that kernels are compiled: of which sources, how, and what a process with them holds."""

import hashlib
import importlib.util
import json
import os
import platform
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from memsim.errors import InputError
from memsim.files import cache_dir, write_text
from memsim.host import host_info, versions
from memsim.json_decode import decode
from memsim.json_file import read_object

COMPUTE_PATHS = ("f32", "bf16")
_MAX_BYTES = 1 << 20
_FOOTPRINT_BYTES = range(8 << 20, 4 << 30)
"""What a process with kernels may hold: 65 MB were measured. Another number was not measured, but damaged."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """What is known of the kernels of this machine.

    Attributes:
        fastest: The compute path that multiplies packed weights fastest: ``f32`` or ``bf16``.
        footprint_bytes: By compute path, what a process holds that has loaded its kernels and no weight. A processor
            that cannot multiply in bf16 has no such entry.
        entries: Compiled files below `kernels_directory` and their bytes; Numba adds to them, and never takes away.
    """

    fastest: str
    footprint_bytes: Mapping[str, int]
    entries: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Stored:
    """The file's fields; `decode` checks them."""

    fastest: str
    footprint_bytes: dict[str, int]
    entries: dict[str, int]


def kernels_directory() -> Path:
    """Return where compiled kernels are kept; it may be missing.

    Raises:
        InputError: This user has no place for a cache.
    """
    return cache_dir(writable=False).absolute() / "kernels"  # kernels run in another directory


def read_marker(threads: int) -> Prepared | None:
    """Return what an earlier command measured, or None: not measured, damaged, or the kernels are not whole now."""
    try:
        stored = decode(_Stored, read_object(marker_path(threads), _MAX_BYTES), "the marker")
    except InputError:
        return None
    known = set(stored.footprint_bytes)
    if not {stored.fastest, "f32"} <= known <= set(COMPUTE_PATHS):
        return None
    if any(n_bytes not in _FOOTPRINT_BYTES for n_bytes in stored.footprint_bytes.values()):
        return None
    if not stored.entries or not all(_is_there(name, n_bytes) for name, n_bytes in stored.entries.items()):
        return None
    return Prepared(stored.fastest, stored.footprint_bytes, stored.entries)


def _is_there(name: str, n_bytes: int) -> bool:
    try:
        return (kernels_directory() / name).stat().st_size >= max(n_bytes, 1)
    except (OSError, ValueError):
        return False


def write_marker(threads: int, prepared: Prepared) -> None:
    """Keep what was measured.

    Raises:
        InputError: The cache cannot be written.
    """
    write_text(marker_path(threads), json.dumps(asdict(prepared)) + "\n")


def marker_path(threads: int) -> Path:
    """Return the marker's file: named after everything by which code that was compiled could be of no use.

    Raises:
        InputError: There are no kernels, or no place for a cache.
    """
    numba = sorted(item for item in os.environ.items() if item[0].startswith("NUMBA_") and item[0] != "NUMBA_CACHE_DIR")
    settings = [versions(), host_info().cpu, platform.machine(), threads, numba, sys.flags.optimize]
    digest = hashlib.sha256(json.dumps(settings).encode())
    for source in kernel_sources():
        digest.update(os.fsencode(source) + source.read_bytes())
    return kernels_directory() / f"baseline-{digest.hexdigest()[:16]}.json"


def kernels_digest() -> str:
    """Return the SHA-256 of the kernels' sources."""
    digest = hashlib.sha256()
    for source in kernel_sources():
        digest.update(source.read_bytes())
    return digest.hexdigest()


def kernel_sources() -> list[Path]:
    """Return the kernels' source files.

    Raises:
        InputError: They are not installed.
    """
    spec = importlib.util.find_spec("memsim_kernels")
    if spec is None or not spec.submodule_search_locations:
        raise InputError("the package memsim_kernels is not installed; run `pip install -e .` in memsim's checkout")
    return sorted(Path(spec.submodule_search_locations[0]).glob("*.py"))
