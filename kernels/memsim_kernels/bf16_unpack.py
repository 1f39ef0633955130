"""INT4 weights into bf16 panels, in small units that the multiplying loops work off between their own instructions.

A panel is what the products read: [steps, 2, 16, 16, 2] bf16, where one step is 32 rows of the reduction, a half is 16
columns of the result, and the two rows of a pair are neighbours. Each half of a step is 1 KiB: one tile of AMX.

Every weight is float32 nibble * float32 scale, which is exact, rounded once to bf16.

A *job* is the filling of one panel, int64 words in memory (``JOB_*``); UNIT counts what is done.
Forward, a unit is one vector of 16 rows of W by 8 columns: four pairs of a half. Backward, it is two rows of W by 32
columns: one pair of both halves.
"""

from collections.abc import Callable
from typing import Any

from llvmlite import ir

from memsim_kernels.bf16_type import (
    BYTES,
    DWORDS,
    FLOAT,
    FLOATS,
    I1,
    I32,
    I64,
    LANES,
    WORDS,
    add,
    call,
    constants,
    load,
    prefetch,
    round_to_bf16,
    splat,
    store,
)  # fmt: skip

JOB_Q, JOB_SCALES, JOB_PANEL = 0, 1, 2  # addresses
JOB_UNIT, JOB_UNITS = 3, 4  # done, and in all
JOB_Q_STEP = 5  # forward: bytes to the other half; backward: to the next 16 rows of W
JOB_SCALES_STEP = 6  # forward: bytes to the other half
JOB_SCALES_GROUP = 7  # forward: bytes to the next group
JOB_GROUP_SHIFT = 8  # forward: log2 of dwords per group
JOB_COLUMN = 9  # forward: dword column of the panel's first row within W
JOB_AHEAD = 10  # bytes to what the next job reads
JOB_WORDS = 16

HALF_BYTES, PAIR_BYTES = 1024, 64

_NIBBLES = [float(n if n < 8 else n - 16) for n in range(16)]


def job_word(builder: Any, job: Any, index: int) -> Any:
    """Return one word of the job at address ``job``."""
    return load(builder, add(builder, job, I64(8 * index)), I64, 8)


def emit_units(builder: Any, job: Any, count: Any, emit_unit: Callable[[Any, Any, Any], None]) -> None:
    """Emit a loop over the next ``count`` units of a job, or as many as are left."""
    unit, units = job_word(builder, job, JOB_UNIT), job_word(builder, job, JOB_UNITS)
    wanted = add(builder, unit, count)
    limit = builder.select(builder.icmp_signed("<", wanted, units), wanted, units)
    before = builder.block
    loop, after = builder.append_basic_block("unpack"), builder.append_basic_block("unpacked")
    builder.cbranch(builder.icmp_signed("<", unit, limit), loop, after)
    builder.position_at_end(loop)
    index = builder.phi(I64)
    emit_unit(builder, job, index)
    following = add(builder, index, I64(1))
    index.add_incoming(unit, before)
    index.add_incoming(following, builder.block)
    store(builder, following, add(builder, job, I64(8 * JOB_UNIT)), 8)
    builder.cbranch(builder.icmp_signed("<", following, limit), loop, after)
    builder.position_at_end(after)


def emit_forward_unit(builder: Any, job: Any, unit: Any) -> None:
    """Emit the unpacking of one vector of dwords: four pairs of columns of W, which are rows of the reduction."""
    half, column = builder.and_(unit, I64(1)), builder.lshr(unit, I64(1))
    q = add(builder, job_word(builder, job, JOB_Q), builder.mul(half, job_word(builder, job, JOB_Q_STEP)),
             builder.shl(column, I64(6)))  # fmt: skip
    group = builder.lshr(
        add(builder, column, job_word(builder, job, JOB_COLUMN)), job_word(builder, job, JOB_GROUP_SHIFT)
    )
    scales = add(builder, job_word(builder, job, JOB_SCALES),
                  builder.mul(half, job_word(builder, job, JOB_SCALES_STEP)),
                  builder.mul(group, job_word(builder, job, JOB_SCALES_GROUP)))  # fmt: skip
    panel = add(builder, job_word(builder, job, JOB_PANEL), builder.shl(half, I64(10)),
                 builder.shl(builder.lshr(column, I64(2)), I64(11)),
                 builder.shl(builder.and_(column, I64(3)), I64(8)))  # fmt: skip
    prefetch(builder, add(builder, q, job_word(builder, job, JOB_AHEAD)))
    dwords = load(builder, q, DWORDS)
    factor = builder.fpext(load(builder, scales, ir.VectorType(ir.HalfType(), LANES)), FLOATS)
    for pair in range(4):
        values = [builder.fmul(_nibble(builder, dwords, 8 * pair + 4 * odd), factor) for odd in (0, 1)]
        both = builder.bitcast(round_to_bf16(builder, *values), WORDS)
        order = [lane + LANES * odd for lane in range(LANES) for odd in (0, 1)]
        mixed = builder.shuffle_vector(both, both, constants(ir.VectorType(I32, 2 * LANES), order))
        store(builder, mixed, add(builder, panel, I64(pair * PAIR_BYTES)), 64)


def emit_backward_unit(builder: Any, job: Any, unit: Any) -> None:
    """Emit the unpacking of two rows of W, 32 columns of one group: a pair of rows of the reduction."""
    block, pair = builder.lshr(unit, I64(3)), builder.and_(unit, I64(7))
    q = add(builder, job_word(builder, job, JOB_Q), builder.mul(block, job_word(builder, job, JOB_Q_STEP)),
             builder.shl(pair, I64(3)))  # fmt: skip
    scales = add(builder, job_word(builder, job, JOB_SCALES), builder.shl(unit, I64(2)))
    panel = add(builder, job_word(builder, job, JOB_PANEL), builder.shl(builder.lshr(unit, I64(4)), I64(11)),
                 builder.shl(builder.and_(unit, I64(15)), I64(6)))  # fmt: skip
    prefetch(
        builder, add(builder, q, job_word(builder, job, JOB_AHEAD), builder.shl(builder.and_(pair, I64(3)), I64(6)))
    )
    table = _products_of_two_rows(builder, scales)
    keep, parity = constants(DWORDS, [0x000F000F] * LANES), constants(DWORDS, [0x00100000] * LANES)
    # A qword holds 8 columns of both rows: word 2 k takes nibble k of the first, word 2 k + 1 that of the second.
    starts = [start for i in range(8) for k in (2 * i % 8, 2 * i % 8 + 1)
              for start in (4 * k, 0, 32 + 4 * k, 0)]  # fmt: skip
    upper = constants(ir.VectorType(I1, 8), [0] * 4 + [1] * 4)
    for half in (0, 1):
        columns = [splat(builder, load(builder, add(builder, q, I64(64 * (2 * half + i))), I64), 8) for i in (0, 1)]
        rows = builder.select(upper, columns[1], columns[0])
        fields = call(
            builder, "llvm.x86.avx512.pmultishift.qb.512", BYTES,
            constants(BYTES, starts), builder.bitcast(rows, BYTES),
        )  # fmt: skip
        index = builder.or_(builder.and_(builder.bitcast(fields, DWORDS), keep), parity)
        weights = call(
            builder, "llvm.x86.avx512.permvar.hi.512", WORDS, builder.bitcast(table, WORDS),
            builder.bitcast(index, WORDS),
        )  # fmt: skip
        store(builder, weights, add(builder, panel, I64(half * HALF_BYTES)), 64)


def _products_of_two_rows(builder: Any, scales: Any) -> Any:
    """Return the 32 bf16 values that nibbles of two neighbouring rows of W stand for."""
    two = ir.VectorType(FLOAT, 2)
    factors = builder.fpext(load(builder, scales, ir.VectorType(ir.HalfType(), 2)), two)
    nibbles = constants(FLOATS, _NIBBLES)
    products = [builder.fmul(nibbles, splat(builder, builder.extract_element(factors, I32(i)))) for i in (0, 1)]
    return round_to_bf16(builder, *products)


def _nibble(builder: Any, dwords: Any, shift: int) -> Any:
    """Return a nibble of each dword as float32. The table lookup ignores all but the lowest four bits."""
    index = builder.lshr(dwords, constants(DWORDS, [shift] * LANES)) if shift else dwords
    return call(builder, "llvm.x86.avx512.permvar.sf.512", FLOATS, constants(FLOATS, _NIBBLES), index)
