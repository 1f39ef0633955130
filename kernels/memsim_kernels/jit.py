"""How every kernel is compiled: one declared signature each, all host threads, a cache that sees every source file."""

import functools
import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numba import boolean, config, float32, float64, int64, njit, types, uint16, uint32, void
from numba.core.registry import CPUDispatcher
from numpy.typing import NDArray

Function = TypeVar("Function", bound=Callable[..., Any])

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
U16 = NDArray[np.uint16]
U32 = NDArray[np.uint32]

# A parameter declared read-only takes writable arrays too; the reverse is a TypeError. So every input is READ.
READ_1D = types.Array(float32, 1, "C", readonly=True)
READ_2D = types.Array(float32, 2, "C", readonly=True)
READ_IDS = types.Array(uint32, 1, "C", readonly=True)
READ_Q = types.Array(uint32, 3, "C", readonly=True)
READ_SCALES = types.Array(uint16, 2, "C", readonly=True)
WRITE_1D = types.Array(float32, 1, "C")
WRITE_2D = types.Array(float32, 2, "C")
READ_STATS = types.Array(float64, 1, "C", readonly=True)
WRITE_STATS = types.Array(float64, 1, "C")
BOOL, FLOAT, INT = boolean, float64, int64


def kernel(*parameters: Any) -> Callable[[Function], Function]:
    """Return a decorator that compiles a function for exactly these parameter types, or loads it from Numba's cache.

    Compilation happens at import; afterwards a call with other types raises TypeError instead of compiling again. No
    compiled function may call a kernel.
    """

    def decorate(function: Function) -> Function:
        before, config.CACHE_DIR = config.CACHE_DIR, _cache_directory()
        try:
            compiled: Function = njit(
                void(*parameters), parallel=True, nogil=True, cache=True, error_model="numpy", boundscheck=False
            )(function)
        finally:
            config.CACHE_DIR = before
        _release_bitcode(compiled)
        return compiled

    return decorate


def helper(function: Function) -> Function:
    """Compile a function that only kernels call; its code becomes part of theirs."""
    compiled: Function = njit(nogil=True, error_model="numpy", boundscheck=False)(function)
    return compiled


def _release_bitcode(compiled: Any) -> None:
    """Drop the LLVM module of a kernel that came from the cache.

    Numba parses it beside the machine code, in case another function should be linked with this one, and keeps it: 24
    MB for the kernels of this package. Only helpers are linked with others. Numba has no public way to let go of it; a
    version without this name keeps it.
    """
    if isinstance(compiled, CPUDispatcher) and compiled.stats.cache_hits:
        for result in compiled.overloads.values():
            if hasattr(result.library, "_shared_module"):
                result.library._shared_module = None


def _cache_directory() -> str:
    """Return a cache directory that is named after the sources of this package, or "" for Numba's own choice.

    Numba notices a change in a kernel's own file only, not in the helpers that it calls from other files.
    """
    package = Path(__file__).parent
    base = Path(config.CACHE_DIR) if config.CACHE_DIR else package / "__pycache__"
    if not config.CACHE_DIR and not os.access(package, os.W_OK):
        return ""  # an installation that cannot be written cannot be edited either
    return str(base / _source_digest(package))


@functools.cache
def _source_digest(package: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted(package.glob("*.py")):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]
