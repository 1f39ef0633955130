"""Names of a package whose modules are imported on first use, so that importing the package itself stays light."""

from collections.abc import Callable, Mapping
from importlib import import_module


def lazily(package: str, places: Mapping[str, str]) -> Callable[[str], object]:
    """Return the ``__getattr__`` of ``package``.

    Args:
        package: Its name.
        places: Name that it exports -> module that has it. A stub beside the package tells type checkers the same.
    """

    def get(name: str) -> object:
        if name not in places:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value: object = getattr(import_module(places[name]), name)
        return value

    return get
