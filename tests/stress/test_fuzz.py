"""Five hundred changed files of every kind that memsim reads; ``tools/fuzz.py`` gives it ten thousand."""

from pathlib import Path

import pytest
from fuzzing import Kind, fuzz
from kinds import all_kinds

TOTAL = 500


@pytest.fixture(scope="module")
def kinds(tmp_path_factory: pytest.TempPathFactory) -> list[Kind]:
    return all_kinds(tmp_path_factory.mktemp("corpus"))


def test_every_changed_file_is_refused_in_a_line_or_read_as_others_read_it(
    kinds: list[Kind], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MEMSIM_CACHE", str(tmp_path / "cache"))
    assert len(kinds) >= 20
    shares = sum(kind.share for kind in kinds)
    failures, refused, read = [], 0, 0
    for number, kind in enumerate(kinds):
        directory = tmp_path / str(number)
        directory.mkdir()
        tally = fuzz(kind, round(TOTAL * kind.share / shares), seed=3, directory=directory)
        failures += tally.failures
        refused, read = refused + tally.refused, read + tally.accepted
    assert failures == []
    assert refused + read > 0.9 * TOTAL
    assert min(refused, read) > 0.05 * TOTAL  # both ways are taken


@pytest.mark.parametrize("name", ["result", "gguf", "text"])
def test_a_fault_of_a_reader_is_seen(kinds: list[Kind], tmp_path: Path, name: str) -> None:
    """A reader that takes everything, one that raises, and one that refuses in two lines."""
    from dataclasses import replace

    from memsim.errors import InputError

    kind = next(kind for kind in kinds if kind.name == name)
    original, found = kind.files[kind.target], None

    def is_whole(directory: Path) -> bool:
        path = directory / kind.target
        return path.is_file() and path.read_bytes() == original

    def careless(directory: Path) -> object:
        nonlocal found
        found = kind.read(directory) if is_whole(directory) else found
        return found

    def raising(directory: Path) -> object:
        return kind.read(directory) if is_whole(directory) else {}["missing"]

    def talkative(directory: Path) -> object:
        if is_whole(directory):
            return kind.read(directory)
        raise InputError("two\nlines")

    for number, (read, words) in enumerate(((careless, "read, but"), (raising, "KeyError"), (talkative, "printable"))):
        directory = tmp_path / str(number)
        directory.mkdir()
        tally = fuzz(replace(kind, read=read), 20, seed=0, directory=directory)
        assert any(words in failure for failure in tally.failures), (read, tally.failures)
