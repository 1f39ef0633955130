"""First runs, and what is wrong with the cache of compiled kernels."""

import json
from collections.abc import Callable
from pathlib import Path

from workshop import Ending, Fault, Workshop


def torn(what: str, damage: Callable[[Path], None]) -> Fault:
    """Return the fault of damaged files in the cache: compiled again, and the run goes on."""

    def tried(shop: Workshop) -> Ending:
        damage(shop.own_kernels())
        return shop.memsim(*shop.arguments())

    return Fault(f"torn cache: {what}", 0, "adapter", tried)


def cut(suffix: str, keep: int) -> Callable[[Path], None]:
    def damage(kernels: Path) -> None:
        found = sorted(kernels.rglob(f"norm.*{suffix}")) + sorted(kernels.rglob(f"rope.*{suffix}"))
        assert found
        for path in found:
            path.write_bytes(path.read_bytes()[:keep])

    return damage


def marker(text: str) -> Callable[[Path], None]:
    def damage(kernels: Path) -> None:
        found = [path for path in kernels.iterdir() if path.is_file() and path.suffix == ".json"]
        found += list(kernels.glob("baseline*"))
        assert found
        for path in found:
            path.write_text(text)

    return damage


def two_first_runs(shop: Workshop) -> Ending:
    """Two commands with an empty cache: one compiles, the other waits and says so."""
    empty = {"MEMSIM_CACHE": str(shop.directory / "empty")}
    (shop.directory / "empty").mkdir()
    first = shop.popen(*shop.arguments("first"), env=empty)
    second = shop.popen(*shop.arguments("second"), env=empty)
    errors = []
    with first, second:
        for process in (first, second):
            _, err = process.communicate(timeout=3000)
            assert process.returncode == 0, err
            errors.append(err)
    compiled = [err for err in errors if "compiling kernels" in err]
    waited = [err for err in errors if "waiting for another memsim that compiles the kernels" in err]
    assert len(compiled) == len(waited) == 1, errors
    return Ending(0, "compiled once; the other waited", "")


FAULTS = [
    torn("an index cut short", cut(".nbi", 40)),
    torn("an empty index", cut(".nbi", 0)),
    torn("compiled code cut short", cut(".nbc", 100)),
    torn("empty compiled code", cut(".nbc", 0)),
    torn("a marker of no JSON", marker("evil")),
    torn("a marker of impossible sizes", marker(json.dumps({"fastest": "evil", "footprint_bytes": {"f32": -(10**9)}}))),
    Fault("two first runs", 0, "compiled once", two_first_runs, slow=True),
]
