import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from memsim.reports.html import report
from memsim.reports.run_files import open_run
from memsim.reports.verdicts import verdicts
from memsim.results import Band, Request
from memsim.simulator.device_file import find_device
from memsim.simulator.unpack_share import UnpackShare
from memsim.units import format_bytes
from recorded import MB, record, toy_run_plan, write_run

VOID = {"meta", "wbr", "path", "rect", "br"}
LOADS = {"src", "href", "xlink:href", "action", "data", "poster", "srcset", "background", "formaction", "ping"}


class Page(HTMLParser):
    """What a page holds: tags, attributes, style, exact numbers by name, text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: set[str] = set()
        self.style = ""
        self.numbers: dict[str, list[tuple[float, str]]] = {}
        self.text = ""
        self._open: list[str] = []
        self._number: tuple[str, float] | None = None
        self.feed(html)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes |= {name for name, _ in attrs}
        if tag not in VOID:
            self._open.append(tag)
        if tag == "data":
            found = dict(attrs)
            self._number = (str(found["class"]), float(str(found["value"])))

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1] == "style":
            self.style += data
            return
        self.text += data
        if self._number and self._open[-1] == "data":
            name, value = self._number
            self.numbers.setdefault(name, []).append((value, data))
            self._number = None


def share(seq_len: int, nominal: float, where: str = "here") -> UnpackShare:
    band = Band(nominal / 2, nominal, nominal)
    return UnpackShare(
        seq_len=seq_len,
        way="fused",
        schedule="tiled",
        compute="bf16",
        where=where,
        share={"forward": band, "backward": band, "step": band},
        step_s=Band(1.0, 1.0, 1.0),
    )


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    directory = tmp_path_factory.mktemp("report")
    runs = [open_run(write_run(directory / name, budget_bytes=budget)) for name, budget in
            (("first", 80 * MB), ("second", 100 << 20))]  # fmt: skip
    found = verdicts(runs, [find_device("iphone-15-pro-max"), find_device("raspberry-pi-5")])
    return report(runs, found, [share(16, 0.5), share(256, 0.25), share(16, 0.125, "iphone-15-pro-max")])


def test_it_needs_nothing_but_itself(page: str) -> None:
    found = Page(page)
    assert not {"script", "link", "img", "iframe", "object", "embed", "image", "use", "base", "form"} & set(found.tags)
    assert not LOADS & found.attributes
    assert not [name for name in found.attributes if name.startswith("on")]
    assert not re.search(r"url\(|@import|expression", found.style)
    assert not re.search(r"(https?:)?//", page.replace("<!DOCTYPE html>", ""))
    assert "svg" in found.tags and "meta" in found.tags
    assert "prefers-color-scheme: dark" in found.style and "max-width" in found.style


def test_the_numbers_are_those_of_the_records(page: str) -> None:
    found = Page(page)
    result = record(toy_run_plan())
    for name in ("peak_footprint_bytes", "planned_footprint_bytes", "baseline_footprint_bytes",
                 "peak_working_set_bytes", "file_floor_bytes"):  # fmt: skip
        value = getattr(result, name)
        assert found.numbers[name][:2] == [(value, format_bytes(value, True)), (value, format_bytes(value, False))]
    assert found.numbers["budget_bytes"] == [(80 * MB, "80.0 MB"), (100 << 20, "100.0 MiB")]
    assert found.numbers["step_s"] == [(0.7, "0.70 s")] * 2
    assert found.numbers["op linear"] == [(0.4, "0.40 s")] * 2
    assert found.numbers["op rmsnorm"] == [(0.012345, "12.35 ms")] * 2
    losses = [step.loss for step in result.steps]
    assert [value for value, _ in found.numbers["loss"]] == [losses[0], losses[-1]] * 2


def test_what_held_the_peak_adds_up(page: str) -> None:
    held = toy_run_plan().memory.held
    values = [value for value, _ in Page(page).numbers["held"]]
    assert sum(values) == 2 * sum(n_bytes for _, n_bytes in held)
    assert len(held) > 13  # so that the smallest are one row
    assert values[:12] == [n_bytes for _, n_bytes in held[:12]]


def test_devices_are_side_by_side(page: str, tmp_path: Path) -> None:
    found = Page(page)
    run = open_run(write_run(tmp_path / "run"))
    (phone,) = verdicts([run], [find_device("iphone-15-pro-max")])
    figures = phone.simulation.figures
    # Two runs on two devices; the first and the third column are this phone's. One more is in the overview.
    assert [value for value, _ in found.numbers["warm_step_s"]][::2] == [figures["warm_step_s"].nominal] * 2
    assert found.numbers["peak_footprint_bytes"][2][0] == figures["peak_footprint_bytes"].nominal
    assert "iPhone 15 Pro Max" in found.text and "Raspberry Pi 5" in found.text
    assert "this runtime's kernels, measured here" in found.text
    assert "this runtime's kernels, iphone-15-pro-max" in found.text


def test_what_was_not_asked_for_is_left_out(tmp_path: Path) -> None:
    html = report([open_run(write_run(tmp_path / "run"))], [], [])
    assert "On devices" not in html and "What decompression costs" not in html


@pytest.mark.parametrize("reason", ["killed_at_cap", "thrashing", "error"])
def test_a_run_that_ended_early_is_shown_as_far_as_it_came(tmp_path: Path, reason: str) -> None:
    changes = {"steps": (), "step_s": None, "time_by_op_s": {}, "exit_reason": reason, "fits": None}
    found = Page(report([open_run(write_run(tmp_path / "run", **changes))], [], []))
    assert reason in found.text and "no step was finished" in found.text
    assert "Loss" not in found.text


def test_names_from_files_are_text(tmp_path: Path) -> None:
    name = "<script>alert(1)</script>"
    directory = write_run(
        tmp_path / "run", model=name, schedule=name, compute=name, time_by_op_s={name: 1.0},
        peak_by_value={name: 7}, versions={name: name},
    )  # fmt: skip
    found = Page(report([open_run(directory)], [], [share(16, 0.5, name)]))
    assert "script" not in found.tags
    assert found.text.count(name) >= 6


def test_what_was_asked_for_is_a_table_of_text(tmp_path: Path) -> None:
    runs = [open_run(write_run(tmp_path / name)) for name in ("first", "second")]
    assert "Settings" not in Page(report(runs, [], [])).text
    asked = Request(
        settings={"optimizer.lr": 0.5, "model": "<b>mine</b>", "lora.target_modules": ("q_proj", "v_proj")},
        files={"data": "ab12"},
        started="2026-01-02T03:04:05+00:00",
        commands=("memsim run --lr 0.5",),
    )
    runs[0] = replace(runs[0], result=replace(runs[0].result, request=asked))
    page = report(runs, [], [])
    assert "<b>mine" not in page
    shown = Page(page).text
    for words in ("Settings", "optimizer.lr", "0.5", "q_proj, v_proj", "ab12", "<b>mine</b>", "memsim run --lr 0.5"):
        assert words in shown.replace("\u200b", "")
