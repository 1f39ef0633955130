"""What the system refused to a command, in one line: which of its limits, and how to raise it."""

import errno

_MORE_FILES = "; raise `ulimit -n`"


def remedy(cause: BaseException | None) -> str:
    """Return what ends a line about an error with this cause: how to raise the limit behind it, if there is one."""
    return _MORE_FILES if isinstance(cause, OSError) and cause.errno == errno.EMFILE else ""


def system_refusal(error: BaseException) -> str | None:
    """Return the line about an error of the system, or None: it is a fault of memsim."""
    if isinstance(error, MemoryError) or "failed to map segment" in str(error):
        return "memory ran out outside of the cap; raise this process's own limits (`ulimit -d`, `ulimit -v`)"
    if isinstance(error, RuntimeError) and "can't start new thread" in str(error):
        return "no thread can be started; raise `ulimit -u`, `ulimit -d`, or the limit of processes of this machine"
    if not isinstance(error, OSError):
        return None
    what = error.strerror or str(error)
    if error.errno == errno.EMFILE:
        return what + _MORE_FILES
    if error.errno == errno.EAGAIN:
        return f"no process can be started: {what}; raise `ulimit -u`, or the limit of processes of this machine"
    if error.errno == errno.ENOMEM:
        return f"{what}; raise this process's own limits (`ulimit -d`, `ulimit -v`)"
    return f"{error.filename}: {what}" if error.filename else what
