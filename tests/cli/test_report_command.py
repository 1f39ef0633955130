import json
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from memsim.cli.comparing.report import command
from memsim.errors import InputError, MemsimError, UsageError
from recorded import write_run, write_shares


def invoke(*arguments: object) -> Result:
    result = CliRunner().invoke(command, [str(argument) for argument in arguments])
    if isinstance(result.exception, MemsimError):
        raise result.exception
    return result


def test_runs_become_one_page_and_one_trace(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / name) for name in ("one", "two")]
    page, trace, shares = tmp_path / "r.html", tmp_path / "t.json", write_shares(tmp_path / "d.json")
    done = invoke(
        *runs, "-o", page, "--perfetto", trace, "--device", "raspberry-pi-5", "--decompression", shares, "--json", "-"
    )
    plain = json.loads(done.stdout)
    assert plain["files"] == [str(page), str(trace)]
    assert plain["runs"] == ["one", "two"]
    assert [row["run"] for row in plain["devices"]] == ["one", "two"]
    assert plain["devices"][0]["verdicts"].keys() == {"foreground", "entitled", "background"}
    html = page.read_text()
    for words in ("<title>memsim: one, two</title>", "Raspberry Pi 5", "What decompression costs"):
        assert words in html
    names = {e["args"]["name"] for e in json.loads(trace.read_text())["traceEvents"] if e["name"] == "process_name"}
    assert names == {
        f"{run} {how}" for run in ("one", "two") for how in ("(measured)", "on raspberry-pi-5 (simulated)")
    }


def test_without_a_name_it_is_report_html(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = write_run(tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    assert invoke(directory).stdout == "report.html\n"
    invoke(directory, "--perfetto", "only.json")
    assert {path.name for path in tmp_path.iterdir()} == {"run", "report.html", "only.json"}


@pytest.mark.parametrize(
    ("arguments", "kind", "message"),
    [
        (["no-such-run"], InputError, "no-such-run is not a run"),
        (["run", "--device", "nokia"], InputError, "no device called 'nokia'"),
        (["run", "--decompression", "nothing.json"], InputError, "cannot read nothing.json"),
        (["run", "-o", "no/such/r.html"], InputError, "cannot write no/such/r.html"),
        (["run", "--perfetto", "t.json", "--decompression", "d.json"], UsageError, "belongs into the HTML file"),
    ],
)
def test_what_cannot_work_is_one_line(
    arguments: list[str], kind: type[MemsimError], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_run(tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(kind, match=message) as refused:
        invoke(*arguments)
    assert "\n" not in str(refused.value)
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_it_needs_no_compiler_and_no_matplotlib(tmp_path: Path) -> None:
    directory = write_run(tmp_path / "run")
    code = (
        f"import sys; sys.argv = ['memsim', 'report', {str(directory)!r}, '-o', {str(tmp_path / 'r.html')!r}]\n"
        "import memsim.cli\n"
        "memsim.cli.cli.main(standalone_mode=False)\n"
        "print(*sorted({name.split('.')[0] for name in sys.modules}), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"numba", "llvmlite", "torch", "rich", "matplotlib", "tokenizers"} & set(done.stderr.split())
