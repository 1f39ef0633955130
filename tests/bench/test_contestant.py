import os
import textwrap
from pathlib import Path

import pytest

from memsim.bench.contestant import Contestant
from memsim.errors import WorkerError

CASE = {"op": "linear", "compute": "f32", "rows": 3, "n": 5, "k": 4, "backward": False}


def scripted(directory: Path, body: str) -> Contestant:
    """Return a contestant whose ``prepare(case)`` has this body."""
    source = (
        "from memsim.bench.contestant import Call, CaseError, serve\n"
        f"def prepare(case):\n{textwrap.indent(textwrap.dedent(body).strip(), '    ')}\n"
        "serve(prepare)\n"
    )
    (directory / "scripted.py").write_text(source)
    path = os.pathsep.join([str(directory), os.environ.get("PYTHONPATH", "")])
    return Contestant("scripted", [], os.environ | {"PYTHONPATH": path})


@pytest.mark.parametrize("backward", [False, True])
def test_numpy_takes_turns(backward: bool) -> None:
    with Contestant("memsim.bench.peer_calls", ["1", "numpy"], os.environ) as contestant:
        assert contestant.prepare(CASE | {"backward": backward}) == {"whole": 0}
        for repeats in (2, 3):
            (seconds,) = contestant.time(repeats).values()
            assert len(seconds) == repeats
            assert min(seconds) > 0.0
        assert contestant.peak_rss_bytes > 1 << 20


def test_a_turn_interleaves_all_calls_and_warms_up_untimed(tmp_path: Path) -> None:
    body = """
        log = []
        def add(word):
            log.append(word)
            print("chatter is no reply")
        def tell():
            open(case["file"], "w").write(" ".join(log))
        return {"a": Call(lambda: add("a"), 7), "b": Call(lambda: add("b")), "tell": Call(tell)}
    """
    with scripted(tmp_path, body) as contestant:
        assert contestant.prepare({"file": str(tmp_path / "log")}) == {"a": 7, "b": 0, "tell": 0}
        assert {name: len(times) for name, times in contestant.time(2, warm_ups=1).items()} == {
            "a": 2,
            "b": 2,
            "tell": 2,
        }
    assert (tmp_path / "log").read_text() == "a b a b a b"


def test_a_wrong_result_reaches_the_parent(tmp_path: Path) -> None:
    with scripted(tmp_path, "raise CaseError('off by a mile')") as contestant, pytest.raises(WorkerError) as wrong:
        contestant.prepare({})
    assert str(wrong.value) == "off by a mile"
    assert wrong.value.exit_code == 1


def test_the_last_words_of_a_process_reach_the_parent(tmp_path: Path) -> None:
    with scripted(tmp_path, "raise OSError('no such thing')") as contestant:
        with pytest.raises(WorkerError, match=r"^scripted ended \(1\): OSError: no such thing$"):
            contestant.prepare({})
        with pytest.raises(WorkerError, match="no such thing"):  # asked again, it is still gone
            contestant.time(1)
