"""The three standard streams and the signals of a command, made sure of before it begins."""

import io
import os
import signal
import sys
from types import FrameType

from memsim.cli.say import not_heard

_SIGNALS = (signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)


def open_streams() -> None:
    """Put something in the place of a closed stream, and have every text fit the others.

    The first file that a process opens gets the number of a closed stream: what is printed would go into that file.
    Characters that a stream's encoding lacks are printed as their escapes.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            os.open(os.devnull, os.O_RDWR if name == "stderr" else os.O_RDONLY)  # takes the lowest free number
            stream = open(number, "r" if name == "stdin" else "w", encoding="utf-8", closefd=False)  # noqa: SIM115
            setattr(sys, name, stream)
            if name == "stderr":
                not_heard("closed")
    for output in (sys.stdout, sys.stderr):
        if isinstance(output, io.TextIOWrapper):
            output.reconfigure(errors="backslashreplace")


def hear_signals() -> None:
    """End as after Ctrl-C, with nothing left behind, on signals that would end the process at once."""
    for number in _SIGNALS:
        if signal.getsignal(number) == signal.SIG_DFL:  # what is ignored, as by nohup, stays so
            signal.signal(number, _interrupt)


def close_streams() -> None:
    """Let nothing be printed at the very end, where it could not be answered for."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt
