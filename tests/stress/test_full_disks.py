"""A disk that is full at any write of a run: one line, nothing half-written, and the run goes on to the same bits."""

from pathlib import Path

import pytest
from full_disks import FullDisks, Mode, Role

from capped_runs import cache, write_model

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("cache")]
assert cache  # a fixture, found by name

# How many of the writes fail in the short form: of some eighty, eighty and ten.
FAULTS: dict[Role, int] = {"command": 2, "worker": 2, "tokenize": 1}


@pytest.mark.parametrize(
    ("mode", "resumed"), [("stays", False), ("once", True), ("once", False), ("stays", True)], ids=str
)
def test_a_run_survives_every_write_that_fails(
    disk: Path, long: bool, capsys: pytest.CaptureFixture[str], mode: Mode, resumed: bool
) -> None:
    if not long and (mode == "stays") == resumed:
        pytest.skip("two of the four in the short form")
    directory = disk / f"full-{mode}-{'resumed' if resumed else 'begun'}"
    directory.mkdir()

    def say(text: str) -> None:
        if long:
            with capsys.disabled():
                print(text, flush=True)

    disks = FullDisks(write_model(directory / "model", n_layers=2).directory, directory, say)
    for role, few in FAULTS.items():
        if not (resumed and role == "tokenize"):  # the ids are there already
            disks.each(role, mode, resumed, None if long else few)
    say(f"{mode}, {'resumed' if resumed else 'begun'}: {disks.tally}")
