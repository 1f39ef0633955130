"""What ``memsim diff`` does once the options are read."""

from dataclasses import asdict
from pathlib import Path

from memsim.cli.say import say
from memsim.file_names import EVENTS_FILE, RESULT_FILE
from memsim.json_file import read_object
from memsim.regression.baseline import is_baseline, peak_by_op, read_baseline
from memsim.regression.describe import growth_lines, otherwise_lines, table
from memsim.regression.differences import asked_otherwise, grown, side_by_side
from memsim.result_file import MAX_RECORD_BYTES, emit_json, read_result
from memsim.results import Result


def command(a: Path, b: Path, json_path: str | None) -> None:
    """Show what run B does otherwise than run A."""
    (old, old_ops), (new, new_ops) = _read(a), _read(b)
    rows, otherwise = side_by_side(old, new), asked_otherwise(old, new)
    changes = {
        "values larger in B at the peak": grown(old.peak_by_value, new.peak_by_value),
        "values smaller in B at the peak": grown(new.peak_by_value, old.peak_by_value),
        "ops with a higher footprint after them in B": grown(old_ops, new_ops),
        "ops with a lower footprint after them in B": grown(new_ops, old_ops),
    }
    if json_path is not None:
        plain = [{"name": row.name, "a": row.baseline, "b": row.actual} for row in rows]
        emit_json(
            {"figures": plain, "settings": [asdict(row) for row in otherwise]}
            | {key: [asdict(row) for row in found] for key, found in changes.items()},
            json_path,
        )
    if json_path != "-":
        lines = [f"A  {_named(old)}", f"B  {_named(new)}", "", *table(rows, ("A", "B"))]
        lines += otherwise_lines(otherwise)
        for title, found in changes.items():
            lines += growth_lines(title, found)
        say(*lines)


def _named(result: Result) -> str:
    return f"{result.model}, {result.schedule}, seq {result.seq_len}, {result.trained}, {result.compute}"


def _read(path: Path) -> tuple[Result, dict[str, int]]:
    """Return the record that ``path`` holds, and what each op held at most where that is known."""
    if path.is_dir():
        result = read_result(path / RESULT_FILE)
        return result, peak_by_op(path, result) if (path / EVENTS_FILE).exists() else {}
    if is_baseline(read_object(path, MAX_RECORD_BYTES)):
        baseline = read_baseline(path)
        return baseline.result, baseline.peak_by_op_bytes
    return read_result(path), {}
