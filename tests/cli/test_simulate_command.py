import json
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from memsim.cli.predicting.simulate import command
from memsim.errors import InputError, MemsimError, UsageError
from memsim.models.lora import LoraConfig, n_trainable
from memsim.models.presets import preset
from memsim.result_file import from_json


def _run(*arguments: str):  # type: ignore[no-untyped-def]
    return CliRunner().invoke(command, ["--seq-len", "32", *arguments])


def _refused(*arguments: str) -> MemsimError:
    error = _run(*arguments).exception
    assert isinstance(error, MemsimError)
    assert "\n" not in str(error)
    return error


def test_a_run_that_fits_says_everything() -> None:
    result = _run("--budget", "1GB", "--schedule", "mebp")
    assert result.exit_code == 0, result.output
    for text in (
        "qwen2.5-0.5b, mebp, seq 32, LoRA rank 8",
        "iPhone 15 Pro Max",
        "verdict           fits under 1,000.0 MB, foreground",
        "limit background  500.0 MB (200.0 MB to 1,000.0 MB): fits",
        "  page-in",
        "J (",
        "the day's write budget is",
    ):
        assert text in result.stdout
    assert result.stderr == ""


@pytest.mark.parametrize("scheme", ["norms", "prefix", "prompt", "head"])
def test_every_scheme_is_simulated(scheme: str) -> None:
    result = _run("--model", "tiny", "--scheme", scheme, "--schedule", "tiled", "--budget", "1GB")
    assert result.exit_code == 0, result.output
    assert f"tiny, tiled, seq 32, {scheme}\n" in result.stdout
    record = from_json(_run("--model", "tiny", "--scheme", scheme, "--schedule", "tiled", "--json", "-").stdout)
    assert (record.scheme, record.lora_rank) == (scheme, None)
    lora = from_json(_run("--model", "tiny", "--schedule", "tiled", "--json", "-").stdout)
    assert lora.trainable_parameters == n_trainable(preset("tiny"), LoraConfig())
    assert record.trainable_parameters != lora.trainable_parameters
    assert record.planned_peak_bytes != lora.planned_peak_bytes


def test_roberta_is_simulated_with_a_classifier_beside_any_scheme() -> None:
    options = ("--model", "roberta-base", "--schedule", "tiled", "--json", "-")
    plain, lora, head = (
        from_json(_run(*options, *more).stdout).trainable_parameters or 0
        for more in ((), ("--labels", "3"), ("--scheme", "head", "--labels", "3"))
    )
    assert head == 768 * 768 + 768 + 3 * 768 + 3
    assert lora == plain + head


def test_the_record_is_a_result() -> None:
    result = _run("--json", "-", "--steps", "3", "--schedule", "tiled", "--device", "oneplus-12")
    record = from_json(result.stdout)
    assert (record.source, record.command, record.fits, record.exit_reason) == ("simulated", "simulate", True, "done")
    assert record.simulated is not None
    assert record.simulated.device == "oneplus-12"
    assert len(record.steps) == 3
    limits = record.simulated.limits
    assert limits["foreground"].margin_bytes == limits["foreground"].limit_bytes.nominal - record.peak_footprint_bytes
    assert record.peak_working_set_bytes == record.peak_footprint_bytes - record.baseline_footprint_bytes
    band = record.simulated.figures["step_s"]
    assert 0 < band.low < band.nominal == record.step_s < band.high
    split = [record.simulated.figures[name].nominal for name in ("compute_s", "unpack_s", "page_in_s", "spill_s")]
    assert sum(split) == pytest.approx(record.simulated.figures["warm_step_s"].nominal)
    assert sum(record.time_by_op_s.values()) == pytest.approx(sum(split))


def test_a_run_that_is_killed_exits_with_3_and_names_the_node() -> None:
    result = _run("--budget", "60MB", "--json", "-")
    assert result.exit_code == 3
    assert result.stderr.startswith("memsim: killed at node ")
    record = from_json(result.stdout)
    assert record.peak_footprint_bytes is not None
    needed = f"raise the limit to {record.peak_footprint_bytes / 1e6:.1f} MB"
    for text in ("with pinned 17.", "over the foreground limit of 60.0 MB", "--schedule tiled", needed):
        assert text in result.stderr
    assert (record.fits, record.exit_reason) == (False, "killed")
    assert record.simulated is not None
    limit = record.simulated.limits["foreground"]
    assert limit.verdict == "killed" and limit.margin_bytes is None
    assert limit.over_bytes == record.peak_footprint_bytes - 60_000_000
    assert f"node {limit.killed_at_node} " in result.stderr


def test_a_mode_has_its_own_limit() -> None:
    record = from_json(_run("--mode", "background", "--model", "qwen2.5-3b", "--json", "-").stdout)
    assert record.simulated is not None
    assert record.simulated.mode == "background"
    assert record.simulated.limits["background"].limit_bytes.nominal == 500_000_000


def test_faults_are_slower_than_advice() -> None:
    advised, faults = (
        from_json(_run("--json", "-", "--paging", how).stdout).simulated for how in ("advised", "faults")
    )
    assert advised is not None and faults is not None
    assert faults.figures["cold_step_s"].nominal > advised.figures["cold_step_s"].nominal


def test_a_directory_needs_only_a_config(tmp_path: Path) -> None:
    config = preset("qwen2.5-0.5b").to_dict() | {"num_hidden_layers": 2}
    (tmp_path / "small").mkdir()
    (tmp_path / "small" / "config.json").write_text(json.dumps(config))
    record = from_json(_run("--model", str(tmp_path / "small"), "--json", "-").stdout)
    assert record.model == "small"
    whole = from_json(_run("--json", "-").stdout)
    assert record.trainable_parameters is not None and whole.trainable_parameters is not None
    assert 12 * record.trainable_parameters == whole.trainable_parameters


@pytest.mark.parametrize(
    ("arguments", "kind", "message"),
    [
        (["--device", "nokia-3310"], InputError, "no device called 'nokia-3310'"),
        (["--model", "gpt-9"], InputError, "no model called 'gpt-9'; presets: "),
        (["--seq-len", "0"], UsageError, "--seq-len 0 is below 1"),
        (["--seq-len", "40000"], UsageError, "above the model's max_position_embeddings, 32768; shorten it to 32768"),
        (["--steps", "0"], UsageError, "--steps 0 must be from 1 to"),
        (["--accumulate", "0"], UsageError, "--accumulate 0 is below 1"),
        (["--budget", "512"], UsageError, "has no unit"),
        (["--scheme", "full"], UsageError, "--scheme full is trained by zeroth-order schedules only"),
        (["--labels", "3"], UsageError, "--labels belongs to --scheme head, not to lora"),
        (["--budget", "0GB"], UsageError, "--budget 0 cannot hold a process"),
        (["--lora-rank", "0"], UsageError, "--lora-rank 0 is below 1"),
        (["--target-modules", "q_proj,x"], UsageError, "--target-modules x"),
    ],
)
def test_what_cannot_work_is_one_line(arguments: list[str], kind: type[MemsimError], message: str) -> None:
    error = _refused(*arguments)
    assert isinstance(error, kind)
    assert message in str(error)


def test_no_compiler_is_loaded() -> None:
    code = (
        "import sys; sys.argv = ['memsim', 'simulate', '--seq-len', '8', '--json', '-']\n"
        "import memsim.cli\n"
        "memsim.cli.cli.main(standalone_mode=False)\n"
        "print(*sorted({name.split('.')[0] for name in sys.modules}), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"numba", "llvmlite", "torch", "rich", "matplotlib", "tokenizers"} & set(done.stderr.split())
