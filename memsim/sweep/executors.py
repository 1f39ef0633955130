"""Who executes points: this process, one after the other, or the workers of a Dask cluster."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
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

    with (
        LocalCluster(
            n_workers=workers, threads_per_worker=1, processes=True, memory_limit=0, dashboard_address=None
        ) as cluster,
        Client(cluster) as client,
    ):
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

    try:
        client = Client(scheduler, timeout=_CONNECT_S)
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"no Dask scheduler at {scheduler}: {reason}; start one with `dask scheduler`") from None
    with client:
        yield client


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
