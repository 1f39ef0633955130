"""How fast this processor multiplies at best: loops over registers only, which read and write no matrix."""

from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba import get_num_threads, prange
from numba.core import cgutils
from numba.extending import intrinsic

from memsim_kernels import cpu
from memsim_kernels.bf16_block import load_tile_shapes, release_tiles, routine
from memsim_kernels.bf16_type import FLOATS, I8, I64, PAIRS, VOID, call, load, store
from memsim_kernels.jit import F32, INT, WRITE_2D, helper, kernel
from memsim_kernels.tile import VECTORS
from memsim_kernels.vectors import LANES, address_of

CHAINS = 6 * VECTORS  # as many as the inner loop of a product keeps in registers
TILE_FLOPS = 16 * 2 * 16 * 16 * 32  # of one turn: 16 products of 16 x 32 and 32 x 16
BF16_FLOPS = CHAINS * 2 * 32  # of one turn: products of 32 pairs, summed
F32_FLOPS = CHAINS * 2 * LANES


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


def _emit_chains(builder: Any, turns: Any, target: Any, kind: Any, grow: Callable[[Any, Any], Any]) -> None:
    """Emit a loop in which every chain takes one ``grow(value, factor)`` a turn; the factor is read at ``target``."""
    starts = [ir.Constant(FLOATS, [float(i)] * LANES) for i in range(CHAINS)]  # equal chains would become one
    before, loop, after = builder.block, builder.append_basic_block("turn"), builder.append_basic_block("done")
    factor = load(builder, target, kind, 4)
    builder.branch(loop)
    builder.position_at_end(loop)
    turn, sums = builder.phi(I64), [builder.phi(FLOATS) for _ in range(CHAINS)]
    grown = [grow(value, factor) for value in sums]
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


@intrinsic  # type: ignore[untyped-decorator]
def _spin_bf16(typing_context: Any, turns: Any, target: Any) -> Any:
    def emit(builder: Any, turns: Any, target: Any) -> None:
        def grow(value: Any, pairs: Any) -> Any:
            return call(builder, "llvm.x86.avx512bf16.dpbf16ps.512", FLOATS, value, pairs, pairs)

        _emit_chains(builder, turns, target, PAIRS, grow)

    return routine(2, emit, cpu.HAS_AVX512_BF16)


@intrinsic  # type: ignore[untyped-decorator]
def _spin_f32(typing_context: Any, turns: Any, target: Any) -> Any:
    def emit(builder: Any, turns: Any, target: Any) -> None:
        def grow(value: Any, factor: Any) -> Any:
            return call(builder, f"llvm.fma.v{LANES}f32", FLOATS, factor, factor, value)

        _emit_chains(builder, turns, target, FLOATS, grow)

    return routine(2, emit, True)


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
def _amx(lines: F32, turns: int) -> None:
    for worker in prange(lines.shape[0]):
        _shape(lines[worker])
        _spin_tiles(turns)
        release_tiles()


@kernel(WRITE_2D, INT)
def _bf16(lines: F32, turns: int) -> None:
    for worker in prange(lines.shape[0]):
        _spin_bf16(turns, address_of(lines[worker]))


@kernel(WRITE_2D, INT)
def _f32(lines: F32, turns: int) -> None:
    for worker in prange(lines.shape[0]):
        _spin_f32(turns, address_of(lines[worker]))


_ROOFS = {cpu.AMX: (_amx, TILE_FLOPS), cpu.AVX512_BF16: (_bf16, BF16_FLOPS), cpu.F32: (_f32, F32_FLOPS)}


def run_roof(engine: str, flops: int) -> int:
    """Multiply registers on all threads, and return the floating-point operations done: at least ``flops``.

    Args:
        engine: One of ``cpu.engines()``; another traps.
        flops: Asked for, over all threads.
    """
    spin, flops_a_turn = _ROOFS[engine]
    threads = int(get_num_threads())
    turns = -(-flops // (flops_a_turn * threads))
    spin(np.zeros((threads, LANES), np.float32), turns)
    return threads * turns * flops_a_turn
