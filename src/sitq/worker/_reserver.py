"""Reserve due tasks for the pool of runners, as soon as it has room."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import anyio
import anyio.lowlevel

from sitq._logging import Log, fields_of
from sitq.administration import WorkerState
from sitq.clock import with_timeout
from sitq.models import Outcome
from sitq.payload.names import one_line
from sitq.worker._outcome_writer import FailureBackoff, OutcomeWriter
from sitq.worker._outcomes import outcome_of_unknown_function

if TYPE_CHECKING:
    from sitq.models import Reservation
    from sitq.payload.functions import TaskFunction
    from sitq.payload.registry import Registry
    from sitq.worker._heartbeats import Heartbeats
    from sitq.worker._runner_pool import RunnerPool
    from sitq.worker._runtime import WorkerRuntime

__all__ = ["FULL_SWEEP", "Reserver"]

_log: Final = Log(__name__)

# A sweep that changed so many tasks may have left some.
FULL_SWEEP: Final = 1000
# For 120 s after it has put back a task of an unknown function, a worker reserves tasks 0.1 s after
# their eta, so that workers that know the function come first. No task is put back for longer.
_YIELDING_SECONDS: Final = 120.0
_YIELD_DELAY: Final = 0.1


class Reserver:
    """Reserves tasks when some may be due; a drain ends when nothing is due any more."""

    def __init__(
        self,
        runtime: WorkerRuntime,
        registry: Registry,
        heartbeats: Heartbeats,
        reporter: OutcomeWriter,
        pool: RunnerPool,
        *,
        drain: bool,
    ) -> None:
        backend = runtime.backend
        self._id = runtime.worker_id
        self._runtime = runtime
        self._backend = backend
        self._clock = runtime.clock
        self._monotonic = runtime.monotonic
        self._registry = registry
        self._options = runtime.options
        self._heartbeats = heartbeats
        self._reporter = reporter
        self._pool = pool
        self._drain = drain
        self._stopping = False
        self._quiet = False
        self._reserve_backoff = FailureBackoff("reserve tasks", 5.0, runtime)
        self._woken = anyio.Event()
        # True if tasks may have become due since the last reservation.
        self._due = True
        self._look_at = float("-inf")
        # A drain waits in it until all outcomes are written.
        self._writing = anyio.CancelScope()
        runtime.freed = self._freed

    def stop(self) -> None:
        """Reserve no more tasks."""
        self._stopping = True
        self._woken.set()
        self._writing.cancel()

    @property
    def state(self) -> WorkerState:
        """Return the state of the worker. Any thread may ask."""
        if self._stopping:
            return WorkerState.STOPPING
        return WorkerState.QUIET if self._quiet else WorkerState.ACTIVE

    def be_quiet(self, *, quiet: bool) -> None:
        """Reserve no more tasks for now, and hand back those that wait; or go on."""
        if quiet == self._quiet:
            return
        self._quiet = quiet
        if quiet:
            self._pool.hand_back(at_once=True)
        else:
            self.look_again()

    async def run(self) -> None:
        """Reserve when there is room and tasks may be due, until stopped or drained."""
        if self._drain:
            await self._sweep_all()
        while not (self._stopping or self._runtime.error):
            self._woken = anyio.Event()
            self._pool.wake()
            if not await self._reserve_some():
                return
            await self._sleep()

    async def _reserve_some(self) -> bool:
        """Reserve if there is room and tasks may be due; return whether there is more to do."""
        if self._quiet:
            return not self._drain or self._pool.busy
        if not (self._due or self._drain):
            return True
        room = self._pool.room
        if not room:
            return not self._drain or await self._more_to_drain()
        self._due = False  # tasks stored from now on set it again
        try:
            wait = await self._reserve(room)
        except Exception as error:  # noqa: BLE001 - an unavailable store never ends a worker
            if self._drain:
                self._runtime.error = error
                return False
            self._look_in(self._reserve_backoff.fail(error))
            return True
        self._reserve_backoff.succeed()
        self._note(wait)
        if not self._due:
            return not self._drain or await self._more_to_drain()
        if self._pool.room:  # or the next reservation waits for room
            self._woken.set()
            await anyio.lowlevel.checkpoint()
        return True

    def _note(self, wait: float | None) -> None:
        """Note when the store has more due tasks, by the answer to a reservation."""
        if wait == 0.0:
            self._due = True
            wait = None
        self._look_in(wait)
        is_timed = wait is not None and wait <= self._options.poll_interval
        if is_timed and self._monotonic() - self._pool.unknown_function_at < _YIELDING_SECONDS:
            self._look_at += _YIELD_DELAY

    def _look_in(self, seconds: float | None) -> None:
        """Reserve again after so many seconds, or after a poll's interval if that is shorter."""
        poll = self._options.poll_interval
        pause = poll if seconds is None else min(poll, seconds)
        self._look_at = self._monotonic() + pause

    async def _sweep_all(self) -> None:
        """Sweep the store before a drain, which does not sweep periodically."""
        try:
            swept = None
            while not self._stopping and (swept is None or max(swept) >= FULL_SWEEP):
                swept = await self._backend.sweep(self._options.max_crashes)
                if swept.reclaimed and self._runtime.events is not None:
                    self._runtime.events.tasks_reclaimed(swept.reclaimed)
        except Exception as error:  # noqa: BLE001 - raised at the end of the run
            self._runtime.error = error

    async def _reserve(self, room: int) -> float | None:
        asked_at = self._monotonic()
        options = self._options
        with self._pool.interpreter_yield.reserving():
            reservation = await self._backend.reserve(self._id, options.queues, room, options.lease)
        try:
            if self._stopping or self._quiet:
                for task in reservation.tasks:
                    self._reporter.add(task.lease, Outcome.release(task.lease))
            else:
                self._launch(reservation, asked_at)
        except BaseException:
            # A signal handler may raise anywhere. The end of the run releases the kept leases.
            if reservation.tasks and not self._heartbeats.keeps(reservation.tasks[0].lease):
                self._heartbeats.add([task.lease for task in reservation.tasks], asked_at)
            raise
        return reservation.wait

    def _launch(self, reservation: Reservation, asked_at: float) -> None:
        """Hand reserved tasks to the pool; their leases were requested at `asked_at`."""
        leases = [task.lease for task in reservation.tasks]
        self._heartbeats.add(leases, asked_at)
        functions: dict[str, TaskFunction[Any] | None] = {}
        similar: dict[str, list[str]] = {}
        for task, lease in zip(reservation.tasks, leases, strict=True):
            name = task.function
            if name not in functions:
                functions[name] = self._find(name)
                if functions[name] is None:
                    similar[name] = self._registry.similar_names(name)
            function = functions[name]
            if function is not None:
                self._pool.launch(task, lease, function)
            else:
                outcome = outcome_of_unknown_function(task, similar[name], self._id)
                self._pool.put_back(task, outcome)

    def _find(self, name: str) -> TaskFunction[Any] | None:
        """Return the function of a stored name, or `None` if this worker does not know it.

        The lookup touches objects of users' modules, which may raise.
        """
        try:
            return self._registry.get(name)
        except Exception as error:  # noqa: BLE001 - the other tasks still run
            extra = fields_of(self._id, function=one_line(name))
            _log.warning("cannot look up %s", one_line(name), error=error, extra=extra)
            return None

    async def _more_to_drain(self) -> bool:
        """Return whether a drain goes on; it ends once all is written and nothing is due."""
        if not self._pool.busy:
            # The store may be unavailable for long. `stop` cancels this wait.
            with anyio.CancelScope() as self._writing:
                await self._reporter.written()
            if self._stopping:
                return False
            try:
                is_due = await self.sees_due_tasks()
            except Exception as error:  # noqa: BLE001 - raised at the end of the run
                self._runtime.error = error
                return False
            if not is_due and not self._pool.busy:
                return False
            if self._pool.room:
                self.look_again()
        return True

    async def sees_due_tasks(self) -> bool:
        """Return whether the store has tasks that could start now."""
        options = self._options
        reservation = await self._backend.reserve(self._id, options.queues, 0, options.lease)
        return reservation.wait == 0.0

    async def _sleep(self) -> None:
        """Wait to be woken, for the next eta, or for the next poll."""
        # First the launched attempts start, and the outcomes of short ones go to the store.
        await anyio.lowlevel.checkpoint()
        await anyio.lowlevel.checkpoint()
        if not self._woken.is_set():
            pause = max(self._look_at - self._monotonic(), 0.0)
            await with_timeout(self._clock, pause, self._woken.wait)
        if self._monotonic() >= self._look_at:
            self._due = True
            self._look_in(None)  # in case there is no room now

    def _freed(self) -> None:
        """Wake up if tasks may be due, since the pool may have room."""
        if self._due or self._drain:
            self._woken.set()

    def look_again(self) -> None:
        """Wake up and reserve again, since tasks may be due."""
        self._due = True
        self._woken.set()
