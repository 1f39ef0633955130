"""The tokenizer of a GGUF file gives the ids of the tokenizer.json that it was made from."""

import json
from dataclasses import replace
from pathlib import Path
from pydoc_data.topics import topics

import gguf
import numpy as np
import pytest
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers

from memsim.weights.packing import write_packed
from memsim.weights.readers.hugging_face import open_checkpoint
from memsim.weights.tokenizers.gguf_tokenizer import gguf_tokenizer
from toy_checkpoints import TOY, silent, write_checkpoint

# As in the tokenizer.json of Qwen2 and of Llama 3.
_CONTRACTIONS, _REST = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)", r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
EXPRESSIONS = {
    "qwen2": rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}|{_REST}",
    "llama-bpe": rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}|{_REST}",
}
TEXTS = [
    "Hello there, it's 2024: THEY'LL   see\n\n  a tab\tand 12345678.5!\r\n",
    "e\u0301 is not é; naïve 数字 ١٢٣ 🙂🙂",
    "<|endoftext|>after<tool>and more",
    topics["assignment"][:3000],
]


def train(cut: str) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(ignore_merges=cut == "llama-bpe"))
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


def write(path: Path, tokenizer: Tokenizer, cut: str, model: str = "gpt2") -> Path:
    """Write its metadata as llama.cpp's converter does, and one tensor."""
    data = json.loads(tokenizer.to_str())
    tokens = sorted(tokenizer.get_vocab(with_added_tokens=True).items(), key=lambda item: item[1])
    special = {item["content"]: 3 if item["special"] else 4 for item in data["added_tokens"]}
    writer = gguf.GGUFWriter(path, "qwen2")
    writer.add_tokenizer_model(model)
    writer.add_tokenizer_pre(cut)
    writer.add_token_list([token for token, _ in tokens])
    writer.add_token_types([special.get(token, 1) for token, _ in tokens])
    writer.add_token_merges([" ".join(pair) for pair in data["model"]["merges"]])
    writer.add_tensor("x", np.zeros(4, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize("cut", EXPRESSIONS)
def test_ids_are_those_of_the_original(tmp_path: Path, cut: str) -> None:
    original = train(cut)
    text = gguf_tokenizer(write(tmp_path / "x.gguf", original, cut))
    assert text is not None
    made = Tokenizer.from_str(text)
    for sample in TEXTS:
        want = original.encode(sample, add_special_tokens=False).ids
        assert made.encode(sample, add_special_tokens=False).ids == want
        assert len(want) < len(sample.encode())  # merges were applied
    assert made.token_to_id("<|endoftext|>") == original.token_to_id("<|endoftext|>")


@pytest.mark.parametrize(("cut", "model"), [("qwen2", "llama"), ("unheard-of", "gpt2")])
def test_another_kind_is_not_made(tmp_path: Path, cut: str, model: str) -> None:
    assert gguf_tokenizer(write(tmp_path / "x.gguf", train("qwen2"), cut, model)) is None


def test_a_pack_holds_it_unless_a_file_lies_beside_the_model(tmp_path: Path) -> None:
    directory = write_checkpoint(tmp_path / "hf", TOY)
    checkpoint = replace(open_checkpoint(directory), tokenizer=lambda: "{}")
    pack = write_packed(checkpoint, tmp_path / "made", 32, silent).pack
    assert pack.tokenizer is not None
    assert pack.tokenizer.read_text() == "{}"
    (directory / "tokenizer.json").write_text('{"version": "1.0"}')
    pack = write_packed(checkpoint, tmp_path / "copied", 32, silent).pack
    assert pack.tokenizer is not None
    assert pack.tokenizer.read_text() == '{"version": "1.0"}'
