"""What a quantised source holds is in its pack: gguf's own de-quantised weights, and MLX's formula, to the bit."""

import json
from dataclasses import replace

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Kind

from gguf_files import write_gguf
from memsim.errors import InputError, UsageError
from memsim.ir.matrix_format import MatrixFormat
from memsim.models.matrix_formats import formats_of
from memsim.weights.pack import PACK_FILE, open_pack
from memsim.weights.packing import pack_checkpoint
from memsim.weights.quantize import dequantize, quantize
from memsim.weights.readers.gguf_tensor import _GRIDS
from memsim.weights.recipe import Recipe
from memsim.weights.synthetic import write_synthetic
from mlx_files import mlx_quantize, mlx_values, write_mlx
from oracle import dequantized
from toy_checkpoints import TOY, silent, source_tensors, write_checkpoint

CONFIG = replace(TOY, hidden_size=64, intermediate_size=256, num_attention_heads=4, num_key_value_heads=2, head_dim=16)
SMALLEST = {Kind.Q4_0: "symmetric", Kind.Q4_1: "affine", Kind.Q5_0: "symmetric8", Kind.Q8_0: "symmetric8"}


def toy_gguf(path, kind):
    tensors = source_tensors(CONFIG)
    write_gguf(path, "qwen2", CONFIG.to_dict(), tensors, lambda _: kind)
    return tensors


@pytest.mark.parametrize("kind", SMALLEST)
def test_a_gguf_file_is_taken_over_to_the_bit(tmp_path, kind):
    tensors = toy_gguf(tmp_path / "toy.gguf", kind)
    report = pack_checkpoint(tmp_path / "toy.gguf", tmp_path / "out", Recipe(), silent)
    assert {error.stored for error in report.errors} == {MatrixFormat(SMALLEST[kind], 32)}
    assert report.relative_error == 0
    packed = dequantized(report.pack)
    for name, values in tensors.items():
        if values.ndim == 2:
            expected = gguf.quants.dequantize(gguf.quants.quantize(values, kind), kind)
            np.testing.assert_array_equal(packed[name].numpy(), expected, err_msg=name)


def random_blocks(kind, n_blocks):
    """Return blocks of any levels with small float16 scales, as bytes, and the weights that gguf makes of them."""
    size = gguf.GGML_QUANT_SIZES[kind][1]
    rng = np.random.default_rng(3)
    blocks = rng.integers(0, 256, (16 * n_blocks, size), dtype=np.uint8)
    halves = {Kind.Q4_K: (0, 2), Kind.Q6_K: (208,), Kind.Q5_K: (0, 2), Kind.Q5_1: (0, 2)}[kind]
    for at in halves:
        blocks[:, at : at + 2] = rng.uniform(0.001, 0.01, (len(blocks), 1)).astype(np.float16).view(np.uint8)
    blocks = blocks.reshape(16, n_blocks * size)
    return blocks, gguf.quants.dequantize(blocks, kind)


def test_q4_k_is_taken_over_to_the_rounding_of_its_scales():
    blocks, weights = random_blocks(Kind.Q4_K, 2)
    grid, form = _GRIDS["q4_k"](blocks), MatrixFormat("affine", 32)
    levels = grid.levels.reshape(16, -1, 32)
    np.testing.assert_array_equal(levels * grid.scales[:, :, None] + grid.offsets[:, :, None],
                                  weights.reshape(16, -1, 32))  # fmt: skip
    q, scales = quantize(weights, form, "w", grid)
    kept = dequantize(q, scales, *weights.shape, form).reshape(16, -1, 32)
    # A scale and an offset are each off by half a unit of float16 at most, 2^-11 of them.
    bound = 2.0**-11 * (levels * np.abs(grid.scales)[:, :, None] + np.abs(grid.offsets)[:, :, None]) * (1 + 1e-6)
    assert (np.abs(kept - weights.reshape(16, -1, 32)) <= bound).all()


@pytest.mark.parametrize("kind", [Kind.Q6_K, Kind.Q5_K])
def test_what_has_more_bits_is_within_8(kind):
    _, weights = random_blocks(kind, 1)
    form = MatrixFormat("symmetric8", 32)
    kept = dequantize(*quantize(weights, form, "w"), *weights.shape, form)
    largest = np.abs(weights).reshape(16, -1, 32).max(axis=2).repeat(32, axis=1)
    assert (np.abs(kept - weights) <= largest * (0.5 / 127 + 2.0**-11)).all()


@pytest.mark.parametrize(("bits", "group_size"), [(4, 32), (4, 64), (2, 64), (3, 64)])
def test_an_mlx_directory_is_taken_over_to_the_bit(tmp_path, bits, group_size):
    state = source_tensors(CONFIG)
    parts = {key: mlx_quantize(values, bits, group_size) for key, values in state.items() if values.ndim == 2}
    source = write_mlx(tmp_path / "mlx", CONFIG.to_dict(), state, parts, bits)
    report = pack_checkpoint(source, tmp_path / "out", Recipe(), silent)
    assert {str(error.stored) for error in report.errors} == {f"affine g{group_size}"}
    packed = dequantized(report.pack)
    for name, part in parts.items():
        np.testing.assert_array_equal(packed[name].numpy(), mlx_values(*part), err_msg=name)


def test_matrices_of_one_model_may_have_several_formats(tmp_path):
    tensors = source_tensors(CONFIG)

    def kind(name):
        return Kind.Q8_0 if "token_embd" in name else Kind.Q4_1 if "blk.1.ffn_down" in name else Kind.Q4_0

    write_gguf(tmp_path / "toy.gguf", "qwen2", CONFIG.to_dict(), tensors, kind)
    pack = pack_checkpoint(tmp_path / "toy.gguf", tmp_path / "out", Recipe(), silent).pack
    assert pack.formats.usual == MatrixFormat("symmetric", 32)
    assert dict(pack.formats.others) == {
        ("block_001", "mlp.down_proj"): MatrixFormat("affine", 32),
        ("embed", "embed_tokens"): MatrixFormat("symmetric8", 32),
    }
    four = pack_checkpoint(tmp_path / "toy.gguf", tmp_path / "four", Recipe(embedding_bits=4), silent).pack
    assert four.formats.of("embed", "embed_tokens") == MatrixFormat("affine", 32)


def test_floats_are_symmetric_unless_asked_otherwise(tmp_path):
    source = write_checkpoint(tmp_path / "hf", TOY)
    plain = pack_checkpoint(source, tmp_path / "a", Recipe(), silent).pack
    assert plain.formats == formats_of(32)
    assert json.loads((tmp_path / "a" / PACK_FILE).read_text())["schema"] == "memsim.pack/1"
    wide = pack_checkpoint(source, tmp_path / "b", Recipe("affine", 128, embedding_bits=8), silent).pack
    assert wide.formats.of("embed", "embed_tokens") == MatrixFormat("symmetric8", 32)
    assert wide.formats.of("block_000", "mlp.up_proj") == MatrixFormat("affine", 128)
    assert open_pack(tmp_path / "b") == wide
    finest = pack_checkpoint(source, tmp_path / "c", Recipe("source"), silent)
    assert {error.stored.name for error in finest.errors} == {"symmetric8"}
    assert finest.relative_error < 0.01


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("symmetric", 128), "symmetric matrices have groups of 32 or 64, not 128"),
        (("source", 32), "--format source keeps the groups of the file"),
        (("int3",), "no format is called 'int3'"),
        ((None, None, 6), "an embedding has 4 or 8 bits, not 6"),
    ],
)
def test_what_cannot_be_is_refused(arguments, message):
    with pytest.raises(UsageError, match=message):
        Recipe(*arguments)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"embed": {}}, "'formats' must have 'embed' with exactly embed_tokens"),
        ({"embed": {"embed_tokens": 4}}, "the format of embed/embed_tokens must be an object with name and group_size"),
        ({"embed": {"embed_tokens": {"name": "int3", "group_size": 32}}}, "no matrix format is called 'int3'"),
        ({"embed": {"embed_tokens": {"name": "affine", "group_size": 48}}}, "have groups of 32 or 64 or 128, not 48"),
        ({"embed": {"embed_tokens": {"name": "symmetric8", "group_size": 32}}}, "'embed_tokens.q' is u32"),
    ],
)
def test_a_hostile_description_is_refused_in_one_line(tmp_path, change, message):
    write_synthetic(tmp_path / "p", TOY, formats_of(32), 0, silent)
    pack = write_synthetic(tmp_path / "q", TOY, _affine(), 0, silent)
    where = pack.directory / PACK_FILE
    data = json.loads(where.read_text())
    where.write_text(json.dumps(data | {"formats": data["formats"] | change}))
    with pytest.raises(InputError, match=message) as raised:
        open_pack(pack.directory)
    assert "\n" not in str(raised.value)


def _affine():
    return replace(formats_of(32), usual=MatrixFormat("affine", 64))


@pytest.mark.parametrize("form", [MatrixFormat("affine", 64), MatrixFormat("symmetric8", 32)])
def test_synthetic_weights_have_the_same_spread_in_every_format(tmp_path, form):
    pack = write_synthetic(tmp_path / "p", CONFIG, replace(formats_of(32), usual=form), 0, silent)
    assert pack.formats.usual == form
    weights = dequantized(pack)["model.layers.0.mlp.down_proj.weight"].numpy()
    assert weights.std() == pytest.approx(CONFIG.intermediate_size**-0.5, rel=0.1)
    assert abs(weights.mean()) < 0.1 * weights.std()
