"""Which tokenizer a run takes, what it adds to a text, and that the record and a resumed run know it."""

import json
from collections.abc import Iterator
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import pytest
import torch
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers, processors
from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen2Config, Qwen2ForCausalLM

from capped_runs import private_cache, run_toy
from memsim.data.tokenizer_choice import choose_tokenizer
from memsim.errors import InputError
from memsim.json_decode import decode
from memsim.result_file import read_result
from memsim.results import TokenizerResult
from memsim.run_directory.settings_file import Identity
from memsim.runtime.resume import read_resumption, resume
from memsim.runtime.run_progress import RunProgress
from memsim.weights.cache import find_model

SEQ_LEN, VOCAB = 32, 320
TEXT = "The quick brown fox jumps over the lazy dog, and then it sleeps. " * 20


def bos_tokenizer() -> Tokenizer:
    special = ["<pad>", "<bos>", "<eos>"]
    letters = {token: index for index, token in enumerate([*special, *sorted(pre_tokenizers.ByteLevel.alphabet())])}
    tokenizer = Tokenizer(models.BPE(vocab=letters, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in special])
    tokenizer.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 1)])
    return tokenizer


@pytest.fixture(scope="module")
def model(disk: Path) -> Iterator[Path]:
    """A checkpoint on the INT4 grid, so that packing loses nothing, whose tokenizer begins a text with <bos>."""
    directory = disk / "bos-model"
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=VOCAB,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=True,
        eos_token_id=2,
    )
    made = Qwen2ForCausalLM(config)
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.ndim == 2:
                parameter.copy_(torch.randint(-7, 8, parameter.shape) * 2.0**-6)
                parameter[:, ::32] = 7 * 2.0**-6
    made.save_pretrained(directory)
    bos_tokenizer().save(str(directory / "tokenizer.json"))
    (directory / "notes.txt").write_text(TEXT)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MEMSIM_CACHE", str(private_cache(disk / "bos-cache")))
        yield directory


def expected_loss(model: Path, windows: list[list[int]]) -> float:
    """Return transformers' mean loss over windows of ids, each one longer than a sequence."""
    reference = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    with torch.no_grad():
        rows = torch.tensor(windows)
        logits = reference(rows[:, :-1]).logits
        return float(torch.nn.functional.cross_entropy(logits.reshape(-1, VOCAB), rows[:, 1:].reshape(-1)))


def run_it(model: Path, out: Path, **changes: object):  # type: ignore[no-untyped-def]
    notes = model / "notes.txt"
    settings = {"data": notes, "eval_data": notes, "eval_first": True, "eval_sequences": 8, "steps": 1}
    settings |= {"seq_len": SEQ_LEN, "schedule": "tiled", "compute": "f32"}
    return run_toy(model, out, **settings | changes).result


@pytest.mark.parametrize("bos", ["auto", "document", "never"])
def test_windows_begin_as_asked_and_have_transformers_loss(model: Path, tmp_path: Path, bos: str) -> None:
    result = run_it(model, tmp_path / "out", bos=bos)
    ids = AutoTokenizer.from_pretrained(model)(TEXT, add_special_tokens=False).input_ids
    starts = range(0, 8 * SEQ_LEN, SEQ_LEN)
    if bos == "auto":
        windows = [[1, *ids[start : start + SEQ_LEN]] for start in starts]
    else:
        stream = [1, *ids] if bos == "document" else ids
        windows = [stream[start : start + SEQ_LEN + 1] for start in starts]
    # Two float32 computations that sum in other orders.
    assert result.evals[0].loss == pytest.approx(expected_loss(model, windows), abs=2e-5)
    begins = () if bos == "never" else ("<bos>",)
    assert result.tokenizer == TokenizerResult(
        name="tokenizer.json",
        sha256=sha256((model / "tokenizer.json").read_bytes()).hexdigest(),
        begins=begins,
        begin_ids=(1,) * len(begins),
        every_window=bos == "auto",
        between="<eos>",
    )
    assert read_result(tmp_path / "out" / "result.json") == result


def test_a_resumed_run_begins_its_windows_in_the_same_way(model: Path, tmp_path: Path) -> None:
    whole = run_it(model, tmp_path / "whole", steps=3, eval_data=None, eval_first=False)
    run_it(model, tmp_path / "out", steps=1, eval_data=None, eval_first=False, checkpoint_every=1)
    resumption = read_resumption(tmp_path / "out", {"steps": 3})
    again = resume(resumption, RunProgress()).result
    assert [step.loss for step in again.steps] == [step.loss for step in whole.steps]
    assert again.tokenizer == whole.tokenizer is not None


def test_a_checkpoint_without_a_tokenizer_is_refused_with_what_was_found(model: Path, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    bare.mkdir()
    for name in ("config.json", "model.safetensors"):
        (bare / name).symlink_to(model / name)
    (bare / "notes.txt").write_text(TEXT)
    with pytest.raises(
        InputError, match=r"no tokenizer for .*bare: .*has no tokenizer\.json.*--tokenizer FILE"
    ) as error:
        run_it(bare, tmp_path / "refused")
    assert "or train on bytes with --tokenizer bytes" in str(error.value)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "refused").exists()
    by_bytes = run_it(bare, tmp_path / "bytes", tokenizer="bytes")
    assert by_bytes.tokenizer == TokenizerResult(name="bytes", between="2")
    given = run_it(bare, tmp_path / "given", tokenizer=str(model / "tokenizer.json"))
    assert given.tokenizer is not None
    assert (given.tokenizer.begins, given.evals[0].loss != by_bytes.evals[0].loss) == (("<bos>",), True)


def test_a_file_that_is_no_tokenizer_is_one_line(model: Path, tmp_path: Path) -> None:
    pack, name = find_model(str(model), lambda *_: None)
    (tmp_path / "x.model").write_bytes(b"nothing of the kind")
    with pytest.raises(InputError, match=r"--tokenizer .*x\.model cannot serve: .*is no SentencePiece model"):
        choose_tokenizer(str(tmp_path / "x.model"), pack, name)
    with pytest.raises(InputError, match=r"cannot read tokenizer .*missing\.json: No such file"):
        choose_tokenizer(str(tmp_path / "missing.json"), pack, name)


def test_bytes_need_no_word_where_weights_are_synthetic_or_the_model_is_one_of_bytes(model: Path) -> None:
    for name in ("tiny", str(model / "config.json")):
        pack, _ = find_model(name, lambda *_: None)
        assert choose_tokenizer(None, pack, name).name == "bytes"


def test_another_tokenizer_is_a_difference_of_runs() -> None:
    fields = {"model_hash": "m", "texts": {}, "program": "p", "threads": 1, "compute": "f32", "cpu": "c"}
    identity = Identity(**fields, kernels="k", versions={}, tokenizer=TokenizerResult(name="bytes"))  # type: ignore[arg-type]
    other = replace(identity, tokenizer=TokenizerResult(name="tokenizer.json", begins=("<s>",)))
    assert identity.differences(other) == ["name bytes before, now tokenizer.json", "begins () before, now ('<s>',)"]
    before = decode(Identity, json.loads(json.dumps(fields | {"kernels": "k", "versions": {}})), "run.json")
    assert before.tokenizer is None
