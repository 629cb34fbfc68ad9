"""Group commit of a SQLite store: batches of requests, and how a transaction runs one."""

from __future__ import annotations

from contextlib import suppress
from functools import partial
from itertools import chain, islice
from typing import TYPE_CHECKING, Any, Final, TypeVar

from sitq.backends._batch_queue import (
    BatchQueue,
    BlockingRequest,
    Compensate,
    Request,
    group_by_operation,
    operation_of,
    wake_all,
)
from sitq.errors import UnknownOutcomeError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from sitq._loops import LoopRef
    from sitq.backends.sqlite._loop_waker import LoopWaker
    from sitq.backends.sqlite._operations import SQLiteTransaction
    from sitq.protocols import Listener

__all__ = ["BatchWriter", "PendingReserveRequest", "name_of", "run_batch"]

O = TypeVar("O")  # noqa: E741 - what comes out


class PendingReserveRequest(Request[O]):
    """A reservation that is tried with each transaction until it gives tasks.

    Args:
        loop: the event loop of the caller.
        operation: what to run.
        items: its arguments, one for each answer.
        compensate: see `Request`.
        gives: returns whether answers hold tasks.
        fulfilled: called in the loop once the request is answered.
        listener: the caller's listener, which is not woken for tasks that this request sees.
    """

    __slots__ = ("_fulfilled", "asked_at", "gives", "is_last", "listener")

    def __init__(
        self,
        loop: LoopRef,
        operation: Callable[..., Any],
        items: Sequence[Any],
        compensate: Compensate[O],
        gives: Callable[[list[O]], bool],
        fulfilled: Callable[[], object],
        listener: Listener,
    ) -> None:
        super().__init__(loop, operation, items, compensate)
        self.gives: Final = gives
        self.listener: Final = listener
        self._fulfilled: Final = fulfilled
        # When it was last run, by the monotonic clock.
        self.asked_at = 0.0
        # True if the next answers end the waiting, whatever they hold.
        self.is_last = False

    def is_unfulfilled(self) -> bool:
        """Return whether the request goes on waiting."""
        if self.is_last:
            return False
        return self.error is not None or not self.gives(self.answers or [])

    def wake(self) -> None:
        """Wake the caller; in the loop."""
        super().wake()
        self._fulfilled()


class BatchWriter(BatchQueue):
    """Write batches of requests in the database thread.

    Args:
        loop: the event loop of all callers.
        waker: calls functions in that loop from the database thread.
        schedule: queues a function for the database thread.
        write: runs a batch in that thread, and sets answers or an error on each request.
        needs_disk: returns whether a request has to wait for a flush.
        keep: flushes for some requests.
        prompts: the operations after which a pending reservation is tried again.
    """

    def __init__(
        self,
        loop: LoopRef,
        waker: LoopWaker,
        schedule: Callable[[Callable[[], None]], None],
        write: Callable[[list[Request[Any]]], None],
        needs_disk: Callable[[Request[Any]], bool],
        keep: Callable[[list[Request[Any]]], None],
        prompts: frozenset[Callable[..., Any]],
    ) -> None:
        super().__init__(loop)
        self._waker = waker
        self._schedule = schedule
        self._write = write
        self._needs_disk = needs_disk
        self._keep = keep
        self._prompts = prompts
        self._pending_reserves: list[PendingReserveRequest[Any]] = []

    @property
    def is_idle(self) -> bool:
        """Return whether no request is queued, being written or pending."""
        return not (self._scheduled or self._pending_reserves)

    def stand(self, request: PendingReserveRequest[Any]) -> None:
        """Add a pending reservation: it is tried with each transaction that stores tasks."""
        with self._lock:
            self._pending_reserves.append(request)

    def prompt(self) -> list[PendingReserveRequest[Any]]:
        """Try all pending reservations for the last time; return them."""
        with self._lock:
            standing, self._pending_reserves = self._pending_reserves, []
            for request in standing:
                request.is_last = True
        for request in standing:
            self.post(request)
        return standing

    async def end(self, request: PendingReserveRequest[O]) -> list[O] | None:
        """End a pending reservation; return its answers, or ``None`` if it has none.

        Raises:
            BaseException: why the reservation failed.
        """
        with self._lock:
            request.is_last = True
            if request in self._pending_reserves:
                self._pending_reserves.remove(request)
                return None
        try:
            await request.wait()
        except BaseException:
            self._abandon(request)
            raise
        return request.result()

    def _take(self) -> list[Request[Any]]:
        batch = super()._take()
        if not self._pending_reserves or self._prompts.isdisjoint(map(operation_of, batch)):
            return batch
        with self._lock:
            standing, self._pending_reserves = self._pending_reserves, []
        return batch + standing

    def _put_back(self, batch: list[Request[Any]]) -> list[Request[Any]]:
        """Keep reservations that gave nothing pending; return the other requests."""
        settled: list[Request[Any]] = []
        with self._lock:
            for request in batch:
                if isinstance(request, PendingReserveRequest) and request.is_unfulfilled():
                    request.error, request.answers = None, None
                    self._pending_reserves.append(request)
                else:
                    settled.append(request)
        return settled

    def _begin(self) -> None:
        self._schedule(self._flush)

    def drain(self) -> None:
        """Write all queued requests; in the database thread."""
        while self._write_batch():
            pass

    def _flush(self) -> None:
        if self._write_batch():
            # Queued behind the thread's other calls, so that reads are not starved.
            self._schedule(self._flush)

    def _write_batch(self) -> bool:
        """Write one batch; return whether more requests have come meanwhile."""
        batch = self._take()
        try:
            self._carry_out(batch)
        except BaseException as error:  # noqa: BLE001 - its callers would wait for ever
            self._fail(batch, error)
        return self._more()

    def _carry_out(self, batch: list[Request[Any]]) -> None:
        if batch:
            self._write(batch)
            batch = self._put_back(batch)
        early: list[Request[Any]] = []
        late: list[Request[Any]] = []
        for request in batch:
            is_late = request.error is None and self._needs_disk(request)
            (late if is_late else early).append(request)
        if early:
            self._answer(early)
        if late:
            self._keep(late)
            self._answer(late)

    def _fail(self, batch: list[Request[Any]], error: BaseException) -> None:
        """Raise `UnknownOutcomeError` in the callers that have no answer yet."""
        standing = set(map(id, self._pending_reserves))
        left = [request for request in batch if not request.settled and id(request) not in standing]
        for request in left:
            message = f"the outcome is unknown: it may be stored ({type(error).__name__})"
            request.error = UnknownOutcomeError(message)
            request.error.__cause__ = error
        with suppress(Exception):
            self._answer(left)

    def _answer(self, batch: list[Request[Any]]) -> None:
        # Written first, so that the next request sees the changes undone.
        if reverses := self._settle(batch):
            self._write(reverses)
        waiting = [request for request in batch if not isinstance(request, BlockingRequest)]
        try:
            if len(waiting) < len(batch):
                wake_all([request for request in batch if isinstance(request, BlockingRequest)])
        finally:
            if waiting:
                self._waker.post(partial(wake_all, waiting))


def name_of(request: Request[Any]) -> str:
    """Return the name of a request's operation, for errors."""
    return getattr(request.operation, "__name__", "write")


def run_batch(
    work: SQLiteTransaction, batch: list[Request[Any]], monotonic: Callable[[], float]
) -> None:
    """Run all requests of a batch, and give each its answers."""
    # Read after the lock was taken: leases count from here.
    asked_at = monotonic()
    for request in batch:
        if isinstance(request, PendingReserveRequest):
            request.asked_at = asked_at
    answers = [_run_group(work, operation, group) for operation, group in group_by_operation(batch)]
    # Set before the commit, so that nothing after it can fail.
    for request, answer in zip(batch, chain.from_iterable(answers), strict=True):
        request.answers = answer


def _run_group(
    work: SQLiteTransaction, operation: Callable[..., list[Any]], group: list[Request[Any]]
) -> list[list[Any]]:
    """Call an operation once for a group of requests; return the answers of each request."""
    answers = iter(operation(work, [item for request in group for item in request.items]))
    return [list(islice(answers, len(request.items))) for request in group]
