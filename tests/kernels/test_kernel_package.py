"""What holds for the package as a whole: complete lists, one compilation per kernel, a cache that is never stale."""

import inspect
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numba
import numpy as np
import pytest
from numba.core.registry import CPUDispatcher

import memsim_kernels
from memsim_kernels import exponential, jit, warmup

compiled = pytest.mark.skipif(bool(numba.config.DISABLE_JIT), reason="nothing is compiled with NUMBA_DISABLE_JIT=1")


def test_the_list_of_kernels_is_complete():
    public = {
        name
        for name, value in vars(memsim_kernels).items()
        if callable(value) and getattr(value, "__module__", "").startswith("memsim_kernels.")
    }
    assert public == set(memsim_kernels.__all__)
    assert len(warmup.KERNELS) == len(memsim_kernels.__all__)


def test_warm_up_calls_every_kernel(monkeypatch):
    called = set()

    def spy(name, kernel):
        def call(*arguments):
            called.add(name)
            kernel(*arguments)

        return call

    for name in memsim_kernels.__all__:
        monkeypatch.setattr(memsim_kernels, name, spy(name, getattr(memsim_kernels, name)))
    warmup.warm_up()
    assert called == set(memsim_kernels.__all__)


@pytest.mark.parametrize("kernel", warmup.KERNELS, ids=lambda kernel: kernel.__name__)
def test_every_argument_is_documented(kernel):
    text = inspect.getdoc(kernel)
    function = getattr(kernel, "py_func", kernel)
    for name in inspect.signature(function).parameters:
        assert f"\n    {name}: " in text, f"{function.__name__} does not document {name}"


@compiled
def test_every_kernel_is_compiled_once_for_writable_and_read_only_inputs(kit):
    dispatchers = [
        value
        for module in list(sys.modules.values())
        if getattr(module, "__name__", "").startswith("memsim_kernels.")
        for value in vars(module).values()
        if isinstance(value, CPUDispatcher) and value.targetoptions.get("parallel")
    ]
    assert len(dispatchers) >= 15
    warmup.warm_up()
    a, b, y = kit.normal(3, 8), kit.frozen(3, 8), kit.nans(3, 8)
    memsim_kernels.add(y, a, b)
    memsim_kernels.add(y, b, a)
    assert {len(dispatcher.signatures) for dispatcher in dispatchers} == {1}


@compiled
def test_other_types_are_refused_instead_of_compiled(kit):
    y = kit.nans(3, 8)
    with pytest.raises(TypeError, match="No matching definition"):
        memsim_kernels.add(y, y.astype(np.float64), y)
    with pytest.raises(TypeError, match="No matching definition"):
        memsim_kernels.add(kit.frozen(3, 8), y, y)


@compiled
def test_a_change_in_a_helper_file_is_compiled(tmp_path):
    """Numba alone would load the old code of a kernel whose helper changed in another file."""
    package = tmp_path / "memsim_kernels"
    package.mkdir()
    shutil.copy(jit.__file__, package / "jit.py")
    (package / "__init__.py").write_text("")
    (package / "user.py").write_text(
        "import numpy as np\n"
        "from memsim_kernels.constant import value\n"
        "from memsim_kernels.jit import WRITE_1D, kernel\n"
        "from numba import prange\n"
        "@kernel(WRITE_1D)\n"
        "def fill(y):\n"
        "    for i in prange(y.size):\n"
        "        y[i] = value()\n"
        "y = np.zeros(3, np.float32)\n"
        "fill(y)\n"
        "print(y[0], sum(fill.stats.cache_hits.values()))\n"
    )
    environment = os.environ | {"PYTHONPATH": str(tmp_path), "NUMBA_CACHE_DIR": str(tmp_path / "cache")}
    answers = []
    for number in (1, 1, 2):
        source = f"from memsim_kernels.jit import helper\n@helper\ndef value():\n    return {number}.0\n"
        (package / "constant.py").write_text(source)
        answers.append(_output([sys.executable, "-B", "-m", "memsim_kernels.user"], environment, tmp_path))
    assert answers == ["1.0 0", "1.0 1", "2.0 0"]


def _output(command: list[str], environment: dict[str, str], directory: Path) -> str:
    return subprocess.run(
        command, env=environment, cwd=directory, capture_output=True, text=True, check=True, timeout=600
    ).stdout.strip()


def test_exp_is_within_two_units_in_the_last_place():
    x = np.concatenate([np.linspace(-87.0, 88.5, 3001), np.linspace(-1.0, 1.0, 501)]).astype(np.float32)
    got, want = _exp_of(x).astype(np.float64), np.exp(x.astype(np.float64))
    assert np.max(np.abs(got - want) / np.spacing(want.astype(np.float32))) <= 2.0


def test_exp_at_the_ends_of_the_range():
    x = np.array([-np.inf, -1000.0, -104.0, -100.0, -0.0, 0.0, 88.72, 89.0, 1000.0, np.inf, np.nan], np.float32)
    got = _exp_of(x)
    assert got[:3].tolist() == [0.0, 0.0, 0.0]
    assert got[3] == pytest.approx(np.exp(-100.0), abs=1.5e-45)  # one step of the subnormal numbers
    assert got[4:6].tolist() == [1.0, 1.0]
    assert got[6] == pytest.approx(np.exp(88.72), rel=1e-5)
    assert np.all(np.isposinf(got[7:10]))
    assert np.isnan(got[10])


def test_exp2_is_within_two_units_in_the_last_place_and_zero_far_below():
    x = np.concatenate([np.linspace(-124.9, 100.0, 3001), np.linspace(-1.0, 1.0, 501)]).astype(np.float32)
    got, want = _exp2_of(x).astype(np.float64), np.exp2(x.astype(np.float64))
    assert np.max(np.abs(got - want) / np.spacing(want.astype(np.float32))) <= 2.0
    ends = _exp2_of(np.array([-np.inf, -1e30, -125.1, -0.0, 0.0, np.nan], np.float32))
    assert ends[:5].tolist() == [0.0, 0.0, 0.0, 1.0, 1.0]
    assert np.isnan(ends[5])


def _exp_of(x: np.ndarray) -> np.ndarray:
    out = np.empty_like(x)
    _exp_loop(out, x)
    return out


@numba.njit
def _exp_loop(out, x):
    for i in range(x.size):
        out[i] = exponential.exp(x[i])


def _exp2_of(x: np.ndarray) -> np.ndarray:
    out = np.empty_like(x)
    _exp2_loop(out, x)
    return out


@numba.njit
def _exp2_loop(out, x):
    for i in range(x.size):
        out[i] = exponential.exp2(x[i])


@compiled
def test_kernels_from_the_cache_hold_no_bitcode_and_run():
    program = """
import gc
from numba.core.registry import CPUDispatcher
import memsim_kernels
from memsim_kernels import warmup
cached = [item for item in gc.get_objects() if isinstance(item, CPUDispatcher) and item.stats.cache_hits]
held = [result for item in cached for result in item.overloads.values() if result.library._shared_module is not None]
warmup.warm_up()
print(len(cached) >= 15, len(held))
"""
    command = [sys.executable, "-c", program]
    _output([sys.executable, "-c", "import memsim_kernels"], dict(os.environ), Path.cwd())  # fills the cache
    assert _output(command, dict(os.environ), Path.cwd()) == "True 0"
