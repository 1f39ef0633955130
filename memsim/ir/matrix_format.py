"""The formats of a packed matrix, a row each, and the shapes of what stores it.

What a format's levels mean, w for a weight:

``symmetric``   4 bits, w = scale * level, level -8 ... 7. The paper's INT4.
``affine``      4 bits, w = scale * level + offset, level 0 ... 15. What MLX and GGUF's Q4_1 and Q4_K have.
``symmetric8``  8 bits, w = scale * level, level -128 ... 127. What GGUF's Q8_0 has.

Scales and offsets are float16, one for each group of columns of a row.
"""

from dataclasses import dataclass

from memsim.errors import UsageError

ROWS_PER_PANEL = 16


@dataclass(frozen=True, slots=True)
class FormatKind:
    """One row: what a format has in groups of any size.

    Attributes:
        name: What people and files call it.
        bits: Of a level.
        affine: Whether a weight has an offset beside its scale; its levels have no sign then.
        group_sizes: Columns that may share a scale.
    """

    name: str
    bits: int
    affine: bool
    group_sizes: tuple[int, ...]

    @property
    def rows_a_group(self) -> int:
        """Rows of ``scales`` for each group of columns."""
        return 2 if self.affine else 1

    @property
    def levels(self) -> tuple[int, int]:
        """The smallest level and the largest."""
        return (0, 2**self.bits - 1) if self.affine else (-(2 ** (self.bits - 1)), 2 ** (self.bits - 1) - 1)


KINDS = {
    kind.name: kind
    for kind in (
        FormatKind("symmetric", 4, affine=False, group_sizes=(32, 64)),
        FormatKind("affine", 4, affine=True, group_sizes=(32, 64, 128)),
        FormatKind("symmetric8", 8, affine=False, group_sizes=(32,)),
    )
}


@dataclass(frozen=True, slots=True)
class MatrixFormat:
    """The format of one matrix: its kind, a name of ``KINDS``, and the columns that share a scale.

    Raises:
        UsageError: There is no such format.
    """

    name: str
    group_size: int

    def __post_init__(self) -> None:
        if self.name not in KINDS:
            raise UsageError(f"no matrix format is called {self.name!r}; there are {', '.join(KINDS)}")
        if self.group_size not in self.kind.group_sizes:
            sizes = " or ".join(map(str, self.kind.group_sizes))
            raise UsageError(f"{self.name} matrices have groups of {sizes}, not {self.group_size}")

    @property
    def kind(self) -> FormatKind:
        """Its row."""
        return KINDS[self.name]

    def __str__(self) -> str:
        return f"{self.name} g{self.group_size}"

    def shapes(self, n_rows: int, n_columns: int) -> tuple[tuple[int, int, int], tuple[int, int]]:
        """Return the shapes of ``q`` and ``scales`` of a matrix [n_rows, n_columns] (see ``parts``)."""
        panels, groups = -(-n_rows // ROWS_PER_PANEL), -(-n_columns // self.group_size)
        dwords = groups * self.group_size * self.kind.bits // 32
        return (panels, dwords, ROWS_PER_PANEL), (groups * self.kind.rows_a_group, panels * ROWS_PER_PANEL)


def symmetric(group_size: int) -> MatrixFormat:
    """Return the paper's INT4 in groups of ``group_size``."""
    return MatrixFormat("symmetric", group_size)


def format_of(
    q: tuple[int, ...], scales: tuple[int, ...], n_rows: int, n_columns: int, group_size: int
) -> MatrixFormat | None:
    """Return the format in which arrays of these shapes store a matrix [n_rows, n_columns]; None for none."""
    kinds = (kind for kind in KINDS.values() if group_size in kind.group_sizes)
    each = (MatrixFormat(kind.name, group_size) for kind in kinds)
    return next((own for own in each if own.shapes(n_rows, n_columns) == (q, scales)), None)
