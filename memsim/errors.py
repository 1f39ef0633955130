"""The errors that memsim raises, each with the exit code it ends a command with.

MemsimError             1  anything below, caught once, in ``memsim.cli``
├── InputError          1  a file or a machine that cannot serve: missing, corrupt, full
├── WorkerError         1  the capped process died for a reason that is not a limit
│   └── DivergedError   1  because a loss, or what it trains, is not finite
├── UsageError          2  a value on the command line that can never work
└── LimitError          3  a limit was broken: plan refused, killed at the cap, thrashing
"""


class MemsimError(Exception):
    """Base of every error that a user can cause; its text is one line: what, how much, where, what to do."""

    exit_code = 1


class InputError(MemsimError):
    """A file, a directory or a machine is not what the command needs."""


class WorkerError(MemsimError):
    """The worker process ended for a reason that is not a memory limit."""


class DivergedError(WorkerError):
    """Training diverged: a loss, or what is trained, is not finite."""


class UsageError(MemsimError):
    """A value given on the command line or in a call can never work."""

    exit_code = 2


class LimitError(MemsimError):
    """A memory limit was broken, or a plan would break it."""

    exit_code = 3
