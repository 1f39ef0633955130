"""Try every fault that memsim promises to survive, and print what it says and leaves: ``python tools/faults.py``.

Disks that are full or read-only, users without rights or a home, torn caches, closed streams, limits, clocks, signals:
each in a directory of its own, with real processes, file systems and limits. What needs root is skipped without it.
``--only TEXT`` tries some; ``--slow`` compiles with an empty cache, too.
"""

import argparse
import json
import re
import sys
import tempfile
from pathlib import Path

import pytest

TESTS = Path(__file__).parent.parent / "tests"
sys.path[:0] = [str(TESTS / "stress" / "faults"), str(TESTS / "stress"), str(TESTS / "support"), str(TESTS)]

import caches  # noqa: E402
import disks  # noqa: E402
import streams  # noqa: E402
from workshop import Fault, Workshop  # noqa: E402

from memsim.files import cache_dir  # noqa: E402
from memsim.runtime.prepare import prepare_kernels  # noqa: E402

ALL = [*disks.FAULTS, *caches.FAULTS, *streams.FAULTS]


def tried(fault: Fault, directory: Path) -> dict[str, object]:
    """Return what happened, and whether it is as it should be."""
    row: dict[str, object] = {"fault": fault.name, "right": False, "left": []}
    shop = Workshop(directory, cache_dir())
    try:
        done = fault.tried(shop)
    except pytest.skip.Exception as reason:
        return row | {"right": True, "skipped": str(reason)}
    except AssertionError as error:
        return row | {"code": None, "last": " ".join(str(error).split())[:300]}
    left = shop.left()
    right = done.code == fault.code and fault.says in done.last and "Traceback" not in done.err and not left
    return row | {"right": right, "code": done.code, "last": without_paths(done.last[-300:]), "left": left}


def without_paths(text: str) -> str:
    """Return a line without the directories of this machine."""
    return re.sub(r"/\S*/", "", text)


def table(rows: list[dict[str, object]]) -> str:
    """Return what the documents show: each fault, the exit code, the last line, what was left behind."""
    lines = ["| fault | exit code | last line | left behind |", "|---|---|---|---|"]
    for row in rows:
        ended = (
            f"{row['code']} | {row['last']} | {row['left'] or 'nothing'}" if "code" in row else f"| {row['skipped']} |"
        )
        lines.append(f"| {row['fault']} | {ended} |".replace("`", ""))
    return "\n".join(lines)


def shown(row: dict[str, object]) -> str:
    """Return one line for people."""
    if "skipped" in row:
        return f"skip  {row['fault']}: {row['skipped']}"
    last = without_paths(str(row["last"]))
    left = f"; left {row['left']}" if row["left"] else ""
    return f"{'ok  ' if row['right'] else 'WRONG'}  exit {row['code']}  {row['fault']}: {last[:110]}{left}"


def main() -> None:
    """Try the faults, and exit with 1 when one did not end as it should."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="")
    parser.add_argument("--slow", action="store_true")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--table", type=Path, help="print the table of a record instead, and try nothing")
    asked = parser.parse_args()
    if asked.table:
        print(table(json.loads(asked.table.read_text())))
        return
    prepare_kernels(1, lambda text: print(text, file=sys.stderr))
    rows = []
    with tempfile.TemporaryDirectory(dir=Path.cwd(), prefix="faults-") as name:
        Path(name).chmod(0o755)
        for number, fault in enumerate(ALL):
            if asked.only.lower() in fault.name.lower() and (asked.slow or not fault.slow):
                directory = Path(name) / f"{number:02d}"
                directory.mkdir()
                rows.append(tried(fault, directory))
                print(shown(rows[-1]), flush=True)
    wrong = sum(not row["right"] for row in rows)
    print(f"{len(rows)} faults, {wrong} wrong, {sum('skipped' in row for row in rows)} skipped")
    if asked.json:
        asked.json.write_text(json.dumps(rows, indent=2) + "\n")
    sys.exit(wrong > 0)


if __name__ == "__main__":
    main()
