from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import pytest

from memsim.reports.layers import layer_rows
from memsim.reports.plots import plot_layers, plot_memory, plot_shares
from memsim.reports.run_files import open_run
from memsim.reports.timeline import timeline
from memsim.results import Band
from memsim.simulator.unpack_share import PARTS, UnpackShare
from recorded import MB, write_run

UNIT = ("MB", MB)


def _shares(path: Path, directory: Path) -> None:
    rows = [
        UnpackShare(
            seq_len=seq_len,
            way=way,  # type: ignore[arg-type]
            schedule="tiled",
            compute="f32",
            where="here",
            share={part: Band(2 / seq_len, 3 / seq_len, 4 / seq_len) for part in PARTS},
            step_s=Band(1.0, 1.0, 1.0),
        )
        for way in ("fused", "naive")
        for seq_len in (64, 16)
    ]
    plot_shares(path, rows)


def _layers(path: Path, directory: Path) -> None:
    plot_layers(path, layer_rows(open_run(directory)), UNIT)


def _memory(path: Path, directory: Path) -> None:
    plot_memory(path, timeline(open_run(directory)), 55 * MB, UNIT)


@pytest.mark.parametrize(
    ("draw", "words"),
    [
        (_shares, ["tokens", "unpacking, % of the backward", "this runtime's kernels, measured here", "16", "64"]),
        (_layers, ["recompute", "seconds in the median step", "highest footprint, MB", "001", "head"]),
        (_memory, ["footprint (measured)", "cap", "MB", "nodes of step 1, in order"]),
    ],
)
def test_a_plot_is_svg_with_its_words_and_always_the_same(
    draw: Callable[[Path, Path], None], words: list[str], tmp_path: Path
) -> None:
    directory = write_run(tmp_path / "run")
    for name in ("one.svg", "two.svg"):
        draw(tmp_path / name, directory)
    found = "".join(ElementTree.parse(tmp_path / "one.svg").getroot().itertext())
    for word in words:
        assert word in found
    assert (tmp_path / "one.svg").read_bytes() == (tmp_path / "two.svg").read_bytes()
