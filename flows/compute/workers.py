"""Where Dask runs: worker processes of this machine, a scheduler's address, or a cluster's class.

Processes, not threads: pydicom is Python. Workers write under the scratch folder only, and end
with the process that started them, however it ends. Dask is imported when work comes: an ingest
without news does not wait for it.
"""

import importlib
import logging
import signal
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, wait
from contextlib import ExitStack, contextmanager, suppress
from itertools import islice
from pathlib import Path
from threading import Thread
from time import monotonic
from types import ModuleType
from typing import TYPE_CHECKING, Any, Self, TypeVar

from flows.errors import FlowError
from flows.settings import ClusterSettings

if TYPE_CHECKING:
    from distributed import Client, LocalCluster
    from distributed import Future as DaskFuture

Item = TypeVar("Item")
Result = TypeVar("Result")
ClusterClass = Callable[..., Any]
LOCAL = "local"
GPU = "GPU"
"""Resource of a worker that has a GPU to itself, as `dask worker --nthreads 1 --resources GPU=1`
says it, or the class of a cluster."""

logger = logging.getLogger("hqinet.cluster")

# One thread a process. Dask's own setting returns freed memory at once, so that every image is
# paid for in page faults: twice the time of a conversion, measured.
_ENVIRONMENT = {
    "OMP_NUM_THREADS": 1,
    "MKL_NUM_THREADS": 1,
    "OPENBLAS_NUM_THREADS": 1,
    "MALLOC_TRIM_THRESHOLD_": 256 * 2**20,
    "MALLOC_MMAP_THRESHOLD_": 32 * 2**20,
}
# How long a scheduler may take to answer.
PATIENCE = "30s"
# How many seconds the first worker may take: a batch system may let it wait in its queue.
QUEUE = 600
# How many seconds a cluster that is still starting may take to be there and be closed.
PARTING = 15
# Enough to keep a large cluster busy, few enough that the scheduler holds no whole cohort.
_IN_FLIGHT = 256


class ClusterError(FlowError):
    """A cluster that is not there, or does not start; one line that says what to do."""


class Workers:
    """A Dask cluster that opens at the first work and closes with the `with` block."""

    def __init__(self, settings: ClusterSettings, scratch: Path) -> None:
        self._settings = settings
        self._scratch = scratch
        self._stack = ExitStack()
        self._client: Future[Client] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Close the cluster; what prevents it is logged, for the work is done, or failed before."""
        if self._client is not None:
            wait([self._client], PARTING)
        try:
            self._stack.close()
        except Exception as error:  # noqa: BLE001 - a cluster's class raises anything
            self._warn(f"could not be closed ({type(error).__name__}: {error})")
        if self._client is not None and not self._client.done():
            self._warn("was still starting")

    def start(self) -> None:
        """Begin to start the workers, which takes seconds; what prevents it is raised by `run`.

        For a cluster's class from the main thread; one that cannot be imported is raised here.
        """
        if self._client is None:
            where = self._settings.where
            kind = None if where == LOCAL or "://" in where else cluster_class(where)
            self._client = Future()
            # A daemon: some classes wait for ever for what never comes, and must not be waited for.
            Thread(target=self._open, args=(kind, self._client), daemon=True).start()

    @property
    def are_up(self) -> bool:
        """Whether work can begin at once, or cannot at all."""
        if self._client is None or not self._client.done():
            return False
        failed = self._client.exception() is not None
        return failed or bool(self._client.result().scheduler_info()["workers"])

    def run(
        self,
        function: Callable[[Item], Result],
        items: Iterable[Item],
        retries: int,
        *,
        gpu: bool = False,
    ) -> Iterator[tuple[Item, Result | Exception]]:
        """Run one future an item; yield items with results, or what they failed with, as they end.

        Args:
            retries: how often an item is tried again. An item whose worker dies is done again on
                another one, up to Dask's own limit of three deaths, whatever this says.
            gpu: only on workers that have one, an item at a time.

        Raises:
            ClusterError: no worker is there, or none with a GPU.
        """
        waiting = iter(items)
        first = list(islice(waiting, _IN_FLIGHT))
        if not first:
            return
        self.start()
        client = self._started()
        if gpu:
            self._require_gpu(client)

        def submit(item: Item) -> "DaskFuture":
            resources = {GPU: 1} if gpu else None
            return client.submit(function, item, retries=retries, pure=False, resources=resources)

        item_of = {submit(item): item for item in first}
        done = _dask().as_completed(list(item_of))
        for future in done:
            item = item_of.pop(future)
            error = future.exception()
            yield item, future.result() if error is None else error
            for following in islice(waiting, 1):
                new = submit(following)
                item_of[new] = following
                done.add(new)

    def _started(self) -> "Client":
        """The client, once a worker is there; the others may come while it works."""
        assert self._client is not None
        until = monotonic() + QUEUE
        # Some classes wait for a worker when they are made, and with no end.
        if wait([self._client], QUEUE).done:
            client = self._client.result()
            with suppress(TimeoutError):
                client.wait_for_workers(1, timeout=max(until - monotonic(), 0.1))
                return client
        raise ClusterError(
            f"no worker came to the cluster {self._settings.where} within {QUEUE} s: look at "
            "its queue and its workers' logs, then run again"
        )

    def _require_gpu(self, client: "Client") -> None:
        """Without a worker of that kind Dask would wait for one for ever."""
        workers = client.scheduler_info(n_workers=-1)["workers"].values()
        if not any(worker["resources"].get(GPU) for worker in workers):
            raise ClusterError(
                f"no worker of the cluster {self._settings.where} has the resource {GPU}: start "
                f'them with `dask worker --nthreads 1 --resources "{GPU}=1"`, or set the device '
                "to auto"
            )

    def _open(self, kind: ClusterClass | None, opened: "Future[Client]") -> None:
        try:
            self._scratch.mkdir(parents=True, exist_ok=True)
            client = self._connect(kind)
            # Not entered: a client's context belongs to the thread that entered it.
            self._stack.callback(client.close)
        except BaseException as error:  # noqa: BLE001 - raised where the client is asked for
            opened.set_exception(error)
        else:
            opened.set_result(client)

    def _connect(self, kind: ClusterClass | None) -> "Client":
        where = self._settings.where
        if kind is not None:
            return _dask().Client(self._of_class(kind))
        if "://" in where:
            try:
                return _dask().Client(where, timeout=PATIENCE)
            except (OSError, ValueError) as error:
                raise ClusterError(
                    f"no Dask scheduler answers at {where}: start one (`dask scheduler`) or set "
                    "HQINET_CLUSTER__WHERE=local"
                ) from error
        return _dask().Client(self._stack.enter_context(self._local()))

    def _warn(self, what: str) -> None:
        logger.warning("cluster %s %s: see that nothing is left of it", self._settings.where, what)

    def _local(self) -> "LocalCluster":
        import dask.config  # noqa: PLC0415 - as `_dask`

        with dask.config.set({"distributed.nanny.pre-spawn-environ": _ENVIRONMENT}):
            return self._start_local()

    def _start_local(self) -> "LocalCluster":
        from dask.system import CPU_COUNT  # noqa: PLC0415 - as `_dask`

        return _dask().LocalCluster(
            n_workers=self._settings.workers or CPU_COUNT,
            threads_per_worker=1,
            processes=True,
            memory_limit=self._settings.memory,
            # No dashboard; the scheduler's status page on loopback, any free port.
            dashboard_address="127.0.0.1:0",
            scheduler_kwargs={"dashboard": False},
            local_directory=str(self._scratch),
            silence_logs=logging.CRITICAL,
        )

    def _of_class(self, kind: ClusterClass) -> Any:  # noqa: ANN401 - cluster classes share no base
        if not self._settings.workers:
            raise ClusterError(
                f"cluster {self._settings.where!r} has no workers of its own: say how many to ask "
                "it for with HQINET_CLUSTER__WORKERS"
            )
        try:
            cluster = self._stack.enter_context(kind(**self._settings.arguments))
            cluster.scale(self._settings.workers)
        except Exception as error:  # such a class raises anything
            raise ClusterError(
                f"cluster {self._settings.where!r} does not start: {type(error).__name__}: {error};"
                " look at HQINET_CLUSTER__ARGUMENTS, and whether what it runs on is up"
            ) from error
        return cluster


def on_devices(
    function: Callable[[Item], Result],
    items: Iterable[Item],
    cluster: ClusterSettings,
    scratch: Path,
    device: str,
    name: Callable[[Item], str],
) -> Iterator[tuple[Item, Result]]:
    """Run work that takes a whole device: here, or on the workers of a cluster that was asked for.

    Yields items with results: here one after another, from a cluster as they end.

    Args:
        name: of an item, for people.

    Raises:
        ClusterError: no worker survives an item.
        Exception: what an item failed with; the others are given up.
    """
    if cluster.where == LOCAL:
        for item in items:
            yield item, function(item)
        return
    with Workers(cluster, scratch) as workers:
        for item, result in workers.run(function, items, retries=0, gpu=device == "cuda"):
            if isinstance(result, _dask().KilledWorker):
                raise ClusterError(
                    f"{name(item)}: every worker of the cluster {cluster.where} that took it died: "
                    "look at their memory and logs, then run again; what is done stays"
                ) from result
            if isinstance(result, Exception):
                raise result
            yield item, result


def _dask() -> ModuleType:
    """Import `distributed`, which logs what a worker's end already says."""
    import distributed  # noqa: PLC0415 - half a second, which an ingest without news does not need

    logging.getLogger("distributed").setLevel(logging.CRITICAL)
    return distributed


def cluster_class(path: str) -> ClusterClass:
    """Import a class by its dotted path.

    Raises:
        ClusterError: there is no such class, or its package is not installed.
    """
    module, _, name = path.rpartition(".")
    # dask_jobqueue takes Ctrl-C for itself when it is imported, and would end with success.
    with kept_handler(signal.SIGINT):
        try:
            return getattr(importlib.import_module(module), name)
        except (ImportError, AttributeError, ValueError) as error:
            raise ClusterError(
                f"cluster {path!r} cannot be imported ({error}): install its package "
                f"(`pip install {module.partition('.')[0].replace('_', '-') or path}`), or set "
                "HQINET_CLUSTER__WHERE to `local` or a `tcp://` address"
            ) from error


@contextmanager
def kept_handler(number: signal.Signals) -> Iterator[None]:
    """Leave a signal's handler as it was."""
    before = signal.getsignal(number)
    try:
        yield
    finally:
        if signal.getsignal(number) is not before:
            signal.signal(number, before)
