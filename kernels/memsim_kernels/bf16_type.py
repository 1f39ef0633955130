"""The vector types and instructions of bf16 arithmetic, as llvmlite lacks them."""

from typing import Any

from llvmlite import ir
from numba.core import cgutils

LANES = 16
I1, I8, I16, I32, I64 = (ir.IntType(bits) for bits in (1, 8, 16, 32, 64))
FLOAT = ir.FloatType()
VOID = ir.VoidType()
ADDRESS = I8.as_pointer()


class BFloatType(ir.Type):  # type: ignore[misc]
    """LLVM's bfloat: the upper half of a float32."""

    def _to_string(self) -> str:
        return "bfloat"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, BFloatType)

    def __hash__(self) -> int:
        return hash(BFloatType)


FLOATS = ir.VectorType(FLOAT, LANES)
DWORDS = ir.VectorType(I32, LANES)
WORDS = ir.VectorType(I16, 2 * LANES)
BYTES = ir.VectorType(I8, 4 * LANES)
PAIRS = ir.VectorType(BFloatType(), 2 * LANES)


def constants(kind: Any, values: list[Any]) -> Any:
    """Return a constant vector."""
    return ir.Constant(kind, values)


def call(builder: Any, name: str, result: Any, *arguments: Any) -> Any:
    """Call an LLVM intrinsic by name."""
    kind = ir.FunctionType(result, [argument.type for argument in arguments])
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, name), arguments)


def load(builder: Any, address: Any, kind: Any, align: int = 1) -> Any:
    """Load a value from an address held as an integer."""
    return builder.load(builder.inttoptr(address, kind.as_pointer()), align=align)


def store(builder: Any, value: Any, address: Any, align: int = 1) -> None:
    """Store a value at an address held as an integer."""
    builder.store(value, builder.inttoptr(address, value.type.as_pointer()), align=align)


def splat(builder: Any, value: Any, count: int = LANES) -> Any:
    """Return a vector whose every lane is ``value``."""
    first = builder.insert_element(ir.Constant(ir.VectorType(value.type, count), ir.Undefined), value, I32(0))
    return builder.shuffle_vector(first, first, ir.Constant(ir.VectorType(I32, count), [0] * count))


def round_to_bf16(builder: Any, low: Any, high: Any) -> Any:
    """Return 32 bf16: the 16 float32 of ``low`` and then those of ``high``, each rounded to nearest even."""
    return call(builder, "llvm.x86.avx512bf16.cvtne2ps2bf16.512", PAIRS, high, low)


def add(builder: Any, *terms: Any) -> Any:
    """Return the sum of integers."""
    total = terms[0]
    for term in terms[1:]:
        total = builder.add(total, term)
    return total


def prefetch(builder: Any, address: Any, writing: bool = False) -> None:
    """Bring a cache line near; any address will do."""
    call(builder, "llvm.prefetch.p0", VOID, builder.inttoptr(address, ADDRESS), I32(int(writing)), I32(3), I32(1))
