"""Headers of GGUF files, written byte by byte: what is read, and what is refused in one line."""

import struct
import sys
import tracemalloc

import pytest

from memsim.errors import InputError
from memsim.weights.readers.gguf_file import GgufEntry, read_gguf_header

U32, F32, BOOL, TEXT, ARRAY, U64 = 4, 6, 7, 8, 9, 10


def text(value):
    encoded = value.encode()
    return struct.pack("<Q", len(encoded)) + encoded


def pair(key, kind, *parts):
    return text(key) + struct.pack("<I", kind) + b"".join(parts)


def u32(value):
    return struct.pack("<I", value)


def u64(value):
    return struct.pack("<Q", value)


def tensor(name, dims, kind=0, offset=0):
    """Describe a tensor; ``dims`` are in ggml's order, columns first."""
    return text(name) + u32(len(dims)) + b"".join(map(u64, dims)) + u32(kind) + u64(offset)


def file_of(path, pairs=(), tensors=(), data=b"", counts=None, magic=b"GGUF", version=3):
    n_tensors, n_pairs = counts or (len(tensors), len(pairs))
    head = magic + u32(version) + u64(n_tensors) + u64(n_pairs) + b"".join([*pairs, *tensors])
    path.write_bytes(head + bytes(-len(head) % 32) + data)
    return path


def test_reads_metadata_and_places(tmp_path):
    pairs = [
        pair("n", U32, u32(7)),
        pair("eps", F32, struct.pack("<f", 1e-6)),
        pair("flag", BOOL, b"\1"),
        pair("name", TEXT, text("gémma")),
        pair("few", ARRAY, u32(U32), u64(3), struct.pack("<3I", 1, 2, 3)),
        pair("tokens", ARRAY, u32(TEXT), u64(2), text("a"), text("bc")),
        pair("many", ARRAY, u32(F32), u64(5000), bytes(20_000)),
        pair("long", TEXT, text("x" * 70_000)),
        pair("last", U64, u64(1 << 40)),
    ]
    tensors = [tensor("a", (32, 3), kind=2, offset=0), tensor("b", (5,), offset=64)]
    path = file_of(tmp_path / "x.gguf", pairs, tensors, bytes(64 + 20))
    header = read_gguf_header(path)
    # Not 9.999999974752427e-07, which is what the float32 is in float64.
    assert header.metadata == {
        "n": 7, "eps": 1e-6, "flag": True, "name": "gémma", "few": (1, 2, 3), "last": 1 << 40
    }  # fmt: skip
    start = path.stat().st_size - 84
    assert header.tensors == {"a": GgufEntry("q4_0", (3, 32), start, 18), "b": GgufEntry("f32", (5,), start + 64, 20)}
    assert (header.tensors["a"].n_bytes, header.tensors["b"].n_bytes) == (54, 20)


def test_data_starts_at_the_alignment_that_the_file_names(tmp_path):
    pairs = [pair("general.alignment", U32, u32(256))]
    path = file_of(tmp_path / "x.gguf", pairs, [tensor("a", (4,))], bytes(400))
    assert read_gguf_header(path).tensors["a"].start == 256


HUGE = 1 << 62

HOSTILE = {
    "empty": (dict(magic=b""), "not a GGUF file"),
    "magic": (dict(magic=b"GGML", data=bytes(64)), "is not a GGUF file"),
    "big-endian": (dict(version=3 << 24), "is GGUF version 50331648; memsim reads 2 and 3"),
    "pairs": (dict(counts=(0, HUGE)), f"claims {HUGE} metadata pairs, more than fit into 32 bytes"),
    "tensors": (dict(counts=(HUGE, 0)), f"claims {HUGE} tensors, more than fit"),
    "key": (dict(pairs=[u64(HUGE) + bytes(30)]), "holds a name of over 1024 bytes|header leaves the file"),
    "text": (dict(pairs=[pair("n", TEXT, u64(HUGE))]), "is truncated or corrupt: its header leaves the file"),
    "strings": (dict(pairs=[pair("n", ARRAY, u32(TEXT), u64(HUGE))]), f"claims {HUGE} strings"),
    "numbers": (dict(pairs=[pair("n", ARRAY, u32(F32), u64(HUGE))]), f"claims {HUGE} array items"),
    "string in array": (dict(pairs=[pair("n", ARRAY, u32(TEXT), u64(1), u64(HUGE))]), "header leaves the file"),
    "nested": (dict(pairs=[pair("n", ARRAY, u32(ARRAY), u64(1))]), "array of the unknown type 9"),
    "type": (dict(pairs=[pair("n", 13, bytes(8))]), "metadata of the unknown type 13"),
    "twice": (dict(pairs=[pair("n\n", U32, u32(7))] * 2), r"metadata 'n\\n' appears twice"),
    "alignment 0": (dict(pairs=[pair("general.alignment", U32, u32(0))]), "must be a power of two, not 0"),
    "alignment 3": (dict(pairs=[pair("general.alignment", U32, u32(3))]), "must be a power of two, not 3"),
    "alignment huge": (dict(pairs=[pair("general.alignment", U64, u64(1 << 50))]), "must be a power of two"),
    "alignment text": (dict(pairs=[pair("general.alignment", TEXT, text("x"))]), "must be a power of two, not 'x'"),
    "dimensions": (dict(tensors=[text("a") + u32(1 << 31) + bytes(32)]), "a tensor of 2147483648 dimensions"),
    "scalar": (dict(tensors=[tensor("a", ()) + bytes(8)]), "a tensor of 0 dimensions"),
    "quantisation": (dict(tensors=[tensor("a", (32,), kind=4)]), "tensor 'a' has the unknown type 4"),
    "blocks": (dict(tensors=[tensor("a", (33,), kind=2)], data=bytes(36)), "rows of 33 do not fit q4_0 of 'a'"),
    "beyond": (dict(tensors=[tensor("a", (8,))], data=bytes(31)), "tensor 'a' ends at byte .*, behind the end"),
    "offset": (dict(tensors=[tensor("a", (8,), offset=(1 << 64) - 16)], data=bytes(32)), "behind the end of the file"),
    "product": (dict(tensors=[tensor("a", (1 << 40, 1 << 40))], data=bytes(32)), "behind the end of the file"),
    "overlap": (
        dict(tensors=[tensor("a", (8,)), tensor("b", (8,), offset=28)], data=bytes(60)),
        "tensor 'b' overlaps the tensor before it",
    ),
    # A type and a second dimension changed in place: what follows lies where it did.
    "type changed": (
        dict(tensors=[tensor("a", (32, 2), kind=1), tensor("b", (8,), offset=256)], data=bytes(288)),
        "tensor 'b' leaves a gap before it: it begins at byte .*, not .*; a type, a shape or an offset is wrong",
    ),
    "rows changed": (
        dict(tensors=[tensor("a", (32, 1)), tensor("b", (8,), offset=256)], data=bytes(288)),
        "tensor 'b' leaves a gap before it",
    ),
    "last type changed": (
        dict(tensors=[tensor("a", (32, 2), kind=1)], data=bytes(256)), "has 128 bytes that belong to no tensor"
    ),
    "out of order": (
        dict(tensors=[tensor("a", (8,), offset=32), tensor("b", (8,))], data=bytes(64)),
        "tensor 'a' leaves a gap before it",
    ),
    "not aligned": (
        dict(tensors=[tensor("a", (5,)), tensor("b", (8,), offset=20)], data=bytes(52)),
        "tensor 'b' overlaps the tensor before it",
    ),
    "same tensor": (dict(tensors=[tensor("a", (8,)), tensor("a", (8,), offset=32)], data=bytes(64)), "a tensor twice"),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_headers_are_refused_in_one_line(tmp_path, name):
    arguments, message = HOSTILE[name]
    path = file_of(tmp_path / "x.gguf", **arguments)
    if name == "empty":
        path.write_bytes(b"")
    tracemalloc.start()
    try:
        with pytest.raises(InputError, match=message) as raised:
            read_gguf_header(path)
        assert tracemalloc.get_traced_memory()[1] < 20 << 20  # whatever a count or a length says
    finally:
        tracemalloc.stop()
    assert "\n" not in str(raised.value)


def test_every_truncation_is_refused(tmp_path):
    pairs = [pair("n", U32, u32(7)), pair("tokens", ARRAY, u32(TEXT), u64(2), text("a"), text("bc"))]
    whole = file_of(tmp_path / "x.gguf", pairs, [tensor("a", (8,))], bytes(32)).read_bytes()
    read_gguf_header(tmp_path / "x.gguf")
    for n_bytes in range(len(whole)):
        (tmp_path / "x.gguf").write_bytes(whole[:n_bytes])
        with pytest.raises(InputError):
            read_gguf_header(tmp_path / "x.gguf")


def test_a_vocabulary_takes_no_memory(tmp_path):
    tokens = b"".join(text(f"token{index}") for index in range(100_000))
    pairs = [pair("tokens", ARRAY, u32(TEXT), u64(100_000), tokens)]
    path = file_of(tmp_path / "x.gguf", pairs, [tensor("a", (8,))], bytes(32))
    read_gguf_header(path)  # imports are not counted
    tracemalloc.start()
    try:
        assert read_gguf_header(path).metadata == {}
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def test_files_that_are_no_files_are_refused(tmp_path):
    with pytest.raises(InputError, match="cannot read .*none.gguf: No such file"):
        read_gguf_header(tmp_path / "none.gguf")
    with pytest.raises(InputError, match="not a regular file"):
        read_gguf_header(tmp_path)


def test_without_the_library_the_error_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "gguf", None)
    path = file_of(tmp_path / "x.gguf", [], [tensor("a", (8,))], bytes(32))
    with pytest.raises(InputError, match=r"reading GGUF needs the package gguf; run `pip install 'memsim\[gguf\]'`"):
        read_gguf_header(path)
