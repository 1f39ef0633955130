import json
from pathlib import Path

import numpy as np
import pytest

from memsim.data.masking import MaskedTokens, mask_token_id
from memsim.data.windows import IGNORED, Batches, TokenFile
from memsim.errors import InputError

VOCAB, MASK, ENDS = 1000, 999, (0, 2)


def text(path: Path, n_tokens: int = 60_000) -> TokenFile:
    np.random.default_rng(0).integers(3, MASK, n_tokens, dtype=np.uint32).tofile(path)
    return TokenFile(path, VOCAB)


@pytest.fixture
def file(tmp_path: Path) -> TokenFile:
    return text(tmp_path / "tokens")


def masked(file: TokenFile, seed: int = 0) -> MaskedTokens:
    return MaskedTokens(file, VOCAB, MASK, ENDS, seed)


def test_windows_stand_between_their_ends_and_labels_are_the_text(file: TokenFile) -> None:
    windows = masked(file)
    assert windows.n_windows(100) == (len(file.tokens) - 1) // 98
    for index in (0, 7, windows.n_windows(100) - 1):
        ids, labels = windows.window(index, 100)
        words = file.tokens[index * 98 : (index + 1) * 98]
        assert (ids[0], ids[-1], labels[0], labels[-1]) == (*ENDS, IGNORED, IGNORED)
        guessed = labels[1:-1] != IGNORED
        assert guessed.sum() == round(0.15 * 98)
        np.testing.assert_array_equal(labels[1:-1][guessed], words[guessed])
        np.testing.assert_array_equal(ids[1:-1][~guessed], words[~guessed])


def test_of_the_hidden_tokens_eight_in_ten_are_the_mask_and_one_is_random(file: TokenFile) -> None:
    windows = masked(file)
    pairs = [windows.window(index, 102) for index in range(windows.n_windows(102))]
    ids, labels = (np.concatenate(arrays) for arrays in zip(*pairs, strict=True))
    hidden = labels != IGNORED
    assert hidden.sum() == 15 * len(pairs) > 8000
    mask, kept = (ids == MASK) & hidden, (ids == labels) & hidden
    other = hidden & ~mask & ~kept
    # Shares of some 9,000 draws: three standard deviations are 1.3 %.
    for found, share in ((mask, 0.8), (kept, 0.1), (other, 0.1)):
        assert abs(found.sum() / hidden.sum() - share) < 0.013
    assert ids[other].min() >= 3  # words, not the special tokens before them
    assert len(np.unique(ids[other])) > 400


def test_what_is_hidden_depends_on_seed_and_window_alone(file: TokenFile, tmp_path: Path) -> None:
    first, again, other = masked(file), masked(text(tmp_path / "again")), masked(file, seed=1)
    for index in (5, 0):
        for one, two in zip(first.window(index, 50), again.window(index, 50), strict=True):
            np.testing.assert_array_equal(one, two)
        assert not np.array_equal(first.window(index, 50)[1], other.window(index, 50)[1])
    hidden = [np.flatnonzero(first.window(index, 50)[1] != IGNORED).tolist() for index in range(3)]
    assert len(set(map(tuple, hidden))) == 3


def test_the_token_between_two_texts_is_never_hidden(tmp_path: Path) -> None:
    np.where(np.arange(2000) % 2, ENDS[1], 5).astype("<u4").tofile(tmp_path / "t")
    windows = masked(TokenFile(tmp_path / "t", VOCAB))
    for index in range(10):
        _, labels = windows.window(index, 42)
        assert set(labels[labels != IGNORED]) == {5}
        assert (labels != IGNORED).sum() == 3


def test_the_shortest_window_and_one_of_nothing_but_separators(tmp_path: Path) -> None:
    np.array([7, 2, 2, 2], "<u4").tofile(tmp_path / "t")
    windows = masked(TokenFile(tmp_path / "t", VOCAB))
    assert windows.window(0, 3)[1].tolist() == [IGNORED, 7, IGNORED]
    assert windows.window(1, 3)[1].tolist() == [IGNORED] * 3


def test_the_file_is_not_changed_and_batches_take_it(file: TokenFile) -> None:
    before = file.tokens.copy()
    batches = Batches(masked(file), 64, seed=3)
    ids, _ = batches.batch(4)
    np.testing.assert_array_equal(ids, masked(file).window(batches.index(4), 64)[0])
    np.testing.assert_array_equal(file.tokens, before)


def test_ids_beyond_the_vocabulary_are_refused(tmp_path: Path) -> None:
    np.full(20, VOCAB, "<u4").tofile(tmp_path / "t")
    with pytest.raises(InputError, match="holds id 1000 in window 0, beyond the vocabulary of 1000"):
        masked(TokenFile(tmp_path / "t", VOCAB)).window(0, 10)


def test_the_mask_is_that_of_the_tokenizer(tmp_path: Path) -> None:
    assert mask_token_id(None, VOCAB) == MASK
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps({"added_tokens": [{"id": 0, "content": "<s>"}, {"id": 77, "content": "<mask>"}]}))
    assert mask_token_id(path, VOCAB) == 77
    for tokens in ([], None, [3], [{"id": VOCAB, "content": "<mask>"}], [{"id": True, "content": "<mask>"}]):
        path.write_text(json.dumps({"added_tokens": tokens}))
        with pytest.raises(InputError, match=r"tokenizer.json has no added token <mask> within the vocabulary of 1000"):
            mask_token_id(path, VOCAB)
