"""Processes that a command started, found by a mark in their environment that children inherit."""

import psutil

MARK = "MEMSIM_STRESS"


def marked(mark: str) -> list[psutil.Process]:
    """Return the processes whose ``MARK`` is ``mark``, however long ago they were started."""
    found = []
    for process in psutil.process_iter():
        try:
            alive = process.status() != psutil.STATUS_ZOMBIE
            if alive and process.environ().get(MARK) == mark:
                found.append(process)
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return found
