"""Streams that are closed, full, or nobody's; limits of the system; languages; clocks; signals."""

import os
import resource
import shutil
import signal
from pathlib import Path

from disks import require_python_for
from workshop import NOBODY, Ending, Fault, Workshop, wait_for

CLOCK = """
import os, time
jump_s, after = float(os.environ["JUMP_S"]), time.monotonic() + 0.3
wall, wall_ns = time.time, time.time_ns
time.time = lambda: wall() + (jump_s if time.monotonic() > after else 0)
time.time_ns = lambda: wall_ns() + (int(jump_s * 1e9) if time.monotonic() > after else 0)
"""


def piped(name: str, line: str, code: int, says: str, *more: str) -> Fault:
    """Return the fault of streams as a line of shell makes them."""
    return Fault(name, code, says, lambda shop: shop.shell(line, *shop.arguments(), *more))


def heard_again(name: str, line: str, code: int = 0) -> Fault:
    """Return the same for streams on which nothing arrives: the run ends well, and its record says what was unheard."""

    def tried(shop: Workshop) -> Ending:
        done = shop.shell(line, *shop.arguments())
        record = shop.place / "out" / "result.json"
        assert record.is_file(), done
        told = f"unheard: {'unheard' in record.read_text()}"
        return Ending(done.code, told, told)

    return Fault(name, code, "unheard: True", tried)


def clock(jump_s: int) -> Fault:
    """Return the fault of a wall clock that jumps while a run goes on."""

    def tried(shop: Workshop) -> Ending:
        adapter = shop.reference()
        site = shop.directory / "site"
        site.mkdir()
        (site / "sitecustomize.py").write_text(CLOCK)
        paths = os.pathsep.join([str(site), shop.environment["PYTHONPATH"]])
        done = shop.memsim(*shop.arguments(), env={"PYTHONPATH": paths, "JUMP_S": str(jump_s)})
        found = shop.place / "out" / "adapter_model.safetensors"
        assert done.code != 0 or found.read_bytes() == adapter, "other bits"
        return done

    return Fault(f"the wall clock jumps by {jump_s} s in mid-run", 0, "adapter", tried)


def few_processes(shop: Workshop) -> Ending:
    """A user who may start nothing more."""
    require_python_for(NOBODY)
    for path in (shop.directory, shop.place):
        path.chmod(0o777)
    os.chown(shop.cache, NOBODY, NOBODY)

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_NPROC, (1, 1))
        os.setgroups([])
        os.setgid(NOBODY)
        os.setuid(NOBODY)

    return shop.memsim(*shop.arguments(), preexec_fn=limit)


def foreign_names(shop: Workshop) -> Ending:
    """Names that are no UTF-8, printed in ASCII."""
    odd = Path(os.fsdecode(os.fsencode(shop.place) + b"/out-\xff\xfe-\xc3\xa9"))
    shop.place.joinpath("model-\u00e9").mkdir()
    shutil.rmtree(shop.place / "model-\u00e9")
    return shop.memsim(
        *shop.arguments(), "--out", odd, env={"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    )


def signalled(number: signal.Signals, twice: bool = False) -> Fault:
    """Return the fault of a signal in mid-run; what is there goes on to the same bits."""

    def tried(shop: Workshop) -> Ending:
        with shop.popen(*shop.arguments(steps=10_000)) as process:
            wait_for(process, "step 5/")
            process.send_signal(number)
            if twice:
                process.send_signal(number)
            out, err = process.communicate(timeout=60)
        goes_on = shop.memsim("run", "--resume", shop.place / "out", "--steps", 2000)
        whole = shop.memsim(*shop.arguments("whole", steps=2000))
        assert (goes_on.code, whole.code) == (0, 0), (goes_on.err, whole.err)
        name = "adapter_model.safetensors"
        assert (shop.place / "out" / name).read_bytes() == (shop.place / "whole" / name).read_bytes(), "other bits"
        return Ending(process.returncode, out, err)

    name = f"{number.name}{', twice' if twice else ''} in mid-run, then resumed"
    return Fault(name, 130, "memsim: interrupted", tried)


def killed(shop: Workshop) -> Ending:
    """The command is killed; the next one removes what it left, and goes on."""
    with shop.popen(*shop.arguments(steps=10_000)) as process:
        wait_for(process, "step 5/")
        process.kill()
        process.communicate(timeout=60)
    record = shop.memsim("run", "--resume", shop.place / "out", "--steps", 2000)
    whole = shop.memsim(*shop.arguments("whole", steps=2000))
    assert (record.code, whole.code) == (0, 0), (record.err, whole.err)
    name = "adapter_model.safetensors"
    assert (shop.place / "out" / name).read_bytes() == (shop.place / "whole" / name).read_bytes(), "other bits"
    return record


FAULTS = [
    heard_again("standard error closed", '"$@" 2>&-'),
    heard_again("both streams closed", '"$@" >&- 2>&-', 1),  # what was asked for could not be said
    heard_again("standard error full", '"$@" 2>/dev/full'),
    heard_again("a reader of standard error that leaves in mid-run", '"$@" 2> >(head -n 3 >/dev/null)'),
    piped("standard output full, with --json -", '"$@" >/dev/full', 1, "standard output", "--json", "-"),
    piped("ulimit -n 12", 'ulimit -n 12; exec "$@"', 1, "ulimit -n"),
    piped("ulimit -d 100000", 'ulimit -d 100000; exec "$@"', 1, "memsim: "),
    Fault("ulimit -u 1", 1, "memsim: ", few_processes),
    Fault("ASCII output, names that are no UTF-8", 0, "adapter", foreign_names),
    clock(3600), clock(-3600),
    *(signalled(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGQUIT, signal.SIGHUP)),
    signalled(signal.SIGTERM, twice=True),
    Fault("SIGKILL in mid-run, then resumed", 0, "adapter", killed),
]  # fmt: skip
