"""The format of each matrix of a model."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from memsim.ir.matrix_format import MatrixFormat, symmetric


@dataclass(frozen=True, slots=True)
class Formats:
    """The format of each matrix of a model.

    Attributes:
        usual: Of every matrix that is not in ``others``.
        others: (part, matrix name) -> format, sorted and without any that are ``usual``.
    """

    usual: MatrixFormat
    others: tuple[tuple[tuple[str, str], MatrixFormat], ...] = field(default=())

    def of(self, part: str, name: str) -> MatrixFormat:
        """Return the format of matrix ``name`` of ``part``."""
        for place, chosen in self.others:
            if place == (part, name):
                return chosen
        return self.usual

    def of_block(self, part: str) -> "Formats":
        """Return formats that call those of the block ``part`` those of ``block_000``, and know no other's.

        Block programs are written for the first block. Blocks whose matrices have the same formats share them.
        """
        return replace(self, others=tuple((("block_000", name), own) for (at, name), own in self.others if at == part))

    def with_blocks(self, parts: Sequence[str]) -> "Formats":
        """Return the formats of a model whose blocks are these of this one, and the rest of it as it is."""
        rest = [other for other in self.others if not other[0][0].startswith("block_")]
        for index, part in enumerate(parts):
            rest += [((f"block_{index:03d}", name), own) for (at, name), own in self.others if at == part]
        return replace(self, others=tuple(sorted(rest, key=lambda other: other[0])))


Packing = Formats | int
"""The formats of a model; a number is short for symmetric INT4 in groups of so many columns everywhere."""


def formats_of(packing: Packing) -> Formats:
    """Return what ``packing`` is short for."""
    return Formats(symmetric(packing)) if isinstance(packing, int) else packing


def describe(packing: Packing) -> int | dict[str, str | dict[str, str]]:
    """Return formats as plain data for JSON: the group size alone where all is symmetric INT4."""
    formats = formats_of(packing)
    if not formats.others and formats.usual.name == "symmetric":
        return formats.usual.group_size
    return {"usual": str(formats.usual), "others": {"/".join(place): str(own) for place, own in formats.others}}


def describe_counts(each: Iterable[MatrixFormat]) -> str:
    """Return for people what matrices are stored as: ``symmetric g32``, or ``affine g32 (210), symmetric8 g32 (1)``."""
    counts = Counter(map(str, each))
    if len(counts) == 1:
        return next(iter(counts))
    return ", ".join(f"{name} ({count})" for name, count in counts.most_common())


def formats_from(chosen: Mapping[tuple[str, str], MatrixFormat]) -> Formats:
    """Return the formats of a model from those of all its matrices, by (part, name)."""
    counts: dict[MatrixFormat, int] = {}
    for each in chosen.values():
        counts[each] = counts.get(each, 0) + 1
    usual = max(counts, key=lambda each: (counts[each], each.name, each.group_size))
    others = [(place, each) for place, each in chosen.items() if each != usual]
    return Formats(usual, tuple(sorted(others, key=lambda other: other[0])))
