import io
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memsim.data import text
from memsim.data.record_files import record_texts
from memsim.data.text import utf8_chunks
from memsim.errors import InputError


def read(data: bytes) -> str:
    return "".join(utf8_chunks(io.BytesIO(data), "a.txt"))


def documents(data: bytes) -> list[str]:
    return ["".join(chunks) for chunks in record_texts(io.BytesIO(data), "a.jsonl")]


@settings(max_examples=100, deadline=None)
@given(st.text())
def test_any_text_is_read_back(whole: str) -> None:
    assert read(whole.encode()) == whole.removeprefix("\ufeff")


def test_a_character_across_two_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text, "CHUNK_BYTES", 3)
    assert read("aé€😀b".encode()) == "aé€😀b"


@pytest.mark.parametrize("size", [1, 2, 3, 100])
@pytest.mark.parametrize(
    ("data", "byte"), [(b"abcd\xffef", 4), ("aé".encode() + b"\xc3", 3), (b"\xe2\x82", 0), (b"ab\xe2\x28\xa1", 2)]
)
def test_a_bad_byte_is_named_however_the_file_is_cut(
    data: bytes, byte: int, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text, "CHUNK_BYTES", size)
    with pytest.raises(InputError, match=rf"a\.txt is not UTF-8: byte {byte} is wrong"):
        read(data)


def test_jsonl_yields_each_text() -> None:
    lines = ['{"text": "one"}', "", '{"id": 2, "text": "zwei\\nß"}', "  ", '{"text": ""}']
    assert documents("\r\n".join(lines).encode()) == ["one", "zwei\nß", ""]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.text()))
def test_any_documents_are_read_back(texts: list[str]) -> None:
    assert documents("".join(json.dumps({"text": text}) + "\n" for text in texts).encode()) == texts


def test_a_byte_order_mark_is_no_text() -> None:
    assert documents(b'\xef\xbb\xbf{"text": "one"}') == ["one"]


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        (b'{"text": "x"', r"line 2 is not JSON \("),
        (b"plain words", r"line 2 is not JSON \("),
        (b"[" * 100_000, r"line 2 is not JSON \("),
        (b'{"body": "x"}', "line 2: there is no 'text' field; every record must be an object with a 'text' string"),
        (b'["text"]', "line 2: there is no 'text' field"),
        (b'{"text": 5}', "line 2: 'text' is not a string"),
        (b'{"text": "\xff"}', "line 2 is not UTF-8: byte 10 of the record is wrong"),
        (b'{"text": "\\ud800"}', "line 2: 'text' holds half of a surrogate pair"),
    ],
)
def test_a_bad_line_is_named(line: bytes, problem: str) -> None:
    with pytest.raises(InputError, match=problem) as error:
        documents(b'{"text": "fine"}\n' + line + b"\n")
    assert "\n" not in str(error.value)


def test_a_line_without_end_is_not_read_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text, "MAX_LINE_BYTES", 1 << 20)
    with pytest.raises(InputError, match="line 1 is longer than 1 MiB"):
        documents(b"x" * ((1 << 20) + 1))
