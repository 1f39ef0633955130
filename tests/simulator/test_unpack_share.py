from dataclasses import replace

import pytest

from memsim.models.lora import LoraConfig
from memsim.models.presets import preset
from memsim.planner.run_plan import TrainingSetup
from memsim.schedules.optimizers import OptimizerConfig
from memsim.simulator.device_file import find_device
from memsim.simulator.unpack_share import PARTS, UnpackShare, Way, shares, simulated_share
from phones import phone, toy_plan


def test_shares_are_sums_by_phase() -> None:
    nodes = [("forward", 1.0, 0.5), ("forward", 3.0, 0.0), ("recompute", 1.0, 1.0), ("backward", 1.0, 0.0)]
    assert shares([*nodes, ("update", 2.0, 0.0)]) == {"forward": 0.125, "backward": 0.5, "step": 1.5 / 8}


def test_a_step_without_a_part_has_no_share_of_it() -> None:
    assert shares([("forward", 1.0, 0.25)]) == {"forward": 0.25, "backward": 0.0, "step": 0.25}


def _share(way: Way, schedule: str, n_tokens: int) -> UnpackShare:
    config = replace(preset("qwen2.5-0.5b"), num_hidden_layers=4)
    setup = TrainingSetup(config, 32, LoraConfig(), schedule, n_tokens, OptimizerConfig(), threads=2)
    return simulated_share(setup, way, find_device("iphone-15-pro-max"))


def test_the_share_falls_with_the_sequence_for_kernels_and_for_the_naive_path() -> None:
    for way, schedule in (("fused", "tiled"), ("naive", "mebp")):
        short, long = (_share(way, schedule, n_tokens) for n_tokens in (16, 128))  # type: ignore[arg-type]
        for part in PARTS:
            assert 0 < long.share[part].nominal < 0.8 * short.share[part].nominal < 0.8
            assert short.share[part].low < short.share[part].nominal < short.share[part].high


def test_the_naive_path_spends_more_on_unpacking() -> None:
    # The same rates: it writes and reads what it unpacks.
    naive, fused = _share("naive", "mebp", 64), _share("fused", "tiled", 64)
    assert naive.share["step"].nominal * naive.step_s.nominal > fused.share["step"].nominal * fused.step_s.nominal


def test_a_device_that_unpacks_slowly_has_a_larger_share() -> None:
    setup, _ = toy_plan()
    slow, fast = (simulated_share(setup, "naive", phone(unpack_weights_per_s=rate)) for rate in (1e6, 1e7))
    assert slow.share["step"].nominal > fast.share["step"].nominal
    assert slow.step_s.nominal > fast.step_s.nominal
    # Bands of a device without uncertainty are points.
    assert slow.step_s.low == pytest.approx(slow.step_s.high)
