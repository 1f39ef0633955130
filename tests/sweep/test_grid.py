"""Grid files: what points they mean, and what is refused in one line."""

from pathlib import Path

import pytest

from memsim.errors import InputError
from memsim.sweep.grid import Grid, read_grid

OPTIONS = {
    "simulate": {"model", "seq_len", "lora_rank", "schedule", "budget", "device", "steps", "json", "target_modules"},
    "run": {"model", "seq_len", "schedule", "budget", "threads", "eval_first", "data"},
    "plan": {"model", "seq_len", "budget", "device"},
}


def _read(tmp_path: Path, text: str) -> Grid:
    path = tmp_path / "grid.toml"
    path.write_text(text)
    return read_grid(path, OPTIONS)


def test_points_are_all_combinations_in_the_order_of_the_lists(tmp_path: Path) -> None:
    grid = _read(
        tmp_path,
        'mode = "simulate"\nseq_lens = [8, 16]\nmodels = ["tiny"]\nschedules = ["mebp", "tiled"]\n'
        '[settings]\nsteps = 3\ntarget_modules = ["q_proj", "v_proj"]',
    )
    rest = ("--steps=3", "--target-modules=q_proj,v_proj")
    assert [point.arguments for point in grid.points] == [
        ("simulate", "--model=tiny", f"--seq-len={n}", f"--schedule={name}", *rest)
        for n in (8, 16)
        for name in ("mebp", "tiled")
    ]
    assert grid.varying == ("seq_len", "schedule")
    assert len({point.key for point in grid.points}) == 4


def test_a_key_is_of_what_is_asked_for(tmp_path: Path) -> None:
    text = 'mode = "run"\nbudgets = ["1GB"]\n[settings]\nthreads = 1'
    key = _read(tmp_path, text).points[0].key
    assert _read(tmp_path, text.replace("1GB", "1000MB")).points[0].key == key
    assert _read(tmp_path, text.replace("1GB", "1GiB")).points[0].key != key
    assert _read(tmp_path, text.replace("threads = 1", "threads = 2")).points[0].key != key
    assert _read(tmp_path, 'mode = "run"\nbudgets = ["1GB"]').points[0].key == key  # one thread is the default
    assert _read(tmp_path, text + "\neval_first = true").points[0].arguments[-1] == "--eval-first"


def test_paths_are_those_of_the_grid_s_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my-model").mkdir()
    (tmp_path / "tiny").mkdir()  # a preset all the same
    grid = _read(tmp_path, 'mode = "run"\nbudgets = ["1GB"]\nmodels = ["my-model", "tiny", "owner/model"]')
    assert [point.axes["model"] for point in grid.points] == [str(tmp_path / "my-model"), "tiny", "owner/model"]


def test_only_what_names_a_file_becomes_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sst2").mkdir()  # as the task is called, and it is no file of it
    settings = 'task = "sst2"\ndata = "train.jsonl"\ncompute = "f32"'
    (tmp_path / "f32").touch()
    options = {"run": {"budget", "task", "data", "compute"}}
    path = tmp_path / "grid.toml"
    path.write_text(f'mode = "run"\nbudgets = ["1GB"]\n[settings]\n{settings}')
    found = read_grid(path, options).points[0].settings
    here = {"data": str(tmp_path / "train.jsonl")}
    assert dict(found) == {"threads": 1, "task": "sst2", "compute": "f32"} | here
    path.write_text(path.read_text().replace('"sst2"', '"mine.toml"'))
    assert read_grid(path, options).points[0].settings["task"] == str(tmp_path / "mine.toml")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("mode = ", "is not valid TOML"),
        ("", "has no field 'mode'"),
        ('mode = "train"', "mode must be one of plan, simulate, run, not 'train'"),
        ('mode = "plan"\nbatches = [1]', "unknown field 'batches'"),
        ('mode = "plan"\nmodels = "tiny"', "models must be a list"),
        ('mode = "plan"\nmodels = [""]', "models has an empty item"),
        ('mode = "plan"\nseq_lens = [-1]', r"seq_lens\[0\] must be an integer from 0"),
        ('mode = "plan"\nseq_lens = [1e400]', r"seq_lens\[0\] must be an integer from 0"),
        ('mode = "plan"\nschedules = ["mebp"]', "memsim plan has no --schedule; leave out schedules"),
        ('mode = "run"\nbudgets = ["1GB"]\ndevices = ["host"]', "memsim run has no --device; leave out devices"),
        ('mode = "run"', "runs are capped; give budgets"),
        ('mode = "plan"\nbudgets = ["512"]', "budgets: '512' has no unit"),
        ('mode = "simulate"\nsettings = 3', "settings must be a table, not 3"),
        ('mode = "simulate"\n[settings]\nstepz = 3', "settings.'stepz' is no setting of mode simulate: steps"),
        ('mode = "simulate"\n[settings]\njson = "x"', "settings.'json' is no setting of mode simulate"),
        ('mode = "simulate"\n[settings]\nsteps = 1979-05-27', "settings.'steps' must be a number"),
        ('mode = "simulate"\n[settings]\nsteps = {a = 1}', "settings.'steps' must be a number"),
        ('mode = "run"\nbudgets = ["1GB"]\n[settings]\neval_first = false', "is false, which an option cannot be told"),
        ('mode = "plan"\nbudgets = ["1GB", "1000MB"]', "has a point twice"),
        ('mode = "plan"\nseq_lens = [8, 8]', "has a point twice"),
        (f'mode = "plan"\nseq_lens = {list(range(1, 1002))}', "seq_lens has 1,001 items, more than 1,000"),
        (
            f'mode = "simulate"\nseq_lens = {list(range(1, 900))}\nlora_ranks = {list(range(1, 900))}',
            "has 808,201 points, more than 10,000",
        ),
        ("#" * 300_000, "is larger than the 256 KiB that a grid file may have"),
    ],
)
def test_a_grid_that_cannot_be_is_refused_in_one_line(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(InputError, match=words) as caught:
        _read(tmp_path, text)
    assert "\n" not in str(caught.value)
    assert str(tmp_path / "grid.toml") in str(caught.value)


def test_a_value_is_never_taken_for_an_option(tmp_path: Path) -> None:
    grid = _read(tmp_path, 'mode = "simulate"\ndevices = ["--help"]')
    assert grid.points[0].arguments == ("simulate", "--device=--help")
