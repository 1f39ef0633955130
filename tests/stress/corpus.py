"""Files of every kind that memsim reads: made by the libraries that others use where there is one, else by memsim."""

import json
import sqlite3
import warnings
from contextlib import closing
from dataclasses import astuple, fields
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from capped_runs import config_for
from gguf_files import write_gguf
from memsim.models.lora import LoraConfig
from memsim.models.scheme import Scheme
from memsim.regression.baseline import from_run, write_baseline
from memsim.results import Evaluation, StepResult
from memsim.run_directory.checkpoints import DIRECTORY, state_file_name
from memsim.run_directory.seed_log import SeedLog, header_of
from memsim.run_directory.settings_file import Identity, write_run_file
from memsim.run_directory.steps_file import History
from memsim.runtime.origin import Origin
from memsim.schedules.choices import Choices, choices_for
from memsim.schedules.record import record_choices
from memsim.schedules.zeroth_order import ZeroOrder, estimator
from memsim.search.plan_file import PlanFile, dimensions, write_plan
from memsim.simulator.device_file import find_device, format_device
from memsim.sweep.row import Row
from memsim.sweep.store import APPLICATION_ID, TABLE
from memsim.weights.synthetic import write_synthetic
from mlx_files import mlx_quantize, write_mlx
from recorded import record, toy_run_plan, write_run, write_shares
from toy_checkpoints import TOY, UNTIED, source_tensors
from toy_families import toy_config

N_STEPS = 4
LORA = LoraConfig(rank=4, alpha=8)
IDENTITY = Identity(
    model_hash="h" * 64, texts={"tokens.bin": "a" * 64}, program="p", threads=1, compute="f32", cpu="c", kernels="k",
    versions={"numpy": "2"},
)  # fmt: skip
ORIGIN = Origin(started="2026-12-01T00:00:00+00:00", commands=("memsim run",), files={})
WORDS = "memory is what a phone has least of, and a page that is clean can be dropped\n"


def tree(directory: Path) -> dict[str, bytes]:
    """Return what a directory holds."""
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def hugging_face(directory: Path, shards: bool) -> dict[str, bytes]:
    """Return a model as transformers saves it, in one file or in shards."""
    import torch
    import transformers
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=48, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, tie_word_embeddings=True,
    )  # fmt: skip
    transformers.utils.logging.disable_progress_bar()
    size = "20KB" if shards else "5GB"
    Qwen2ForCausalLM(config).save_pretrained(directory, max_shard_size=size)
    return tree(directory)


def gguf_model(directory: Path) -> dict[str, bytes]:
    """Return a model as the gguf library writes it."""
    directory.mkdir()
    write_gguf(directory / "model.gguf", "qwen2", UNTIED.to_dict(), source_tensors(UNTIED))
    return tree(directory)


def mlx_model(directory: Path) -> dict[str, bytes]:
    """Return a model whose matrices are quantised as MLX does it, saved by safetensors."""
    config = toy_config(hidden_size=64, head_dim=16, intermediate_size=128, num_hidden_layers=1)
    tensors = source_tensors(config)
    matrices = {name: mlx_quantize(w, 4, 32) for name, w in tensors.items() if name.endswith("_proj.weight")}
    plain = config.to_dict() | {"hidden_act": "silu"}
    write_mlx(directory, plain, tensors, matrices)
    return tree(directory)


def tokenizer(directory: Path) -> dict[str, bytes]:
    """Return a tokenizer that the tokenizers library trained."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=["<|endoftext|>"], show_progress=False)
    made.train_from_iterator([WORDS] * 20, trainer)
    directory.mkdir()
    made.save(str(directory / "tokenizer.json"))
    return tree(directory)


def pack(directory: Path) -> dict[str, bytes]:
    """Return a pack of synthetic weights."""
    write_synthetic(directory, toy_config(num_hidden_layers=1), 32, 0, lambda *_: None)
    return tree(directory)


def adapter(directory: Path) -> dict[str, bytes]:
    """Return a LoRA adapter as PEFT saves it."""
    from peft import LoraConfig as PeftConfig
    from peft import get_peft_model
    from transformers import Qwen2Config, Qwen2ForCausalLM

    config = {**TOY.to_dict(), "rope_scaling": None}
    model = Qwen2ForCausalLM(Qwen2Config(**config))
    settings = PeftConfig(r=2, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT's, of transformers' names of tomorrow
        get_peft_model(model, settings).save_pretrained(directory)
    return tree(directory)


def finished_run(directory: Path) -> dict[str, bytes]:
    """Return the files of a run with its checkpoint."""
    write_run(directory)
    checkpoints = directory / DIRECTORY
    checkpoints.mkdir()
    write_run_file(checkpoints, config_for(directory, None, steps=N_STEPS), IDENTITY, ORIGIN)
    history = History(directory, None, ())
    for step in range(N_STEPS):
        history.add_step(StepResult(loss=3.0 - step / 2, accuracy=0.5, step_s=0.25), {"rope": 0.125, "add": 0.5})
    history.add_evaluation(Evaluation(step=N_STEPS, loss=1.5, accuracy=0.25))
    values = np.arange(12, dtype=np.float32)
    save_file(
        {"a": values.reshape(3, 4), "b": values, "step": np.zeros(1, np.uint32)}, checkpoints / state_file_name(N_STEPS)
    )
    history.commit(N_STEPS, "0" * 64, 1.5, 10**6, 10**6, None)
    return tree(directory)


def capture(directory: Path) -> dict[str, bytes]:
    """Return what memray captures of a few lines."""
    from memray import FileDestination, Tracker

    directory.mkdir()
    destination = FileDestination(directory / "memray.bin", compress_on_exit=False)
    with Tracker(destination=destination):
        held = [bytearray(100_000 + size) for size in range(20)]
        del held[:10]
    return tree(directory)


def seeds(directory: Path) -> dict[str, bytes]:
    """Return the log of a zeroth-order run."""
    directory.mkdir()
    decided = estimator("mezo", ZeroOrder(), 1e-3)
    scheme: Scheme = LORA
    log = SeedLog(directory / "seeds.jsonl", header_of(decided, "toy", "h" * 64, 7, scheme))
    for step in range(6):
        log.write(step, 1e-3, (0.5 - step / 10,))
    log.close()
    return tree(directory)


def plan(directory: Path) -> dict[str, bytes]:
    """Return the file of a plan."""
    directory.mkdir()
    config = toy_config()
    choices: Choices = choices_for("tiled", config.num_hidden_layers, ())
    found = PlanFile(
        model="toy", dimensions=dimensions(config, 32), seq_len=16, lora_rank=2, target_modules=("q_proj",),
        optimizer="adamw", accumulate=1, threads=1, budget_bytes=10**9, need_bytes=10**8, device="host", step_s=1.5,
        choices=record_choices(choices),
    )  # fmt: skip
    write_plan(directory / "plan.json", found)
    return tree(directory)


def baseline(directory: Path) -> dict[str, bytes]:
    """Return a baseline of a run."""
    run = write_run(directory)
    config = config_for(Path("tiny"), None)
    write_baseline(directory / "baseline.json", from_run(run, config, record(toy_run_plan()), 0.25))
    return {"baseline.json": (directory / "baseline.json").read_bytes()}


def shares(directory: Path) -> dict[str, bytes]:
    """Return a profile of decompression."""
    directory.mkdir()
    write_shares(directory / "shares.json")
    return tree(directory)


def sweep(directory: Path) -> dict[str, bytes]:
    """Return the rows of a sweep, written by SQLite."""
    directory.mkdir()
    row = Row(
        key="k1", mode="run", model="tiny", seq_len=8, lora_rank=None, schedule="mebp", budget_bytes=10**9,
        device=None, settings="{}", command="memsim run", status="done", error=None, fits=True, verdict="done",
        peak_footprint_bytes=5, peak_working_set_bytes=3, step_s=0.5, seconds=1.5, record="{...}",
    )  # fmt: skip
    with closing(sqlite3.connect(directory / "sweep.sqlite")) as connection, connection:
        connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        connection.execute(TABLE)
        connection.execute(f"INSERT INTO points VALUES ({', '.join('?' * len(fields(Row)))})", astuple(row))
    return tree(directory)


DEVICE = format_device(find_device("iphone-15-pro-max")).encode()
GRID = b"""mode = "simulate"
models = ["tiny", "qwen2.5-0.5b"]
seq_lens = [8, 16]
schedules = ["mebp", "tiled"]
devices = ["iphone-15-pro-max"]

[settings]
steps = 3
optimizer = "sgd"
"""
TEXT = (WORDS * 5 + "größe ≤ 日本\n").encode()
RECORDS = b"".join(json.dumps({"text": WORDS * n, "n": n}).encode() + b"\n" for n in range(1, 5))
TOKENS = np.arange(200, dtype="<u4").tobytes()
