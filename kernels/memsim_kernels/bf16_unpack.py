"""INT4 weights into bf16 panels, in small units that the multiplying loops work off between their own instructions.

A panel is what the products read: [steps, 2, 16, 16, 2] bf16, where one step is 32 rows of the reduction, a half is 16
columns of the result, and the two rows of a pair are neighbours. Each half of a step is 1 KiB: one tile of AMX.

Every weight is what ``levels`` makes of it in float32, rounded to bf16.

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
    I8,
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
from memsim_kernels.levels import (
    AFFINE,
    FORMATS,
    SYMMETRIC,
    SYMMETRIC_8,
    Format,
    emit_levels,
    emit_weights,
    level_in_python,
)

JOB_Q, JOB_SCALES, JOB_PANEL = 0, 1, 2  # addresses
JOB_UNIT, JOB_UNITS = 3, 4  # done, and in all
JOB_Q_STEP = 5  # forward: bytes to the other half; backward: to the next 16 rows of W
JOB_SCALES_STEP = 6  # forward: bytes to the other half
JOB_SCALES_GROUP = 7  # forward: bytes to the next group
JOB_GROUP_SHIFT = 8  # forward: log2 of dwords per group
JOB_COLUMN = 9  # forward: dword column of the panel's first row within W
JOB_AHEAD = 10  # bytes to what the next job reads
JOB_FORMAT = 11  # of the matrix, as ``levels`` numbers them
JOB_OFFSETS = 12  # bytes from a scale to its offset
JOB_WORDS = 16

HALF_BYTES, PAIR_BYTES = 1024, 64

_LEVELS = {form: [float(level_in_python(form, n, 0)) for n in range(16)] for form in FORMATS if form.bits == 4}
_HALVES = ir.VectorType(ir.HalfType(), LANES)


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


def _by_format(builder: Any, job: Any, emit: Callable[[Format], None]) -> None:
    """Emit what ``emit`` emits for every format, and the choice between them by the job's."""
    wanted = job_word(builder, job, JOB_FORMAT)
    with builder.if_else(builder.icmp_signed("==", wanted, I64(SYMMETRIC))) as (symmetric, other):
        with symmetric:
            emit(FORMATS[SYMMETRIC])
        with other, builder.if_else(builder.icmp_signed("==", wanted, I64(AFFINE))) as (affine, rest):
            with affine:
                emit(FORMATS[AFFINE])
            with rest:
                emit(FORMATS[SYMMETRIC_8])


def emit_forward_unit(builder: Any, job: Any, unit: Any) -> None:
    """Emit the unpacking of 16 rows of W by 8 columns: four pairs of columns of W, which are rows of the reduction."""
    _by_format(builder, job, lambda form: _emit_forward_unit(builder, form, job, unit))


def _emit_forward_unit(builder: Any, form: Format, job: Any, unit: Any) -> None:
    half, column = builder.and_(unit, I64(1)), builder.lshr(unit, I64(1))
    q = add(builder, job_word(builder, job, JOB_Q), builder.mul(half, job_word(builder, job, JOB_Q_STEP)),
             builder.mul(column, I64(8 // form.columns * 64)))  # fmt: skip
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
    dwords = [load(builder, add(builder, q, I64(64 * i)), DWORDS) for i in range(8 // form.columns)]
    factor = builder.fpext(load(builder, scales, _HALVES), FLOATS)
    offset = None
    if form.affine:
        offset = builder.fpext(
            load(builder, add(builder, scales, job_word(builder, job, JOB_OFFSETS)), _HALVES), FLOATS
        )
    for pair in range(4):
        columns = (2 * pair, 2 * pair + 1)
        levels = [_level(builder, form, dwords[at // form.columns], at % form.columns) for at in columns]
        values = [emit_weights(builder, form, level, factor, offset) for level in levels]
        store(builder, _interleaved(builder, *values), add(builder, panel, I64(pair * PAIR_BYTES)), 64)


def emit_backward_unit(builder: Any, job: Any, unit: Any) -> None:
    """Emit the unpacking of two rows of W, 32 columns of one group: a pair of rows of the reduction."""
    _by_format(builder, job, lambda form: _emit_backward_unit(builder, form, job, unit))


def _emit_backward_unit(builder: Any, form: Format, job: Any, unit: Any) -> None:
    block, pair = builder.lshr(unit, I64(3)), builder.and_(unit, I64(7))
    q = add(builder, job_word(builder, job, JOB_Q), builder.mul(block, job_word(builder, job, JOB_Q_STEP)),
             builder.shl(pair, I64(3)))  # fmt: skip
    scales = add(builder, job_word(builder, job, JOB_SCALES), builder.shl(unit, I64(2)))
    panel = add(builder, job_word(builder, job, JOB_PANEL), builder.shl(builder.lshr(unit, I64(4)), I64(11)),
                 builder.shl(builder.and_(unit, I64(15)), I64(6)))  # fmt: skip
    prefetch(
        builder, add(builder, q, job_word(builder, job, JOB_AHEAD), builder.shl(builder.and_(pair, I64(3)), I64(6)))
    )
    if form.bits == 8:
        _emit_two_rows_of_bytes(builder, form, q, scales, panel)
        return
    offsets = add(builder, scales, job_word(builder, job, JOB_OFFSETS)) if form.affine else None
    table = _weights_of_two_rows(builder, form, scales, offsets)
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


def _emit_two_rows_of_bytes(builder: Any, form: Format, q: Any, scales: Any, panel: Any) -> None:
    """Emit both halves of a pair where a level is a byte: a qword holds 4 columns of both rows."""
    factors = _two_floats(builder, scales)
    for half in (0, 1):
        bytes_ = [load(builder, add(builder, q, I64(64 * (4 * half + i))), ir.VectorType(I8, 8)) for i in range(4)]
        while len(bytes_) > 1:
            everything = list(range(2 * bytes_[0].type.count))
            kind = ir.VectorType(I32, len(everything))
            bytes_ = [
                builder.shuffle_vector(low, high, constants(kind, everything))
                for low, high in zip(bytes_[0::2], bytes_[1::2], strict=True)
            ]
        rows = []
        for row, factor in enumerate(factors):
            picked = [8 * (column // 4) + 4 * row + column % 4 for column in range(LANES)]
            own = builder.shuffle_vector(bytes_[0], bytes_[0], constants(DWORDS, picked))
            levels = builder.sitofp(builder.sext(own, DWORDS), FLOATS)
            rows.append(emit_weights(builder, form, levels, splat(builder, factor), None))
        store(builder, _interleaved(builder, *rows), add(builder, panel, I64(half * HALF_BYTES)), 64)


def _interleaved(builder: Any, even: Any, odd: Any) -> Any:
    """Return the words of 16 pairs: an element of ``even``, then one of ``odd``, in bf16."""
    both = builder.bitcast(round_to_bf16(builder, even, odd), WORDS)
    order = [lane + LANES * second for lane in range(LANES) for second in (0, 1)]
    return builder.shuffle_vector(both, both, constants(ir.VectorType(I32, 2 * LANES), order))


def _two_floats(builder: Any, halves: Any) -> list[Any]:
    """Return the float16 of two neighbouring rows of W as float32."""
    both = builder.fpext(load(builder, halves, ir.VectorType(ir.HalfType(), 2)), ir.VectorType(FLOAT, 2))
    return [builder.extract_element(both, I32(i)) for i in (0, 1)]


def _weights_of_two_rows(builder: Any, form: Format, scales: Any, offsets: Any) -> Any:
    """Return the 32 bf16 values that nibbles of two neighbouring rows of W stand for."""
    levels = constants(FLOATS, _LEVELS[form])
    factors = [splat(builder, factor) for factor in _two_floats(builder, scales)]
    added = [splat(builder, offset) for offset in _two_floats(builder, offsets)] if form.affine else [None, None]
    return round_to_bf16(
        builder, *(emit_weights(builder, form, levels, *own) for own in zip(factors, added, strict=True))
    )


def _level(builder: Any, form: Format, dwords: Any, column: int) -> Any:
    """Return a level of each dword as float32. The table lookup ignores all but the lowest four bits."""
    if form.bits == 8:
        return emit_levels(builder, form, dwords, [column] * LANES)
    index = builder.lshr(dwords, constants(DWORDS, [4 * column] * LANES)) if column else dwords
    return call(builder, "llvm.x86.avx512.permvar.sf.512", FLOATS, constants(FLOATS, _LEVELS[form]), index)
