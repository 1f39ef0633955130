"""Fixtures shared by all rooms: kernels compiled once per machine, a small pack, a text."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

# Before Numba is imported: kernels compiled by one test run serve the next, whatever cache the user has.
os.environ.setdefault("GOMP_SPINCOUNT", "10000")  # threads that wait let others run, as in memsim's own processes
os.environ.setdefault("NUMBA_CACHE_DIR", str(Path(__file__).parent.parent / ".pytest_cache" / "numba"))

# A shell that starts pytest in the background has it, and all that it starts, ignore signals that some tests send.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
if signal.getsignal(signal.SIGQUIT) is signal.SIG_IGN:
    signal.signal(signal.SIGQUIT, signal.SIG_DFL)


def pytest_configure(config: pytest.Config) -> None:
    """Compile the kernels before there are several processes, each of which would compile them all."""
    if config.getoption("numprocesses", None) and not hasattr(config, "workerinput"):
        subprocess.run([sys.executable, "-c", "import memsim_kernels"], check=True)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--long", action="store_true", help="tests/stress: 200 kills and 5,000 damaged files")


@pytest.fixture(scope="session")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory on a real disk: scratch files refuse tmpfs."""
    from memsim.files import file_system

    directory = tmp_path_factory.mktemp("disk")
    if file_system(directory) == "tmpfs":
        pytest.skip("pytest's temporary directory is on tmpfs; set --basetemp to a directory on a disk")
    return directory


@pytest.fixture(scope="session")
def toy_pack(disk: Path):  # type: ignore[no-untyped-def]
    """The pack of a two-layer model with seeded synthetic weights."""
    from memsim.weights.synthetic import write_synthetic
    from toy import toy_config

    return write_synthetic(disk / "toy-pack", toy_config(), 32, 0, lambda *_: None)
