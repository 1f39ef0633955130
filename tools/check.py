"""Run every check of the project: ``python tools/check.py [--fast] [CHECK ...]``.

All checks run, also after one failed; the exit code is 1 when any did. Their settings are in ``pyproject.toml``.
"""

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent

CHECKS = {
    "format": ("ruff", "format", "--check"),
    "lint": ("ruff", "check"),
    "types": ("mypy",),
    "tests": ("pytest",),
    # Numba's compiler hides out-of-range indices and integer overflow; the interpreter does not.
    "nojit": ("pytest", "tests/kernels"),
    "docs": ("mkdocs", "build", "--quiet", "--strict"),
}
ENVIRONMENT = {"nojit": {"NUMBA_DISABLE_JIT": "1"}, "docs": {"NO_MKDOCS_2_WARNING": "1"}}
SLOW = ("tests", "nojit")


def run(name: str) -> bool:
    """Run one check, show its command and its time, and return whether it passed."""
    if name == "nojit" and not (ROOT / "tests" / "kernels").is_dir():
        print("nojit: no tests/kernels, nothing to run", flush=True)
        return True
    tool, *arguments = CHECKS[name]
    environment = os.environ | ENVIRONMENT.get(name, {})
    print(f"{name}: {' '.join(CHECKS[name])}", flush=True)
    start = time.perf_counter()
    code = subprocess.run([sys.executable, "-m", tool, *arguments], cwd=ROOT, env=environment, check=False).returncode
    print(f"{name}: {'passed' if code == 0 else f'FAILED ({code})'} in {time.perf_counter() - start:.1f} s", flush=True)
    return code == 0


def main() -> None:
    """Run the checks that the command line selects."""
    parser = argparse.ArgumentParser(description="Run the project's checks.")
    parser.add_argument("--fast", action="store_true", help=f"leave out {' and '.join(SLOW)}")
    parser.add_argument("checks", nargs="*", metavar="CHECK", help=f"only these, of: {', '.join(CHECKS)}")
    options = parser.parse_args()
    unknown = sorted(set(options.checks) - set(CHECKS))
    if unknown:
        parser.error(f"no check called {', '.join(unknown)}; choose from {', '.join(CHECKS)}")
    names = [name for name in options.checks or CHECKS if not (options.fast and name in SLOW)]
    failed = [name for name in names if not run(name)]
    print(f"FAILED: {', '.join(failed)}" if failed else f"passed: {', '.join(names)}")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
