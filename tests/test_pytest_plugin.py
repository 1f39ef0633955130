"""The markers on tests of other people, run by a pytest of their own."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from memsim.regression.peaks import file_of

MIB = 1 << 20

TESTS = """
import subprocess, sys
import numpy as np
import pytest

@pytest.mark.limit_footprint("{limit}")
def test_here():
    assert np.ones(60 << 17).sum() > 0  # 60 MiB, freed before the test ends

@pytest.mark.limit_footprint("{limit}")
def test_in_a_child():
    code = "import time; held = bytearray(80 << 20); time.sleep(0.1)"
    subprocess.run([sys.executable, "-c", code], check=True)

@pytest.mark.fail_on_growth("{name}")
def test_growth():
    assert np.ones({mib} << 17).sum() > 0
"""

# Every third of the plain tests comes after one that ends in its own way; test k takes k MiB.
MIXED = """
import mmap, os, subprocess, sys, time
from multiprocessing import get_context
import numpy as np
import pytest

HELD = np.ones(320 << 17)
pytestmark = pytest.mark.limit_footprint("50MiB")

def wait(n):
    time.sleep(0.1)
    return n

def fork():
    pid = os.fork()
    if pid == 0:
        time.sleep(0.1)
        os._exit(0)
    os.waitpid(pid, 0)

@pytest.fixture(scope="module")
def server():
    code = "held = bytearray(100 << 20); print(flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        process.stdout.readline()
        yield process
        process.communicate(b"\\n")

def test_raises():
    raise ValueError("on purpose")

@pytest.mark.parametrize("mib", range(12, 24))
def test_plain(mib):
    np.ones(mib << 17)

def test_skips():
    pytest.skip("on purpose")

@pytest.mark.xfail(strict=True)
def test_xfails():
    assert not HELD.size

def test_after_them_over_the_limit():
    np.ones(80 << 17)

def test_forked():
    fork()

def test_pool():
    with get_context("fork").Pool(4) as pool:
        assert sum(pool.map(wait, range(4))) == 6

@pytest.mark.parametrize("mib", range(24, 34))
def test_plain_again(mib):
    np.ones(mib << 17)

def test_server(server):
    np.ones(20 << 17)

def test_commands():
    for _ in range(30):
        subprocess.run(["/bin/true"], check=True)

def test_shared_memory():
    with mmap.mmap(-1, 20 << 20) as shared:  # pages that another process could have too
        for _ in range(20):
            shared.write(b"1" * (1 << 20))
        fork()
"""

REPORT = """
import json
def pytest_runtest_logreport(report):
    for name, value in report.user_properties:
        if report.when == "call" and name == "memsim_peak_bytes":
            with open("peaks", "a") as file:
                file.write(json.dumps([report.nodeid.partition("::")[2], value]) + "\\n")
"""


def run_pytest(directory: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    (directory / "pytest.ini").write_text("[pytest]\nmemsim_baselines = kept\n")
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "memsim.pytest_plugin", "-p", "no:cacheprovider", "-q", *arguments],
        cwd=directory,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def run_tests(directory: Path, *arguments: str, **values: object) -> "subprocess.CompletedProcess[str]":
    (directory / "test_theirs.py").write_text(TESTS.format(**({"limit": "100MiB", "name": "t", "mib": 40} | values)))
    return run_pytest(directory, *arguments)


def run_text(directory: Path, text: str, *arguments: str) -> "subprocess.CompletedProcess[str]":
    (directory / "test_text.py").write_text(text)
    return run_pytest(directory, *arguments)


def peaks_of(directory: Path, *arguments: str) -> tuple[dict[str, int], str]:
    (directory / "conftest.py").write_text(REPORT)
    (directory / "test_mixed.py").write_text(MIXED)
    (directory / "peaks").write_text("")
    output = run_pytest(directory, *arguments).stdout
    return dict(json.loads(line) for line in (directory / "peaks").read_text().splitlines()), output


@pytest.mark.parametrize("arguments", [(), ("-p", "xdist", "-n", "2")], ids=["one", "xdist"])
def test_each_test_measures_what_it_measures_alone(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    peaks, output = peaks_of(tmp_path, *arguments)
    assert len(peaks) == 31, output
    assert "2 failed, 27 passed, 1 skipped, 1 xfailed" in output
    assert "test_after_them_over_the_limit" in output and "over its limit of 50.0 MiB" in output
    # A test that makes an array of k MiB measures that alone: the interpreter's own part is far below a MiB.
    sizes = {f"test_plain[{mib}]": mib for mib in range(12, 24)}
    sizes |= {f"test_plain_again[{mib}]": mib for mib in range(24, 34)}
    sizes |= {"test_after_them_over_the_limit": 80, "test_server": 20}
    for name, mib in sizes.items():
        assert peaks[name] == pytest.approx(mib * MIB, abs=2 * MIB), name
    # Of the 320 MiB that they share with this process, forks add nothing; each has some MiB of its own.
    for name, mib in {"test_forked": 4, "test_pool": 25, "test_commands": 4, "test_raises": 2}.items():
        assert peaks[name] < mib * MIB, name
    assert 18 * MIB < peaks["test_shared_memory"] < 24 * MIB  # once, and what its fork has of its own
    assert "5 largest of 31 measured tests" in output
    assert re.search(r"\b(79|80|81)\.\d MiB  test_mixed.py::test_after_them_over_the_limit", output)


def test_tests_within_their_limits_pass(tmp_path: Path) -> None:
    assert "3 passed" in run_tests(tmp_path, "--memsim-update").stdout
    kept = json.loads((tmp_path / "kept" / "t.json").read_text())
    assert (kept["schema"], kept["test"]) == ("memsim.test/2", "test_theirs.py::test_growth")
    assert 40 * MIB <= kept["peak_bytes"] <= 42 * MIB
    assert "3 passed" in run_tests(tmp_path).stdout
    failed = run_tests(tmp_path, limit="50MiB", mib=44).stdout
    assert "3 failed" in failed
    assert failed.count("over its limit of 50.0 MiB") >= 2
    assert "baseline 4" in failed and "Traceback" not in failed


GROWTH = """
import numpy as np
import pytest

@pytest.mark.fail_on_growth("t")
@pytest.mark.parametrize("mib", [20, 40])
def test_one_name(mib):
    np.ones(mib << 17)

@pytest.mark.fail_on_growth
@pytest.mark.parametrize("text", ["../a::b"])
def test_no_name(text):
    pass

@pytest.mark.parametrize("mib", [pytest.param(10, marks=pytest.mark.fail_on_growth("own"))])
def test_own_name(mib):
    np.ones(mib << 17)
"""


def test_each_set_of_parameters_has_its_file(tmp_path: Path) -> None:
    missing = run_text(tmp_path, GROWTH).stdout
    assert "4 failed" in missing and "t[20].json; store it with `pytest --memsim-update`" in missing
    assert "4 passed" in run_text(tmp_path, GROWTH, "--memsim-update").stdout
    found = {str(path.relative_to(tmp_path / "kept")) for path in (tmp_path / "kept").rglob("*.json")}
    assert found == {"t[20].json", "t[40].json", "own.json", "test_text.py/test_no_name[..%2fa%3a%3ab].json"}
    assert "4 passed" in run_text(tmp_path, GROWTH).stdout
    other = run_text(tmp_path, GROWTH.replace("test_own_name", "test_other"), "--memsim-update").stdout
    assert "1 failed" in other and "own.json holds the peak of 'test_text.py::test_own_name[10]'" in other


@pytest.mark.parametrize(
    ("marker", "complaint"),
    [
        ('limit_footprint("100")', "test_one: '100' has no unit"),
        ('limit_footprint("1GB", limit="2GB")', "limit_footprint has no argument 'limit'; it takes none by name"),
        ('fail_on_growth("a", tolerence="9%")', "no argument 'tolerence'; by name it takes tolerance"),
        ('fail_on_growth("../a")', "cannot be the name of a file"),
        ('fail_on_growth("a")', "test_one and test_text.py::test_two have the same baseline a.json"),
    ],
)
def test_what_a_marker_cannot_mean_ends_the_session_before_any_test(
    tmp_path: Path, marker: str, complaint: str
) -> None:
    text = f"import pytest\npytestmark = pytest.mark.{marker}\ndef test_one(): pass\ndef test_two(): pass\n"
    done = run_text(tmp_path, text)
    assert done.returncode == pytest.ExitCode.USAGE_ERROR
    assert complaint in done.stderr and "Traceback" not in done.stderr


def test_a_test_outside_of_the_root_directory_has_a_file() -> None:
    assert file_of("::TestA::test_b[c::d]", None, "c::d") == "TestA/test_b[c%3a%3ad].json"


def test_what_could_not_be_measured_fails_and_the_next_test_is_measured(tmp_path: Path) -> None:
    text = """
import psutil, pytest
pytestmark = pytest.mark.limit_footprint("50MiB")
def test_alone():
    watch, = [child for child in psutil.Process().children() if "watch_process" in " ".join(child.cmdline())]
    watch.kill()
def test_next():
    assert bytearray(60 << 20)
"""
    done = run_text(tmp_path, text).stdout
    assert "2 failed" in done and "ended (-9); nothing measured" in done
    assert "over its limit of 50.0 MiB" in done


def test_a_peak_between_two_samples_is_seen_by_the_kernels_mark(tmp_path: Path) -> None:
    text = """
import os, psutil, pytest, signal
@pytest.mark.limit_footprint("50MiB")
def test_short():
    watch, = [child for child in psutil.Process().children() if "watch_process" in " ".join(child.cmdline())]
    watch.suspend()  # as a busy machine does
    assert bytearray(80 << 20)
    watch.resume()
"""
    done = run_text(tmp_path, text).stdout
    assert "the test took 8" in done and "the kernel's mark is higher" in done


def test_a_project_may_limit_every_test(tmp_path: Path) -> None:
    (tmp_path / "test_plain.py").write_text("def test_plain():\n    assert len(bytearray(60 << 20))\n")
    done = run_pytest(tmp_path, "-o", "memsim_limit_footprint=30MiB", "test_plain.py")
    assert "over its limit of 30.0 MiB" in done.stdout
    wrong = run_pytest(tmp_path, "-o", "memsim_limit_footprint=30", "test_plain.py")
    assert wrong.returncode == pytest.ExitCode.USAGE_ERROR and "has no unit" in wrong.stderr
