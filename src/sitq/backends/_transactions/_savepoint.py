"""All or nothing within a transaction that goes on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, TypeVar

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from sitq.backends._transactions._fate import Fate
    from sitq.backends._transactions._ports import Executor

__all__ = ["savepoint"]

T = TypeVar("T")

# A statement's cancellation may reach the server late, and end the next one.
_TRIES: Final = 3


async def savepoint(executor: Executor, work: Coroutine[Any, Any, T], fate: Fate) -> T:
    """Run a unit of work; if it raises, the transaction is as it was before."""
    try:
        await executor.fetch("SAVEPOINT sitq")
    except BaseException:
        work.close()
        raise
    try:
        with fate.work():
            answer = await work
        await executor.fetch("RELEASE SAVEPOINT sitq")
    except BaseException:
        work.close()
        await _undo(executor)
        raise
    return answer


async def _undo(executor: Executor) -> None:
    for _ in range(_TRIES):
        try:
            await executor.fetch("ROLLBACK TO SAVEPOINT sitq")
        except (Exception, KeyboardInterrupt):  # noqa: BLE001, S112
            # An error that has ended the whole transaction has taken the savepoint along.
            continue
        await executor.fetch("RELEASE SAVEPOINT sitq")
        return
