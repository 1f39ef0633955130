"""The tokenizer of a GGUF file with scores gives the ids of SentencePiece's own rule, and of transformers."""

from collections.abc import Sequence
from pathlib import Path
from pydoc_data.topics import topics

import gguf
import numpy as np
import pytest
from tokenizers import Tokenizer, models, normalizers, trainers
from transformers import AutoTokenizer, LlamaTokenizer
from transformers.convert_slow_tokenizer import generate_merges

from memsim.weights.tokenizers.gguf_tokenizer import gguf_tokenizer

SPACE = "\u2581"
UNKNOWN, CONTROL, USER_DEFINED, BYTE = 2, 3, 4, 6
TEXTS = [
    "Hello there, it's 2024:   see\n\n  a tab\tand 12345678.5!",
    "naïve 数字 🙂🙂 is not in the vocabulary",
    " a leading space, and a trailing one ",
    topics["assignment"][:1500],
]
Pieces = list[tuple[str, float, int]]


@pytest.fixture(scope="module")
def pieces() -> Pieces:
    """A vocabulary as Llama 2's: special tokens, bytes, pieces by falling scores, and single characters last."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE), normalizers.Replace(" ", SPACE)])
    trainer = trainers.BpeTrainer(vocab_size=600, show_progress=False, max_token_length=8)
    words = [word for name in sorted(topics)[:20] for word in topics[name].split()]
    tokenizer.train_from_iterator(words, trainer)
    learned = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    special = [("<unk>", 0.0, UNKNOWN), ("<s>", 0.0, CONTROL), ("</s>", 0.0, CONTROL), ("<tool>", 0.0, USER_DEFINED)]
    in_bytes = [(f"<0x{byte:02X}>", 0.0, BYTE) for byte in range(256)]
    merged = [piece for piece, _ in learned if len(piece) > 1]
    ranked = [*merged, *(piece for piece, _ in learned if len(piece) == 1)]
    return [*special, *in_bytes, *((piece, float(-rank), 1) for rank, piece in enumerate(ranked))]


def write(path: Path, pieces: Pieces, prefix: bool = True, scores: Sequence[float] | None = None) -> Path:
    """Write its metadata as llama.cpp's converter does, and one tensor."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list([piece for piece, _, _ in pieces])
    writer.add_token_scores([score for _, score, _ in pieces] if scores is None else list(scores))
    writer.add_token_types([kind for _, _, kind in pieces])
    writer.add_add_space_prefix(prefix)
    writer.add_bos_token_id(1)
    writer.add_tensor("x", np.zeros(4, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def sentencepiece_ids(text: str, pieces: Pieces, prefix: bool) -> list[int]:
    """Return the ids by the rule itself: the best neighbours become one piece until none can; the rest is bytes."""
    index = {piece: number for number, (piece, _, _) in enumerate(pieces)}
    score = {piece: value for piece, value, kind in pieces if kind == 1}
    symbols = list((SPACE if prefix else "") + text.replace(" ", SPACE))
    while True:
        pairs = [a + b for a, b in zip(symbols, symbols[1:], strict=False)]
        best = max((pair for pair in pairs if pair in score), key=score.__getitem__, default=None)
        if best is None:
            break
        where = pairs.index(best)
        symbols[where : where + 2] = [best]
    ids: list[int] = []
    for symbol in symbols:
        ids += [index[symbol]] if symbol in score else [index[f"<0x{byte:02X}>"] for byte in symbol.encode()]
    return ids


def made(path: Path) -> Tokenizer:
    found = gguf_tokenizer(path)
    assert found.text is not None, found.origin
    return Tokenizer.from_str(found.text)


@pytest.mark.parametrize("prefix", [True, False])
def test_ids_are_those_of_the_rule(tmp_path: Path, pieces: Pieces, prefix: bool) -> None:
    tokenizer = made(write(tmp_path / "x.gguf", pieces, prefix))
    # Before a text that begins with a space no second one is put, as in transformers; SentencePiece does.
    for text in (text for text in TEXTS if not (prefix and text.startswith(" "))):
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        assert ids == sentencepiece_ids(text, pieces, prefix)
        assert tokenizer.decode(ids) == text
    assert len(ids) < len(TEXTS[-1]) * 0.7  # pieces were merged


def test_ids_are_those_of_transformers(tmp_path: Path, pieces: Pieces) -> None:
    vocabulary = {piece: number for number, (piece, _, _) in enumerate(pieces)}
    merges = generate_merges(vocabulary, {piece: score for piece, score, _ in pieces})
    reference = LlamaTokenizer(vocab=vocabulary, merges=merges)
    tokenizer = made(write(tmp_path / "x.gguf", pieces))
    for text in TEXTS:
        assert tokenizer.encode(text).ids == [1, *reference.encode(text, add_special_tokens=False)]


def gemma(path: Path, pieces: Pieces, unknown: int | None = 0) -> Path:
    """Write the vocabulary as a Gemma file has it: <unk> is a control token, runs of spaces are stored as spaces."""
    runs = [(" " * length, -1000.0, USER_DEFINED) for length in range(2, 9)] + [("\n\n", -1000.0, USER_DEFINED)]
    kinds = [(piece, -1000.0, CONTROL if kind == UNKNOWN else kind) for piece, _, kind in pieces]
    kinds = [item for item in kinds if item[0] not in {SPACE * length for length in range(2, 9)}]
    writer = gguf.GGUFWriter(path, "gemma3")
    for key in ("context_length", "embedding_length", "block_count", "feed_forward_length", "attention.head_count"):
        writer.add_uint32(f"gemma3.{key}", 8)  # transformers wants a whole configuration
    writer.add_uint32("gemma3.attention.head_count_kv", 8)
    writer.add_uint32("gemma3.attention.key_length", 8)
    writer.add_uint32("gemma3.attention.sliding_window", 8)
    writer.add_float32("gemma3.attention.layer_norm_rms_epsilon", 1e-6)
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list([piece for piece, _, _ in [*kinds, *runs]])
    writer.add_token_scores([score for _, score, _ in [*kinds, *runs]])
    writer.add_token_types([kind for _, _, kind in [*kinds, *runs]])
    writer.add_add_space_prefix(False)
    writer.add_bos_token_id(1)
    if unknown is not None:
        writer.add_unk_token_id(unknown)
    writer.add_add_bos_token(True)
    writer.add_tensor("x", np.zeros(4, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_the_ids_of_gemma_s_kind_are_those_of_transformers(tmp_path: Path, pieces: Pieces) -> None:
    path = gemma(tmp_path / "x.gguf", pieces)
    reference = AutoTokenizer.from_pretrained(tmp_path, gguf_file=path.name)
    tokenizer = made(path)
    for text in (*TEXTS, "a" + " " * 21 + "b\n\n\n  c", "<unk></s>"):
        assert tokenizer.encode(text).ids == reference.backend_tokenizer.encode(text).ids
    assert tokenizer.encode("<unk>").ids == [1, 0]
    assert tokenizer.encode("a").ids[0] == 1


def test_a_vocabulary_without_an_unknown_token_spells_in_bytes(tmp_path: Path, pieces: Pieces) -> None:
    tokenizer = made(gemma(tmp_path / "x.gguf", pieces, unknown=None))
    assert tokenizer.decode(tokenizer.encode("数 🙂").ids) == "数 🙂"


def test_special_and_own_tokens_are_found_in_the_text(tmp_path: Path, pieces: Pieces) -> None:
    tokenizer = made(write(tmp_path / "x.gguf", pieces))
    encoding = tokenizer.encode("<tool></s>")
    assert encoding.ids == [1, 3, 2]
    assert tokenizer.decode(encoding.ids) == "<tool>"


def test_what_is_no_whole_vocabulary_is_not_made(tmp_path: Path, pieces: Pieces) -> None:
    twice = [*pieces, pieces[-1]]
    for number, (given, scores) in enumerate(((twice, None), (pieces, [0.0]), (pieces, [float("nan")] * len(pieces)))):
        assert gguf_tokenizer(write(tmp_path / f"{number}.gguf", given, scores=scores)).text is None


def test_a_hostile_vocabulary_is_bounded(tmp_path: Path, pieces: Pieces) -> None:
    # Every end of every one is a piece, too: millions of ways to cut them.
    hostile = [("a" * length, 0.0, 1) for length in range(1, 257)] + [
        (f"{'a' * left}{chr(0x4E00 + number)}{'a' * (255 - left)}", 0.0, 1)
        for number in range(4)
        for left in range(256)
    ]
    tokenizer = made(write(tmp_path / "x.gguf", [*pieces[:260], *hostile]))
    assert tokenizer.get_vocab_size() == 260 + len(hostile)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("memsim.weights.tokenizers.sentencepiece_json._MAX_MERGES", 1000)
        assert gguf_tokenizer(tmp_path / "x.gguf").text is None
