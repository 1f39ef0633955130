"""The measured share of unpacking, in real runs of a toy."""

from pathlib import Path

import pytest

from capped_runs import BUDGET, LORA, cache, write_model
from memsim.bench.decompression import measured_shares
from memsim.errors import UsageError
from memsim.runtime.config import RunConfig
from memsim.simulator.unpack_share import HERE, PARTS, UnpackShare
from memsim.weights.pack import Pack

pytestmark = pytest.mark.usefixtures("cache")
assert cache  # a fixture, found by name


@pytest.fixture(scope="module")
def pack(disk: Path) -> Pack:
    return write_model(disk / "decompression-model")


def measure(pack: Pack, ways: dict) -> list[UnpackShare]:  # type: ignore[type-arg]
    config = RunConfig(budget_bytes=BUDGET, model=str(pack.directory), lora=LORA, steps=2, compute="f32", threads=1)
    return list(measured_shares(config, (32,), ways, lambda _: None))


def test_each_way_has_a_share(pack: Pack) -> None:
    found = measure(pack, {"fused": "tiled", "naive": "mebp"})
    assert [(s.seq_len, s.way, s.schedule, s.compute, s.where) for s in found] == [
        (32, "fused", "tiled", "f32", HERE),
        (32, "naive", "mebp", "f32", HERE),
    ]
    for share in found:
        assert 0 < share.step_s.low <= share.step_s.nominal <= share.step_s.high
        for part in PARTS:
            assert 0 <= share.share[part].low <= share.share[part].high < 1
    # The nodes that unpack are in the run's own events: no machine is too busy to see them.
    assert all(share.share[part].low > 0 for share in found if share.way == "naive" for part in PARTS)


@pytest.mark.parametrize(("way", "schedule"), [("fused", "mebp"), ("naive", "tiled")])
def test_a_schedule_that_unpacks_in_another_way_is_refused(pack: Pack, way: str, schedule: str) -> None:
    with pytest.raises(UsageError, match=f"--schedule {schedule} .* cannot stand for the {way} way"):
        measure(pack, {way: schedule})
