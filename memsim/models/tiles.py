"""The matrices of a model that is trained as a whole: on disk in bf16, in tiles of rows, each a unit of noise or more.

A tile is what is in memory at once. Noise is drawn by the number of a *unit*, some rows of one matrix, so that a row of
the embedding has its noise without that of the rows before it, and tiles may have any size without changing a bit.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

from memsim.models.config import ModelConfig
from memsim.models.parts import matrices, part_names

UNIT_ELEMENTS = 1 << 17
TILE_ELEMENTS = 1 << 20

_FIRST_NOISE = 1 << 20
"""Vectors, which have a number each, have those below."""


@dataclass(frozen=True, slots=True)
class Tile:
    """Rows ``start`` to ``start + count`` of a matrix.

    Attributes:
        source: The name of its storage.
        noise: The number of its first unit of noise.
    """

    start: int
    count: int
    source: str
    noise: int


@dataclass(frozen=True, slots=True)
class TiledMatrix:
    """One matrix [n_rows, n_columns].

    Attributes:
        first_noise: The number of its first unit of noise.
    """

    part: str
    name: str
    n_rows: int
    n_columns: int
    first_noise: int

    @property
    def unit_rows(self) -> int:
        """Rows of a unit of noise."""
        return max(1, UNIT_ELEMENTS // self.n_columns)

    @property
    def n_units(self) -> int:
        """Units of noise, the last of which may be smaller."""
        return -(-self.n_rows // self.unit_rows)

    @property
    def tile_rows(self) -> int:
        """Rows of a tile: whole units."""
        return self.unit_rows * max(1, TILE_ELEMENTS // (self.unit_rows * self.n_columns))

    def tiles(self) -> list[Tile]:
        """Return the tiles, top to bottom."""
        return [
            Tile(
                start=start,
                count=min(self.tile_rows, self.n_rows - start),
                source=f"{self.part}/{self.name}.bf16.{number}",
                noise=self.first_noise + start // self.unit_rows,
            )
            for number, start in enumerate(range(0, self.n_rows, self.tile_rows))
        ]


def parts_in_turn(config: ModelConfig) -> list[str]:
    """Return the parts in the order in which they are updated and stored: blocks, then embedding and head."""
    embed, *blocks, head = part_names(config)
    return [*blocks, embed, head]


def tiled_matrices(config: ModelConfig) -> Mapping[tuple[str, str], TiledMatrix]:
    """Return every matrix of a model by (part, name), in the order of ``parts_in_turn``."""
    found: dict[tuple[str, str], TiledMatrix] = {}
    noise = _FIRST_NOISE
    for part in parts_in_turn(config):
        for name, (n_rows, n_columns) in matrices(config, part).items():
            matrix = TiledMatrix(part, name, n_rows, n_columns, noise)
            found[part, name] = matrix
            noise += matrix.n_units
    return found


def matrices_bytes(config: ModelConfig) -> int:
    """Return the bytes of all matrices in bf16."""
    return sum(2 * prod(shape) for part in part_names(config) for shape in matrices(config, part).values())
