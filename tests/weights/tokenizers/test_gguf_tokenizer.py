"""The tokenizer of a GGUF file gives the ids of the tokenizer.json that it was made from, and of transformers."""

import json
from dataclasses import replace
from pathlib import Path
from pydoc_data.topics import topics

import gguf
import numpy as np
import pytest
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import AutoTokenizer

from memsim.weights.packing import write_packed
from memsim.weights.readers.hugging_face import open_checkpoint
from memsim.weights.tokenizers.gguf_pre_tokenizers import CUTS
from memsim.weights.tokenizers.gguf_tokenizer import gguf_tokenizer
from memsim.weights.tokenizers.tokenizer_json import FoundTokenizer
from toy_checkpoints import TOY, silent, write_checkpoint

# As in the tokenizer.json of Qwen2, of Llama 3, and of Mistral's Tekken.
_CONTRACTIONS, _REST = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)", r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_BEFORE = r"[^\r\n\p{L}\p{N}]?"
EXPRESSIONS = {
    "qwen2": rf"{_CONTRACTIONS}|{_BEFORE}\p{{L}}+|\p{{N}}|{_REST}",
    "llama-bpe": rf"{_CONTRACTIONS}|{_BEFORE}\p{{L}}+|\p{{N}}{{1,3}}|{_REST}",
    "tekken": rf"{_BEFORE}{_UPPER}*{_LOWER}+|{_BEFORE}{_UPPER}+{_LOWER}*|\p{{N}}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    "gpt-2": r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
}
ALIASES = {
    "deepseek-r1-qwen": "qwen2",
    "llama3": "llama-bpe",
    "llama-v3": "llama-bpe",
    "smollm": "gpt-2",
    "default": "gpt-2",
    None: "gpt-2",
}
TEXTS = [
    "Hello there, it's 2024: THEY'LL   see\n\n  a tab\tand 12345678.5!\r\n",
    "e\u0301 is not é; naïve CamelCaseWords 数字分词测试 ١٢٣ 🙂🙂👩‍👩‍👧",
    "<|endoftext|>after<tool>and more",
    topics["assignment"][:3000],
    "def f(x):\n        return  x  # " + " " * 30 + "\n\n\n",
]


def train(cut: str) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(ignore_merges=cut in ("llama-bpe", "tekken")))
    if cut == "qwen2":
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(EXPRESSIONS[cut]), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=700, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator([topics[name] for name in sorted(topics)[:20]], trainer)
    tokenizer.add_special_tokens(["<|endoftext|>"])
    tokenizer.add_tokens(["<tool>"])
    return tokenizer


@pytest.fixture(scope="module")
def originals() -> dict[str, Tokenizer]:
    return {cut: train(cut) for cut in EXPRESSIONS}


def write(path: Path, tokenizer: Tokenizer, cut: str | None, model: str = "gpt2", add_bos: bool | None = None) -> Path:
    """Write its metadata as llama.cpp's converter does, and one tensor."""
    data = json.loads(tokenizer.to_str())
    tokens = sorted(tokenizer.get_vocab(with_added_tokens=True).items(), key=lambda item: item[1])
    special = {item["content"]: 3 if item["special"] else 4 for item in data["added_tokens"]}
    writer = gguf.GGUFWriter(path, "qwen2")
    for key in ("context_length", "embedding_length", "block_count", "feed_forward_length", "attention.head_count"):
        writer.add_uint32(f"qwen2.{key}", 8)  # transformers wants a whole configuration
    writer.add_uint32("qwen2.attention.head_count_kv", 8)
    writer.add_float32("qwen2.attention.layer_norm_rms_epsilon", 1e-6)
    writer.add_float32("qwen2.rope.freq_base", 1e4)
    writer.add_tokenizer_model(model)
    if cut is not None:
        writer.add_tokenizer_pre(cut)
    writer.add_token_list([token for token, _ in tokens])
    writer.add_token_types([special.get(token, 1) for token, _ in tokens])
    writer.add_token_merges([" ".join(pair) for pair in data["model"]["merges"]])
    writer.add_bos_token_id(tokenizer.token_to_id("<|endoftext|>"))
    if add_bos is not None:
        writer.add_add_bos_token(add_bos)
    writer.add_tensor("x", np.zeros(4, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def made(path: Path) -> Tokenizer:
    found = gguf_tokenizer(path)
    assert found.text is not None, found.origin
    return Tokenizer.from_str(found.text)


@pytest.mark.parametrize("cut", [*EXPRESSIONS, *ALIASES])
def test_ids_are_those_of_the_original(tmp_path: Path, cut: str | None, originals: dict[str, Tokenizer]) -> None:
    original = originals[ALIASES.get(cut) or str(cut)]
    tokenizer = made(write(tmp_path / "x.gguf", original, cut))
    for sample in TEXTS:
        want = original.encode(sample, add_special_tokens=False).ids
        assert tokenizer.encode(sample, add_special_tokens=False).ids == want
        assert len(want) < len(sample.encode())  # merges were applied
    assert tokenizer.token_to_id("<|endoftext|>") == original.token_to_id("<|endoftext|>")


@pytest.mark.parametrize("cut", ["deepseek-r1-qwen", "llama3", "smollm", "tekken", None])
def test_ids_are_those_of_transformers(tmp_path: Path, cut: str | None, originals: dict[str, Tokenizer]) -> None:
    path = write(tmp_path / "x.gguf", originals[ALIASES.get(cut) or str(cut)], cut)
    reference = AutoTokenizer.from_pretrained(tmp_path, gguf_file=path.name)
    tokenizer = made(path)
    for sample in TEXTS:  # transformers leaves out that Qwen's tokenizer composes characters
        sample = sample.replace("e\u0301", "é")
        assert tokenizer.encode(sample, add_special_tokens=False).ids == reference.encode(
            sample, add_special_tokens=False
        )


@pytest.mark.parametrize(
    ("cut", "add_bos", "begins"), [("llama3", None, True), ("tekken", False, False), ("qwen2", None, False)]
)
def test_a_text_begins_as_the_file_says_or_llama_cpp_has_it(
    tmp_path: Path, cut: str, add_bos: bool | None, begins: bool, originals: dict[str, Tokenizer]
) -> None:
    tokenizer = made(write(tmp_path / "x.gguf", originals["gpt-2"], cut, add_bos=add_bos))
    assert (tokenizer.encode("one").ids[0] == tokenizer.token_to_id("<|endoftext|>")) == begins


def test_every_name_has_a_cut_that_the_library_reads(tmp_path: Path, originals: dict[str, Tokenizer]) -> None:
    for number, cut in enumerate(CUTS):
        assert made(write(tmp_path / f"{number}.gguf", originals["gpt-2"], cut)).encode("a").ids


@pytest.mark.parametrize(
    ("cut", "model", "found"),
    [
        ("qwen2", "llama", "no usable scores"),
        ("unheard-of", "gpt2", "cuts text in the way 'unheard-of'"),
        ("qwen2", "rwkv", "a tokenizer of the kind 'rwkv'"),
    ],
)
def test_another_kind_is_not_made(
    tmp_path: Path, cut: str, model: str, found: str, originals: dict[str, Tokenizer]
) -> None:
    tokenizer = gguf_tokenizer(write(tmp_path / "x.gguf", originals["qwen2"], cut, model))
    assert tokenizer.text is None
    assert found in tokenizer.origin


def test_a_pack_holds_it_or_says_why_it_has_none(tmp_path: Path) -> None:
    directory = write_checkpoint(tmp_path / "hf", TOY)
    checkpoint = open_checkpoint(directory)
    pack = write_packed(checkpoint, tmp_path / "none", 32, silent).pack
    assert pack.tokenizer is None
    assert "has no tokenizer.json, no tokenizer.model, and not both vocab.json and merges.txt" in pack.tokenizer_origin
    found = FoundTokenizer("{}", "the metadata\nof a file")
    pack = write_packed(replace(checkpoint, tokenizer=lambda: found), tmp_path / "made", 32, silent).pack
    assert pack.tokenizer is not None
    assert pack.tokenizer.read_text() == "{}"
    assert pack.tokenizer_origin == "the metadata?of a file"
    (directory / "tokenizer.json").write_text('{"version": "1.0"}')
    pack = write_packed(open_checkpoint(directory), tmp_path / "copied", 32, silent).pack
    assert pack.tokenizer is not None
    assert pack.tokenizer.read_text() == '{"version": "1.0"}'
    assert pack.tokenizer_origin == "tokenizer.json"
