"""Our own modules as processes: started the same way everywhere, and none outlives the one that started it.

``python -m memsim.cap.child PARENT MODULE ARGUMENTS`` is ``python -m MODULE ARGUMENTS``, which the kernel kills when
the process PARENT ends. The worker's memory begins here, so nothing is imported that it does not need; the parent's
half has its imports in its functions.
"""

import runpy
import sys
from collections.abc import Mapping, Sequence
from typing import IO, TYPE_CHECKING

from memsim.cap.confine import die_with_parent

if TYPE_CHECKING:
    import subprocess

    Stream = int | IO[bytes] | None


def child_command(module: str, *arguments: object) -> list[str]:
    """Return the command of a process that runs ``module`` as its main program, and dies with this one."""
    import os

    return [sys.executable, "-m", __name__, str(os.getpid()), module, *map(str, arguments)]


def start_child(
    command: Sequence[str],
    stdin: "Stream" = None,
    stdout: "Stream" = None,
    stderr: "Stream" = None,
    env: Mapping[str, str] | None = None,
    pass_fds: Sequence[int] = (),
    start_new_session: bool = False,
) -> "subprocess.Popen[bytes]":
    """Start a child.

    Args:
        command: From ``child_command``, whatever a cap puts before it.
        stdin: As ``subprocess.Popen`` takes it; None is nothing at all, and not what this process reads.
        stdout: The same; None is that of this process.
        stderr: The same.
        env: The child's environment; None is that of this process.
        pass_fds: Open files that the child inherits.
        start_new_session: Keep Ctrl-C from the child: it reaches this process alone.
    """
    import subprocess
    from pathlib import Path

    import memsim

    return subprocess.Popen(
        command,
        # The package's own directory first on the import path, whatever the user's directory holds.
        cwd=Path(memsim.__file__).parent.parent,
        stdin=subprocess.DEVNULL if stdin is None else stdin,
        stdout=stdout,
        stderr=stderr,
        env=env,
        pass_fds=pass_fds,
        start_new_session=start_new_session,
    )


def ask_child(module: str, *arguments: object, env: Mapping[str, str] | None = None) -> tuple[int, str, str]:
    """Run a child to its end; return its exit code, what it printed, and the last line of what it complained of."""
    import subprocess

    command = child_command(module, *arguments)
    with start_child(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=env) as child:
        try:
            output, complaint = child.communicate()
        except BaseException:
            child.kill()
            raise
    return child.returncode, output.decode(), complaint.decode(errors="replace").strip().rpartition("\n")[2]


def main() -> None:
    """Run a module in the place of this one."""
    parent, module, *arguments = sys.argv[1:]
    die_with_parent(int(parent))
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
