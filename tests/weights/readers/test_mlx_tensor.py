from dataclasses import replace

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from memsim.errors import InputError
from memsim.weights.packing import pack_checkpoint
from memsim.weights.readers.hugging_face import open_checkpoint
from mlx_files import mlx_quantize, mlx_values, symmetric, write_mlx
from oracle import dequantized
from toy_checkpoints import TOY, silent, source_tensors

CONFIG = replace(TOY, hidden_size=64, intermediate_size=192, num_attention_heads=4, num_key_value_heads=2, head_dim=16)
NAME = "model.layers.1.mlp.down_proj.weight"


def quantized(bits=4, group_size=64, how=mlx_quantize):
    matrices = {name: values for name, values in source_tensors(CONFIG).items() if values.ndim == 2}
    if how is symmetric:
        return {name: symmetric(values, group_size) for name, values in matrices.items()}
    return {name: how(values, bits, group_size) for name, values in matrices.items()}


def write(directory, parts, bits=4, **changes):
    return write_mlx(directory, CONFIG.to_dict(), source_tensors(CONFIG), parts, bits, **changes)


@pytest.mark.parametrize(("bits", "group_size"), [(4, 64), (4, 32), (2, 64), (3, 64), (5, 32), (6, 64), (8, 64)])
def test_rows_are_scale_times_level_plus_bias(tmp_path, bits, group_size):
    parts = quantized(bits, group_size)
    checkpoint = open_checkpoint(write(tmp_path / "mlx", parts, bits))
    tensor = checkpoint.tensors["block_001", "mlp.down_proj.weight"]
    assert (tensor.stored, tensor.rows) == (f"mlx{bits}", (64, 192))
    assert tensor.n_bytes == 64 * 192 * bits // 8 + 2 * 2 * 64 * 192 // group_size
    expected = mlx_values(*parts[NAME])
    with tensor.open() as reader:
        for first, count in ((0, 64), (50, 14), (7, 1)):
            np.testing.assert_array_equal(reader.read(first, count).values, expected[first : first + count])


@pytest.mark.parametrize("prefix", ["", "language_model."])
def test_symmetric_levels_survive_bit_for_bit(tmp_path, prefix):
    parts = quantized(how=symmetric)
    report = pack_checkpoint(write(tmp_path / "mlx", parts, prefix=prefix), tmp_path / "out", 32, silent)
    assert (report.pack.config, report.relative_error) == (CONFIG, 0)
    packed = dequantized(report.pack)
    for name, part in parts.items():
        np.testing.assert_array_equal(packed[name].numpy(), mlx_values(*part), err_msg=name)


def test_other_levels_are_quantised_anew_and_the_error_is_that_of_the_stored_weights(tmp_path):
    parts = quantized()
    report = pack_checkpoint(write(tmp_path / "mlx", parts), tmp_path / "out", 32, silent)
    packed = dequantized(report.pack)
    for error in report.errors:
        original = mlx_values(*parts[error.name])
        lost = packed[error.name].numpy() - original
        assert error.original == "mlx4"
        assert error.relative_error == pytest.approx(np.linalg.norm(lost) / np.linalg.norm(original), rel=1e-4)
        assert error.max_error == pytest.approx(np.abs(lost).max(), rel=1e-5)
    # Rounding every group of 32 normal values to new levels would lose 9 %.
    assert 0.01 < report.relative_error < 0.06


def test_nan_scales_are_refused(tmp_path):
    parts = quantized()
    parts[NAME][1][3, 1] = np.nan
    with pytest.raises(InputError, match=f"{NAME} holds NaN or infinite weights"):
        pack_checkpoint(write(tmp_path / "mlx", parts), tmp_path / "out", 32, silent)
    assert not (tmp_path / "out").exists()


STEM = NAME.removesuffix(".weight")

HOSTILE = {
    "no biases": ({f"{STEM}.biases": None}, f"'{NAME}' is u32 but has no '{STEM}.biases'; memsim reads MLX's affine"),
    "no scales": ({f"{STEM}.scales": None}, f"'{NAME}' is u32 but has no '{STEM}.scales'"),
    "integer scales": ({f"{STEM}.scales": np.ones((64, 3), np.uint8)}, "are u8; memsim reads bf16, f16, f32"),
    "other biases": ({f"{STEM}.biases": np.ones((64, 6), np.float16)}, r"cannot be levels, scales, biases \[64, 24\]"),
    "few scales": ({f"{STEM}.scales": np.ones((64, 1), np.float16)}, r"\[64, 1\], \[64, 3\]"),
    "no columns": ({f"{STEM}.scales": np.ones((64, 0), np.float16)}, r"\[64, 0\], \[64, 3\]"),
    "vector": ({f"{STEM}.scales": np.ones(192, np.float16)}, r"\[192\], \[64, 3\]"),
    "rows": ({NAME: np.ones((63, 24), np.uint32)}, r"\[64, 192\] cannot be levels, scales, biases \[63, 24\]"),
    "bits": ({NAME: np.ones((64, 6), np.uint32)}, r"cannot be levels, scales, biases \[64, 6\]"),
    "integer norm": ({"model.norm.weight": np.ones(64, np.uint32)}, "'model.norm.weight' is u32; memsim packs"),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_parts_that_do_not_fit_are_refused_in_one_line(tmp_path, name):
    changes, message = HOSTILE[name]
    directory = write(tmp_path / "mlx", quantized())
    tensors = load_file(directory / "model.safetensors") | changes
    tensors = {key: values for key, values in tensors.items() if values is not None}
    save_file(tensors, directory / "model.safetensors")
    with pytest.raises(InputError, match=message) as raised:
        open_checkpoint(directory)
    assert "\n" not in str(raised.value)
