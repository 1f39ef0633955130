"""The model and the text that memsim ships."""

import json
import mmap
from pathlib import Path

import pytest

from memsim.errors import InputError
from memsim.models.matrix_formats import formats_of
from memsim.models.presets import PRESETS
from memsim.weights.cache import find_model
from memsim.weights.dimensions import find_dimensions
from memsim.weights.pack import verify_part
from memsim.weights.shipped import PACKS, SPLITS, TINY, has_examples, shipped_examples, shipped_text


def test_tiny_is_a_trained_pack_whose_bytes_are_those_that_were_packed() -> None:
    pack, name = find_model("Tiny", lambda *_: None)
    assert (name, pack.source, pack.directory) == ("tiny", "packed", PACKS["tiny"])
    for part in pack.parts:
        with pack.part(part).path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
            verify_part(pack, part, mapped)
    log = json.loads((TINY / "training.json").read_text())
    assert log["model_hash"] == pack.model_hash
    curve = log["loss_in_nats_per_byte"]
    assert curve[-1]["step"] == log["recipe"]["steps"]
    assert curve[-1]["test"] < curve[0]["test"] < 5.55  # ln 256, what a model knows that knows nothing


def test_tiny_has_the_shape_of_its_preset_and_is_small() -> None:
    pack, _ = find_model("tiny", lambda *_: None)
    assert pack.config == PRESETS["tiny"]
    config, packing, name = find_dimensions("tiny")
    assert (config, formats_of(packing), name) == (pack.config, pack.formats, "tiny")
    assert 2e6 < pack.config.n_parameters() < 5e6
    shipped = sum(path.stat().st_size for path in TINY.rglob("*") if path.is_file())
    assert shipped < 4e6


def test_tiny_in_other_groups_is_refused() -> None:
    with pytest.raises(InputError, match="packed in groups of 32, not 64"):
        find_model("tiny", lambda *_: None, group_size=64)


def test_the_splits_of_the_text_share_no_document() -> None:
    documents = {
        split: {json.loads(line)["text"] for line in shipped_text(split).read_text(encoding="utf-8").splitlines()}
        for split in SPLITS
    }
    assert all(documents.values())
    assert not documents["train"] & documents["test"]
    assert not documents["train"] & documents["validation"]
    assert not documents["validation"] & documents["test"]
    assert not any("\0" in text for texts in documents.values() for text in texts)  # the byte between documents


def test_examples_are_made_in_the_cache_the_same_each_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEMSIM_CACHE", str(tmp_path))
    assert has_examples("docs-agreement")
    assert not has_examples("sst2")
    paths = {split: shipped_examples("docs-agreement", split) for split in SPLITS}
    texts = {split: path.read_text() for split, path in paths.items()}
    assert {path.parent for path in paths.values()} == {tmp_path}
    assert {split: shipped_examples("docs-agreement", split).read_text() for split in SPLITS} == texts
    assert json.loads(texts["test"].splitlines()[0]).keys() == {"sentence", "number"}
    assert len(set(texts.values())) == len(SPLITS)
