"""Points on a cluster of this machine: workers that are killed, tasks that cannot be, the limits of a real run."""

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from memsim.errors import InputError
from memsim.sweep.execute import Done, Order, execute
from memsim.sweep.executors import local_client, on_cluster, one_by_one, remote_client
from waiting_points import attempts, held_back, wait_until

ORDERS = [
    Order(f"{seq_len}", ("simulate", "--model=tiny", f"--seq-len={seq_len}", "--steps=1"), 0, "") for seq_len in (8, 9)
] + [Order("wrong", ("simulate", "--model=gpt-9"), 0, ""), Order("small", ("simulate", "--budget=20MB"), 0, "")]
DASK = (sys.executable, "-m", "dask")


def _without_time(done: Done) -> tuple[int, bytes, str]:
    return done.exit_code, done.output, done.message


def test_a_killed_worker_loses_nothing(tmp_path: Path) -> None:
    victim = ORDERS[0].key

    def kill() -> None:
        wait_until(lambda: bool(attempts(tmp_path, victim)))
        os.kill(attempts(tmp_path, victim)[0], signal.SIGKILL)
        wait_until(lambda: len(attempts(tmp_path, victim)) == 2)  # it was begun again, by another process
        (tmp_path / "go").touch()

    killer = threading.Thread(target=kill)
    killer.start()
    with local_client(2) as client:
        found = dict(on_cluster(ORDERS, held_back(tmp_path, victim), client))
    killer.join()
    assert len(attempts(tmp_path, victim)) == 2
    expected = dict(one_by_one(ORDERS, execute))
    assert {key: _without_time(done) for key, done in found.items()} == {
        key: _without_time(done) for key, done in expected.items()
    }
    assert [expected[order.key].exit_code for order in ORDERS] == [0, 0, 1, 3]
    assert expected["wrong"].message.startswith("no model called 'gpt-9'; presets: ")
    assert expected["small"].message.startswith("killed at node ")


def _explode(order: Order) -> Done:
    raise ValueError(f"no\n{order.key}")


def test_what_goes_wrong_in_a_worker_is_an_answer() -> None:
    with local_client(1) as client:
        (found,) = on_cluster(ORDERS[:1], _explode, client)
    assert found == ("8", Done(1, b"", "ValueError: no 8", 0.0))


def test_a_scheduler_that_goes_away_and_what_it_leaves(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """A scheduler and a worker of their own, as `dask scheduler` and `dask worker` start them."""
    file = tmp_path / "scheduler.json"
    command = [
        *DASK,
        "scheduler",
        "--host",
        "127.0.0.1",
        "--port",
        "0",
        "--no-dashboard",
        "--scheduler-file",
        str(file),
    ]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}  # where the worker finds what points do
    scheduler = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
    wait_until(lambda: file.exists() and file.read_text().endswith("}"))
    address = json.loads(file.read_text())["address"]
    command = [*DASK, "worker", address, "--nworkers", "1", "--nthreads", "1", "--memory-limit", "0", "--no-dashboard"]
    worker = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)

    def kill() -> None:
        wait_until(lambda: bool(found) and bool(attempts(tmp_path, ORDERS[1].key)))
        scheduler.kill()

    found: dict[str, int] = {}
    killer = threading.Thread(target=kill)
    killer.start()
    try:
        with remote_client(address) as client:  # noqa: SIM117
            with pytest.raises(InputError, match="the Dask scheduler is gone; rows are kept"):
                for key, done in on_cluster(ORDERS[:2], held_back(tmp_path, ORDERS[1].key), client):
                    found[key] = done.exit_code
    finally:
        (tmp_path / "go").touch()
        killer.join()
        scheduler.kill()
        worker.terminate()
        worker.wait()
        scheduler.wait()
    assert found == {ORDERS[0].key: 0}
    assert capfd.readouterr().err == ""


def test_a_scheduler_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("memsim.sweep.executors._CONNECT_S", 1)
    for address in ("tcp://127.0.0.1:1", "nonsense://x"):
        with pytest.raises(InputError, match=f"no Dask scheduler at {address}") as caught, remote_client(address):
            pass
        assert "\n" not in str(caught.value)
