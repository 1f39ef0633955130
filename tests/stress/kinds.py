"""The kinds of input that memsim reads: what makes each, what reads it, and what else does."""

import hashlib
import json
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import corpus
import gguf
import numpy as np
import oracles
from corpus import N_STEPS, TOY
from fuzzing import Kind
from mutations import (
    Mutation,
    byte_mutations,
    json_mutations,
    lines_mutations,
    slot_mutations,
    tensor_file_mutations,
    toml_mutations,
)

import memsim
from memsim.data.record_files import record_texts
from memsim.data.text import utf8_chunks
from memsim.data.tokenize import load_tokenizer
from memsim.data.windows import TokenFile
from memsim.errors import InputError
from memsim.ir.serialize import load_program, save_program
from memsim.reading import open_regular
from memsim.regression.baseline import read_baseline
from memsim.reports.shares_file import read_shares
from memsim.result_file import read_result
from memsim.run_directory.checkpoints import DIRECTORY, Checkpoints, state_file_name
from memsim.run_directory.events import read_events
from memsim.run_directory.seed_log import read_seed_log
from memsim.run_directory.settings_file import read_run_file
from memsim.run_directory.steps_file import STEPS_FILE, History
from memsim.runtime.config import RunConfig
from memsim.runtime.origin import Origin
from memsim.search.plan_file import read_plan
from memsim.simulator.device_file import read_device
from memsim.simulator.recordings.capture import read_any_capture
from memsim.sweep.grid import read_grid
from memsim.sweep.store import open_store
from memsim.tasks.task_file import read_task
from memsim.weights.adapters import read_adapter, tensor_key
from memsim.weights.pack import PACK_FILE, model_hash, open_pack, verify_part
from memsim.weights.readers.formats import open_source
from memsim.weights.readers.gguf_model import open_gguf
from memsim.weights.readers.source import Checkpoint
from memsim.weights.tensor_file import map_file, read_header, view

VOCABULARY = 300
STATE = f"{DIRECTORY}/{state_file_name(N_STEPS)}"
RECORD = STATE.replace(".safetensors", ".json")
OPTIONS = dict.fromkeys(
    ("plan", "simulate", "run"),
    {"model", "seq_len", "lora_rank", "schedule", "budget", "device", "steps", "optimizer", "lr"},
)
PART = "block_000.safetensors"


def _rows(checkpoint: Checkpoint) -> dict[str, Any]:
    """Return all weights by Hugging Face's names."""
    found = {}
    for tensor in checkpoint.tensors.values():
        with tensor.open() as reader:
            found[tensor.name] = reader.read(0, tensor.rows[0]).values
    return found


def _read_hugging_face(directory: Path) -> tuple[Checkpoint, dict[str, Any]]:
    checkpoint = open_source(directory)
    return checkpoint, _rows(checkpoint)


def _check_hugging_face(directory: Path, found: tuple[Checkpoint, dict[str, Any]]) -> None:
    """Weights as safetensors has them, dimensions as json does."""
    checkpoint, weights = found
    oracles.are_tensors(weights, sorted(directory.glob("*.safetensors")))
    parsed = json.loads((directory / "config.json").read_bytes())
    for name in ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"):
        assert getattr(checkpoint.config, name) == parsed[name], name
    for tensor in weights.values():
        assert np.isfinite(tensor).all() or tensor.dtype == np.float32


def _read_gguf(directory: Path) -> dict[str, Any]:
    checkpoint = open_gguf(directory / "model.gguf")
    found = {}
    for tensor in checkpoint.tensors.values():
        with tensor.open() as reader:
            found[tensor.entry.start] = reader.read(0, tensor.rows[0]).values  # type: ignore[attr-defined]
    return {"config": checkpoint.config, "weights": found}


def _check_gguf(directory: Path, found: dict[str, Any]) -> None:
    """Weights by their places and dimensions as llama.cpp's Python library has them."""
    reader = gguf.GGUFReader(directory / "model.gguf")
    stored = {int(item.data_offset): item for item in reader.tensors}
    assert set(stored) == set(found["weights"])
    for start, values in found["weights"].items():
        item = stored[start]
        expected = gguf.quants.dequantize(item.data, item.tensor_type).reshape(values.shape)
        np.testing.assert_array_equal(values, expected.astype(np.float32), item.name)
    config = found["config"]
    for key, name in {"embedding_length": "hidden_size", "block_count": "num_hidden_layers"}.items():
        assert reader.fields[f"qwen2.{key}"].contents() == getattr(config, name), name
    eps = reader.fields["qwen2.attention.layer_norm_rms_epsilon"].contents()
    assert np.float32(config.rms_norm_eps) == np.float32(eps)


def _walk_gguf(data: bytes) -> Iterator[tuple[str, int, str]]:
    sizes = {0: "<B", 4: "<I", 5: "<i", 6: "<I", 7: "<B", 10: "<Q", 11: "<q", 12: "<Q"}
    yield from (("magic", 0, "<I"), ("version", 4, "<I"), ("tensors", 8, "<Q"), ("pairs", 16, "<Q"))
    n_tensors, n_pairs = (int.from_bytes(data[at : at + 8], "little") for at in (8, 16))
    at = 24

    def number(at: int, n_bytes: int) -> int:
        return int.from_bytes(data[at : at + n_bytes], "little")

    for _ in range(n_pairs):
        length = number(at, 8)
        key = data[at + 8 : at + 8 + length].decode()
        yield f"length of {key}", at, "<Q"
        at += 8 + length
        yield f"type of {key}", at, "<I"
        kind = number(at, 4)
        at += 4
        if kind == 8:
            yield f"length of the text {key}", at, "<Q"
            at += 8 + number(at, 8)
        elif kind == 9:
            yield f"type in {key}", at, "<I"
            yield f"items of {key}", at + 4, "<Q"
            inner, count = number(at, 4), number(at + 4, 8)
            at += 12
            for index in range(count):
                if inner == 8:
                    if index < 3:
                        yield f"length of {key}[{index}]", at, "<Q"
                    at += 8 + number(at, 8)
                else:
                    at += {"<B": 1, "<I": 4, "<i": 4, "<Q": 8, "<q": 8}[sizes[inner]]
        else:
            yield f"value of {key}", at, sizes[kind]
            at += {"<B": 1, "<I": 4, "<i": 4, "<Q": 8, "<q": 8}[sizes[kind]]
    for _ in range(n_tensors):
        length = number(at, 8)
        name = data[at + 8 : at + 8 + length].decode()
        yield f"length of {name}", at, "<Q"
        at += 8 + length
        n_dims = number(at, 4)
        yield f"dimensions of {name}", at, "<I"
        at += 4
        for dim in range(n_dims):
            yield f"dimension {dim} of {name}", at + 8 * dim, "<Q"
        at += 8 * n_dims
        yield f"type of {name}", at, "<I"
        yield f"offset of {name}", at + 4, "<Q"
        at += 12


def _gguf_mutations(data: bytes, random: np.random.Generator) -> Iterator[Mutation]:
    return slot_mutations(data, list(_walk_gguf(data)), random)


def _read_mlx(directory: Path) -> dict[str, Any]:
    return _rows(open_source(directory))


def _check_mlx(directory: Path, found: dict[str, Any]) -> None:
    """Weights as safetensors holds their levels, scales and biases."""
    from safetensors.numpy import load_file

    stored = load_file(directory / "model.safetensors")
    for name, values in found.items():
        stem = name.removesuffix(".weight")
        if f"{stem}.scales" not in stored:
            np.testing.assert_array_equal(values.reshape(stored[name].shape), stored[name].astype(np.float32), name)
            continue
        shifts = np.arange(0, 32, 4, dtype=np.uint32)
        levels = (stored[name][:, :, None] >> shifts & np.uint32(15)).reshape(len(values), -1).astype(np.float32)
        scales, biases = (stored[f"{stem}.{part}"].astype(np.float32) for part in ("scales", "biases"))
        columns = levels.shape[1] // scales.shape[1]
        with np.errstate(all="ignore"):
            expected = levels * np.repeat(scales, columns, 1) + np.repeat(biases, columns, 1)
        np.testing.assert_array_equal(values, expected, name)


def _read_tokenizer(directory: Path) -> list[int]:
    encode = load_tokenizer(str(directory / "tokenizer.json")).encode
    ids: list[int] = encode(corpus.WORDS, add_special_tokens=False).ids
    return ids


def _read_pack(directory: Path) -> tuple[Any, dict[str, Any]]:
    pack = open_pack(directory)
    found = {}
    for name, part in pack.parts.items():
        mapped = map_file(part.path)
        verify_part(pack, name, mapped)
        found[name] = {key: view(mapped, entry).copy() for key, entry in part.tensors.items()}
        mapped.close()
    return pack, found


def _check_pack(directory: Path, found: tuple[Any, dict[str, Any]]) -> None:
    pack, parts = found
    parsed = json.loads((directory / PACK_FILE).read_bytes())["config"]
    # As in Hugging Face's files, null is a default and what nobody knows is left alone; qwen2 has its biases anyway.
    known = {key: value for key, value in parsed.items() if value is not None and hasattr(pack.config, key)}
    known.pop("attention_bias", None)
    oracles.assert_holds(pack.config.to_dict(), known)
    for name, tensors in parts.items():
        oracles.are_tensors(tensors, [directory / f"{name}.safetensors"])


def _repair_pack(directory: Path) -> None:
    """Make sizes and checksums those of the files, and the hash that of the description."""
    from memsim.models.config_file import config_from_dict

    description = json.loads((directory / PACK_FILE).read_bytes())
    for name, part in description["parts"].items():
        data = (directory / f"{name}.safetensors").read_bytes()
        part |= {"n_bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    config = config_from_dict(description["config"], "pack.json")
    sums = {name: part["sha256"] for name, part in description["parts"].items()}
    description["model_hash"] = model_hash(config, description["group_size"], sums)
    (directory / PACK_FILE).write_text(json.dumps(description))


def _read_adapter(directory: Path) -> tuple[Any, dict[str, Any]]:
    lora, values = read_adapter(directory, TOY)
    return lora, {tensor_key(block, name, TOY.family): value for (block, name), value in values.items()}


def _check_adapter(directory: Path, found: tuple[Any, dict[str, Any]]) -> None:
    lora, values = found
    parsed = json.loads((directory / "adapter_config.json").read_bytes())
    assert (lora.rank, lora.alpha) == (parsed["r"], parsed["lora_alpha"])
    oracles.are_tensors(values, [directory / "adapter_model.safetensors"])


def _read_program(directory: Path) -> Any:
    return load_program(directory / "program.jsonl")


def _check_program(directory: Path, found: Any) -> None:
    """What is written of the program again is what json reads."""
    again = directory / "again.jsonl"
    save_program(found, again)
    written = [json.loads(line) for line in again.read_bytes().splitlines()]
    oracles.are_json_lines(directory / "program.jsonl", written)


def _read_state(directory: Path) -> dict[str, Any]:
    path = directory / STATE
    entries = read_header(path, 16 << 20)
    mapped = map_file(path)
    return {name: view(mapped, entries[name]).copy() for name in ("a", "b", "step") if _is_known(entries, name, path)}


def _is_known(entries: Any, name: str, path: Path) -> bool:
    if name not in entries or entries[name].dtype not in ("f32", "u32"):
        raise InputError(f"{path} is of another run")
    return True


def _newest(directory: Path) -> Any:
    complaints: list[str] = []
    found = Checkpoints(directory).newest(complaints.append)
    if found is None:
        raise InputError(complaints[0] if complaints else f"{directory} has no checkpoint")
    return found


def _repair_record(directory: Path) -> None:
    """Give state and record each other's checksums."""
    record = directory / RECORD
    data = json.loads(record.read_bytes())["checkpoint"]
    state = (directory / STATE).read_bytes()
    data |= {"sha256": hashlib.sha256(state).hexdigest(), "n_bytes": len(state)}
    digest = hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()
    record.write_text(json.dumps({"checkpoint": data, "sha256": digest}))


def _repair_steps(directory: Path) -> None:
    """Make the record that of the changed steps."""
    record, steps = directory / RECORD, directory / STEPS_FILE
    data = json.loads(record.read_bytes())["checkpoint"]
    data["steps_sha256"] = hashlib.sha256(steps.read_bytes()).hexdigest()
    data["logs"][STEPS_FILE] = steps.stat().st_size
    record.write_text(json.dumps({"checkpoint": data, "sha256": ""}))
    _repair_record(directory)


def _read_steps(directory: Path) -> History:
    return History(directory, _newest(directory), ())


def _check_steps(directory: Path, found: History) -> None:
    lines = [json.loads(line) for line in (directory / STEPS_FILE).read_bytes().splitlines()]
    steps = [line["step"] for line in lines if line.get("step") is not None]
    oracles.assert_holds([oracles.plain(step) for step in found.steps], steps)
    evals = [line["evaluation"] for line in lines if line.get("evaluation") is not None]
    oracles.assert_holds([oracles.plain(item) for item in found.evals], evals)


def _read_events(directory: Path) -> list[Any]:
    return list(read_events(directory / "events.jsonl"))


def _read_seeds(directory: Path) -> list[Any]:
    header, steps = read_seed_log(directory / "seeds.jsonl")
    return [header, *steps]


def _read_store(directory: Path) -> list[Any]:
    with open_store(directory / "sweep.sqlite") as store:
        store.statuses()
        return list(store.rows(["k1"]))


def _read_text(directory: Path) -> str:
    with open_regular(directory / "text.txt", "the text") as file:
        return "".join(utf8_chunks(file, "the text"))


def _check_text(directory: Path, found: str) -> None:
    assert found == (directory / "text.txt").read_bytes().decode("utf-8").removeprefix("\ufeff")


def _read_records(directory: Path) -> list[str]:
    with open_regular(directory / "text.jsonl", "the text") as file:
        return ["".join(chunks) for chunks in record_texts(file, "the text")]


def _check_records(directory: Path, found: list[str]) -> None:
    lines = (directory / "text.jsonl").read_bytes().split(b"\n")
    assert found == [json.loads(line.decode("utf-8-sig"))["text"] for line in lines if line.strip()]


def _read_tokens(directory: Path) -> list[Any]:
    file = TokenFile(directory / "tokens.bin", VOCABULARY)
    file.check(8)
    return [file.window(index, 8)[0].copy() for index in range(file.n_windows(8))]


def _check_tokens(directory: Path, found: list[Any]) -> None:
    stored = np.fromfile(directory / "tokens.bin", "<u4")
    n_windows = (len(stored) - 1) // 8
    np.testing.assert_array_equal(np.concatenate(found), stored[: 8 * n_windows])
    assert len(found) == n_windows


def _of_toml(text: bytes) -> Callable[[bytes, np.random.Generator], Iterator[Mutation]]:
    tree = tomllib.loads(text.decode())
    return lambda data, random: toml_mutations(tree, random)


def _numbers(data: bytes, random: np.random.Generator) -> Iterator[Mutation]:
    slots = [(f"byte {at}", at, "<I") for at in range(0, len(data) - 4, max(4, len(data) // 400 // 4 * 4))]
    return slot_mutations(data, slots, random)


def _check_grid(directory: Path, found: Any) -> None:
    parsed = tomllib.loads((directory / "grid.toml").read_text(encoding="utf-8"))
    parsed.pop("settings", None)
    oracles.assert_holds(oracles.plain(found.axes), parsed)


def _check_device(directory: Path, found: Any) -> None:
    parsed = tomllib.loads((directory / "phone.toml").read_text(encoding="utf-8"))
    parsed.pop("schema")
    oracles.assert_holds(oracles.plain(found), parsed)


def _check_shares(directory: Path, found: Any) -> None:
    parsed = json.loads((directory / "shares.json").read_bytes())
    oracles.assert_holds([oracles.plain(share) for share in found], parsed["shares"])


def _check_baseline(directory: Path, found: Any) -> None:
    parsed = json.loads((directory / "baseline.json").read_bytes())
    for name in ("model", "data", "eval_data", "task"):  # paths become those beside the file
        parsed["settings"].pop(name, None)
    oracles.assert_holds(oracles.plain(found), parsed)


def _check_run_file(directory: Path, found: Any) -> None:
    parsed = json.loads((directory / DIRECTORY / "run.json").read_bytes())
    settings, identity, origin = found
    oracles.assert_holds(oracles.plain(settings), parsed["settings"])
    oracles.assert_holds(oracles.plain(identity), parsed["identity"])
    oracles.assert_holds(oracles.plain(origin), parsed["origin"])


def _check_checkpoint(directory: Path, found: Any) -> None:
    oracles.assert_holds(oracles.plain(found), json.loads((directory / RECORD).read_bytes())["checkpoint"])


def _one_record(name: str, file: str, files: dict[str, bytes], read: Callable[[Path], Any], **more: Any) -> Kind:
    """Return a kind that is one JSON file, read as it stands."""
    check = more.pop("check", lambda directory, found: oracles.is_json(directory / file, found))
    return Kind(name, files, file, json_mutations, lambda directory: read(directory / file), check, **more)


def all_kinds(work: Path) -> list[Kind]:
    """Make a file of every kind in the empty directory ``work``, and return the kinds."""
    whole = corpus.hugging_face(work / "hf", shards=False)
    shards = corpus.hugging_face(work / "shards", shards=True)
    run, pack, adapter = (make(work / make.__name__) for make in (corpus.finished_run, corpus.pack, corpus.adapter))
    index = "model.safetensors.index.json"
    hugging_face: Any = (_read_hugging_face, _check_hugging_face)
    task = (Path(memsim.__file__).parent / "tasks" / "sst2.toml").read_bytes()
    events = {"events.jsonl": b"".join(run["events.jsonl"].splitlines(keepends=True)[:60])}
    return [
        Kind("model configuration", whole, "config.json", json_mutations, *hugging_face),
        Kind("safetensors", whole, "model.safetensors", tensor_file_mutations, *hugging_face),
        Kind("index of shards", shards, index, json_mutations, *hugging_face),
        Kind("gguf", corpus.gguf_model(work / "gguf"), "model.gguf", _gguf_mutations, _read_gguf, _check_gguf),
        Kind("mlx", corpus.mlx_model(work / "mlx"), "model.safetensors", tensor_file_mutations, _read_mlx, _check_mlx),
        Kind(
            "tokenizer", corpus.tokenizer(work / "tokenizer"), "tokenizer.json", json_mutations, _read_tokenizer,
            lambda directory, found: oracles.is_tokenizer(directory / "tokenizer.json", found),
        ),
        Kind("pack description", pack, PACK_FILE, json_mutations, _read_pack, _check_pack, _repair_pack),
        Kind("pack weights", pack, PART, tensor_file_mutations, _read_pack, _check_pack, _repair_pack),
        Kind("adapter settings", adapter, "adapter_config.json", json_mutations, _read_adapter, _check_adapter),
        Kind(
            "adapter weights", adapter, "adapter_model.safetensors", tensor_file_mutations, _read_adapter,
            _check_adapter,
        ),
        _one_record("result", "result.json", {"result.json": run["result.json"]}, read_result),
        Kind(
            "events", events, "events.jsonl", lines_mutations, _read_events,
            lambda directory, found: oracles.are_json_lines(directory / "events.jsonl", found),
        ),
        Kind(
            "step program", {"program.jsonl": run["program.jsonl"]}, "program.jsonl", lines_mutations, _read_program,
            _check_program,
        ),
        Kind(
            "run settings", run, f"{DIRECTORY}/run.json", json_mutations,
            lambda directory: read_run_file(directory / DIRECTORY, RunConfig, Origin), _check_run_file,
        ),
        Kind("checkpoint record", run, RECORD, json_mutations, _newest, _check_checkpoint, _repair_record),
        Kind(
            "checkpoint state", run, STATE, tensor_file_mutations, _read_state,
            lambda directory, found: oracles.are_tensors(found, [directory / STATE]),
        ),
        Kind("steps of a run", run, STEPS_FILE, lines_mutations, _read_steps, _check_steps, _repair_steps),
        Kind(
            "device", {"phone.toml": corpus.DEVICE}, "phone.toml", _of_toml(corpus.DEVICE),
            lambda directory: read_device(directory / "phone.toml"), _check_device,
        ),
        Kind(
            "task", {"task.toml": task}, "task.toml", _of_toml(task),
            lambda directory: read_task(directory / "task.toml"),
            lambda directory, found: oracles.is_toml(directory / "task.toml", found),
        ),
        Kind(
            "grid", {"grid.toml": corpus.GRID}, "grid.toml", _of_toml(corpus.GRID),
            lambda directory: read_grid(directory / "grid.toml", OPTIONS), _check_grid,
        ),
        _one_record("plan", "plan.json", corpus.plan(work / "plan"), read_plan),
        Kind(
            "seed log", corpus.seeds(work / "seeds"), "seeds.jsonl", lines_mutations, _read_seeds,
            lambda directory, found: oracles.are_json_lines(directory / "seeds.jsonl", found),
        ),
        _one_record("baseline", "baseline.json", corpus.baseline(work / "b"), read_baseline, check=_check_baseline),
        _one_record("decompression", "shares.json", corpus.shares(work / "s"), read_shares, check=_check_shares),
        Kind(
            "rows of a sweep", corpus.sweep(work / "sweep"), "sweep.sqlite", _numbers, _read_store,
            lambda directory, found: oracles.are_rows(directory / "sweep.sqlite", found),
        ),
        Kind(
            "memray capture", corpus.capture(work / "capture"), "memray.bin", _numbers,
            lambda directory: read_any_capture(directory / "memray.bin"),
            lambda directory, found: oracles.is_capture(directory / "memray.bin", found), share=0.1,
        ),
        Kind("text", {"text.txt": corpus.TEXT}, "text.txt", byte_mutations, _read_text, _check_text, share=0.5),
        Kind("records", {"text.jsonl": corpus.RECORDS}, "text.jsonl", lines_mutations, _read_records, _check_records),
        Kind(
            "token ids", {"tokens.bin": corpus.TOKENS}, "tokens.bin", _numbers, _read_tokens, _check_tokens, share=0.5
        ),
    ]  # fmt: skip
