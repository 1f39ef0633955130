"""Give ten thousand changed files of every kind to memsim, and say what became of them: ``python tools/fuzz.py``.

Each file is changed by its structure, or is something else than a file; memsim must refuse it in one printable line, in
5 s of work and 300 MiB, or read of it what another library reads. Kinds, mutations and oracles are in ``tests/stress``.
The exit code is 1 if any mutation ended otherwise; each is named with what makes it again (``--kind``, ``--seed``).
"""

import argparse
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT / folder) for folder in ("tests/stress", "tests/support")]
os.environ.setdefault("NUMBA_CACHE_DIR", str(ROOT / ".pytest_cache" / "numba"))

from fuzzing import LIMIT_BYTES, LIMIT_S, Tally, fuzz  # noqa: E402
from kinds import all_kinds  # noqa: E402

_MOST_SHOWN = 10


def main() -> None:
    """Parse arguments, fuzz, print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mutations", type=int, default=10_000, help="of all kinds together")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kind", help="this one alone")
    parser.add_argument("--reasons", action="store_true", help="show how each kind was refused")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        os.environ["MEMSIM_CACHE"] = str(Path(directory, "cache"))
        started_s = time.monotonic()
        kinds = all_kinds(Path(directory))
        chosen = [kind for kind in kinds if arguments.kind in (None, kind.name)]
        if not chosen:
            parser.error(f"no kind called {arguments.kind!r}; kinds: {', '.join(kind.name for kind in kinds)}")
        shares = sum(kind.share for kind in chosen)
        tallies = {}
        for kind in chosen:
            count = round(arguments.mutations * kind.share / shares)
            work = Path(directory, "work")
            work.mkdir()
            tallies[kind.name] = fuzz(kind, count, arguments.seed, work)
            shutil.rmtree(work)
            print(_row(kind.name, tallies[kind.name]), flush=True)
    _report(tallies, time.monotonic() - started_s, arguments.reasons)


def _row(name: str, tally: Tally) -> str:
    total = tally.refused + tally.accepted
    return (
        f"{name:<20}{total:>8,}{tally.refused:>9,}{tally.accepted:>7,}{len(tally.failures):>8,}"
        f"{tally.slowest_s:>9.3f} s{tally.most_bytes / 2**20:>8.0f} MiB"
    )


def _report(tallies: dict[str, Tally], seconds: float, reasons: bool) -> None:
    """Print the totals, what failed, and how each kind was refused."""
    every = list(tallies.values())
    total = Tally(
        refused=sum(tally.refused for tally in every),
        accepted=sum(tally.accepted for tally in every),
        slowest_s=max(tally.slowest_s for tally in every),
        most_bytes=max(tally.most_bytes for tally in every),
        failures=[failure for tally in every for failure in tally.failures],
    )
    print(_row("all", total))
    print(f"{len(tallies)} kinds in {seconds:.0f} s; limits {LIMIT_S} s and {LIMIT_BYTES >> 20} MiB")
    for name, tally in tallies.items() if reasons else ():
        for reason, count in tally.reasons.most_common(_MOST_SHOWN):
            print(f"  {name}: {count:,} x {reason}")
    for failure in total.failures:
        print(f"FAILED {failure}")
    sys.exit(1 if total.failures else 0)


if __name__ == "__main__":
    print(f"{'kind':<20}{'in all':>8}{'refused':>9}{'read':>7}{'wrong':>8}{'slowest':>11}{'memory':>12}")
    main()
