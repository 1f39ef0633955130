"""The training of the model that ships: its text, its splits, and weights that packing does not change."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from memsim.models.presets import PRESETS
from memsim.weights.quantize import dequantize, quantize

TOOL = Path(__file__).parent.parent.parent / "tools" / "pretrain_tiny.py"


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("pretrain_tiny", TOOL)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["pretrain_tiny"] = module
    spec.loader.exec_module(module)
    return module


def test_training_sees_weights_exactly_as_the_pack_holds_them(tool: ModuleType) -> None:
    weight = torch.randn(32, 96, generator=torch.Generator().manual_seed(0))
    weight[3, 32:64] = 0
    seen = tool.quantised(weight).numpy()
    scales = np.abs(weight.numpy()).reshape(32, 3, 32).max(axis=2).repeat(32, axis=1) / 7
    assert np.all(np.abs(seen - weight.numpy()) <= scales * (0.5 + 2**-8))  # the nearest level, of a scale in float16
    np.testing.assert_array_equal(seen, dequantize(*quantize(seen, 32, "w"), 32, 96))  # so packing it loses nothing


def test_a_document_stays_in_its_split_whatever_else_there_is(tool: ModuleType) -> None:
    texts = {f"file{number}.py": f"text {number}" for number in range(200)}
    parts = {split: tool.documents(texts, split) for split in tool.SPLITS}
    assert sorted(sum(parts.values(), [])) == sorted(texts.values())
    fewer = dict(list(texts.items())[:50])
    assert all(set(tool.documents(fewer, split)) <= set(parts[split]) for split in tool.SPLITS)
    assert 0 < len(parts["validation"]) < len(parts["train"])


def test_the_text_is_docstrings_and_comments_and_no_language_documentation(
    tool: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = '"""Module."""\n\n# One\n# block.\nx = 1  # beside\n\ndef f(a):\n    """Do."""\n    return a\n'
    assert list(tool._prose(source)) == ["Module.", "def f(a):\n    Do.", "# One\n# block.\n# beside"]
    assert list(tool._prose("def broken(:\n")) == []
    for name in (
        "a.py",
        "package/b.py",
        "pydoc_data/topics.py",
        "test/c.py",
        "package/tests/d.py",
        "site-packages/e.py",
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / name).write_text('"""Text."""\n')
    (tmp_path / "empty.py").write_text("x = 1\n")
    monkeypatch.setattr(tool.sysconfig, "get_paths", lambda: {"stdlib": str(tmp_path)})
    assert tool.library_texts() == {"a.py": "Text.", "package/b.py": "Text."}
    assert tool.tokens_of(["ab", "c"]).tobytes() == b"\0ab\0c"


def test_the_trained_shape_is_the_preset_s(tool: ModuleType) -> None:
    config = PRESETS["tiny"].to_dict()
    assert {key: value for key, value in tool.CONFIG.items() if key in config} == {
        key: config[key] for key in tool.CONFIG if key in config
    }
    assert tool.CONFIG["hidden_size"] // tool.CONFIG["num_attention_heads"] == PRESETS["tiny"].head_dim
