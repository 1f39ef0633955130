"""What the processor can do, found out without compiling anything.

LLVM aborts the whole process when it meets an instruction that the processor lacks, so every intrinsic asks here
before it emits one.
"""

import ctypes
import platform

from llvmlite import binding
from numba import config

AMX, AVX512_BF16, F32 = "amx", "avx512_bf16", "f32"

_VECTOR_FEATURES = frozenset({"avx512f", "avx512bw", "avx512vl", "avx512bf16", "avx512vbmi"})
_TILE_FEATURES = _VECTOR_FEATURES | {"amx-tile", "amx-bf16"}

_ARCH_PRCTL = 158  # Linux system call number on x86-64
_ARCH_REQ_XCOMP_PERM = 0x1023
_XFEATURE_TILE_DATA = 18


def _features() -> frozenset[str]:
    """Return the features that Numba compiles for, which a user may restrict by NUMBA_CPU_FEATURES or _NAME."""
    if config.DISABLE_JIT or platform.machine() not in ("x86_64", "AMD64"):
        return frozenset()
    if config.CPU_FEATURES is not None:
        return frozenset(word[1:] for word in config.CPU_FEATURES.split(",") if word.startswith("+"))
    if config.CPU_NAME is not None and binding.get_host_cpu_name() != config.CPU_NAME:
        return frozenset()
    return frozenset(name for name, present in binding.get_host_cpu_features().items() if present)


def _tiles_permitted() -> bool:
    """Ask Linux for the tile registers, which it grants to a process once and for all its threads."""
    if platform.system() != "Linux":
        return False
    request = ctypes.CDLL(None, use_errno=True).syscall
    return (
        int(
            request(ctypes.c_long(_ARCH_PRCTL), ctypes.c_long(_ARCH_REQ_XCOMP_PERM), ctypes.c_long(_XFEATURE_TILE_DATA))
        )
        == 0
    )


FEATURES = _features()
HAS_AVX512_BF16 = FEATURES >= _VECTOR_FEATURES
HAS_AMX = FEATURES >= _TILE_FEATURES and _tiles_permitted()


def engines() -> tuple[str, ...]:
    """Return the ways to multiply that this processor has, fastest first; ``f32`` is always there."""
    return (*([AMX] if HAS_AMX else []), *([AVX512_BF16] if HAS_AVX512_BF16 else []), F32)
