"""What memsim exports: names, signatures, and that importing it costs next to nothing."""

import ast
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import memsim
import memsim.runtime

ROOT = Path(__file__).parent.parent

SIGNATURES = {
    "memsim.plan": (
        "(model='qwen2.5-0.5b', *, budget_bytes=None, device='host', seq_len=256, scheme=None, optimizer=None, "
        "accumulate=1, threads=0, progress=None, searching=None)"
    ),
    "memsim.simulate": (
        "(model='qwen2.5-0.5b', *, schedule='mebp', device='iphone-15-pro-max', budget_bytes=None, mode='foreground', "
        "seq_len=256, steps=20, scheme=None, optimizer=None, accumulate=1, advised=True)"
    ),
    "memsim.replay": (
        "(recorded, *, device='iphone-15-pro-max', budget_bytes=None, mode='foreground', steps=None, advised=None)"
    ),
    "memsim.read_result": "(path)",
    "memsim.runtime.run": "(config, progress=None, command='')",
}
CLASSES = {
    *("memsim.LoraConfig", "memsim.OptimizerConfig", "memsim.Result"),
    *("memsim.Planned", "memsim.Simulated", "memsim.ReplayedRun", "memsim.ReplayedCapture"),
    *("memsim.MemsimError", "memsim.InputError", "memsim.LimitError", "memsim.UsageError", "memsim.WorkerError"),
    *("memsim.runtime.RunConfig", "memsim.runtime.RunOutcome", "memsim.runtime.RunProgress"),
}
PACKAGES = {"memsim": memsim, "memsim.runtime": memsim.runtime}


def exported() -> dict[str, object]:
    return {f"{name}.{item}": getattr(package, item) for name, package in PACKAGES.items() for item in package.__all__}


def test_exactly_these_names_are_exported() -> None:
    assert set(exported()) == set(SIGNATURES) | CLASSES | {"memsim.__version__"}
    assert all(inspect.isclass(exported()[name]) for name in CLASSES)


@pytest.mark.parametrize("name", SIGNATURES)
def test_signatures_stay_and_are_typed(name: str) -> None:
    function = exported()[name]
    assert callable(function)
    signature = inspect.signature(function)
    bare = [item.replace(annotation=inspect.Parameter.empty) for item in signature.parameters.values()]
    assert str(inspect.Signature(bare)) == SIGNATURES[name]
    assert inspect.Signature.empty not in {signature.return_annotation}
    assert all(item.annotation is not inspect.Parameter.empty for item in signature.parameters.values())


@pytest.mark.parametrize("name", [*SIGNATURES, *sorted(CLASSES)])
def test_every_name_says_what_it_is_and_what_it_raises(name: str) -> None:
    said = inspect.getdoc(exported()[name]) or ""
    assert said
    if name in SIGNATURES:
        assert "Raises:" in said
        for parameter in inspect.signature(exported()[name]).parameters:  # type: ignore[arg-type]
            assert f"{parameter}:" in said or name == "memsim.read_result"


@pytest.mark.parametrize("name", PACKAGES)
def test_type_checkers_are_told_the_same_names(name: str) -> None:
    package = PACKAGES[name]
    tree = ast.parse((ROOT / name.replace(".", "/") / "__init__.pyi").read_text())
    told = {alias.name: node.module for node in tree.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert told == package._PLACES
    assert (ROOT / "memsim" / "py.typed").is_file()


@pytest.mark.parametrize("name", PACKAGES)
def test_an_unknown_name_is_an_attribute_error(name: str) -> None:
    with pytest.raises(AttributeError, match=f"module '{name}' has no attribute 'trian'"):
        PACKAGES[name].trian  # noqa: B018
    assert set(PACKAGES[name].__all__) <= set(dir(PACKAGES[name]))


@pytest.mark.parametrize("name", PACKAGES)
def test_importing_a_package_imports_none_of_it(name: str) -> None:
    code = (
        f"import sys, {name}; print(*(item for item in sys.modules if item.partition('.')[0] in ('memsim', 'numpy')))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert set(done.stdout.split()) == {"memsim", "memsim.lazy", name}
