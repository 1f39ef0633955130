import hashlib
import io
import json
import os
from itertools import pairwise
from math import prod
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError, deserialize, safe_open
from safetensors.numpy import load_file, save_file

from memsim.errors import InputError
from memsim.models.parts import TensorSpec
from memsim.weights.tensor_file import (
    DATA_ALIGNMENT,
    TENSOR_ALIGNMENT,
    TensorEntry,
    TensorFileWriter,
    file_bytes,
    map_file,
    read_header,
    view,
)

NUMPY = {"u32": np.uint32, "f16": np.float16, "f32": np.float32}
ANY_FILE = settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])

dims = st.lists(st.integers(0, 9), min_size=1, max_size=3).map(tuple)
spec_maps = st.dictionaries(
    st.text(st.characters(codec="ascii", exclude_characters="_"), min_size=1, max_size=8),
    st.builds(TensorSpec, dims, st.sampled_from(sorted(NUMPY))),
    max_size=6,
)


def random_values(specs):
    rng = np.random.default_rng(0)
    return {name: rng.integers(0, 255, spec.shape).astype(NUMPY[spec.dtype]) for name, spec in specs.items()}


def write_file(path, specs, values, **alignment):
    with path.open("wb") as file:
        writer = TensorFileWriter(file, specs, **alignment)
        for name, array in values.items():
            flat = array.reshape(-1)
            for piece in (flat[: flat.size // 3], flat[flat.size // 3 :]):
                writer.write(name, piece)
        return writer.finish()


@ANY_FILE
@given(spec_maps)
def test_safetensors_reads_what_we_write(tmp_path, specs):
    path, values = tmp_path / "a.safetensors", random_values(specs)
    sha256 = write_file(path, specs, values)
    data = path.read_bytes()
    assert hashlib.sha256(data).hexdigest() == sha256
    assert len(data) == file_bytes(specs)
    loaded = load_file(path)
    assert {name for name in loaded if not name.startswith("_pad")} == set(specs)
    entries = read_header(path)
    assert all(not loaded[name].any() for name in entries if name.startswith("_pad"))
    for name, array in values.items():
        np.testing.assert_array_equal(loaded[name], array)
        assert entries[name].start % TENSOR_ALIGNMENT == 0
    assert (8 + int.from_bytes(data[:8], "little")) % DATA_ALIGNMENT == 0


@ANY_FILE
@given(spec_maps)
def test_we_read_what_safetensors_writes(tmp_path, specs):
    path, values = tmp_path / "b.safetensors", random_values(specs)
    save_file(values, path)
    entries = read_header(path)
    assert set(entries) == set(specs)
    for name, entry in entries.items():
        assert (entry.dtype, entry.shape) == (specs[name].dtype, specs[name].shape)
        if entry.n_bytes:
            mapped = view(map_file(path), entry)
            assert not mapped.flags.writeable
            np.testing.assert_array_equal(mapped, values[name])


def test_without_alignment_there_are_no_pads(tmp_path):
    specs = {"a": TensorSpec((3,), "f16"), "b": TensorSpec((5,), "f32")}
    write_file(tmp_path / "c", specs, random_values(specs), tensor_alignment=1, data_alignment=8)
    assert set(read_header(tmp_path / "c")) == {"a", "b"}
    with safe_open(tmp_path / "c", "numpy") as file:
        assert file.metadata() == {"format": "pt"}


@pytest.mark.parametrize(
    ("writes", "message"),
    [
        ([("b", 2)], "a is incomplete: 16 bytes missing"),
        ([("a", 4), ("b", 2), ("a", 1)], "a is already complete"),
        ([("a", 5)], "does not fit what is left of a"),
        ([("a", 4), ("b", 1)], "b is incomplete: 4 bytes missing"),
    ],
)
def test_writer_wants_every_tensor_whole_and_in_order(writes, message):
    class Sink(io.BytesIO):
        def fileno(self):
            raise AssertionError("must fail before the flush")

    writer = TensorFileWriter(Sink(), {"a": TensorSpec((4,), "f32"), "b": TensorSpec((2,), "f32")})
    with pytest.raises(ValueError, match=message):
        for name, count in writes:
            writer.write(name, np.zeros(count, np.float32))
        writer.finish()


def test_writer_refuses_another_type(tmp_path):
    with (tmp_path / "t").open("wb") as file, pytest.raises(ValueError, match="float64"):
        TensorFileWriter(file, {"a": TensorSpec((4,), "f32")}).write("a", np.zeros(4))


def test_dirty_bytes_stay_below_the_flush_interval(tmp_path, monkeypatch):
    interval = 1 << 16
    synced, dropped = [0], []
    monkeypatch.setattr(os, "fdatasync", lambda fd: synced.append(os.fstat(fd).st_size))
    monkeypatch.setattr(os, "posix_fadvise", lambda fd, start, length, advice: dropped.append((start, length)))
    specs = {"a": TensorSpec((1_000_000,), "f32"), "b": TensorSpec((100,), "f32")}
    with (tmp_path / "d").open("wb") as file:
        writer = TensorFileWriter(file, specs, flush_bytes=interval)
        for name, values in random_values(specs).items():
            writer.write(name, values)
        writer.finish()
    assert synced[-1] == file_bytes(specs)
    assert max(np.diff(synced)) <= interval
    # Every byte is dropped from memory, in order, each once.
    assert sum(length for _, length in dropped) == file_bytes(specs)
    assert all(start + length == next_start for (start, length), (next_start, _) in pairwise(dropped))


def safetensors_bytes(header, data_bytes):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + bytes(data_bytes)


def entry(dtype="F32", shape=(2, 2), offsets=(0, 16)):
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


HOSTILE = {
    "nothing": (b"", "is truncated, or not a safetensors file \\(0 bytes\\)"),
    "seven bytes": (b"1234567", "is truncated"),
    "length beyond the file": ((1 << 63).to_bytes(8, "little") + b"{}", "is truncated"),
    "no JSON": (safetensors_bytes(b"{]", 0), "is not valid JSON"),
    "no UTF-8": (safetensors_bytes(b'{"\xff": 1}', 0), "is not valid JSON"),
    "UTF-16": (safetensors_bytes("{}".encode("utf-16"), 0), "is not valid JSON"),
    "a list": (safetensors_bytes([], 0), "must hold a JSON object, not a list"),
    "deep": (safetensors_bytes(b'{"a":' + b"[" * 200_000, 0), "nested too deeply"),
    "long number": (safetensors_bytes(b'{"a":' + b"9" * 10_000 + b"}", 0), "is not valid JSON"),
    "duplicate": (safetensors_bytes(b'{"a": 1, "b": 2, "a": 1}', 0), "key 'a' appears twice"),
    "no object": (safetensors_bytes({"w": 1}, 0), "tensor 'w' must have dtype, shape and data_offsets"),
    "no offsets": (safetensors_bytes({"w": {"dtype": "F32", "shape": []}}, 0), "tensor 'w' must have"),
    "dtype": (safetensors_bytes({"w": entry("F33")}, 16), "tensor 'w' has the unknown dtype 'F33'"),
    "lower case dtype": (safetensors_bytes({"w": entry("f32")}, 16), "unknown dtype 'f32'"),
    "dtype a list": (safetensors_bytes({"w": entry([])}, 16), "unknown dtype"),
    "negative": (safetensors_bytes({"w": entry(shape=[-2, -2])}, 16), "tensor 'w' has the impossible shape"),
    "huge": (safetensors_bytes({"w": entry(shape=[1 << 63, 4])}, 16), "tensor 'w' has the impossible shape"),
    "float": (safetensors_bytes({"w": entry(shape=[2.0, 2])}, 16), "impossible shape"),
    "bool": (safetensors_bytes({"w": entry(shape=[True, 4])}, 16), "impossible shape"),
    "17 dimensions": (safetensors_bytes({"w": entry(shape=[1] * 17, offsets=[0, 4])}, 4), "impossible shape"),
    "three offsets": (safetensors_bytes({"w": entry(offsets=[0, 8, 16])}, 16), "impossible data_offsets"),
    "negative offset": (safetensors_bytes({"w": entry(offsets=[-16, 0])}, 16), "impossible data_offsets"),
    "reversed": (safetensors_bytes({"w": entry(offsets=[16, 0])}, 16), "span -16"),
    "shape and size": (
        safetensors_bytes({"w": entry(offsets=[0, 12])}, 12),
        "takes 16 bytes, but data_offsets span 12",
    ),
    "outside": (safetensors_bytes({"w": entry()}, 15), "tensor 'w' ends at byte .*, behind the end of the file"),
    "overlap": (safetensors_bytes({"v": entry(), "w": entry(offsets=[8, 24])}, 24), "'w' overlaps the tensor before"),
    "same place": (safetensors_bytes({"v": entry(), "w": entry()}, 16), "overlaps the tensor before"),
    "hole": (safetensors_bytes({"v": entry(), "w": entry(offsets=[20, 36])}, 36), "'w' leaves a hole before it"),
    "tail": (safetensors_bytes({"w": entry()}, 20), "has 4 bytes that belong to no tensor"),
    "odd name": (safetensors_bytes({"w\n\ud800" + "x" * 500: 1}, 0), "tensor 'w\\\\n\\\\ud800x+\\.\\.\\. must have"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_files_are_refused_in_one_line(tmp_path, case):
    data, message = HOSTILE[case]
    path = tmp_path / "hostile.safetensors"
    path.write_bytes(data)
    with pytest.raises(InputError, match=message) as caught:
        read_header(path)
    assert str(path) in str(caught.value)
    assert str(caught.value).isprintable()  # which excludes line breaks


def test_header_length_is_bounded(tmp_path):
    path = tmp_path / "long.safetensors"
    path.write_bytes(safetensors_bytes(b"{}" + b" " * 2000, 0))
    assert read_header(path) == {}
    with pytest.raises(InputError, match="has a header of 2.0 KiB, above 1,000 B"):
        read_header(path, max_header_bytes=1000)
    with path.open("wb") as file:  # sparse: 101 MB of zeros that must not be read
        file.write((101_000_000).to_bytes(8, "little"))
        file.truncate(102_000_000)
    with pytest.raises(InputError, match="above 95.4 MiB"):
        read_header(path)


def test_missing_directories_and_pipes_are_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "directory").mkdir()
    (tmp_path / "empty").touch()
    for name in ("missing", "pipe", "directory"):
        with pytest.raises(InputError, match=f"cannot read .*{name}"):
            read_header(tmp_path / name)
    with pytest.raises(InputError, match="cannot map .*empty"):
        map_file(tmp_path / "empty")


def good_file():
    header = {"a": entry(), "b": entry("U8", [3], [16, 19]), "c": entry("BF16", [1, 4], [19, 27])}
    return safetensors_bytes({"__metadata__": {"format": "pt"}, **header}, 27)


junk = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(0, 40),
    st.floats(),
    st.text(max_size=5),
    st.sampled_from(["F32", "U8", "F16", "BF16"]),
    st.lists(st.integers(-1, 20), max_size=4),
    st.dictionaries(st.text(max_size=3), st.integers(), max_size=2),
)
field = st.sampled_from(["dtype", "shape", "data_offsets"])
headers = st.dictionaries(st.text(max_size=4), st.dictionaries(field, junk, max_size=3) | junk, max_size=3)
changed_bytes = st.lists(st.tuples(st.integers(0, len(good_file()) - 1), st.integers(0, 255)), max_size=4)


def check_against_safetensors(path: Path, data: bytes) -> None:
    """Whatever the bytes, only InputError may come out; and what we accept, safetensors must understand alike."""
    path.write_bytes(data)
    try:
        entries = read_header(path)
    except InputError:
        return
    start = 8 + int.from_bytes(data[:8], "little")
    assert sum(item.n_bytes for item in entries.values()) == len(data) - start
    try:
        oracle = dict(deserialize(data))
    except SafetensorError as error:
        # Stricter only about what we do not use: our own JSON parser also takes leading blanks and odd metadata.
        assert "Header" in str(error)
        return
    assert {name: (item["dtype"].lower(), tuple(item["shape"])) for name, item in oracle.items()} == {
        name: (item.dtype, item.shape) for name, item in entries.items()
    }
    for name, item in entries.items():
        assert bytes(oracle[name]["data"]) == data[item.start : item.end]
        assert item.n_bytes == len(oracle[name]["data"])


@ANY_FILE
@given(changed_bytes, st.integers(0, len(good_file())))
@example([], len(good_file()))
def test_mutated_files_raise_nothing_but_input_error(tmp_path, changes, length):
    data = bytearray(good_file())
    for position, value in changes:
        data[position] = value
    check_against_safetensors(tmp_path / "mutated", bytes(data[: max(length, len(data) - 40)]))
    check_against_safetensors(tmp_path / "mutated", bytes(data[:length]))


@ANY_FILE
@given(headers, st.integers(0, 40))
@example({"a": {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]}}, 16)
def test_invented_headers_raise_nothing_but_input_error(tmp_path, header, data_bytes):
    check_against_safetensors(tmp_path / "invented", safetensors_bytes(header, data_bytes))


def test_the_good_file_is_accepted(tmp_path):
    (tmp_path / "good").write_bytes(good_file())
    start = len(good_file()) - 27
    assert read_header(tmp_path / "good") == {
        "a": TensorEntry("f32", (2, 2), start, 16),
        "b": TensorEntry("u8", (3,), start + 16, 3),
        "c": TensorEntry("bf16", (1, 4), start + 19, 8),
    }
    assert prod(view(map_file(tmp_path / "good"), TensorEntry("bf16", (1, 4), start + 19, 8)).shape) == 4
