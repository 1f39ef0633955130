"""How a checkpoint's matrices are to be stored, and the formats that this gives them."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from memsim.errors import UsageError
from memsim.ir.matrix_format import KINDS, MatrixFormat
from memsim.models.matrix_formats import Formats, formats_from
from memsim.models.parts import matrices, part_names

if TYPE_CHECKING:
    from memsim.weights.readers.source import Checkpoint

CHOICES = ("symmetric", "affine", "source")
EMBEDDING_BITS = (4, 8)

_EMBEDDING = ("embed", "embed_tokens")
_FINEST = MatrixFormat("symmetric8", 32)
_GROUP_SIZE = 32


@dataclass(frozen=True, slots=True)
class Recipe:
    """What a user asked for.

    Attributes:
        format: One of ``CHOICES``. ``source`` takes for each matrix the smallest format that keeps what the file has:
            its levels where a format has them, else 8 bits. None is ``source`` for a checkpoint that is quantised and
            ``symmetric`` otherwise, or where there is a group size.
        group_size: Columns that share a scale; None is 32.
        embedding_bits: Of the token embedding, whatever the others have; None leaves it as they are.

    Raises:
        UsageError: The format has no such groups.
    """

    format: str | None = None
    group_size: int | None = None
    embedding_bits: int | None = None

    def __post_init__(self) -> None:
        if self.format not in (None, *CHOICES):
            raise UsageError(f"no format is called {self.format!r}; there are {', '.join(CHOICES)}")
        if self.embedding_bits not in (None, *EMBEDDING_BITS):
            raise UsageError(
                f"an embedding has {' or '.join(map(str, EMBEDDING_BITS))} bits, not {self.embedding_bits}"
            )
        if self.format == "source" and self.group_size is not None:
            raise UsageError("--format source keeps the groups of the file; leave --group-size out")
        self._usual()  # refuses groups that it has not

    def chosen(self, checkpoint: "Checkpoint") -> str:
        """Return the format that this means for a checkpoint."""
        if self.format is not None:
            return self.format
        quantized = any(
            checkpoint.tensors[place[0], f"{place[1]}.weight"].format is not None for place in _places(checkpoint)
        )
        return "source" if quantized and self.group_size is None else "symmetric"

    def formats(self, checkpoint: "Checkpoint") -> Formats:
        """Return the format of each matrix of a checkpoint."""
        usual = None if self.chosen(checkpoint) == "source" else self._usual()
        formats = {}
        for place in _places(checkpoint):
            own = checkpoint.tensors[place[0], f"{place[1]}.weight"].format or _FINEST
            formats[place] = usual or own
        if self.embedding_bits is not None and formats[_EMBEDDING].kind.bits != self.embedding_bits:
            formats[_EMBEDDING] = _FINEST if self.embedding_bits == _FINEST.kind.bits else self._usual("affine")
        return formats_from(formats)

    def _usual(self, otherwise: str = "symmetric") -> MatrixFormat:
        name = self.format if self.format in KINDS else otherwise
        return MatrixFormat(name, self.group_size or _GROUP_SIZE)


def recipe_of(asked: Recipe | int) -> Recipe:
    """Return a recipe; a number is short for symmetric INT4 in groups of so many columns."""
    return Recipe("symmetric", asked) if isinstance(asked, int) else asked


def _places(checkpoint: "Checkpoint") -> list[tuple[str, str]]:
    """Return (part, name) of every matrix."""
    config = checkpoint.config
    return [(part, name) for part in part_names(config) for name in matrices(config, part)]
