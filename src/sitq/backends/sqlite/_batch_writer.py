"""Group commit of a SQLite store: batches of requests, and how a transaction runs one."""

from __future__ import annotations

from contextlib import suppress
from functools import partial
from itertools import chain, islice
from typing import TYPE_CHECKING, Any, TypeVar

from sitq.backends._batch_queue import (
    BatchQueue,
    BlockingRequest,
    Request,
    group_by_operation,
    wake_all,
)
from sitq.errors import UnknownOutcomeError

if TYPE_CHECKING:
    from collections.abc import Callable

    from sitq._loops import LoopRef
    from sitq.backends.sqlite._loop_waker import LoopWaker
    from sitq.backends.sqlite._operations import SQLiteTransaction

__all__ = ["BatchWriter", "name_of", "run_batch"]

O = TypeVar("O")  # noqa: E741 - what comes out


class BatchWriter(BatchQueue):
    """Write batches of requests in the database thread.

    Args:
        loop: the event loop of all callers.
        waker: calls functions in that loop from the database thread.
        schedule: queues a function for the database thread.
        write: runs a batch in that thread, and sets answers or an error on each request.
        needs_disk: returns whether a request has to wait for a flush.
        keep: flushes for some requests.
    """

    def __init__(
        self,
        loop: LoopRef,
        waker: LoopWaker,
        schedule: Callable[[Callable[[], None]], None],
        write: Callable[[list[Request[Any]]], None],
        needs_disk: Callable[[Request[Any]], bool],
        keep: Callable[[list[Request[Any]]], None],
    ) -> None:
        super().__init__(loop)
        self._waker = waker
        self._schedule = schedule
        self._write = write
        self._needs_disk = needs_disk
        self._keep = keep

    @property
    def is_idle(self) -> bool:
        """Return whether no request is queued or being written."""
        return not self._scheduled

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
        left = [request for request in batch if not request.settled]
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


def run_batch(work: SQLiteTransaction, batch: list[Request[Any]]) -> None:
    """Run all requests of a batch, and give each its answers."""
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
