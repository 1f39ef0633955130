"""The inner loops of bf16 products: a block of the result in tile registers (AMX) or vector registers (AVX-512).

Over 250 lines: the code that is emitted for a block is read from end to end.

Addresses are int64, distances are bytes, and nothing checks bounds. A row block is 16 rows of the left matrix, bf16
[steps, 16, 32]; the panel is that of ``bf16_unpack``. The block of the result starts from one place (a bias repeated at
distance 0, the matrix itself, a block of scratch) and goes to another; each place is its address and the distances
between rows, halves (16 columns) and row blocks. While they multiply, the loops work off a job: the unpacking of the
next panel takes issue slots that the multiplier leaves.

An element of the result is one chain in ascending order of steps of 32, so its bits depend on its row and column only.
"""

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from memsim_kernels import cpu
from memsim_kernels.bf16_type import (
    ADDRESS,
    DWORDS,
    FLOAT,
    FLOATS,
    I8,
    I32,
    I64,
    LANES,
    PAIRS,
    VOID,
    WORDS,
    add,
    call,
    constants,
    load,
    round_to_bf16,
    splat,
    store,
)  # fmt: skip
from memsim_kernels.bf16_unpack import (
    HALF_BYTES,
    PAIR_BYTES,
    emit_backward_unit,
    emit_forward_unit,
    emit_units,
)  # fmt: skip

_ROWS_IN_REGISTERS = 8  # times two halves: 16 of the 32 vector registers
_LEFT, _RIGHT = 4, 6  # the first tile registers of A and B; C is in 0-3


def routine(arguments: int, emit: Callable[..., None], available: bool) -> Any:
    """Return what an intrinsic must: a type of ``arguments`` integers, and the code that ``emit`` emits.

    It is a trap where the processor lacks the instructions: kernels compile everywhere, and do not get there.
    """

    def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        if available:
            emit(builder, *values)
        else:
            call(builder, "llvm.trap", VOID)
        return context.get_dummy_value()

    return types.void(*[types.int64] * arguments), codegen


def _emit_tiles(
    builder: Any,
    start: tuple[Any, ...], end: tuple[Any, ...], a: Any, a_block: Any, b: Any, steps: Any, job: Any, rate: Any,
    blocks: int, unit: Callable[..., None],
) -> None:  # fmt: skip
    """Emit C = start + A B for one or two row blocks in AMX tiles."""
    tiles = [(i, half) for i in range(blocks) for half in (0, 1)]
    for i, half in tiles:
        _tile(builder, "tileloadd64", I8(2 * i + half), _place(builder, start, i, half), start[1])
    before, loop = builder.block, builder.append_basic_block("steps")
    builder.branch(loop)
    builder.position_at_end(loop)
    step = builder.phi(I64)
    left, right = add(builder, a, builder.shl(step, I64(10))), add(builder, b, builder.shl(step, I64(11)))
    for i, half in tiles:
        if half == 0:
            row = add(builder, left, a_block) if i else left
            _tile(builder, "tileloadd64", I8(_LEFT + i), builder.inttoptr(row, ADDRESS), I64(64))
        if i == 0:
            column = builder.inttoptr(add(builder, right, I64(half * HALF_BYTES)), ADDRESS)
            _tile(builder, "tileloadd64", I8(_RIGHT + half), column, I64(64))
        _tile(builder, "tdpbf16ps", I8(2 * i + half), I8(_LEFT + i), I8(_RIGHT + half))
    emit_units(builder, job, rate, unit)
    following = add(builder, step, I64(1))
    step.add_incoming(I64(0), before)
    step.add_incoming(following, builder.block)
    after = builder.append_basic_block("done")
    builder.cbranch(builder.icmp_signed("<", following, steps), loop, after)
    builder.position_at_end(after)
    for i, half in tiles:
        _tile(builder, "tilestored64", I8(2 * i + half), _place(builder, end, i, half), end[1])


def _tile(builder: Any, name: str, *arguments: Any) -> None:
    call(builder, f"llvm.x86.{name}", VOID, *arguments)


def _place(builder: Any, where: tuple[Any, ...], block: int, half: int) -> Any:
    address, _, half_bytes, block_bytes = where
    terms = [address, *([half_bytes] if half else []), *([block_bytes] if block else [])]
    return builder.inttoptr(add(builder, *terms), ADDRESS)


def _emit_vectors(
    builder: Any,
    start: tuple[Any, ...], end: tuple[Any, ...], a: Any, b: Any, steps: Any, job: Any, rate: Any,
    unit: Callable[..., None],
) -> None:  # fmt: skip
    """Emit C = start + A B for 8 rows: 16 vectors of sums, two of b, and one pair of a, spread out."""
    rows, halves = range(_ROWS_IN_REGISTERS), range(2)

    def place(where: tuple[Any, ...], i: int, half: int) -> Any:
        return add(builder, where[0], builder.mul(where[1], I64(i)), *([where[2]] if half else []))

    first = [[load(builder, place(start, i, h), FLOATS, 4) for h in halves] for i in rows]
    before, loop = builder.block, builder.append_basic_block("steps")
    builder.branch(loop)
    builder.position_at_end(loop)
    step = builder.phi(I64)
    sums = [[builder.phi(FLOATS) for _ in halves] for _ in rows]
    left, right = add(builder, a, builder.shl(step, I64(10))), add(builder, b, builder.shl(step, I64(11)))
    totals = [list(row) for row in sums]
    for pair in range(HALF_BYTES // PAIR_BYTES):
        columns = [
            load(builder, add(builder, right, I64(h * HALF_BYTES + pair * PAIR_BYTES)), PAIRS, 64) for h in halves
        ]
        for i in rows:
            element = load(builder, add(builder, left, I64(64 * i + 4 * pair)), FLOAT, 4)
            row = builder.bitcast(splat(builder, element), PAIRS)
            for h in halves:
                totals[i][h] = call(builder, "llvm.x86.avx512bf16.dpbf16ps.512", FLOATS, totals[i][h], row, columns[h])
    emit_units(builder, job, rate, unit)
    following = add(builder, step, I64(1))
    step.add_incoming(I64(0), before)
    step.add_incoming(following, builder.block)
    for i in rows:
        for h in halves:
            sums[i][h].add_incoming(first[i][h], before)
            sums[i][h].add_incoming(totals[i][h], builder.block)
    after = builder.append_basic_block("done")
    builder.cbranch(builder.icmp_signed("<", following, steps), loop, after)
    builder.position_at_end(after)
    for i in rows:
        for h in halves:
            store(builder, totals[i][h], place(end, i, h), 4)


@intrinsic  # type: ignore[untyped-decorator]
def load_tile_shapes(typing_context: Any, address: Any) -> Any:
    """Make every tile register 16 rows of 64 bytes, as the 64 bytes at ``address`` say."""

    def emit(builder: Any, address: Any) -> None:
        _tile(builder, "ldtilecfg", builder.inttoptr(address, ADDRESS))

    return routine(1, emit, cpu.HAS_AMX)


@intrinsic  # type: ignore[untyped-decorator]
def release_tiles(typing_context: Any) -> Any:
    """Give the tile registers back, so that the kernel need not save them."""
    return routine(0, lambda builder: _tile(builder, "tilerelease"), cpu.HAS_AMX)


def _tiles(blocks: int, unit: Callable[..., None]) -> Any:
    def emit(builder: Any, s0: Any, s1: Any, s2: Any, s3: Any, e0: Any, e1: Any, e2: Any, e3: Any,
             a: Any, a_block: Any, b: Any, steps: Any, job: Any, rate: Any) -> None:  # fmt: skip
        start, end = (s0, s1, s2, s3), (e0, e1, e2, e3)
        _emit_tiles(builder, start, end, a, a_block, b, steps, job, rate, blocks, unit)

    return routine(14, emit, cpu.HAS_AMX)


@intrinsic  # type: ignore[untyped-decorator]
def tiles_2_forward(
    typing_context: Any, s: Any, s_row: Any, s_half: Any, s_block: Any, e: Any, e_row: Any, e_half: Any, e_block: Any,
    a: Any, a_block: Any, b: Any, steps: Any, job: Any, rate: Any,
) -> Any:  # fmt: skip
    """Multiply two row blocks by a panel while a forward job goes on."""
    return _tiles(2, emit_forward_unit)


@intrinsic  # type: ignore[untyped-decorator]
def tiles_1_forward(
    typing_context: Any, s: Any, s_row: Any, s_half: Any, s_block: Any, e: Any, e_row: Any, e_half: Any, e_block: Any,
    a: Any, a_block: Any, b: Any, steps: Any, job: Any, rate: Any,
) -> Any:  # fmt: skip
    """Multiply one row block by a panel while a forward job goes on."""
    return _tiles(1, emit_forward_unit)


@intrinsic  # type: ignore[untyped-decorator]
def tiles_2_backward(
    typing_context: Any, s: Any, s_row: Any, s_half: Any, s_block: Any, e: Any, e_row: Any, e_half: Any, e_block: Any,
    a: Any, a_block: Any, b: Any, steps: Any, job: Any, rate: Any,
) -> Any:  # fmt: skip
    """Multiply two row blocks by a panel while a backward job goes on."""
    return _tiles(2, emit_backward_unit)


@intrinsic  # type: ignore[untyped-decorator]
def tiles_1_backward(
    typing_context: Any, s: Any, s_row: Any, s_half: Any, s_block: Any, e: Any, e_row: Any, e_half: Any, e_block: Any,
    a: Any, a_block: Any, b: Any, steps: Any, job: Any, rate: Any,
) -> Any:  # fmt: skip
    """Multiply one row block by a panel while a backward job goes on."""
    return _tiles(1, emit_backward_unit)


def _vectors(unit: Callable[..., None]) -> Any:
    def emit(builder: Any, s0: Any, s1: Any, s2: Any, e0: Any, e1: Any, e2: Any,
             a: Any, b: Any, steps: Any, job: Any, rate: Any) -> None:  # fmt: skip
        _emit_vectors(builder, (s0, s1, s2), (e0, e1, e2), a, b, steps, job, rate, unit)

    return routine(11, emit, cpu.HAS_AVX512_BF16)


@intrinsic  # type: ignore[untyped-decorator]
def vectors_forward(
    typing_context: Any, s: Any, s_row: Any, s_half: Any, e: Any, e_row: Any, e_half: Any,
    a: Any, b: Any, steps: Any, job: Any, rate: Any,
) -> Any:  # fmt: skip
    """Multiply half a row block by a panel while a forward job goes on."""
    return _vectors(emit_forward_unit)


@intrinsic  # type: ignore[untyped-decorator]
def vectors_backward(
    typing_context: Any, s: Any, s_row: Any, s_half: Any, e: Any, e_row: Any, e_half: Any,
    a: Any, b: Any, steps: Any, job: Any, rate: Any,
) -> Any:  # fmt: skip
    """Multiply half a row block by a panel while a backward job goes on."""
    return _vectors(emit_backward_unit)


@intrinsic  # type: ignore[untyped-decorator]
def unpack_forward(typing_context: Any, job: Any) -> Any:
    """Do all that is left of a forward job."""

    def emit(builder: Any, job: Any) -> None:
        emit_units(builder, job, I64(1 << 40), emit_forward_unit)

    return routine(1, emit, cpu.HAS_AVX512_BF16)


@intrinsic  # type: ignore[untyped-decorator]
def unpack_backward(typing_context: Any, job: Any) -> Any:
    """Do all that is left of a backward job."""

    def emit(builder: Any, job: Any) -> None:
        emit_units(builder, job, I64(1 << 40), emit_backward_unit)

    return routine(1, emit, cpu.HAS_AVX512_BF16)


def _mask(builder: Any, count: Any) -> Any:
    lanes = constants(ir.VectorType(I64, LANES), list(range(LANES)))
    return builder.icmp_signed("<", lanes, splat(builder, count))


def _masked_load(builder: Any, address: Any, mask: Any) -> Any:
    place = builder.inttoptr(address, ADDRESS)
    return call(builder, "llvm.masked.load.v16f32.p0", FLOATS, place, I32(4), mask, ir.Constant(FLOATS, None))


@intrinsic  # type: ignore[untyped-decorator]
def round_line(typing_context: Any, target: Any, source: Any, count: Any) -> Any:
    """Write 32 bf16 from the first ``count`` of 32 float32, and zeros for the others."""

    def emit(builder: Any, target: Any, source: Any, count: Any) -> None:
        halves = [
            _masked_load(builder, add(builder, source, I64(64 * h)), _mask(builder, builder.sub(count, I64(16 * h))))
            for h in range(2)
        ]
        store(builder, round_to_bf16(builder, *halves), target, 64)

    return routine(3, emit, cpu.HAS_AVX512_BF16)


@intrinsic  # type: ignore[untyped-decorator]
def round_column(typing_context: Any, target: Any, source: Any, count: Any, factor: Any) -> Any:
    """Write a column of a step of a panel: ``count`` of 32 neighbouring float32 times ``factor``, zeros after them."""

    def emit(builder: Any, target: Any, source: Any, count: Any, factor: Any) -> None:
        scale = splat(builder, factor)
        halves = [
            builder.fmul(
                _masked_load(
                    builder, add(builder, source, I64(64 * h)), _mask(builder, builder.sub(count, I64(16 * h)))
                ),
                scale,
            )
            for h in range(2)
        ]
        pairs = builder.bitcast(round_to_bf16(builder, *halves), DWORDS)
        for pair in range(LANES):
            store(builder, builder.extract_element(pairs, I32(pair)), add(builder, target, I64(pair * PAIR_BYTES)), 4)

    return _scaled(emit, 3)


@intrinsic  # type: ignore[untyped-decorator]
def round_pair(typing_context: Any, target: Any, first: Any, second: Any, count: Any, counts: Any, factor: Any) -> Any:
    """Write one pair of a half of a step: 16 columns of two rows, of which ``count`` and ``counts`` are there."""

    def emit(builder: Any, target: Any, first: Any, second: Any, count: Any, counts: Any, factor: Any) -> None:
        scale = splat(builder, factor)
        rows = [
            builder.fmul(_masked_load(builder, source, _mask(builder, limit)), scale)
            for source, limit in ((first, count), (second, counts))
        ]
        both = builder.bitcast(round_to_bf16(builder, *rows), WORDS)
        order = [lane + LANES * odd for lane in range(LANES) for odd in (0, 1)]
        store(builder, builder.shuffle_vector(both, both, constants(ir.VectorType(I32, 2 * LANES), order)), target, 64)

    return _scaled(emit, 5)


def _scaled(emit: Callable[..., None], integers: int) -> Any:
    """Return what ``routine`` returns, for integers and a float32 after them."""
    _, codegen = routine(0, emit, cpu.HAS_AVX512_BF16)
    return types.void(*[types.int64] * integers, types.float32), codegen


@intrinsic  # type: ignore[untyped-decorator]
def copy_line(typing_context: Any, target: Any, source: Any, count: Any) -> Any:
    """Copy the first ``count`` of 16 float32."""

    def emit(builder: Any, target: Any, source: Any, count: Any) -> None:
        mask = _mask(builder, count)
        value, place = _masked_load(builder, source, mask), builder.inttoptr(target, ADDRESS)
        call(builder, "llvm.masked.store.v16f32.p0", VOID, value, place, I32(4), mask)

    return routine(3, emit, cpu.HAS_AVX512_BF16)


@intrinsic  # type: ignore[untyped-decorator]
def clear_line(typing_context: Any, target: Any) -> Any:
    """Write 64 zero bytes."""

    def emit(builder: Any, target: Any) -> None:
        store(builder, ir.Constant(FLOATS, None), target, 64)

    return routine(1, emit, cpu.HAS_AVX512_BF16)
