"""What a test's markers ask for: a limit, a comparison with what it took before; checked before any test runs."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Protocol

from memsim.errors import UsageError
from memsim.regression.peaks import file_of
from memsim.units import parse_bytes, parse_share

LIMIT: Final = "limit_footprint"
GROWTH: Final = "fail_on_growth"


class Mark(Protocol):
    """The part of ``pytest.Mark`` that is read here."""

    @property
    def args(self) -> tuple[Any, ...]:
        """By position."""

    @property
    def kwargs(self) -> Mapping[str, Any]:
        """By name."""


@dataclass(frozen=True, slots=True)
class Asked:
    """What one test asks for.

    Attributes:
        limit_bytes: What it may take, or None.
        file: Its baseline inside the directory of those, or None.
        tolerance: Relative growth that passes.
    """

    limit_bytes: int | None
    file: str | None
    tolerance: float


def limit_of(mark: Mark) -> int:
    """Return the limit of a ``limit_footprint``.

    Raises:
        UsageError: Not one size.
    """
    _refuse_names(LIMIT, mark, set())
    if len(mark.args) != 1 or not isinstance(mark.args[0], str):
        raise UsageError(f'{LIMIT} takes one size, such as {LIMIT}("320MB")')
    return parse_bytes(mark.args[0])


def growth_of(mark: Mark, test: str, parameters: str | None, default: str) -> tuple[str, float]:
    """Return the file and the tolerance of a ``fail_on_growth``.

    Args:
        mark: The marker.
        test: The node id of its test.
        parameters: Of the test, as an id.
        default: The tolerance where the marker has none.

    Raises:
        UsageError: Not one name at most, a tolerance that is none, or another argument.
    """
    _refuse_names(GROWTH, mark, {"tolerance"})
    if len(mark.args) > 1 or not all(isinstance(name, str) for name in mark.args):
        raise UsageError(f'{GROWTH} takes one name at most, such as {GROWTH}("NAME", tolerance="5%")')
    return file_of(test, mark.args[0] if mark.args else None, parameters), parse_share(
        str(mark.kwargs.get("tolerance", default))
    )


def _refuse_names(marker: str, mark: Mark, known: set[str]) -> None:
    unknown = sorted(mark.kwargs.keys() - known)
    if unknown:
        takes = f"by name it takes {', '.join(sorted(known))}" if known else "it takes none by name"
        raise UsageError(f"{marker} has no argument {unknown[0]!r}; {takes}")
