"""Other people's checkpoints: the loss that transformers has on the same files, or a refusal that names what it is.

Each case is a kind of file that was met, or a public bug report. Nothing here is written by memsim.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel, get_peft_model_state_dict
from safetensors.numpy import load_file, save_file
from transformers import AutoModelForCausalLM, Gemma3Config, Gemma3ForConditionalGeneration

import foreign
from foreign import LEFT_OUT, Tensors
from memsim.data.windows import Batches
from memsim.errors import InputError
from memsim.execution.session import Session
from memsim.execution.storage.arrays import SeparateArrays
from memsim.models.lora import LoraConfig
from memsim.models.scheme import Scheme
from memsim.models.schemes import Norms, Prompt
from memsim.weights.pack import open_pack
from memsim.weights.packing import pack_checkpoint
from memsim.weights.trained import TRAINED_FILE, write_trained
from oracle import loss_of
from toy import plan_toy, token_file

SEQ_LEN = 21
LORA = LoraConfig(rank=2, alpha=4)


def our_loss(directory: Path, out: Path, disk: Path) -> float:
    """Pack a checkpoint and return the loss of one step, whose fresh adapters change nothing."""
    pack_checkpoint(directory, out, 32, lambda *_: None)
    pack = open_pack(out)  # as another process reads it
    plan = plan_toy(pack, "mebp", SEQ_LEN, LORA)
    session = Session(pack, LORA, plan.train, plan.evaluate, disk, 0, SeparateArrays(plan.train.program, keep_all=True))
    return session.train_step(0, batches(out), 1).loss


def batches(directory: Path) -> Batches:
    return Batches(token_file(directory / "t.bin", foreign.V), SEQ_LEN, seed=1)


def their_loss(directory: Path, out: Path) -> float:
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    with torch.no_grad():
        return float(loss_of(model, *batches(out).batch(0)).item())


def case(name: str, kind: str = "qwen2", tied: bool = True, refused: str | None = None, **changes: Any) -> Any:
    """Return a case of other fields; ``refused`` is what the refusal says."""
    return pytest.param(lambda path: foreign.write(path, kind, tied, **changes), refused, id=name)


def made(name: str, refused: str | None = None) -> Callable[[Callable[[Path], object]], Any]:
    """Return a decorator that makes a case of a function that writes a directory."""
    return lambda write: pytest.param(write, refused, id=name)


def renamed(found: Tensors, old: str, new: str) -> Tensors:
    return {new + name.removeprefix(old) if name.startswith(old) else name: rows for name, rows in found.items()}


@made("tied-head")
def tied_head(path: Path) -> None:
    foreign.write(path, "qwen2", True, foreign.tensors("qwen2", tied=False))


@made("tied-alias")
def tied_alias(path: Path) -> None:
    found = foreign.tensors("llama")
    foreign.write(path, "llama", True, renamed(found, "model.embed_tokens.", "lm_head."))


@made("tied-twice")
def tied_twice(path: Path) -> None:
    found = foreign.tensors("llama")
    foreign.write(path, "llama", True, found | {"lm_head.weight": found["model.embed_tokens.weight"].copy()})


@made("prefixless")
def prefixless(path: Path) -> None:
    foreign.write(path, found=renamed(foreign.tensors("qwen2"), "model.", ""), architectures=["Qwen2Model"])


@made("frequencies")
def frequencies(path: Path) -> None:
    extra = {f"model.layers.{layer}.self_attn.rotary_emb.inv_freq": np.ones(8, np.float32) for layer in range(2)}
    foreign.write(path, "llama", found=foreign.tensors("llama") | extra)


def write_shards(path: Path, more: dict[str, str]) -> None:
    foreign.write(path)
    found = list(load_file(path / "model.safetensors").items())
    (path / "model.safetensors").unlink()
    index = {}
    for number, part in enumerate((found[::2], found[1::2])):
        save_file(dict(part), path / f"model-{number}.safetensors", {"format": "pt"})
        index |= {name: f"model-{number}.safetensors" for name, _ in part}
    (path / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index | more}))


@made("stale-index")
def stale_index(path: Path) -> None:
    write_shards(path, {"model.layers.7.old.weight": "model-1.safetensors"})


@made("stale-file", r"cannot read .*model-2\.safetensors: No such file")
def stale_file(path: Path) -> None:
    write_shards(path, {})
    for shard in path.glob("model-?.safetensors"):
        found = load_file(shard)
        if found.pop("model.layers.0.mlp.up_proj.weight", None) is not None:
            save_file(found, shard, {"format": "pt"})
    index = json.loads((path / "model.safetensors.index.json").read_text())
    index["weight_map"]["model.layers.0.mlp.up_proj.weight"] = "model-2.safetensors"
    (path / "model.safetensors.index.json").write_text(json.dumps(index))


@made("attn-bias-file", "holds the tensor 'model.layers.0.self_attn.q_proj.bias', which a mistral as its config.json")
def attn_bias_file(path: Path) -> None:
    extra = {f"model.layers.{layer}.self_attn.q_proj.bias": np.ones(64, np.float32) for layer in range(2)}
    foreign.write(path, "mistral", found=foreign.tensors("mistral") | extra)


@made("cls-head", "the architecture 'Qwen2ForSequenceClassification' .*train its base model with --scheme head")
def cls_head(path: Path) -> None:
    found = foreign.tensors("qwen2") | {"score.weight": np.ones((3, 64), np.float32)}
    foreign.write(path, "qwen2", False, found, architectures=["Qwen2ForSequenceClassification"])


@made("extra-tensor", r"holds the tensor 'model.mtp.0.weight', which a qwen2")
def extra_tensor(path: Path) -> None:
    foreign.write(path, found=foreign.tensors("qwen2") | {"model.mtp.0.weight": np.ones((3, 64), np.float32)})


@made("lfs-pointer", "is a pointer of Git LFS, not the file itself; fetch it with `git lfs pull`")
def lfs_pointer(path: Path) -> None:
    foreign.write(path)
    text = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 12345\n"
    (path / "model.safetensors").write_text(text)


@made("unread-parts")
def unread_parts(path: Path) -> None:
    foreign.write(path)
    text = (path / "config.json").read_text().rstrip().removesuffix("}")
    notes = '"notes": {"a": 1, "a": 2, "b": Infinity}, "transformers_version": "1", "transformers_version": "2"'
    (path / "config.json").write_text(f"{text}, {notes}}}")


@made("said-twice", "'hidden_size' must be a positive integer, not two different values")
def said_twice(path: Path) -> None:
    foreign.write(path)
    text = (path / "config.json").read_text().rstrip().removesuffix("}")
    (path / "config.json").write_text(f'{text}, "hidden_size": 32}}')


LLAMA3 = {"rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
YARN = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}
SHEET = [
    tied_head, tied_alias, tied_twice, prefixless, frequencies, stale_index, stale_file, attn_bias_file, cls_head,
    extra_tensor, lfs_pointer, unread_parts, said_twice,
    case("untied", tied=False),
    case("rope-both", "llama", refused="rope_theta is 10000.0, and rope_theta 500.0; take one out",
         rope_parameters={"rope_type": "default", "rope_theta": 500.0}),
    case("rope-scaling-both", "llama", refused="rope_parameters and rope_scaling say different things",
         rope_parameters={"rope_type": "default"}, rope_scaling={"rope_type": "linear", "factor": 4.0}),
    case("rope-twice-the-same", "llama", rope_parameters={"rope_type": "default", "rope_theta": 10_000.0}),
    case("not-causal", refused="is_causal False is not supported", is_causal=False),
    case("foreign-llama", "llama", refused="the architecture 'BitNetForCausalLM' has no head that memsim knows",
         architectures=["BitNetForCausalLM"]),
    case("foreign-quant", "llama", refused="the weights are quantised by 'bitnet', which memsim does not read",
         quantization_config={"quant_method": "bitnet"}),
    *(case(method, refused=f"the weights are quantised by '{method}'", quantization_config={"quant_method": method})
      for method in ("gptq", "awq", "bitsandbytes", "fp8", "compressed-tensors")),
    case("own-pack", "gemma3_text", layer_types=["full_attention"] * 2, sliding_window=8),
    case("own-pack-pattern", "gemma3_text", sliding_window_pattern=1, sliding_window=8),
    case("gemma-pattern", "gemma3_text", sliding_window_pattern=2, sliding_window=8),
    case("window-of-mistral", "mistral", sliding_window=8),
    case("no-window-null", "mistral", sliding_window=None),
    case("no-window-missing", "mistral"),
    case("no-window-zero", sliding_window=0, use_sliding_window=False),
    case("attn-bias", "mistral", refused="attention_bias True is not supported", attention_bias=True),
    case("null-rotary", "llama", partial_rotary_factor=None),
    case("half-rotary", "llama", refused="partial_rotary_factor 0.5 is not supported", partial_rotary_factor=0.5),
    case("no-theta", rope_theta=LEFT_OUT),
    case("no-theta-gemma", "gemma3_text", rope_theta=LEFT_OUT, sliding_window=8),
    case("no-eps", rms_norm_eps=LEFT_OUT),
    case("no-positions", max_position_embeddings=LEFT_OUT),
    case("yarn", rope_scaling=YARN),
    case("yarn-no-length", rope_scaling={"type": "yarn", "factor": 4.0}),
    case("yarn-mscale", "llama", rope_scaling=YARN | {"mscale": 0.7, "mscale_all_dim": 1.2, "truncate": False}),
    case("yarn-factor", "llama", rope_scaling=YARN | {"attention_factor": 1.3, "beta_fast": 8.0, "beta_slow": 2.0}),
    case("llama3", "llama", rope_scaling=LLAMA3),
    case("linear", "llama", rope_scaling={"type": "linear", "factor": 4.0}),
    case("dynamic", "llama", rope_scaling={"type": "dynamic", "factor": 4.0}),
    case("longrope", "llama", refused="RoPE scaling 'longrope' is not supported",
         rope_scaling={"type": "longrope", "factor": 4.0}),
    case("experts", refused="'num_experts' 4 is not known to memsim", num_experts=4),
    case("softcap", "gemma3_text", refused="final_logit_softcapping 30.0 is not supported",
         final_logit_softcapping=30.0),
]  # fmt: skip


@pytest.mark.parametrize(("write", "refused"), SHEET)
def test_a_checkpoint_has_transformers_loss_or_is_refused_by_name(
    tmp_path: Path, disk: Path, write: Callable[[Path], object], refused: str | None
) -> None:
    write(tmp_path / "model")
    if refused is not None:
        with pytest.raises(InputError, match=refused) as found:
            pack_checkpoint(tmp_path / "model", tmp_path / "pack", 32, lambda *_: None)
        assert "\n" not in str(found.value)
        return
    ours = our_loss(tmp_path / "model", tmp_path / "pack", disk)
    assert ours == pytest.approx(their_loss(tmp_path / "model", tmp_path / "pack"), abs=1e-4)


def test_the_cases_tell_models_apart(tmp_path: Path) -> None:
    """What is checked above changes the loss by more than the tolerance."""
    plain = foreign.write(tmp_path / "plain", "llama")
    (tmp_path / "t.bin").parent.mkdir(exist_ok=True)
    expected = their_loss(plain, tmp_path)
    for name, changes in {
        "yarn": {"rope_scaling": YARN},
        "linear": {"rope_scaling": {"type": "linear", "factor": 4.0}},
    }.items():
        other = foreign.write(tmp_path / name, "llama", **changes)
        assert abs(their_loss(other, tmp_path) - expected) > 1e-3


@pytest.fixture(scope="module")
def vlm(disk: Path) -> Path:
    """A toy of a model that sees pictures, as transformers saves it."""
    text = {
        key: value for key, value in foreign.config("gemma3_text", sliding_window=8).items() if key != "architectures"
    }
    vision = {
        "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 32,
        "patch_size": 16,
    }  # fmt: skip
    torch.manual_seed(0)
    model = Gemma3ForConditionalGeneration(Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=1))
    found = foreign.tensors("gemma3_text")
    state = {name.replace("model.", "model.language_model.", 1): torch.from_numpy(rows) for name, rows in found.items()}
    assert not model.load_state_dict(state, strict=False).unexpected_keys
    model.save_pretrained(disk / "vlm")
    return disk / "vlm"


def test_the_text_model_of_one_that_sees_pictures(tmp_path: Path, disk: Path, vlm: Path) -> None:
    assert our_loss(vlm, tmp_path / "pack", disk) == pytest.approx(their_loss(vlm, tmp_path / "pack"), abs=1e-4)


@pytest.mark.filterwarnings("ignore::UserWarning")  # PEFT's, of a base model without a name on the hub
@pytest.mark.parametrize("scheme", [LORA, LoraConfig(2, 4, ("q_proj", "down_proj")), Norms(), Prompt(3)], ids=repr)
def test_what_is_trained_on_it_loads_onto_the_class_that_its_directory_loads_as(
    tmp_path: Path, disk: Path, vlm: Path, scheme: Scheme
) -> None:
    pack = pack_checkpoint(vlm, tmp_path / "pack", 32, lambda *_: None).pack
    plan = plan_toy(pack, "mebp", SEQ_LEN, scheme)
    arena = SeparateArrays(plan.train.program, keep_all=True)
    session = Session(pack, scheme, plan.train, plan.evaluate, disk, 0, arena)
    rng = np.random.default_rng(5)
    for _, _, tensor in session.trainables():
        tensor += rng.normal(0, 0.3, tensor.shape).astype(np.float32)
    write_trained(tmp_path / "out", session.trainables, pack.config, scheme, "base")
    ours = session.train_step(0, batches(tmp_path), 1).loss
    model = AutoModelForCausalLM.from_pretrained(vlm, dtype=torch.float32)
    assert type(model) is Gemma3ForConditionalGeneration
    if (tmp_path / "out" / "adapter_config.json").exists():
        loaded = PeftModel.from_pretrained(model, tmp_path / "out").eval()
        stored = load_file(tmp_path / "out" / "adapter_model.safetensors")
        theirs = get_peft_model_state_dict(loaded)
        assert theirs.keys() == stored.keys()  # no module of the other half has an adapter
        assert all(np.array_equal(theirs[name].detach().numpy(), stored[name]) for name in stored)
    else:
        loaded = model
        missing, unexpected = model.load_state_dict(
            {name: torch.from_numpy(rows) for name, rows in load_file(tmp_path / "out" / TRAINED_FILE).items()},
            strict=False,
        )
        assert not unexpected and len(missing) < len(model.state_dict())
    ids, labels = batches(tmp_path).batch(0)
    with torch.no_grad():
        logits = loaded(input_ids=torch.from_numpy(ids.astype(np.int64))[None]).logits[0, -len(ids) :]
        expected = torch.nn.functional.cross_entropy(logits, torch.from_numpy(labels.astype(np.int64)))
    assert ours == pytest.approx(expected.item(), abs=1e-4)
