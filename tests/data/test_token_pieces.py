"""A text in pieces gives the ids of the whole, whatever the tokenizer does at the ends of what it is given."""

from pydoc_data.topics import topics
from zlib import crc32

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers

from memsim.data.token_pieces import Encoded, ids_of_whole
from memsim.data.tokenizer_file import encoder

SPACE = "\u2581"
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
KINDS = ("prepend", "metaspace", "llama3", "gpt2", "composed")
SAMPLE = "".join(topics[name] for name in sorted(topics)[:8])[:30_000]
HARD = "".join(
    [
        SAMPLE[:3000],
        " " * 700,
        "1234567890" * 90,
        "\n" * 333,
        "e\u0301\u0327" * 300,
        "今天天气很好。" * 80,
        "👩‍👩‍👧 " * 90,
        "ab" * 900,
        SAMPLE[3000:9000],
    ]
)


@pytest.fixture(scope="module", params=KINDS)
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    made = Tokenizer(models.BPE(byte_fallback=False, unk_token="<unk>", fuse_unk=True))
    special = ["<unk>"]
    if request.param == "prepend":
        made.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE), normalizers.Replace(" ", SPACE)])
    elif request.param == "metaspace":
        made.pre_tokenizer = pre_tokenizers.Metaspace(SPACE, "first", split=False)
    elif request.param == "llama3":
        cut = pre_tokenizers.Split(Regex(LLAMA3), "isolated")
        made.pre_tokenizer = pre_tokenizers.Sequence([cut, pre_tokenizers.ByteLevel(False, use_regex=False)])
    else:
        made.normalizer = normalizers.NFC() if request.param == "composed" else None
        made.pre_tokenizer = pre_tokenizers.ByteLevel(False)
    alphabet = pre_tokenizers.ByteLevel.alphabet() if request.param in KINDS[2:] else []
    trainer = trainers.BpeTrainer(
        vocab_size=900, special_tokens=special, initial_alphabet=alphabet, show_progress=False, max_token_length=40
    )
    made.train_from_iterator([line for line in SAMPLE.splitlines(keepends=True)], trainer)
    return made


@pytest.mark.parametrize("text", [HARD, SAMPLE, " " * 9000, "7" * 9001, "x", ""], ids=lambda text: repr(text[:6]))
@pytest.mark.parametrize("size", [300, 1024])
def test_pieces_give_the_ids_of_the_whole(tokenizer: Tokenizer, text: str, size: int) -> None:
    chunks = [text[start : start + 100] for start in range(0, len(text), 100)]
    found = [index for run in ids_of_whole(chunks, encoder(tokenizer), size, 200) for index in run.tolist()]
    assert found == tokenizer.encode(text, add_special_tokens=False).ids


def test_a_long_text_is_never_tokenized_at_once(tokenizer: Tokenizer) -> None:
    longest = 0

    def encode(text: str) -> Encoded:
        nonlocal longest
        longest = max(longest, len(text))
        return encoder(tokenizer)(text)

    assert sum(len(run) for run in ids_of_whole([SAMPLE] * 4, encode, 2000, 400)) > 1000
    assert longest <= 4000  # twice a piece, where a seam needs more


@settings(max_examples=100, deadline=None)
@given(st.lists(st.text(alphabet="ab \n1", max_size=40), max_size=12), st.integers(10, 30))
def test_words_of_any_text_survive(chunks: list[str], size: int) -> None:
    def encode(text: str) -> Encoded:  # runs of one kind of character, as a pre-tokenizer makes them
        starts = [at for at in range(len(text)) if at == 0 or text[at].isspace() != text[at - 1].isspace()]
        ends = [*starts[1:], len(text)][: len(starts)]
        ids = [crc32(text[start:end].encode()) for start, end in zip(starts, ends, strict=True)]
        return Encoded(np.array(ids, np.uint32), np.array(starts, np.int64))

    found = [index for run in ids_of_whole(chunks, encode, size, 8) for index in run.tolist()]
    assert found == encode("".join(chunks)).ids.tolist()
