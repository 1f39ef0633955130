from dataclasses import replace

import pytest

from memsim.models.parts import TensorSpec, head_matrix, matrices, packed_matrix, part_names, part_tensors
from memsim.models.presets import PRESETS

CONFIG = replace(PRESETS["qwen2.5-0.5b"], num_hidden_layers=3)
UNTIED = replace(CONFIG, tie_word_embeddings=False)


def test_parts_are_in_forward_order():
    assert part_names(CONFIG) == ["embed", "block_000", "block_001", "block_002", "head"]


@pytest.mark.parametrize(
    ("n_rows", "n_columns", "group_size", "q", "scales"),
    [
        (32, 64, 32, (2, 8, 16), (2, 32)),
        (33, 65, 32, (3, 12, 16), (3, 48)),
        (1, 1, 64, (1, 8, 16), (1, 16)),
    ],
)
def test_packed_shapes_are_whole_panels_and_groups(n_rows, n_columns, group_size, q, scales):
    assert packed_matrix("w", n_rows, n_columns, group_size) == {
        "w.q": TensorSpec(q, "u32"),
        "w.scales": TensorSpec(scales, "f16"),
    }


def test_sizes_in_bytes():
    assert [TensorSpec((3, 5), dtype).n_bytes for dtype in ("u32", "f16", "f32")] == [60, 30, 60]
    # 4 bits a weight, plus 16 bits for each 32 weights.
    specs = packed_matrix("w", 64, 128, 32)
    assert sum(spec.n_bytes for spec in specs.values()) == 64 * 128 // 2 + 64 * 128 // 32 * 2


@pytest.mark.parametrize("config", [CONFIG, UNTIED])
def test_parts_hold_every_parameter_once(config):
    stored = 0
    for part in part_names(config):
        stored += sum(rows * columns for rows, columns in matrices(config, part).values())
        stored += sum(spec.shape[0] for spec in part_tensors(config, part, 32).values() if spec.dtype == "f32")
    assert stored == config.n_parameters()
    part, name = head_matrix(config)
    assert matrices(config, part)[name] == (config.vocab_size, config.hidden_size)
    assert f"{name}.q" in part_tensors(config, part, 32)
