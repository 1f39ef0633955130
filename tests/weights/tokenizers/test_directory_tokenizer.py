"""The tokenizer of a directory without a tokenizer.json: ids of sentencepiece, of tokenizers and of transformers."""

import io
import json
import shutil
from pathlib import Path
from pydoc_data.topics import topics

import pytest
import sentencepiece
from tokenizers import ByteLevelBPETokenizer, Tokenizer, processors
from transformers import AutoTokenizer

from memsim.errors import InputError
from memsim.weights.tokenizers.directory_tokenizer import directory_tokenizer
from memsim.weights.tokenizers.tokenizer_json import FoundTokenizer

TEXTS = [
    "Hello there, it's 2024:   see\n\n  a tab\tand 12345678.5!",
    "naïve 数字 🙂🙂 is not in the vocabulary",
    "<|tool|> and </s> stand in the text",
    topics["assignment"][:1500],
]
LINES = [line for name in sorted(topics)[:20] for line in topics[name].splitlines() if line.strip()]


def train(path: Path, **settings: object) -> Path:
    """Train a ``tokenizer.model``, by default one as Llama 2's."""
    out = io.BytesIO()
    options: dict[str, object] = {
        "model_type": "bpe",
        "vocab_size": 700,
        "byte_fallback": True,
        "normalization_rule_name": "identity",
        "remove_extra_whitespaces": False,
        "user_defined_symbols": ["<|tool|>"],
        "split_digits": True,
        "minloglevel": 2,
    }
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(LINES), model_writer=out, **{**options, **settings})
    path.write_bytes(out.getvalue())
    return path


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(tmp_path_factory.mktemp("spm") / "tokenizer.model")


@pytest.fixture(scope="module")
def merges(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("bpe")
    trained = ByteLevelBPETokenizer()
    trained.train_from_iterator(LINES, vocab_size=700, special_tokens=["<|endoftext|>", "<s>", "</s>", "<mask>"])
    trained.save_model(str(directory))
    return directory


def made(directory: Path, model_type: str) -> Tokenizer:
    found = directory_tokenizer(directory, model_type)
    assert found.text is not None, found.origin
    return Tokenizer.from_str(found.text)


def test_a_sentencepiece_model_gives_sentencepiece_s_ids(llama: Path) -> None:
    reference = sentencepiece.SentencePieceProcessor(model_file=str(llama))
    tokenizer = made(llama.parent, "llama")
    for text in TEXTS:
        if "</s>" not in text:  # a control token, which sentencepiece never finds in a text
            assert tokenizer.encode(text).ids == [1, *reference.encode(text)]
    assert tokenizer.token_to_id("</s>") in tokenizer.encode(TEXTS[2]).ids
    assert directory_tokenizer(llama.parent, "llama").origin == "tokenizer.model"


def test_its_normalizer_is_done(tmp_path: Path) -> None:
    path = train(tmp_path / "tokenizer.model", normalization_rule_name="nmt_nfkc", remove_extra_whitespaces=True)
    reference = sentencepiece.SentencePieceProcessor(model_file=str(path))
    tokenizer = made(tmp_path, "llama")
    for text in ("  two  spaces, ﬁne ｆｕｌｌ width ", *TEXTS[:2]):
        assert tokenizer.encode(text).ids[1:] == reference.encode(text)


def test_gemma_s_puts_no_space_before_a_text(tmp_path: Path) -> None:
    path = train(tmp_path / "tokenizer.model", add_dummy_prefix=False)
    reference = sentencepiece.SentencePieceProcessor(model_file=str(path))
    tokenizer = made(tmp_path, "gemma3_text")
    for text in (*TEXTS[:2], " a leading space"):
        assert tokenizer.encode(text).ids[1:] == reference.encode(text)


@pytest.mark.parametrize(("asked", "begins"), [({}, True), ({"add_bos_token": False}, False)])
def test_its_settings_decide_what_begins_a_text(tmp_path: Path, llama: Path, asked: dict, begins: bool) -> None:  # type: ignore[type-arg]
    shutil.copy(llama, tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(asked))
    assert (made(tmp_path, "llama").encode("a").ids[0] == 1) == begins


@pytest.mark.parametrize("kind", ["qwen2", "llama", "opt", "roberta"])
def test_merges_give_the_ids_of_transformers(tmp_path: Path, merges: Path, kind: str) -> None:
    for name in ("vocab.json", "merges.txt"):
        shutil.copy(merges / name, tmp_path)
    vocabulary = json.loads((tmp_path / "vocab.json").read_text())
    settings: dict[str, object] = {"eos_token": "</s>", "tokenizer_class": "GPT2Tokenizer"}
    if kind == "qwen2":
        settings = {"tokenizer_class": "Qwen2Tokenizer", "eos_token": "<|endoftext|>"}
        token = {"content": "<|tool|>", "special": True, "lstrip": False, "rstrip": False, "normalized": False}
        settings["added_tokens_decoder"] = {str(len(vocabulary)): token | {"single_word": False}}
    elif kind == "opt":
        settings |= {"add_bos_token": True, "bos_token": "<s>"}
    elif kind == "roberta":
        settings = {"tokenizer_class": "RobertaTokenizer"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": kind}))
    reference = AutoTokenizer.from_pretrained(tmp_path)
    tokenizer = made(tmp_path, kind)
    for text in (*TEXTS, "e\u0301 <mask>"):
        assert tokenizer.encode(text).ids == reference.backend_tokenizer.encode(text).ids
    if kind == "qwen2":
        assert tokenizer.token_to_id("<|tool|>") == len(vocabulary)


@pytest.mark.parametrize("asked", [True, False, None])
def test_a_tokenizer_json_begins_as_its_settings_say(tmp_path: Path, merges: Path, asked: bool | None) -> None:
    trained = ByteLevelBPETokenizer(str(merges / "vocab.json"), str(merges / "merges.txt"))
    trained.add_special_tokens(["<s>"])
    if asked is False:
        begin = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
        trained._tokenizer.post_processor = begin
    trained.save(str(tmp_path / "tokenizer.json"))
    settings = {"bos_token": {"content": "<s>"}} | ({} if asked is None else {"add_bos_token": asked})
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    assert (made(tmp_path, "llama").encode("a").ids[0] == 1) == (asked is True)


def reason(directory: Path) -> str:
    found = directory_tokenizer(directory, "llama")
    assert isinstance(found, FoundTokenizer)
    assert found.text is None
    return found.origin


def test_what_cannot_be_made_says_what_was_found(tmp_path: Path, llama: Path) -> None:
    assert "has no tokenizer.json, no tokenizer.model, and not both vocab.json and merges.txt" in reason(tmp_path)
    whole = llama.read_bytes()
    for data, problem in (
        (b"IQ== 0\nIg== 1\n", "is no SentencePiece model"),  # tiktoken's format, under the same name
        (whole[:2001], "is no SentencePiece model: it is truncated"),
        (b"", "is no SentencePiece model: it holds no piece"),
        (b"\x0b" + whole, "a field of the unknown kind 3"),
        (b"\xff" * 20, "a number is too long"),
    ):
        (tmp_path / "tokenizer.model").write_bytes(data)
        assert problem in reason(tmp_path)
    train(tmp_path / "tokenizer.model", model_type="unigram")
    assert "is a unigram model" in reason(tmp_path)
    (tmp_path / "tokenizer.model").unlink()
    (tmp_path / "vocab.json").write_text("[]")
    (tmp_path / "merges.txt").write_text("a b\n")
    assert "vocab.json" in reason(tmp_path)
    (tmp_path / "vocab.json").write_text('{"a": "b"}')
    assert "is not an object of ids" in reason(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "CodeGenTokenizer"}')
    assert "names the class 'CodeGenTokenizer'" in reason(tmp_path)


def test_a_tokenizer_json_that_cannot_be_read_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_bytes(b"\xff")
    with pytest.raises(InputError, match="is not UTF-8: byte 0 is wrong"):
        directory_tokenizer(tmp_path, "llama")
