"""What becomes of tasks that have completed themselves in transactions of their own.

The store cannot judge such an outcome before that transaction has ended. So each is written by
itself, and no other has to wait for it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import anyio

from sitq._logging import Log
from sitq.errors import BackendValueError
from sitq.models import Outcome, OutcomeKind
from sitq.worker._refusals import replaced

if TYPE_CHECKING:
    from collections.abc import Callable

    from sitq.models import Lease
    from sitq.protocols import Backend
    from sitq.worker._reporter import Streak

__all__ = ["Fallback", "Fallbacks"]

_log: Final = Log(__name__)


class Fallback(Outcome):
    """What becomes of a task that completed itself in a transaction that was not committed.

    If it was committed, the store refuses this, and that is as it should be.
    """

    @classmethod
    def of(cls, outcome: Outcome) -> Fallback:
        """The same outcome, expected to be refused."""
        return cls(**dict(outcome))


def _log_end(outcome: Outcome) -> None:
    """Log that a task has not completed itself after all."""
    log = {OutcomeKind.FAILURE: _log.error, OutcomeKind.RETRY: _log.warning}
    log.get(outcome.kind, _log.info)(
        "task %s: the transaction that completed epoch %d was not committed; it ended as: %s",
        outcome.task_id,
        outcome.epoch,
        outcome.kind,
    )


class Fallbacks:
    """Writes fallbacks, each until the store has judged it.

    One may be written twice: whichever comes second changes nothing.

    Args:
        backend: an open backend.
        done: called with the leases whose outcomes need no more care.
        streak: told of failures.
    """

    def __init__(
        self, backend: Backend, done: Callable[[list[Lease]], None], streak: Streak
    ) -> None:
        self._backend = backend
        self._done = done
        self._streak = streak
        self._waiting: dict[Lease, Fallback] = {}
        self._new: list[Fallback] = []
        self._added = anyio.Event()
        self._judged = anyio.Event()

    def add(self, outcome: Fallback) -> None:
        """Have one written soon."""
        self._waiting[outcome.lease] = outcome
        self._new.append(outcome)
        self._added.set()

    def __contains__(self, lease: Lease) -> bool:
        return lease in self._waiting

    async def written(self) -> None:
        """Return once none waits to be judged."""
        while self._waiting:
            await self._judged.wait()

    async def run(self) -> None:
        """Write what comes, for ever."""
        async with anyio.create_task_group() as group:
            while True:
                await self._added.wait()
                self._added = anyio.Event()
                new, self._new = self._new, []
                for outcome in new:
                    group.start_soon(self._write, outcome)

    async def flush(self) -> None:
        """Write all that wait, once `run` has ended."""
        async with anyio.create_task_group() as group:
            for outcome in list(self._waiting.values()):
                group.start_soon(self._write, outcome)

    async def _write(self, outcome: Outcome) -> None:
        is_accepted = False
        while True:
            try:
                (is_accepted,) = await self._backend.finish([outcome])
            except Exception as error:  # noqa: BLE001 - an unavailable store never ends a worker
                plain = replaced(outcome, error) if isinstance(error, BackendValueError) else None
                if plain is None:
                    await anyio.sleep(self._streak.fail(error))
                else:
                    outcome = plain
            else:
                break
        self._streak.succeed()
        if is_accepted:
            _log_end(outcome)
        del self._waiting[outcome.lease]
        self._done([outcome.lease])
        self._judged.set()
        self._judged = anyio.Event()
