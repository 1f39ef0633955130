"""Whatever is wrong with a run is one line and an exit code, and leaves nothing half-written."""

import re
import shutil
import sys
from collections import namedtuple
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from capped_runs import files_in, private_cache
from memsim.cap.open import open_cap
from memsim.cli import main
from memsim.files import file_system
from memsim.units import parse_bytes
from toy_checkpoints import TOY, source_tensors, write_checkpoint, write_config

TEXT = "".join(chr(32 + n % 40) for n in range(4000))  # bytes below 72: ids in a vocabulary of 77
MEMORY_DISK = Path("/dev/shm")


@dataclass(frozen=True)
class Workspace:
    """A directory to run in, with a model, a text and an own cache that has the kernels."""

    directory: Path
    capsys: pytest.CaptureFixture[str]
    monkeypatch: pytest.MonkeyPatch

    @property
    def model(self) -> Path:
        return self.directory / "model"

    def memsim(self, *arguments: object) -> tuple[int, str]:
        """Run ``memsim`` in this process; return its exit code and what it wrote to stderr."""
        self.monkeypatch.setattr(sys, "argv", ["memsim", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        printed = self.capsys.readouterr()
        assert printed.out == ""
        assert "Traceback" not in printed.err
        return int(ended.value.code or 0), printed.err

    def run(self, *arguments: object) -> tuple[int, str]:
        """Run ``memsim run`` with defaults that would work, before ``arguments``."""
        defaults = ["--budget", "400MB", "--model", self.model, "--data", self.directory / "text.txt"]
        sizes = ["--seq-len", 16, "--steps", 1, "--lora-rank", 2, "--threads", 1]
        return self.memsim("run", *defaults, *sizes, "--tokenizer", "bytes", *arguments)


@pytest.fixture
def workspace(disk: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):  # type: ignore[no-untyped-def]
    write_checkpoint(tmp_path / "model", TOY)
    (tmp_path / "text.txt").write_text(TEXT)
    monkeypatch.setenv("MEMSIM_CACHE", str(private_cache(tmp_path / "cache")))
    monkeypatch.chdir(tmp_path)
    return Workspace(tmp_path, capsys, monkeypatch)


def refused(workspace: Workspace, code: int, words: str, *arguments: object) -> None:
    """Check that ``memsim run`` with ``arguments`` ends with ``code`` and a line with ``words``, and makes nothing."""
    before = files_in(workspace.directory)
    found, printed = workspace.run(*arguments)
    *progress, last = printed.splitlines()
    assert found == code, printed
    assert words in last
    assert last.startswith(("memsim: ", "Error: "))
    assert not any(line.startswith(("memsim: ", "Error: ")) for line in progress)
    # A pack that was finished before the run was refused stays in the cache; nothing else, and nothing unfinished.
    left = {name for name in files_in(workspace.directory) - before if not name.startswith("cache/packs")}
    assert left == set()
    packs = workspace.directory / "cache" / "packs"
    assert not packs.exists() or all(path.name.startswith("model-packed-") for path in packs.iterdir())


def test_the_defaults_of_these_tests_are_not_what_is_refused(workspace: Workspace) -> None:
    workspace.monkeypatch.setattr(sys, "argv", ["memsim"])
    refused(workspace, 2, "--steps 0 is below 1", "--steps", 0)
    defaults = ["run", "--budget", "400MB", "--model", workspace.model, "--data", workspace.directory / "text.txt"]
    sizes = ["--seq-len", 16, "--steps", 1, "--lora-rank", 2, "--threads", 1, "--out", "out", "--tokenizer", "bytes"]
    workspace.monkeypatch.setattr(sys, "argv", ["memsim", *map(str, [*defaults, *sizes])])
    main()
    assert "done under 400.0 MB" in workspace.capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--budget", "0GB"], "--budget 0 cannot hold a process"),
        (["--budget", "900TB"], "is above this machine's"),
        (["--budget", "512"], "'512' has no unit; write 512MB"),
        (["--budget", "1XB"], "'1XB' has an unknown unit 'XB'"),
        (["--budget", "-1GB"], "'-1GB' is not a size"),
        (["--budget", "9" * 400 + "GB"], "999"),
        (["--seq-len", 0], "--seq-len 0 is below 1"),
        (["--seq-len", 129], "--seq-len 129 is above the model's max_position_embeddings, 128"),
        (["--steps", 0], "--steps 0 is below 1"),
        (["--accumulate", 0], "--accumulate 0 is below 1"),
        (["--eval-sequences", 0], "--eval-sequences 0 is below 1"),
        (["--lora-rank", 0], "--lora-rank 0 is below 1"),
        (["--lora-rank", 9], "--lora-rank 9 is above self_attn.k_proj, which is 8 x 40"),
        (["--lora-alpha", 0], "--lora-alpha 0.0 must be a positive number"),
        (["--lora-alpha", "nan"], "--lora-alpha nan must be a positive number"),
        (["--target-modules", "q_proj,qq_proj"], "--target-modules qq_proj: choose from q_proj,"),
        (["--target-modules", ""], "--target-modules (empty): choose from q_proj,"),
        (["--target-modules", "lm_head"], "embed_tokens and lm_head carry no adapter, since their rows are"),
        (["--scheme", "norms"], "--lora-rank belongs to --scheme lora, not to norms"),
        (["--virtual-tokens", 3], "--virtual-tokens belongs to --scheme prefix or prompt, not to lora"),
        (["--scheme", "bias"], "'bias' is not one of "),
        (["--no-template"], "--no-template needs --task"),
        (["--lr", "-1"], "--lr -1.0 must be zero or a positive number"),
        (["--lr", "nan"], "--lr nan must be zero or a positive number"),
        (["--threads", 100_000], "--threads 100000 is above the "),
        (["--threads", -1], "--threads -1 is below 0"),
        (["--seed", -1], "--seed -1 is below 0"),
        (["--eval-every", 1], "--eval-every needs --eval-data"),
        (["--eval-first"], "--eval-first needs --eval-data"),
        (["--eval-every", -1], "--eval-every -1 is below 0"),
        (["--schedule", "magic"], "'magic' is not one of 'mebp', 'tiled', 'backprop'"),
        (["--optimizer", "lion"], "'lion' is not one of "),
        (["--page-cache", "tepid"], "'tepid' is not one of "),
        (["--enforcement", "hope"], "'hope' is not one of "),
        (["--seq-len", "many"], "'many' is not a valid integer"),
    ],
    ids=lambda value: " ".join(map(str, value))[:30] if isinstance(value, list) else None,
)
def test_a_value_that_can_never_work_is_a_usage_error(workspace: Workspace, arguments: list, words: str) -> None:
    refused(workspace, 2, words, *arguments)


def test_without_a_budget_the_usage_is_shown(workspace: Workspace) -> None:
    code, printed = workspace.memsim("run")
    assert code == 2
    assert "Missing option '--budget'" in printed


# -- texts -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("none.txt", None, "no text file at "),
        ("empty.txt", b"", "empty.txt is empty"),
        ("short.txt", b"0123" * 4, "short.txt has 16 tokens, but one sequence needs 17 (--seq-len"),
        ("binary.txt", b"0123456789" * 9 + b"\xff\xfe", "binary.txt is not UTF-8: byte 90 is wrong"),
        ("beyond.txt", b"0123456789" * 9 + b"z", "beyond.txt has token id 122, beyond the model's vocabulary of 77"),
        ("bad.jsonl", b'{"text": "0123"}\n{"text": 5}\n', "bad.jsonl line 2: 'text' is not a string"),
        ("cut.jsonl", b'{"text": "0123"}\n{"te', "cut.jsonl line 2 is not JSON"),
        ("empty.jsonl", b"\n\n", "empty.jsonl has 0 tokens"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("option", ["--data", "--eval-data"])
def test_a_text_that_cannot_serve(
    workspace: Workspace, name: str, content: bytes | None, words: str, option: str
) -> None:
    if content is not None:
        (workspace.directory / name).write_bytes(content)
    refused(workspace, 1, words, option, name)


def test_a_text_that_is_a_directory(workspace: Workspace) -> None:
    refused(workspace, 1, "no text file at model", "--data", "model")


def test_a_text_whose_reading_fails(workspace: Workspace) -> None:
    refused(workspace, 1, "/proc/self/mem", "--data", "/proc/self/mem")


def test_a_text_that_may_not_be_read(workspace: Workspace) -> None:
    path = workspace.directory / "text.txt"
    path.chmod(0)
    try:
        path.open().close()
    except PermissionError:
        refused(workspace, 1, "text.txt: Permission denied")
    else:
        pytest.skip("this user may read every file")


# -- models ------------------------------------------------------------------------------------------------------------


def without_weights(model: Path) -> None:
    (model / "model.safetensors").unlink()


def without_a_shard(model: Path) -> None:
    shutil.rmtree(model)
    write_checkpoint(model, TOY, shards=3)
    (model / "model-00002-of-00003.safetensors").unlink()


def truncated(model: Path) -> None:
    path = model / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def corrupt(model: Path) -> None:
    path = model / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[8:24] = b"not a header at "
    path.write_bytes(data)


def changed(**tensors: Callable[[np.ndarray], np.ndarray]) -> Callable[[Path], None]:
    def change(model: Path) -> None:
        weights = source_tensors(TOY)
        for part, function in tensors.items():
            name = next(key for key in weights if part in key)
            weights[name] = function(weights[name])
        write_checkpoint(model, TOY, weights)

    return change


def with_config(**changes: object) -> Callable[[Path], None]:
    return lambda model: write_config(model, TOY, **changes)


def poisoned(values: np.ndarray) -> np.ndarray:
    values[3, 5] = np.nan
    return values


MODELS: dict[str, tuple[Callable[[Path], None], str]] = {
    "no weights": (without_weights, "has neither model.safetensors nor model.safetensors.index.json"),
    "no shard": (without_a_shard, "model-00002-of-00003.safetensors: No such file"),
    "truncated": (truncated, "behind the end of the file"),
    "corrupt": (corrupt, "the header of "),
    "wrong shape": (changed(up_proj=lambda values: values[:-1]), "mlp.up_proj.weight"),
    "NaN": (changed(k_proj=poisoned), "self_attn.k_proj.weight"),
    "unknown architecture": (with_config(model_type="gpt9"), "model_type 'gpt9' is not supported; memsim runs: qwen2"),
    "no hidden size": (with_config(hidden_size=None), "has no 'hidden_size'"),
    "not JSON": (lambda model: (model / "config.json").write_text("{"), "config.json"),  # type: ignore[dict-item, return-value]
    "no directory": (shutil.rmtree, "is no preset, directory or GGUF file"),
}


@pytest.mark.parametrize(("damage", "words"), MODELS.values(), ids=MODELS)
def test_a_model_that_cannot_serve(workspace: Workspace, damage: Callable[[Path], None], words: str) -> None:
    damage(workspace.model)
    refused(workspace, 1, words)
    packs = workspace.directory / "cache" / "packs"
    assert not packs.exists() or list(packs.iterdir()) == []


def test_a_model_that_nobody_knows(workspace: Workspace) -> None:
    refused(workspace, 1, "presets: qwen2.5-0.5b, qwen2.5-1.5b, qwen2.5-3b", "--model", "qwen99")


def test_a_tokenizer_of_another_model(workspace: Workspace) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = {f"w{n}": n for n in range(200)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(workspace.model / "tokenizer.json"))
    (workspace.directory / "text.txt").write_text("w1 w2 w150 " * 40)
    refused(workspace, 1, "has token id 150, beyond the model's vocabulary of 77; use the tokenizer.json that belongs",
            "--tokenizer", workspace.model / "tokenizer.json")  # fmt: skip


# -- disks and directories ---------------------------------------------------------------------------------------------


def test_an_out_directory_that_exists(workspace: Workspace) -> None:
    (workspace.directory / "out").mkdir()
    refused(workspace, 1, "--out out exists; choose a directory that does not", "--out", "out")
    assert (workspace.directory / "out").is_dir()


def test_an_out_directory_that_cannot_be_made(workspace: Workspace) -> None:
    refused(workspace, 1, "text.txt/out: Not a directory; choose another with --out", "--out", "text.txt/out")


def test_parents_of_the_out_directory_go_with_it(workspace: Workspace) -> None:
    (workspace.directory / "short.txt").write_text("01234")
    refused(workspace, 1, "short.txt has 5 tokens", "--data", "short.txt", "--out", "one/two/out")
    refused(workspace, 1, "short.txt has 5 tokens", "--data", "short.txt")
    assert not (workspace.directory / "one").exists()
    assert not (workspace.directory / "runs").exists()
    (workspace.directory / "runs" / "earlier").mkdir(parents=True)
    refused(workspace, 1, "short.txt has 5 tokens", "--data", "short.txt")
    assert files_in(workspace.directory / "runs") == {"earlier"}


def test_a_scratch_directory_that_does_not_exist(workspace: Workspace) -> None:
    refused(workspace, 1, "the scratch directory none does not exist; create it or choose another", "--scratch", "none")


@pytest.mark.parametrize("option", ["--scratch", "--out"])
def test_a_scratch_directory_in_memory(workspace: Workspace, option: str) -> None:
    if not MEMORY_DISK.is_dir() or file_system(MEMORY_DISK) != "tmpfs":
        pytest.skip(f"{MEMORY_DISK} is not on tmpfs")
    path = MEMORY_DISK if option == "--scratch" else MEMORY_DISK / "memsim-test-out"
    refused(workspace, 1, f"the scratch directory {path} is on tmpfs, which is memory; choose one", option, path)
    assert not (MEMORY_DISK / "memsim-test-out").exists()


def test_a_disk_too_small_for_the_pack(workspace: Workspace) -> None:
    usage = namedtuple("usage", "total used free")
    workspace.monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 10**9, 20_000))
    refused(workspace, 1, "the pack needs 0.1 MiB in ")
    assert list((workspace.directory / "cache" / "packs").iterdir()) == []


def test_no_writable_cache(workspace: Workspace) -> None:
    workspace.monkeypatch.setenv("MEMSIM_CACHE", str(workspace.directory / "text.txt" / "cache"))
    refused(workspace, 1, "set MEMSIM_CACHE to a writable directory")


def test_json_into_a_directory_that_does_not_exist(workspace: Workspace) -> None:
    refused(workspace, 1, "cannot write none/result.json: its directory does not exist", "--json", "none/result.json")


def test_an_enforcement_that_this_machine_does_not_have(workspace: Workspace) -> None:
    with open_cap(10**8) as cap:
        missing = [reason.partition(":")[0] for reason in cap.refusals]
    if not missing:
        pytest.skip("this machine has every way to cap a process that comes before the best")
    refused(workspace, 1, f"cannot cap a process here ({missing[0]}: ", "--enforcement", missing[0])


def test_ctrl_c_before_the_worker_starts(workspace: Workspace) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    workspace.monkeypatch.setattr("memsim.runtime.layout.prepare_tokens", interrupt)
    refused(workspace, 130, "memsim: interrupted", "--out", "one/out")


# -- limits ------------------------------------------------------------------------------------------------------------


def test_a_plan_over_the_budget_is_exit_code_3(workspace: Workspace) -> None:
    words = " is the least that is taken); the peak is at node "
    refused(workspace, 3, words, "--budget", "90MiB")
    refused(workspace, 3, words, "--budget", "90MB", "--schedule", "backprop")


@pytest.mark.parametrize("budget", ["1KB", "90MiB"])
def test_a_refusal_says_the_figures_that_decide(workspace: Workspace, budget: str) -> None:
    code, printed = workspace.run("--budget", budget)
    assert code == 3
    found = re.search(r"needs (\S+ \S+) .* over the budget of (\S+ \S+) \((\S+ \S+) is the least", printed)
    assert found is not None
    needs, asked, least = (parse_bytes(size) for size in found.groups())
    assert asked == parse_bytes(budget)
    assert needs - least == pytest.approx(2 << 20, abs=1.1e5)  # one digit after the point of MB or MiB, twice


def test_a_model_with_more_positions_takes_more_tokens(workspace: Workspace) -> None:
    write_checkpoint(workspace.model, replace(TOY, max_position_embeddings=129))
    # Accepted now: the next thing to be refused is the budget.
    refused(workspace, 3, "over the budget", "--seq-len", 129, "--budget", "50MB")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--schedule", "mezzo"], "'mezzo' is not one of"),
        (["--schedule", "mezo", "--zo-eps", 0], "--zo-eps 0 must be a positive number: losses of equal weights"),
        (["--schedule", "mezo", "--zo-eps", "nan"], "--zo-eps nan must be a positive number"),
        (["--schedule", "mezo", "--zo-directions", 0], "--zo-directions 0 must be 1 to 1024"),
        (
            ["--schedule", "mezo", "--zo-sparsity", "1.0"],
            "--zo-sparsity 1 must be at least 0 and below 1: at 1 nothing",
        ),
        (["--schedule", "mezo", "--zo-resample", 0], "--zo-resample 0 is below 1"),
        (["--schedule", "mezo", "--optimizer", "adamw"], "--optimizer: mezo updates by sgd"),
        (["--schedule", "fzoo", "--zo-noise", "gaussian"], "--zo-noise gaussian: fzoo is defined for rademacher noise"),
        (["--schedule", "fzoo", "--zo-directions", 1], "--zo-directions 1: fzoo divides by the spread of the losses"),
        (["--schedule", "forward-grad", "--zo-eps", "0.1"], "--zo-eps 0.1: forward-grad differentiates exactly"),
        *(
            (["--schedule", name, "--accumulate", 2], f"--accumulate 2: {name} needs the losses of one batch")
            for name in ("zo-sgd-cons", "zo-jacobi", "zo-gauss-seidel", "hybrid", "forward-grad")
        ),
        (["--schedule", "zo-jacobi", "--zo-directions", 2], "--zo-directions 2: zo-jacobi has one direction"),
        (["--schedule", "hybrid", "--hybrid-k", 2], "--hybrid-k 2 must be 1 to 1 of the model's 2 blocks"),
        (["--schedule", "hybrid", "--hybrid-k", 3], "--hybrid-k 3 must be 1 to 1 of the model's 2 blocks"),
        (["--schedule", "hybrid", "--hybrid-k", 0], "--hybrid-k 0 must be 1 to 1"),
        (["--schedule", "mezo", "--hybrid-k", 1], "--hybrid-k is for the schedule hybrid, not mezo"),
        (["--schedule", "mebp", "--zo-eps", "0.1"], "--zo-eps is for zeroth-order schedules"),
        (["--schedule", "lcsb", "--lcsb-groups", 3], "--lcsb-groups 3 must be 1 to 2, the model's blocks"),
        (["--schedule", "mebp", "--lcsb-groups", 2], "--lcsb-groups is for the schedule lcsb, not mebp"),
    ],
    ids=lambda value: " ".join(map(str, value)) if isinstance(value, list) else "",
)
def test_settings_of_schedules_that_cannot_work(workspace: Workspace, arguments: list, words: str) -> None:
    refused(workspace, 2, words, *arguments)


def test_a_model_without_a_tokenizer(workspace: Workspace) -> None:
    words = "has no tokenizer.json, no tokenizer.model, and not both vocab.json and merges.txt; give the model's own"
    defaults = ["--budget", "400MB", "--model", workspace.model, "--data", "text.txt", "--seq-len", 16]
    code, printed = workspace.memsim("run", *defaults)
    assert code == 1
    assert words in printed.splitlines()[-1]
    assert not (workspace.directory / "runs").exists()


def test_a_file_that_is_no_tokenizer(workspace: Workspace) -> None:
    (workspace.directory / "odd.json").write_text("[]")
    refused(workspace, 1, "odd.json is corrupt", "--tokenizer", "odd.json")
    refused(workspace, 1, "none.json: No such file", "--tokenizer", "none.json")
