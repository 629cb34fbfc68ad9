"""All or nothing within a transaction that goes on."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from sitq.backends._transactions._ports import Executor

__all__ = ["savepoint"]

T = TypeVar("T")


async def savepoint(executor: Executor, work: Coroutine[Any, Any, T]) -> T:
    """Run a unit of work; if it raises, the transaction is as it was before."""
    try:
        await executor.fetch("SAVEPOINT sitq")
    except BaseException:
        work.close()
        raise
    try:
        answer = await work
    except BaseException:
        # An error that has ended the whole transaction has taken the savepoint along.
        with suppress(Exception):
            await executor.fetch("ROLLBACK TO SAVEPOINT sitq")
            await executor.fetch("RELEASE SAVEPOINT sitq")
        raise
    await executor.fetch("RELEASE SAVEPOINT sitq")
    return answer
