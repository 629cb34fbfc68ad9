"""Hand the results of tasks that have just ended to those that wait here, without a read.

Whoever waits for a result reads it from the store, in another thread, once it is woken. Here the
writing thread reads the results after its commit, before it wakes listeners.

Measured by 3,600 round trips in one process, with and without it in turn, on tmpfs: the lower
quantiles (2 %, 10 %, 25 %) are 7 to 11 % lower with it. It changes no result.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from sitq.backends.sqlite._operations import get_results

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from sitq.backends.sqlite._operations import SQLiteTransaction
    from sitq.backends.sqlite._wakeups import FileListeners
    from sitq.ids import TaskId
    from sitq.models import Result

__all__ = ["FreshResults"]

# False: all results are read from the store.
ENABLED: Final = True
# The results are kept of so many tasks that end in one transaction.
_MOST: Final = 16


class FreshResults:
    """The results of the last transaction, if any task here waits for results.

    Args:
        listeners: who waits.
    """

    def __init__(self, listeners: FileListeners) -> None:
        self._listeners = listeners
        self._results: dict[TaskId[Any], Result[Any] | None] = {}

    def note(self, transaction: SQLiteTransaction) -> None:
        """Keep the results of a transaction; after its commit, in the database thread."""
        self._results = self._read(transaction)

    def _read(self, transaction: SQLiteTransaction) -> dict[TaskId[Any], Result[Any] | None]:
        ended = transaction.ended
        if not (ENABLED and 0 < len(ended) <= _MOST and "results" in transaction.changed):
            return {}
        if not self._listeners.are_for("results"):
            return {}
        try:
            return get_results(transaction, ended)
        except Exception:  # noqa: BLE001 - whoever asks reads the store, and gets the error
            return {}

    def take(
        self, task_ids: Sequence[TaskId[Any]]
    ) -> Mapping[TaskId[Any], Result[Any] | None] | None:
        """Return and forget the results of some tasks; ``None`` if one of them is not here."""
        fresh = self._results
        if any(fresh.get(task_id) is None for task_id in task_ids):
            return None
        return {task_id: fresh.pop(task_id) for task_id in dict.fromkeys(task_ids)}

    def forget(self) -> None:
        """Keep none."""
        self._results = {}
