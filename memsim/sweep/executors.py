"""Who executes points: this process, one after the other, or the workers of a Dask cluster."""

import logging
import signal
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from importlib.util import find_spec
from multiprocessing.resource_tracker import ensure_running
from typing import TYPE_CHECKING, Any

from memsim.errors import InputError
from memsim.sweep.execute import Done, Execute, Order

if TYPE_CHECKING:
    from distributed import Client

Finished = Iterator[tuple[str, Done]]
"""(key, what became of it), in the order in which points end."""

_CONNECT_S = 10


def dask_installed() -> bool:
    """Return whether the extra ``cluster`` is there."""
    return find_spec("distributed") is not None


def one_by_one(orders: Sequence[Order], execute: Execute) -> Finished:
    """Execute points here, one after the other."""
    for order in orders:
        yield order.key, execute(order)


@contextmanager
def local_client(workers: int) -> "Iterator[Client]":
    """Yield a client of a cluster on this machine, made for it: so many processes, each one point at a time."""
    from distributed import Client, LocalCluster

    _silence()
    with ExitStack() as stack:
        # Threads made meanwhile, and all that they start, are deaf to Ctrl-C: it is for this process to end them.
        ensure_running()  # multiprocessing's tracker, whose own start would make them hear it again
        heard = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            cluster = LocalCluster(
                n_workers=workers,
                threads_per_worker=1,
                processes=True,
                memory_limit=0,
                dashboard_address=None,
                silence_logs=logging.CRITICAL,
            )
            client = stack.enter_context(Client(stack.enter_context(cluster)))
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, heard)
        yield client


@contextmanager
def remote_client(scheduler: str) -> "Iterator[Client]":
    """Yield a client of a running scheduler.

    Args:
        scheduler: Its address, such as ``tcp://127.0.0.1:8786``.

    Raises:
        InputError: Nothing answers there.
    """
    from distributed import Client

    _silence()
    try:
        client = Client(scheduler, timeout=_CONNECT_S)
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"no Dask scheduler at {scheduler}: {reason}; start one with `dask scheduler`") from None
    with client:
        yield client


def _silence() -> None:
    """Keep Dask's logs, tracebacks among them, from stderr: what goes wrong is said in one line here."""
    for name in [name for name in logging.root.manager.loggerDict if name.partition(".")[0] == "distributed"]:
        logging.getLogger(name).setLevel(logging.CRITICAL)


def on_cluster(orders: Sequence[Order], execute: Execute, client: "Client") -> Finished:
    """Execute points on the workers of a cluster; what a lost worker had in hand is given to another one.

    Raises:
        InputError: The scheduler was lost.
    """
    from distributed import as_completed

    # `pure=False`: a key of its own for each, so that nobody else's results on this scheduler are taken for ours.
    futures = client.map(execute, orders, pure=False, key="memsim-point")
    keys = {future.key: order.key for future, order in zip(futures, orders, strict=True)}
    finished = as_completed(futures, with_results=True, raise_errors=False)
    del futures  # results are dropped as they are taken
    for future, result in finished:
        if future.status == "finished":
            yield keys[future.key], result
        elif future.status == "error":
            yield keys[future.key], Done(1, b"", _failure(result), 0.0)
        else:
            raise InputError("the Dask scheduler is gone; rows are kept, repeat the command to go on")


def _failure(result: Any) -> str:
    """Say in one line what Dask says of a task that failed: (type, error, traceback)."""
    error = result[1] if isinstance(result, tuple) else result
    return f"{type(error).__name__}: {' '.join(str(error).split())[:400]}"
