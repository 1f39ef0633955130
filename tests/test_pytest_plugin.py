"""The markers on tests of other people, run by a pytest of their own."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

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


def run_tests(directory: Path, *arguments: str, **values: object) -> "subprocess.CompletedProcess[str]":
    (directory / "test_theirs.py").write_text(TESTS.format(**({"limit": "100MiB", "name": "t", "mib": 40} | values)))
    (directory / "pytest.ini").write_text("[pytest]\nmemsim_baselines = kept\n")
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "memsim.pytest_plugin", "-p", "no:cacheprovider", "-q", *arguments],
        cwd=directory,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_tests_within_their_limits_pass(tmp_path: Path) -> None:
    assert "3 passed" in run_tests(tmp_path, "--memsim-update").stdout
    kept = json.loads((tmp_path / "kept" / "t.json").read_text())
    assert kept["schema"] == "memsim.test/1"
    assert 40 << 20 <= kept["peak_bytes"] <= 46 << 20
    assert "3 passed" in run_tests(tmp_path).stdout


def test_tests_over_their_limits_fail_in_one_line_each(tmp_path: Path) -> None:
    assert "3 passed" in run_tests(tmp_path, "--memsim-update").stdout
    failed = run_tests(tmp_path, limit="50MiB", mib=44).stdout
    assert "3 failed" in failed
    assert failed.count("over its limit of 50.0 MiB") >= 2
    assert "baseline 4" in failed and "Traceback" not in failed


@pytest.mark.parametrize(
    ("values", "complaint"),
    [
        ({"limit": "100"}, "has no unit"),
        ({"name": "never-stored"}, "cannot read"),
    ],
)
def test_what_a_marker_cannot_mean_is_said(tmp_path: Path, values: dict[str, object], complaint: str) -> None:
    failed = run_tests(tmp_path, **values).stdout
    assert "memsim: " in failed and complaint in failed
    assert "Traceback" not in failed


def test_a_project_may_limit_every_test(tmp_path: Path) -> None:
    (tmp_path / "test_plain.py").write_text("def test_plain():\n    assert len(bytearray(60 << 20))\n")
    done = run_tests(tmp_path, "-o", "memsim_limit_footprint=30MiB", "test_plain.py")
    assert "over its limit of 30.0 MiB" in done.stdout
