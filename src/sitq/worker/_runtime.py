"""The settings of a worker, and what its parts and its attempts share."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Annotated, Any

import anyio
from pydantic import BaseModel, ConfigDict, Field

from sitq._loops import LoopRef, no_op
from sitq._validation import PositiveSeconds, Seconds, ServedQueue
from sitq.clock import SystemClock
from sitq.models import Outcome, RetryPolicy
from sitq.payload.serialization import may_seal
from sitq.payload.signing import seal_outcome
from sitq.worker._client_host import ClientHost
from sitq.worker._outcomes import error_text

if TYPE_CHECKING:
    from collections.abc import Callable

    from sitq._hooks import Hooks
    from sitq.extensions import Event
    from sitq.models import Lease, Progress, ReservedTask
    from sitq.payload.functions import TaskFunction
    from sitq.protocols import Backend, Serializer
    from sitq.queue import QueueClient, SyncQueueClient
    from sitq.worker._events import WorkerEvents
    from sitq.worker._resources import OpenResources

__all__ = ["WorkerOptions", "WorkerRuntime"]


class WorkerOptions(BaseModel):
    """See `sitq.Worker`."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", defer_build=True)

    queues: tuple[ServedQueue, ...]
    max_concurrency: Annotated[int, Field(ge=1, le=10_000)]
    poll_interval: PositiveSeconds
    lease: Annotated[PositiveSeconds, Field(ge=0.1)]
    shutdown_timeout: Seconds
    cancel_grace: Seconds
    retry: RetryPolicy | None
    max_crashes: Annotated[int, Field(ge=1, le=1000)]


class WorkerRuntime:
    """What the parts of one run of a worker share, and all its attempts."""

    def __init__(
        self,
        worker_id: str,
        backend: Backend,
        serializer: Serializer,
        options: WorkerOptions,
        hooks: Hooks,
        resources: OpenResources,
    ) -> None:
        self.worker_id = worker_id
        self.backend = backend
        clock = self.clock = backend.clock
        # The system's own function takes a third of the time, and an attempt looks often.
        is_systems = type(clock).monotonic is SystemClock.monotonic
        self.monotonic = time.monotonic if is_systems else clock.monotonic
        self.serializer = serializer
        self.options = options
        self.hooks = hooks
        # Returns the open resource of a factory.
        self.shared = resources.get
        self.loop = LoopRef()
        self.clients = ClientHost(backend, serializer, hooks, self.loop)
        # Bounds the threads of plain functions.
        self.limiter = anyio.CapacityLimiter(options.max_concurrency)
        # Seconds that the clean-up of a cancelled attempt may take.
        self.grace = min(options.cancel_grace, options.lease)
        # anyio's cancel scope of this loop: looking it up takes as long as a short task.
        self.scope = type(anyio.CancelScope())
        # The worker's own task, on asyncio.
        self._host = asyncio.current_task() if self.loop.asyncio is not None else None
        self._seals = may_seal(serializer, "seal_outcome")
        # Takes the progress that tasks report, from any thread; the reporter sets it.
        self.note: Callable[[Lease, Progress], object]
        # Called when there may be room for more tasks; the reserver sets it.
        self.freed: Callable[[], object] = no_op
        # True once the worker has begun to end.
        self.closing = False
        # The error that ends the worker, and the scope of its services.
        self.error: BaseException | None = None
        self.services: anyio.CancelScope | None = None
        # `None` if no extension hears events.
        self.events: WorkerEvents | None = None
        if hooks.listen:
            from sitq.worker._events import WorkerEvents

            self.events = WorkerEvents(worker_id, backend, self.monotonic, self._emit)

    def _emit(self, event: Event) -> None:
        """Tell the extensions of an event; an exception of a signal handler ends the worker."""
        try:
            self.hooks.emit(event)
        except BaseException as error:  # noqa: BLE001 - it is raised by the run
            self.leave(error)

    @property
    def queue_client(self) -> QueueClient:
        """The queue of async functions that run here."""
        return self.clients.client

    @property
    def sync_queue_client(self) -> SyncQueueClient:
        """The queue of plain functions that run here."""
        return self.clients.sync_client

    @property
    def is_ending(self) -> bool:
        """Return whether the worker ends, or asyncio cancels its task along with all others."""
        return self.closing or (self._host is not None and self._host.cancelling() > 0)

    def leave(self, error: BaseException) -> None:
        """End the worker with an error: that of the heartbeats, or of a signal handler."""
        self.error = self.error or error
        if self.services is not None:
            self.services.cancel()

    def encode(
        self, task: ReservedTask, lease: Lease, function: TaskFunction[Any], value: object
    ) -> bytes:
        """Return the value of a success as it is stored: encoded, and sealed if need be."""
        outcome = Outcome.success(lease, function.dump_result(self.serializer, value))
        return seal_outcome(self.serializer, task, outcome).value or b""

    def sealed(self, task: ReservedTask, outcome: Outcome) -> Outcome:
        """Return an outcome as it is stored: sealed, if the serializer seals."""
        if not self._seals:
            return outcome
        try:
            return seal_outcome(self.serializer, task, outcome)
        except Exception as error:  # noqa: BLE001 - a serializer may be user code
            return Outcome.failure(outcome.lease, error_text(error))
