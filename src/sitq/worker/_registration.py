"""Report a worker to its store, obey the orders it gets there, and warn of unserved queues."""

from __future__ import annotations

import os
import socket
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Final

from sitq._logging import Log, fields_of
from sitq._version import version
from sitq.administration import AdminBackend, WorkerReport, WorkerState
from sitq.payload.names import one_line

if TYPE_CHECKING:
    from collections.abc import Callable

    from sitq.administration import Overview, WorkerKeeper, WorkerOrders
    from sitq.payload.registry import Registry
    from sitq.protocols import Backend
    from sitq.worker._reserver import Reserver
    from sitq.worker._runner_pool import RunnerPool
    from sitq.worker._runtime import WorkerRuntime

__all__ = ["Registration"]

_log: Final = Log(__name__)

# Seconds from the start to the first look for what no worker serves, and between two looks.
_FIRST_LOOK: Final = 10.0
_LOOK_EVERY: Final = 60.0
# What is logged of an order.
_OBEYED: Final = {
    WorkerState.ACTIVE: "worker %s was told to go on",
    WorkerState.QUIET: "worker %s was told to reserve no more tasks",
    WorkerState.STOPPING: "worker %s was told to end",
}


class Registration:
    """Reports one worker to its store, and obeys the orders that it gets there."""

    def __init__(
        self,
        runtime: WorkerRuntime,
        registry: Registry,
        pool: RunnerPool,
        reserver: Reserver,
        report_now: Callable[[], None],
    ) -> None:
        self._runtime = runtime
        self._registry = registry
        self._pool = pool
        self._reserver = reserver
        self._report_now = report_now
        self._started_at = runtime.clock.now()
        self._host = socket.gethostname()
        self._has_reported = False
        self._functions: tuple[str, ...] = ()
        self._ordered = WorkerState.ACTIVE
        self._warned_of: set[str] = set()
        # When the worker was ready, by the monotonic clock.
        self._ready_at: float | None = None

    # -- in the heartbeats' thread -----------------------------------------------------------

    def report_to(self, keeper: WorkerKeeper) -> None:
        """Report the worker, and have its orders obeyed in the loop.

        Raises:
            BackendError: the store failed.
        """
        self._has_reported = True
        orders = keeper.report(self._report())
        self._runtime.loop.call_soon(partial(self._obey, orders))

    def deregister_from(self, keeper: WorkerKeeper) -> None:
        """Say that the worker has ended.

        Raises:
            BackendError: the store failed.
        """
        if self._has_reported:
            keeper.deregister(self._runtime.worker_id)

    def _report(self) -> WorkerReport:
        options = self._runtime.options
        return WorkerReport(
            id=self._runtime.worker_id,
            host=self._host,
            pid=os.getpid(),
            version=version(),
            queues=options.queues,
            functions=self._known_functions(),
            slots=options.max_concurrency,
            running=self._pool.running,
            state=self._reserver.state,
            lease=options.lease,
            started_at=self._started_at,
        )

    def _known_functions(self) -> tuple[str, ...]:
        with suppress(RuntimeError):  # the loop adds one at this moment: the next report has it
            self._functions = tuple(sorted(self._registry.names()))
        return self._functions

    # -- in the loop -------------------------------------------------------------------------

    def _obey(self, orders: WorkerOrders) -> None:
        if orders.state is WorkerState.STOPPING:
            self._reserver.stop()
        self._reserver.be_quiet(quiet=orders.state is WorkerState.QUIET)
        if orders.paused:
            self._pool.hand_back_queues(orders.paused)
        if orders.state is not self._ordered:
            self._ordered = orders.state
            message, worker_id = _OBEYED[orders.state], self._runtime.worker_id
            _log.info(message, worker_id, extra=fields_of(worker_id))
            self._report_now()  # or its new state would be seen a third of a lease later

    def log_start(self) -> None:
        """Log that the worker is ready, and what it serves."""
        self._ready_at = self._runtime.monotonic()
        worker_id, queues = self._runtime.worker_id, self._runtime.options.queues
        store, functions = _text_of(self._runtime.backend), len(self._known_functions())
        _log.info(
            "worker %s started on %s: queues %s, %d functions, %s, sitq %s",
            worker_id,
            self._host,
            ", ".join(queues),
            functions,
            store,
            version(),
            extra=fields_of(
                worker_id,
                host=self._host,
                pid=os.getpid(),
                queues=list(queues),
                functions=functions,
                store=store,
                version=version(),
            ),
        )

    def log_end(self) -> None:
        """Log that the worker has ended, if it was ready before."""
        if self._ready_at is None:
            return
        worker_id, attempts = self._runtime.worker_id, self._pool.started
        seconds = self._runtime.monotonic() - self._ready_at
        extra = fields_of(worker_id, duration=seconds, attempts=attempts)
        _log.info(
            "worker %s ended: %d attempts in %.3f s", worker_id, attempts, seconds, extra=extra
        )

    async def watch_unserved(self) -> None:
        """Warn once of each queue and each function that has due tasks and no active worker."""
        backend = self._runtime.backend
        if not isinstance(backend, AdminBackend):
            return
        await self._runtime.clock.sleep(_FIRST_LOOK)
        while True:
            with suppress(Exception):  # a store that is unavailable is reported elsewhere
                self._look_for_unserved(await backend.overview())
            await self._runtime.clock.sleep(_LOOK_EVERY)

    def _look_for_unserved(self, view: Overview) -> None:
        for queue in view.unserved:
            text = f"tasks are due in queue {queue!r}, which no active worker serves"
            self._warn(text, {"queue": queue})
        for queue, function in view.unknown_functions:
            self._warn(
                f"tasks of {one_line(function)} wait in queue {queue!r}, and no active worker "
                "there knows this function: give its module to Worker(tasks=...)",
                {"queue": queue, "function": one_line(function)},
            )

    def _warn(self, text: str, fields: dict[str, object]) -> None:
        if text not in self._warned_of:
            self._warned_of.add(text)
            _log.warning("%s", text, extra=fields_of(self._runtime.worker_id, None, **fields))


def _text_of(backend: Backend) -> str:
    """Return the ``repr`` of a store, which has no password."""
    try:
        return one_line(repr(backend), 1000)
    except Exception:  # noqa: BLE001 - the store may be user code
        return type(backend).__qualname__
