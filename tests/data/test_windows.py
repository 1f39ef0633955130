import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from memsim.data.windows import Batches, TokenFile, check_length
from memsim.errors import InputError, UsageError

VOCAB = 1000


def write_tokens(path: Path, ids: list[int] | range) -> Path:
    np.array(ids, dtype="<u4").tofile(path)
    return path


@pytest.fixture
def tokens(tmp_path: Path) -> TokenFile:
    return TokenFile(write_tokens(tmp_path / "tokens", range(41)), VOCAB)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(ids=st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=50), seq_len=st.integers(1, 12))
def test_windows_cover_the_file_once(tmp_path: Path, ids: list[int], seq_len: int) -> None:
    file = TokenFile(write_tokens(tmp_path / "tokens", ids), VOCAB)
    windows = [file.window(index, seq_len) for index in range(file.n_windows(seq_len))]
    covered = len(windows) * seq_len
    assert [id for inputs, _ in windows for id in inputs] == ids[:covered]
    assert [id for _, labels in windows for id in labels] == ids[1 : covered + 1]
    assert len(ids) - 1 - covered < seq_len


def test_a_window_is_a_read_only_view_of_the_map(tokens: TokenFile) -> None:
    ids, labels = tokens.window(1, 8)
    assert type(ids) is np.ndarray
    assert ids.dtype == np.uint32
    assert np.shares_memory(ids, tokens.tokens)
    assert np.shares_memory(labels, tokens.tokens)
    with pytest.raises(ValueError, match="read-only"):
        ids[0] = 1


def test_every_window_begins_with_the_beginning_token_and_every_token_is_a_label_once(tmp_path: Path) -> None:
    text = [7, *range(100, 140)]
    file = TokenFile(write_tokens(tmp_path / "tokens", text), VOCAB, begin_id=7)
    assert file.n_windows(8) == 5
    windows = [file.window(index, 8) for index in range(5)]
    assert all(len(ids) == len(labels) == 8 and ids[0] == 7 for ids, labels in windows)
    assert [label for _, labels in windows for label in labels.tolist()] == text[1:]
    assert all(ids[1:].tolist() == labels[:-1].tolist() for ids, labels in windows)


def test_a_document_that_begins_with_a_window_begins_it_once(tmp_path: Path) -> None:
    # The second document begins at token 8, the last before a window; the third at token 17, the first label of one.
    text = [7, *range(100, 107), 7, *range(110, 117), 2, 7, *range(120, 130)]
    file = TokenFile(write_tokens(tmp_path / "tokens", text), VOCAB, begin_id=7)
    assert [file.window(index, 8)[0].tolist() for index in range(3)] == [text[:8], text[8:16], text[17:25]]
    assert file.window(2, 8)[1].tolist() == text[18:26]
    # At the very end of a file there is no later token to go on to.
    file = TokenFile(write_tokens(tmp_path / "end", text[:25]), VOCAB, begin_id=7)
    assert file.window(2, 8)[0].tolist() == text[16:24]


@pytest.mark.parametrize("index", [-1, 5])
def test_there_is_no_window_beyond_the_file(tokens: TokenFile, index: int) -> None:
    with pytest.raises(IndexError, match=f"window {index} of 5"):
        tokens.window(index, 8)


def test_the_last_label_is_checked_against_the_vocabulary_too(tmp_path: Path) -> None:
    file = TokenFile(write_tokens(tmp_path / "tokens", [1, 2, 3, VOCAB, 5]), VOCAB)
    assert file.window(0, 2)[1].tolist() == [2, 3]
    with pytest.raises(InputError, match=r"holds id 1000 in window 0, beyond the vocabulary of 1000"):
        file.window(0, 3)


def test_the_vocabulary_bound_is_exact(tmp_path: Path) -> None:
    file = TokenFile(write_tokens(tmp_path / "tokens", [VOCAB - 1] * 5), VOCAB)
    assert file.window(0, 4)[0].tolist() == [VOCAB - 1] * 4


@pytest.mark.parametrize(("data", "n_bytes"), [(b"", 0), (b"1234567", 7)])
def test_a_file_that_is_not_whole_ids_is_refused(tmp_path: Path, data: bytes, n_bytes: int) -> None:
    (tmp_path / "tokens").write_bytes(data)
    with pytest.raises(InputError, match=f"tokens has {n_bytes} bytes, not a positive multiple of 4"):
        TokenFile(tmp_path / "tokens", VOCAB)


def test_a_missing_file_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot read token file .*No such file"):
        TokenFile(tmp_path / "tokens", VOCAB)


def test_each_epoch_visits_every_window_once_in_another_order(tokens: TokenFile) -> None:
    batches = Batches(tokens, 4, seed=7)
    epochs = [[batches.index(10 * epoch + step) for step in range(10)] for epoch in range(3)]
    assert [sorted(epoch) for epoch in epochs] == [list(range(10))] * 3
    assert len({tuple(epoch) for epoch in epochs}) == 3


def test_a_step_has_its_window_whatever_was_asked_before(tokens: TokenFile) -> None:
    forwards = Batches(tokens, 4, seed=7)
    backwards = Batches(tokens, 4, seed=7)
    expected = [forwards.batch(step)[0].tolist() for step in range(25)]
    assert [backwards.batch(step)[0].tolist() for step in reversed(range(25))] == expected[::-1]


def test_another_seed_is_another_order(tokens: TokenFile) -> None:
    orders = {tuple(Batches(tokens, 2, seed).index(step) for step in range(20)) for seed in range(5)}
    assert len(orders) == 5


def test_a_batch_is_a_window(tokens: TokenFile) -> None:
    batches = Batches(tokens, 4, seed=0)
    ids, labels = batches.batch(3)
    assert ids.tolist() == list(range(4 * batches.index(3), 4 * batches.index(3) + 4))
    assert labels.tolist() == [id + 1 for id in ids.tolist()]


def test_a_file_shorter_than_a_sequence_is_refused(tokens: TokenFile) -> None:
    assert Batches(tokens, 40, seed=0).index(12) == 0
    with pytest.raises(InputError, match=r"has 41 tokens, but one sequence needs 42 \(--seq-len 41 and one label\)"):
        Batches(tokens, 41, seed=0)


def test_options_that_can_never_work_are_usage_errors(tokens: TokenFile) -> None:
    with pytest.raises(UsageError, match="--seq-len 0 is below 1"):
        Batches(tokens, 0, seed=0)
    with pytest.raises(UsageError, match="--seed -1 is below 0"):
        Batches(tokens, 4, seed=-1)


def test_length_counts_the_last_label() -> None:
    check_length(9, 8, "a.txt")
    with pytest.raises(InputError, match=r"a.txt has 8 tokens, but one sequence needs 9"):
        check_length(8, 8, "a.txt")


def test_the_reader_imports_no_tokenizer_and_starts_no_process() -> None:
    code = "import sys, memsim.data.windows; print(*{'tokenizers', 'subprocess', 'numba', 'rich'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "\n"
