"""The rooms of the project: who may import whom, and what no file may hold."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

# Top to bottom; a room imports itself and the rooms below its line, never one above or beside it.
LAYERS: list[set[str]] = [
    {"__main__"},
    {"cli", "pytest_plugin"},
    {"api"},
    {"reports", "regression"},
    {"bench", "compare", "sweep", "quality"},
    {"calibration"},
    {"runtime"},
    {"execution"},
    {"search"},
    {"simulator"},
    {"planner", "run_directory"},
    {"schedules"},
    {"data"},
    {"weights"},
    {"models"},
    {"ir"},
    {"host", "result_file"},
    {"results"},
    {"file_names", "files", "staged_directory"},
    {"tasks"},
    {"json_decode", "toml_file"},
    {"json_file"},
    {"cap"},
    {"reading"},
    {"units"},
    {"printable"},
    {"errors"},
    {""},  # the package itself: __version__
    {"columns", "lazy", "progress_types", "system_limits"},
]
LEVELS = {room: level for level, rooms in enumerate(LAYERS) for room in rooms}
# What plans, simulates and reports starts without a compiler.
WITHOUT_COMPILER = LEVELS["search"]

# The op tables of every run, and the process that times kernels with a part left out, which no run does.
KNOW_THE_KERNELS = {
    "memsim.execution.kernels",
    *(
        f"memsim.execution.ops.{family}"
        for family in ("product", "norm", "attention", "elementwise", "row", "loss", "optimizer", "tile", "bf16")
    ),
    *("memsim.execution.ops.zeroth_order", "memsim.execution.ops.tangent"),
    "memsim.bench.kernel_calls",
}
# Main programs of processes of their own, which exist to be compared with; nothing imports them.
TORCH_PROCESSES = {"memsim.bench.peer_calls", "memsim.bench.torch_step"}

MEMSIM = sorted((ROOT / "memsim").rglob("*.py"))
KERNELS = sorted((ROOT / "kernels").rglob("*.py"))


def module_name(path: Path, source_root: Path) -> str:
    parts = path.relative_to(source_root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def room_of(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


def tree_of(path: Path, executed: bool = False) -> ast.Module:
    """Return the syntax tree of a file; ``executed``: without what only a type checker reads."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    if executed:
        tree.body = [
            node for node in tree.body if not (isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test))
        ]
    return tree


def imports_of(path: Path, source_root: Path, executed: bool = False) -> Iterator[str]:
    """Yield every module that a file imports, inside functions too, as absolute dotted names."""
    package = module_name(path, source_root).split(".")
    if path.name != "__init__.py":
        package = package[:-1]
    for node in ast.walk(tree_of(path, executed)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            name = ".".join([*base, *([node.module] if node.module else [])])
            # `from memsim import files` names a room, `from memsim import __version__` does not.
            names = [f"{name}.{alias.name}" for alias in node.names]
            yield from [full if name == "memsim" and room_of(full) in LEVELS else name for full in names]


def layer_breaks(path: Path, source_root: Path) -> list[str]:
    room = room_of(module_name(path, source_root))
    imported = [name for name in imports_of(path, source_root) if name.split(".")[0] == "memsim"]
    return [name for name in imported if room_of(name) != room and LEVELS[room_of(name)] <= LEVELS[room]]


def module_graph(paths: list[Path], source_root: Path) -> dict[str, set[str]]:
    """Return which modules each one imports, inside functions too; a package stands for its own names only.

    A description of types may look up: ``RunConfig`` is checked by a table that names it in its annotations.
    """
    names = {module_name(path, source_root): path for path in paths}
    graph: dict[str, set[str]] = {}
    for name, path in names.items():
        found = set(imports_of(path, source_root, executed=True)) | set(submodules_of(path))
        graph[name] = {other for other in found if other in names and other != name}
    return graph


def submodules_of(path: Path) -> Iterator[str]:
    """Yield ``a.b`` of ``from a import b``, which may be a module."""
    for node in ast.walk(tree_of(path, executed=True)):
        if isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def circle_in(graph: dict[str, set[str]]) -> list[str]:
    """Return the modules of one circle of imports; none if what is left of the graph runs out of leaves."""
    left = {name: set(others) for name, others in graph.items()}
    while leaves := {name for name, others in left.items() if not others}:
        left = {name: others - leaves for name, others in left.items() if name not in leaves}
    path: list[str] = []
    name = min(left, default="")
    while left and name not in path:
        path.append(name)
        name = min(left[name])
    return path[path.index(name) :] if left else []


def identifier(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", MEMSIM, ids=identifier)
def test_imports_run_downward(path: Path) -> None:
    room = room_of(module_name(path, ROOT))
    assert room in LEVELS, f"{room} is a new room: give it a line in LAYERS"
    assert layer_breaks(path, ROOT) == []


@pytest.mark.parametrize(
    ("room", "line", "broken"),
    [
        ("planner", "from memsim.schedules import lowering", []),
        ("planner", "import memsim.execution.session", ["memsim.execution.session"]),
        ("cap", "from memsim import files", ["memsim.files"]),
        ("weights", "from memsim.data import windows", ["memsim.data"]),
        ("planner", "def f():\n    from memsim.cli import main", ["memsim.cli"]),
        ("runtime", "from memsim import search", []),
        ("search", "from memsim import runtime", ["memsim.runtime"]),
        ("runtime", "from ..reports import html", ["memsim.reports"]),
        ("runtime", "from . import cap", []),
        ("files", "from memsim import __version__", []),
        ("errors", "from memsim.units import MIB", ["memsim.units"]),
    ],
)
def test_a_broken_layer_is_seen(tmp_path: Path, room: str, line: str, broken: list[str]) -> None:
    path = tmp_path / "memsim" / room / "new.py"
    path.parent.mkdir(parents=True)
    path.write_text(line)
    assert layer_breaks(path, tmp_path) == broken


def test_no_import_goes_in_a_circle() -> None:
    graph = module_graph(MEMSIM, ROOT)
    # A package's own file exports names of its modules, which is no import of theirs.
    exports = {module_name(path, ROOT) for path in MEMSIM if path.name == "__init__.py"}
    assert circle_in({name: others - exports for name, others in graph.items()}) == []


def test_a_circle_is_seen(tmp_path: Path) -> None:
    room = tmp_path / "memsim" / "room"
    room.mkdir(parents=True)
    for name, line in {
        "a": "from memsim.room import b",
        "b": "def f():\n    from memsim.room.c import x",
        "c": "import memsim.room.a",
        "d": "from memsim.room import a",
    }.items():
        (room / f"{name}.py").write_text(line)
    graph = module_graph(sorted(room.glob("*.py")), tmp_path)
    assert set(circle_in(graph)) == {"memsim.room.a", "memsim.room.b", "memsim.room.c"}
    (room / "c.py").write_text("")
    assert circle_in(module_graph(sorted(room.glob("*.py")), tmp_path)) == []


MOST_FILES = 20
# Where a room could not be divided yet, and why.
LARGER = {"kernels/memsim_kernels": "Numba's cache is keyed by the files' paths, and every family has two or three"}


def test_no_file_is_longer_than_a_reader_can_hold_without_saying_why() -> None:
    for path in (*MEMSIM, *KERNELS, *(ROOT / "tools").glob("*.py")):
        text = path.read_text(encoding="utf-8")
        assert text.count("\n") <= 250 or "Over 250 lines: " in (ast.get_docstring(ast.parse(text)) or ""), path


def test_no_room_has_more_files_than_a_reader_can_hold() -> None:
    folders = {path.parent for path in [*MEMSIM, *KERNELS, *(ROOT / "tests").rglob("*.py")]}
    counts = {str(folder.relative_to(ROOT)): len(list(folder.glob("*.py"))) for folder in folders}
    assert {folder: n for folder, n in counts.items() if n > MOST_FILES and folder not in LARGER} == {}
    assert all(counts[folder] > MOST_FILES for folder in LARGER), "a reason that is needed no more"


@pytest.mark.parametrize("path", MEMSIM, ids=identifier)
def test_memsim_needs_no_torch_and_one_file_knows_the_kernels(path: Path) -> None:
    imported = {name.split(".")[0] for name in imports_of(path, ROOT)}
    if module_name(path, ROOT) not in TORCH_PROCESSES:
        assert not imported & {"torch", "transformers", "peft"}
    if module_name(path, ROOT) not in KNOW_THE_KERNELS:
        assert "memsim_kernels" not in imported
    if LEVELS[room_of(module_name(path, ROOT))] >= WITHOUT_COMPILER:
        assert not imported & {"numba", "llvmlite"}


def test_nothing_imports_what_needs_torch() -> None:
    imported = {name for path in MEMSIM for name in imports_of(path, ROOT)}
    assert not imported & TORCH_PROCESSES
    assert not loaded_by(["memsim.bench.kernels", "memsim.bench.step"]) & {"torch", "transformers", "peft"}


def test_kernels_import_only_numpy_and_numba() -> None:
    assert KERNELS
    allowed = {"numpy", "numba", "llvmlite", "memsim_kernels"} | sys.stdlib_module_names
    for path in KERNELS:
        imported = {name.split(".")[0] for name in imports_of(path, ROOT / "kernels")}
        assert imported <= allowed, f"{identifier(path)} imports {sorted(imported - allowed)}"


def loaded_by(modules: list[str]) -> set[str]:
    """Import ``modules`` in a fresh interpreter and return the top-level names that it holds then."""
    code = f"import sys, {', '.join(modules)}; print(*{{name.split('.')[0] for name in sys.modules}})"
    out = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert out.returncode == 0, out.stderr
    return set(out.stdout.split())


def test_the_worker_holds_nothing_that_it_does_not_need() -> None:
    heavy = {"torch", "transformers", "matplotlib", "tokenizers", "rich", "click", "memray", "hypothesis"}
    assert not loaded_by(["memsim.execution.worker"]) & heavy


def test_planning_and_reporting_load_no_compiler() -> None:
    names = [module_name(path, ROOT) for path in MEMSIM]
    light = [name for name in names if LEVELS[room_of(name)] >= WITHOUT_COMPILER]
    assert not loaded_by(light) & {"numba", "llvmlite", "torch", "transformers", "tokenizers", "matplotlib", "rich"}


def own_files() -> list[Path]:
    folders = ("memsim", "kernels", "tools", "tests", "docs", "traces", ".ci")
    found = [path for folder in folders for path in (ROOT / folder).rglob("*") if path.is_file()]
    text = [
        path for path in found if path.suffix in {".py", ".md", ".toml", ".json", ".sh"} or path.parent.name == ".ci"
    ]
    return sorted([*text, ROOT / "README.md", ROOT / "pyproject.toml"])


def test_every_file_says_in_its_name_what_it_holds() -> None:
    assert [
        identifier(path) for path in own_files() if path.stem in {"utils", "util", "helpers", "common", "misc"}
    ] == []


# Written so that this file does not match itself.
FORBIDDEN = {
    "something left for later": re.compile(r"\b(?:TO[D]O|FIX[M]E|XX[X])\b"),
    "a path of somebody's machine": re.compile(r"(?<![\w.])/(?:root|home|Users|work|mnt|opt)/"),
    "a path out of the checkout": re.compile(r"\.\./sh[a]red\b"),
}


@pytest.mark.parametrize("what", FORBIDDEN)
def test_no_file_holds(what: str) -> None:
    for path in own_files():
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
            assert not FORBIDDEN[what].search(line), f"{identifier(path)}:{number} holds {what}: {line.strip()}"


def test_what_is_forbidden_is_seen() -> None:
    assert FORBIDDEN["something left for later"].search("# TO" + "DO: later")
    assert FORBIDDEN["a path of somebody's machine"].search("open('/ho" + "me/someone/x')")
    assert FORBIDDEN["a path out of the checkout"].search("see ../sh" + "ared/x")
    assert not any(pattern.search("/proc/self/status, docs/work/x, ../README.md") for pattern in FORBIDDEN.values())
