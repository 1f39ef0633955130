"""Ctrl-C, twice: the first asks, the second stops."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)


@contextmanager
def asking_first(ask: Callable[[], bool]) -> Iterator[None]:
    """Call ``ask`` on the first SIGINT, SIGTERM, SIGHUP or SIGQUIT; raise KeyboardInterrupt on the second.

    It is raised on the first, too, if ``ask`` returns False. Only in the main thread, which alone gets signals.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    asked = False

    def handle(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        if asked or not ask():
            raise KeyboardInterrupt
        asked = True

    # What is ignored, by nohup or for a job in the background, stays so.
    heard = [number for number in _SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, handle) for number in heard}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
