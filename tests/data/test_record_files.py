"""Whether a file is text or records is decided by what it holds."""

import json
from pathlib import Path

import numpy as np
import pytest

from memsim.data.tokenize import prepare_tokens
from memsim.data.tokenizer_choice import ChosenTokenizer
from memsim.errors import InputError

TEXTS = ["The first record, long enough.", "And \u4e2d\u6587, the second one."]
RECORDS = [{"text": text, "id": index} for index, text in enumerate(TEXTS)]
LINES = "".join(json.dumps(record) + "\n" for record in RECORDS)
ARRAY = json.dumps(RECORDS, indent=1)


def ids_of(path: Path) -> bytes:
    """Return the bytes that a run would train on: ids of the tokenizer that has one for each byte."""
    out = path.with_name("ids")
    prepare_tokens(path, ChosenTokenizer(None, "bytes", None), out, vocab_size=256, seq_len=8, eos_id=0)
    return np.fromfile(out, "<u4").astype(np.uint8).tobytes()


def written(directory: Path, name: str, text: str) -> Path:
    path = directory / name
    path.write_text(text)
    return path


@pytest.mark.parametrize("name", ["a.jsonl", "a.ndjson", "a.jsonlines", "a.json", "a.txt", "records"])
@pytest.mark.parametrize("text", [LINES, f"\ufeff{LINES}", f"\n{LINES}", ARRAY], ids=["lines", "bom", "blank", "array"])
def test_records_are_records_whatever_the_file_is_called(tmp_path: Path, name: str, text: str) -> None:
    expected = ids_of(written(tmp_path, "expected.jsonl", LINES))
    assert b"first record" in expected and b'"id"' not in expected
    assert ids_of(written(tmp_path, name, text)) == expected


@pytest.mark.parametrize("text", ["{ a brace begins this text\n", "[1] A footnote, and more.\n", "[] is empty, too.\n"])
def test_a_text_may_begin_as_json_does(tmp_path: Path, text: str) -> None:
    assert text.encode() in ids_of(written(tmp_path, "a.txt", text))


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("a.csv", "text,label\nhello,1\n", "a.csv is a table; make JSON lines of it"),
        ("a.parquet", "PAR1", "a.parquet is a table"),
        ("a.txt", "[1, 2, 3]", "is JSON, but neither an object a line nor an array of objects"),
        ("a.txt", json.dumps({"text": "x"}, indent=1), "is JSON, but neither an object a line"),
        ("a.json", "no JSON at all", "a.json line 1 is not JSON"),
        ("a.json", "[1, 2]", "begins as an array, but is not at most 64 MiB of JSON objects in one"),
        ("a.ndjson", '{"messages": []}\n', "a.ndjson line 1: there is no 'text' field"),
        ("a.json", '[{"text": "long enough for one"}, {"text": 3}]', "a.json record 2: 'text' is not a string"),
    ],
)
def test_what_is_neither_is_refused(tmp_path: Path, name: str, text: str, words: str) -> None:
    with pytest.raises(InputError, match=words) as refused:
        ids_of(written(tmp_path, name, text))
    assert "\n" not in str(refused.value)
