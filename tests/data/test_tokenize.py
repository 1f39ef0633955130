import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Regex, Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE, WordLevel
from tokenizers.pre_tokenizers import ByteLevel, Sequence, Split, Whitespace
from tokenizers.processors import TemplateProcessing
from tokenizers.trainers import BpeTrainer

from memsim.data import tokenize
from memsim.data.tokenize import TokenInfo, prepare_tokens, token_runs
from memsim.errors import InputError, WorkerError
from memsim.results import TokenizerResult
from toy import BY_BYTES, in_file

# The pre-tokenizer of Qwen2.5, whose \s+(?!\S) makes a token depend on what follows it.
QWEN_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
TEXT = "The quick brown fox, isn't it?\n\nIt  jumped over 12 dogs.\nThen\tit slept.\n" * 40


def byte_level_bpe(special_tokens: list[str], pattern: str = QWEN_SPLIT) -> Tokenizer:
    tokenizer = Tokenizer(BPE())
    split = Split(Regex(pattern), behavior="isolated")
    tokenizer.pre_tokenizer = Sequence([split, ByteLevel(add_prefix_space=False, use_regex=False)])
    tokenizer.decoder = ByteLevelDecoder()
    trainer = BpeTrainer(
        vocab_size=400,
        special_tokens=special_tokens,
        initial_alphabet=ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([TEXT], trainer)
    return tokenizer


@pytest.fixture(scope="module")
def bpe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bpe") / "tokenizer.json"
    tokenizer = byte_level_bpe(["<|endoftext|>"])
    # As a file saved after use: it would end, cut and pad every text.
    tokenizer.post_processor = TemplateProcessing(single="$A <|endoftext|>", special_tokens=[("<|endoftext|>", 0)])
    tokenizer.enable_truncation(4)
    tokenizer.enable_padding(length=8)
    tokenizer.save(str(path))
    return path


@pytest.fixture
def prepare(tmp_path: Path) -> Callable[..., tuple[list[int], TokenInfo]]:
    def run(source: Path | None, tokenizer: Path | None = None, **options: Any) -> tuple[list[int], TokenInfo]:
        out = tmp_path / "tokens"
        chosen = in_file(tokenizer) if tokenizer else BY_BYTES
        info = prepare_tokens(source, chosen, out, **{"vocab_size": 1000, "seq_len": 4} | options)
        ids = np.fromfile(out, dtype="<u4").tolist()
        assert len(ids) == info.n_tokens
        return ids, info

    return run


def text_file(directory: Path, text: str | bytes, name: str = "a.txt") -> Path:
    path = directory / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def jsonl_file(directory: Path, *texts: str) -> Path:
    return text_file(directory, "".join(json.dumps({"text": text}) + "\n" for text in texts), "a.jsonl")


def test_bytes_without_a_tokenizer(tmp_path: Path, prepare: Any) -> None:
    ids, info = prepare(text_file(tmp_path, "größer"))
    assert ids == list("größer".encode())
    assert info == TokenInfo(n_tokens=8, source="a.txt", tokenizer=TokenizerResult(name="bytes"))


def test_documents_without_an_end_token_are_separated_by_a_newline(tmp_path: Path, prepare: Any) -> None:
    assert prepare(jsonl_file(tmp_path, "one", "two", "three"))[0] == list(b"one\ntwo\nthree")


def test_documents_are_joined_by_the_end_token(tmp_path: Path, bpe: Path, prepare: Any) -> None:
    tokenizer = byte_level_bpe(["<|endoftext|>"])
    one, two = (tokenizer.encode(text).ids for text in ("one fox", "two dogs"))
    eos = tokenizer.token_to_id("<|endoftext|>")
    source = jsonl_file(tmp_path, "one fox", "two dogs")
    ids, info = prepare(source, bpe)
    assert ids == [*one, eos, *two]
    assert info.tokenizer == TokenizerResult(name="tokenizer.json", sha256="0" * 64, between="<|endoftext|>")
    assert prepare(source, bpe, eos_id=999)[0] == [*one, 999, *two]


def begun(directory: Path, single: str) -> Path:
    """A tokenizer that puts special tokens around a text, and whose <bos> is no text's."""
    tokenizer = byte_level_bpe(["<|endoftext|>", "<bos>", "<lang>"])
    special = [("<|endoftext|>", 0), ("<bos>", 1), ("<lang>", 2)]
    tokenizer.post_processor = TemplateProcessing(single=single, special_tokens=special)
    tokenizer.save(str(directory / "tokenizer.json"))
    return directory / "tokenizer.json"


def test_every_document_begins_as_its_tokenizer_begins_it(tmp_path: Path, prepare: Any) -> None:
    path = begun(tmp_path, "<bos> $A")
    source = jsonl_file(tmp_path, *(f"document {index}, a short one" for index in range(40)))
    ids, info = prepare(source, path)
    tokenizer = Tokenizer.from_file(str(path))
    texts = [json.loads(line)["text"] for line in source.read_text().splitlines()]
    assert ids == [index for text in texts for index in (0, *tokenizer.encode(text).ids)][1:]
    assert ids.count(1) == 40
    added = TokenizerResult(
        name="tokenizer.json",
        sha256="0" * 64,
        begins=("<bos>",),
        begin_ids=(1,),
        every_window=True,
        between="<|endoftext|>",
    )
    assert info.tokenizer == added
    assert prepare(source, path, bos="document")[1].tokenizer == replace(added, every_window=False)
    without, info = prepare(source, path, bos="never")
    assert without == [index for index in ids if index != 1]
    assert info.tokenizer == replace(added, begins=(), begin_ids=(), every_window=False)


def test_a_beginning_of_two_tokens_is_that_of_documents_alone(tmp_path: Path, prepare: Any) -> None:
    ids, info = prepare(text_file(tmp_path, "one fox"), begun(tmp_path, "<bos> <lang> $A <|endoftext|>"))
    assert ids[:2] == [1, 2]
    assert 0 not in ids
    assert (info.tokenizer.begin_ids, info.tokenizer.every_window) == ((1, 2), False)


def test_a_model_with_ends_of_its_own_has_no_other_beginning(tmp_path: Path, prepare: Any) -> None:
    ids, info = prepare(text_file(tmp_path, "one fox"), begun(tmp_path, "<bos> $A"), ends=(1, 0), seq_len=3)
    assert 1 not in ids
    assert (info.tokenizer.begins, info.tokenizer.ends) == ((), ("<bos>", "<|endoftext|>"))


def test_a_tokenizer_encodes_the_whole_text(tmp_path: Path, bpe: Path, prepare: Any) -> None:
    # Four pieces of 64 Ki characters, so that the pieces are cut and joined.
    text = TEXT * 80
    assert len(text) > 3 << 16
    assert prepare(text_file(tmp_path, text), bpe)[0] == byte_level_bpe(["<|endoftext|>"]).encode(text).ids


def test_ids_round_trip_to_the_text(tmp_path: Path, bpe: Path, prepare: Any) -> None:
    text = "Ünïcode 🦊\r\n  and\ttabs\x00 " * 500
    ids, _ = prepare(text_file(tmp_path, text), bpe)
    assert byte_level_bpe(["<|endoftext|>"]).decode(ids) == text


def test_default_text_is_python_s_own_and_always_the_same(prepare: Any) -> None:
    from pydoc_data.topics import topics

    first, info = prepare(None)
    assert info == TokenInfo(n_tokens=len(first), source="pydoc_data.topics", tokenizer=TokenizerResult(name="bytes"))
    assert bytes(first).decode() == "\n".join(topics[name] for name in sorted(topics))


def test_progress_ends_at_the_size_of_the_text(tmp_path: Path, prepare: Any) -> None:
    text = TEXT * 400
    seen: list[tuple[int, int]] = []
    prepare(text_file(tmp_path, text), progress=lambda done, total: seen.append((done, total)))
    assert len(seen) > 2
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert {total for _, total in seen} == {len(text)}
    assert seen[-1][0] == len(text)


def test_a_relative_path_is_the_caller_s(tmp_path: Path, prepare: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    text_file(tmp_path, "relative")
    # A module of the same name as one that the child needs must not be picked up from the user's directory.
    text_file(tmp_path, "raise SystemExit('shadowed')", "numpy.py")
    monkeypatch.chdir(tmp_path)
    assert prepare(Path("a.txt"))[0] == list(b"relative")


@pytest.mark.parametrize(
    ("name", "data", "problem"),
    [
        ("a.txt", b"", r"a\.txt is empty"),
        ("a.txt", b"abcd", r"a\.txt has 4 tokens, but one sequence needs 5"),
        ("a.txt", b"text\xff text", r"a\.txt is not UTF-8: byte 4 is wrong"),
        ("a.jsonl", b"", r"a\.jsonl is empty"),
        ("a.jsonl", b"\n\n", r"a\.jsonl has 0 tokens, but one sequence needs 5"),
        ("a.jsonl", b'{"text": "fine text"}\n{"txt": 1}\n', r"a\.jsonl line 2: there is no 'text' field"),
        ("A.JSONL", b"no json", r"A\.JSONL line 1 is not JSON"),
    ],
)
def test_bad_text_is_one_line_and_leaves_nothing(
    tmp_path: Path, name: str, data: bytes, problem: str, prepare: Any
) -> None:
    source = text_file(tmp_path, data, name)
    with pytest.raises(InputError, match=problem) as error:
        prepare(source)
    assert "\n" not in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_missing_text_is_one_line(tmp_path: Path, prepare: Any) -> None:
    with pytest.raises(InputError, match=r"cannot read .*a\.txt: No such file or directory"):
        prepare(tmp_path / "a.txt")
    with pytest.raises(InputError, match="cannot read .*: it is a directory, not a regular file"):
        prepare(tmp_path)


def test_an_id_beyond_the_vocabulary_is_refused(tmp_path: Path, bpe: Path, prepare: Any) -> None:
    source = text_file(tmp_path, "caf\xe9 noir")
    with pytest.raises(InputError, match=r"a\.txt has token id 195, beyond the model's vocabulary of 195"):
        prepare(source, vocab_size=195)
    assert max(prepare(source, vocab_size=196)[0]) == 195
    largest = max(prepare(source, bpe)[0])
    with pytest.raises(InputError, match=f"has token id {largest}, beyond the model's vocabulary of {largest}; use"):
        prepare(source, bpe, vocab_size=largest)


@pytest.mark.parametrize("data", [b"", b"{}", b"not json", b'{"model": {"type": "BPE", "vocab": 3}}', b"\xff\xfe"])
def test_a_corrupt_tokenizer_is_one_line(tmp_path: Path, data: bytes, prepare: Any) -> None:
    broken = text_file(tmp_path, data, "tokenizer.json")
    with pytest.raises(InputError, match=r"tokenizer .*tokenizer\.json is corrupt: ") as error:
        prepare(text_file(tmp_path, "some text"), broken)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "tokens").exists()


def test_a_truncated_tokenizer_is_one_line(tmp_path: Path, bpe: Path, prepare: Any) -> None:
    broken = text_file(tmp_path, bpe.read_bytes()[:-500], "tokenizer.json")
    with pytest.raises(InputError, match=r"tokenizer .*tokenizer\.json is corrupt: "):
        prepare(text_file(tmp_path, "some text"), broken)
    with pytest.raises(InputError, match=r"cannot read tokenizer .*missing\.json: No such file"):
        prepare(text_file(tmp_path, "some text"), tmp_path / "missing.json")


def test_a_word_level_tokenizer_without_an_end_token(tmp_path: Path, prepare: Any) -> None:
    tokenizer = Tokenizer(WordLevel({"<unk>": 0, "fox": 1, "dog": 2}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    source = jsonl_file(tmp_path, "fox dog cat", "dog fox")
    assert prepare(source, tmp_path / "tokenizer.json")[0] == [1, 2, 0, 2, 1]


def test_a_full_disk_is_one_line(tmp_path: Path) -> None:
    # The child writes to a descriptor that it inherits; /dev/full is one whose every write fails.
    with Path("/dev/full").open("wb") as full:
        job = tokenize._Job(str(text_file(tmp_path, TEXT)), "a.txt", None, full.fileno(), 256, None, False)
        with pytest.raises(InputError, match=r"cannot tokenize a\.txt: No space left on device"):
            tokenize.run_child("memsim.data.tokenize", job, "n_tokens")


def test_a_crash_is_a_worker_error(tmp_path: Path) -> None:
    with (tmp_path / "out").open("wb") as out:
        job = tokenize._Job(str(text_file(tmp_path, TEXT)), "a.txt", None, out.fileno(), "many", None, False)  # type: ignore
        with pytest.raises(WorkerError, match=r"tokenizes a\.txt died \(1\): TypeError: "):
            tokenize.run_child("memsim.data.tokenize", job, "n_tokens")


def test_an_interrupt_stops_the_child_and_leaves_nothing(tmp_path: Path) -> None:
    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    source = text_file(tmp_path, TEXT)
    with pytest.raises(KeyboardInterrupt):
        prepare_tokens(source, BY_BYTES, tmp_path / "tokens", vocab_size=256, seq_len=4, progress=interrupt)
    assert list(tmp_path.iterdir()) == [source]


def test_neither_the_text_nor_the_tokenizer_enters_the_parent() -> None:
    code = "import sys, memsim.data.tokenize; print('tokenizers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"


def test_token_runs_put_the_separator_between_texts_only() -> None:
    def joined(texts: list[list[str]], eos_id: int | None, begin: tuple[int, ...] = ()) -> list[int]:
        return [id for run in token_runs(texts, tokenize._byte_ids, eos_id, begin) for id in run.tolist()]

    assert joined([["a", "b"], [""], ["c"]], 7) == [97, 98, 7, 7, 99]
    assert joined([["a"], ["c"]], None) == [97, 10, 99]
    assert joined([], 7) == []
    assert joined([["a", "b"], [], ["c"]], 7, (8, 9)) == [8, 9, 97, 98, 7, 8, 9, 7, 8, 9, 99]
