"""SIGKILL at random moments over a run: it goes on to the same bits, and nothing is left behind."""

from pathlib import Path

import pytest
from kills import Kills

from capped_runs import cache, write_model

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("cache")]
assert cache  # a fixture, found by name

SHORT, LONG = 8, 200


def test_every_kill_ends_in_the_same_bits(disk: Path, long: bool, capsys: pytest.CaptureFixture[str]) -> None:
    model = write_model(disk / "killed-model").directory
    (disk / "kills").mkdir()
    kills = Kills(model, disk / "kills", seed=0)

    def say(text: str) -> None:
        if long:
            with capsys.disabled():
                print(text, flush=True)

    n_kills = LONG if long else SHORT
    kills.until(n_kills, say)
    assert kills.tally.kills == n_kills
    assert kills.tally.finished >= 1
