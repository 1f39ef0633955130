from dataclasses import replace

import numpy as np
import pytest

from memsim.models.parts import matrices, part_names, vectors
from memsim.weights.packing import pack_checkpoint
from memsim.weights.quantize import dequantize
from memsim.weights.synthetic import write_synthetic
from memsim.weights.tensor_file import map_file, view
from toy_checkpoints import TOY, UNTIED, silent, write_checkpoint

# Wide enough for statistics, with rows and columns that fill neither panels nor groups.
WIDE = replace(TOY, vocab_size=1003, hidden_size=200, intermediate_size=300, num_attention_heads=25)


def stored(pack, part):
    mapped = map_file(pack.part(part).path)
    return {name: view(mapped, entry) for name, entry in pack.part(part).tensors.items()}


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    return write_synthetic(tmp_path_factory.mktemp("synthetic") / "wide", WIDE, 32, 0, silent)


def test_same_seed_same_bytes_and_another_seed_others(tmp_path):
    first = write_synthetic(tmp_path / "a", TOY, 32, 1, silent)
    again = write_synthetic(tmp_path / "b", TOY, 32, 1, silent)
    other = write_synthetic(tmp_path / "c", TOY, 32, 2, silent)
    assert first.model_hash == again.model_hash
    for part in part_names(TOY):
        assert first.part(part).path.read_bytes() == again.part(part).path.read_bytes()
        assert first.part(part).sha256 != other.part(part).sha256
    assert first.part("block_000").sha256 != first.part("block_001").sha256


@pytest.mark.parametrize("config", [TOY, UNTIED])
@pytest.mark.parametrize("group_size", [32, 64])
def test_shapes_and_bytes_are_those_of_a_real_pack(tmp_path, config, group_size):
    synthetic = write_synthetic(tmp_path / "s", config, group_size, 0, silent)
    real = pack_checkpoint(write_checkpoint(tmp_path / "hf", config), tmp_path / "r", group_size, silent).pack
    for part in part_names(config):
        assert synthetic.part(part).n_bytes == real.part(part).n_bytes
        assert synthetic.part(part).tensors == real.part(part).tensors


def test_weights_have_the_promised_spread(wide):
    for part in ("embed", "block_000"):
        tensors = stored(wide, part)
        for name, (n_rows, n_columns) in matrices(WIDE, part).items():
            weights = dequantize(tensors[f"{name}.q"], tensors[f"{name}.scales"], n_rows, n_columns)
            std = 0.02 if name == "embed_tokens" else n_columns**-0.5
            # Scales spread by +-1/4 around the mean add 1 % to the standard deviation; sampling over n weights adds
            # about 1 / sqrt(2 n), 2 % for the smallest matrix.
            assert weights.std() == pytest.approx(1.01 * std, rel=0.05)
            assert abs(weights.mean()) < 5 * std / np.sqrt(weights.size)


def test_vectors_are_near_their_neutral_values(wide):
    tensors = stored(wide, "block_001") | stored(wide, "head")
    for name in [*vectors(WIDE, "block_001"), *vectors(WIDE, "head")]:
        center, spread = (0, 0.02) if name.endswith(".bias") else (1, 0.1)
        assert 0 < np.abs(tensors[name] - center).max() <= spread * (1 + 1e-6)


def test_every_nibble_but_minus_eight_occurs_and_padding_is_zero(wide):
    for part in ("embed", "block_000"):
        tensors = stored(wide, part)
        for name, (n_rows, n_columns) in matrices(WIDE, part).items():
            q, scales = tensors[f"{name}.q"], tensors[f"{name}.scales"]
            whole = dequantize(q, np.ones_like(scales), 16 * q.shape[0], 8 * q.shape[1])
            assert set(np.unique(whole)) == set(range(-7, 8))
            assert not whole[n_rows:].any()
            assert not whole[:, n_columns:].any()
            assert not scales[:, n_rows:].any()
            assert (scales[:, :n_rows] > 0).all()


def test_progress_grows_to_the_total(tmp_path):
    calls = []
    pack = write_synthetic(tmp_path / "p", TOY, 32, 0, lambda *call: calls.append(call))
    done = [call[1] for call in calls]
    assert done == sorted(done)
    assert done[-1] == pack.n_bytes
    assert {call[2] for call in calls} == {pack.n_bytes}
