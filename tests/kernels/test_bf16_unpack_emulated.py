"""The bf16 panels of every format on any processor: the code that is emitted, its instructions emulated in plain LLVM.

What the processor does in one instruction (a table lookup, a multishift, rounding to bf16) is written out lane by lane;
everything else is what the products run.
"""

import ctypes

import numpy as np
import pytest
from llvmlite import binding, ir

from memsim_kernels import bf16_unpack as unpacking
from memsim_kernels import levels
from memsim_kernels.bf16_type import DWORDS, I8, I16, I32, I64, LANES, constants
from memsim_kernels.bf16_unpack import emit_backward_unit, emit_forward_unit, emit_units

PANEL_BYTES = 2048  # of one step


def emulated(builder, name, result, *arguments):
    """Emit what an AVX-512 instruction does, lane by lane."""
    out = ir.Constant(result, ir.Undefined)
    first, second = arguments[0], arguments[1]
    for lane in range(result.count):
        place = I32(lane)
        if name == "llvm.x86.avx512.pmultishift.qb.512":
            qwords = builder.bitcast(second, ir.VectorType(I64, 8))
            qword, start = builder.extract_element(qwords, I32(lane // 8)), builder.extract_element(first, place)
            start = builder.and_(builder.zext(start, I64), I64(63))
            back = builder.and_(builder.sub(I64(64), start), I64(63))
            turned = builder.or_(builder.lshr(qword, start), builder.shl(qword, back))
            value = builder.trunc(turned, I8)
        else:  # permvar: a table of as many elements as there are lanes
            index = builder.extract_element(second, place)
            index = builder.and_(index, index.type(result.count - 1))
            value = builder.extract_element(first, builder.zext(index, I32) if index.type != I32 else index)
        out = builder.insert_element(out, value, place)
    return out


def rounded(builder, low, high):
    """Emit rounding to bf16, to nearest even."""
    halves = []
    for values in (low, high):
        bits = builder.bitcast(values, DWORDS)
        odd = builder.and_(builder.lshr(bits, constants(DWORDS, [16] * LANES)), constants(DWORDS, [1] * LANES))
        up = builder.add(builder.add(bits, constants(DWORDS, [0x7FFF] * LANES)), odd)
        upper = builder.lshr(up, constants(DWORDS, [16] * LANES))
        halves.append(builder.trunc(upper, ir.VectorType(I16, LANES)))
    return builder.shuffle_vector(*halves, constants(ir.VectorType(I32, 2 * LANES), list(range(2 * LANES))))


@pytest.fixture(scope="module")
def units():
    """Return the compiled loops over all units of a job, forward and backward, of (job address)."""
    patch = pytest.MonkeyPatch()
    patch.setattr(unpacking, "call", emulated)
    patch.setattr(unpacking, "round_to_bf16", rounded)
    module = ir.Module("units")
    for name, emit in (("forward", emit_forward_unit), ("backward", emit_backward_unit)):
        function = ir.Function(module, ir.FunctionType(ir.VoidType(), [I64]), name)
        builder = ir.IRBuilder(function.append_basic_block())
        emit_units(builder, function.args[0], I64(1 << 40), emit)
        builder.ret_void()
    patch.undo()
    binding.initialize_native_target()
    binding.initialize_native_asmprinter()
    machine = binding.Target.from_default_triple().create_target_machine(
        cpu=binding.get_host_cpu_name(), features=binding.get_host_cpu_features().flatten()
    )
    engine = binding.create_mcjit_compiler(binding.parse_assembly(str(module)), machine)
    engine.finalize_object()
    yield {
        name: ctypes.CFUNCTYPE(None, ctypes.c_int64)(engine.get_function_address(name))
        for name in ("forward", "backward")
    }


def aligned(size):
    """Return zero bytes that begin on a cache line."""
    block = np.zeros(size + 64, np.uint8)
    skip = -block.ctypes.data % 64
    return block[skip : skip + size]


def bf16(x):
    bits = np.asarray(x, np.float32).view(np.uint32).astype(np.uint64)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


FORMATS = [
    ("symmetric", 32, levels.SYMMETRIC), ("symmetric", 64, levels.SYMMETRIC), ("affine", 32, levels.AFFINE),
    ("affine", 64, levels.AFFINE), ("affine", 128, levels.AFFINE), ("symmetric8", 32, levels.SYMMETRIC_8),
]  # fmt: skip


@pytest.mark.parametrize("transposed", [True, False])
@pytest.mark.parametrize(("form", "group_size", "number"), FORMATS)
def test_a_panel_is_the_rounded_matrix(kit, units, transposed, form, group_size, number):
    n, k = 64, 256
    q, scales, matrix = kit.packed(n, k, group_size, form)
    own, panel = np.zeros(16, np.int64), aligned(2 * PANEL_BYTES)  # two steps
    start_job = start_job_in_python()
    for column in (1, 3 if not transposed else 1):  # panels of 32 columns of the product's right-hand matrix
        start_job(own, panel.ctypes.data, column, 0, 2, q, scales.view(np.uint16), {32: 2, 64: 3, 128: 4}[group_size],
                  transposed)  # fmt: skip
        assert own[unpacking.JOB_FORMAT] == number
        units["forward" if transposed else "backward"](own.ctypes.data)
        right = matrix.T if transposed else matrix  # rows are of the reduction
        want = bf16(right[:64, column * 32 : column * 32 + 32])
        # [steps, 2 halves, 16 pairs, 16 columns, 2]
        got = panel.view(np.uint16).reshape(2, 2, 16, 16, 2).transpose(0, 2, 4, 1, 3).reshape(64, 32)
        np.testing.assert_array_equal(got, want)


def start_job_in_python():
    """Return ``start_job`` as Python runs it, with the helpers that it calls."""
    from memsim_kernels import bf16_panels

    # Where nothing is compiled, they are Python functions already.
    function, format_of = (getattr(each, "py_func", each) for each in (bf16_panels.start_job, levels.format_of))
    scope = dict(function.__globals__) | {"address": lambda array: array.ctypes.data, "format_of": format_of}
    return type(function)(function.__code__, scope)
