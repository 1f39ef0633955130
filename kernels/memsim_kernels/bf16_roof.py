"""How fast this processor multiplies bf16 at best: loops over registers only, which read and write no matrix."""

from typing import Any

import numpy as np
from llvmlite import ir
from numba import get_num_threads, prange
from numba.core import cgutils
from numba.extending import intrinsic

from memsim_kernels import cpu
from memsim_kernels.bf16_block import load_tile_shapes, release_tiles, routine
from memsim_kernels.bf16_type import FLOATS, I8, I64, PAIRS, VOID, call, store
from memsim_kernels.jit import F32, INT, WRITE_2D, helper, kernel
from memsim_kernels.vectors import address_of

TILE_FLOPS = 16 * 2 * 16 * 16 * 32  # of one turn of the loop: 16 products of 16 x 32 and 32 x 16
VECTOR_FLOPS = 16 * 2 * 32  # 16 products of 32 pairs, summed


@intrinsic  # type: ignore[untyped-decorator]
def _spin_tiles(typing_context: Any, turns: Any) -> Any:
    def emit(builder: Any, turns: Any) -> None:
        for tile in range(8):
            call(builder, "llvm.x86.tilezero", VOID, I8(tile))
        with cgutils.for_range(builder, turns):
            for _ in range(4):
                for tile, left, right in ((0, 4, 6), (1, 4, 7), (2, 5, 6), (3, 5, 7)):
                    call(builder, "llvm.x86.tdpbf16ps", VOID, I8(tile), I8(left), I8(right))

    return routine(1, emit, cpu.HAS_AMX)


@intrinsic  # type: ignore[untyped-decorator]
def _spin_vectors(typing_context: Any, turns: Any, target: Any) -> Any:
    def emit(builder: Any, turns: Any, target: Any) -> None:
        starts = [ir.Constant(FLOATS, [float(i)] * 16) for i in range(16)]  # equal chains would become one
        before, loop, after = builder.block, builder.append_basic_block("turn"), builder.append_basic_block("done")
        builder.branch(loop)
        builder.position_at_end(loop)
        turn, sums = builder.phi(I64), [builder.phi(FLOATS) for _ in range(16)]
        pairs = builder.bitcast(builder.load(builder.inttoptr(target, FLOATS.as_pointer()), align=4), PAIRS)
        grown = [call(builder, "llvm.x86.avx512bf16.dpbf16ps.512", FLOATS, value, pairs, pairs) for value in sums]
        following = builder.add(turn, I64(1))
        for phi, first, last in ((turn, I64(0), following), *zip(sums, starts, grown, strict=True)):
            phi.add_incoming(first, before)
            phi.add_incoming(last, loop)
        builder.cbranch(builder.icmp_signed("<", following, turns), loop, after)
        builder.position_at_end(after)
        total = grown[0]
        for value in grown[1:]:  # all are used, or they would be optimised away
            total = builder.fadd(total, value)
        store(builder, total, target, 4)

    return routine(2, emit, cpu.HAS_AVX512_BF16)


@helper
def _shape(line: F32) -> None:
    words = line.view(np.uint8)
    words[:] = 0
    words[0] = 1
    for i in range(8):
        words[16 + 2 * i] = 64
        words[48 + i] = 16
    load_tile_shapes(address_of(line))


@kernel(WRITE_2D, INT)
def _roof_amx(lines: F32, turns: int) -> None:
    for worker in prange(lines.shape[0]):
        _shape(lines[worker])
        _spin_tiles(turns)
        release_tiles()


@kernel(WRITE_2D, INT)
def _roof_avx512_bf16(lines: F32, turns: int) -> None:
    for worker in prange(lines.shape[0]):
        _spin_vectors(turns, address_of(lines[worker]))


def run_roof_amx(turns: int) -> int:
    """Multiply tiles on all threads and return the floating-point operations done. Needs cpu.HAS_AMX."""
    threads = int(get_num_threads())
    _roof_amx(np.zeros((threads, 16), np.float32), turns)
    return threads * turns * TILE_FLOPS


def run_roof_avx512_bf16(turns: int) -> int:
    """Multiply vectors on all threads and return the floating-point operations done. Needs cpu.HAS_AVX512_BF16."""
    threads = int(get_num_threads())
    _roof_avx512_bf16(np.zeros((threads, 16), np.float32), turns)
    return threads * turns * VECTOR_FLOPS
