"""`Worker`: runs the tasks of a store with bounded concurrency."""

from __future__ import annotations

import secrets
from collections.abc import Iterable
from types import ModuleType
from typing import TYPE_CHECKING, Any, Final, Literal, Self

import anyio
import pydantic

from sitq._argument_checks import checked_backend, checked_serializer
from sitq._builtin_types import plain
from sitq._hooks import Hooks
from sitq._loops import refuse_green_threads
from sitq._validation import describe
from sitq.context import CURRENT
from sitq.errors import UsageError, ValidationError
from sitq.models import ALL_QUEUES, DEFAULT_QUEUE, RetryPolicy
from sitq.payload.functions import check_retry
from sitq.payload.registry import Registry, default_registry
from sitq.resources import checked_factory, name_of_factory
from sitq.worker._background_service import BackgroundService
from sitq.worker._resources import OpenResources
from sitq.worker._runtime import WorkerOptions, WorkerRuntime
from sitq.worker._script import EventLoop, run_script
from sitq.worker._worker_run import WorkerRun

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import TracebackType

    from anyio.abc import TaskStatus

    from sitq.extensions import Extension
    from sitq.protocols import Backend, Serializer

__all__ = ["Worker"]


class Worker:
    """Reserves due tasks, runs their functions, and reports how they ended.

    Functions declared with ``async def`` run on the event loop, plain ones in threads;
    ``max_concurrency`` bounds both together. A worker runs only functions that it
    knows: those of ``tasks``, those marked with `task` in modules that this process imported,
    and those that this process itself enqueued.

    Use it as ``async with Worker(backend) as worker:`` to run it beside the body, also in a
    fixture; or call `start` in a task group of yours.

    Args:
        backend: the store; opened by `start` and closed at its end.
        serializer: must match that of the queues; msgpack unless given.
        tasks: modules (all their functions) and functions that may run.
        queues: the names of the queues to serve; ``"*"``: every queue, also those that are new.
        max_concurrency: how many tasks may run at the same time (1 to 10,000).
        poll_interval: seconds between two looks at the store when nothing wakes the worker.
        lease: seconds after which a task is taken back from a worker that died or hung.
        shutdown_timeout: seconds that `stop` lets running tasks finish.
        cancel_grace: seconds that an async function has to clean up after it was cancelled, before
            each ``await`` is cancelled; the lease at most. 0: no such time.
        retry: the retry policy of tasks that have none of their own.
        max_crashes: a task fails once so many of its workers were lost.
        extensions: what is called around attempts and hears events, in this order.
        resources: the factories of what tasks share, see `shared`. They are opened in this order
            by `start`, before the worker is ready, in its event loop, and closed in reverse order
            after the last task has ended, for 30 s at most.

    Raises:
        ValidationError: a parameter is out of its range or of the wrong type, or a function
            cannot be a task, or needs a resource that is not among ``resources``.
    """

    def __init__(
        self,
        backend: Backend,
        serializer: Serializer | None = None,
        *,
        tasks: Iterable[ModuleType | Callable[..., object]] | None = None,
        queues: Sequence[str] | Literal["*"] = (DEFAULT_QUEUE,),
        max_concurrency: int = 10,
        poll_interval: float = 1.0,
        lease: float = 30.0,
        shutdown_timeout: float = 30.0,
        cancel_grace: float = 5.0,
        retry: RetryPolicy | None = None,
        max_crashes: int = 3,
        extensions: Iterable[Extension] = (),
        resources: Iterable[Callable[[], object]] = (),
    ) -> None:
        self._backend: Final = checked_backend(backend)
        self._serializer: Final = checked_serializer(serializer)
        self._registry: Final = _registry_of(tasks)
        self._hooks: Final = Hooks(extensions)
        self._resources: Final = _factories_of(resources)
        _check_resources(self._registry, self._resources)
        self._run_state: WorkerRun | None = None
        self._background: BackgroundService | None = None
        # The fields of log records about this worker: the id of the last run.
        self._log_fields: Final[dict[str, object]] = {}
        try:
            self._options: Final = WorkerOptions(
                queues=_names_of_queues(plain(queues)),
                max_concurrency=plain(max_concurrency),
                poll_interval=plain(poll_interval),
                lease=plain(lease),
                shutdown_timeout=plain(shutdown_timeout),
                cancel_grace=plain(cancel_grace),
                retry=None if retry is None else check_retry("Worker: retry", retry),
                max_crashes=plain(max_crashes),
            )
        except pydantic.ValidationError as error:
            raise ValidationError(f"Worker: {describe(error)}") from None

    def __repr__(self) -> str:
        return f"Worker({self._backend!r}, queues={self._options.queues!r})"

    async def __aenter__(self) -> Self:
        """Start the worker beside the body; the body begins once the worker is ready.

        Raises:
            UsageError: this worker is running already.
            BackendError: the store could not be opened.
        """
        background = BackgroundService(repr(self), self.start, self.stop, self._log_fields)
        await background.enter()
        self._background = background
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> bool:
        """Stop the worker as `stop` does; a body that was cancelled or interrupted ends it at once.

        A worker that fails cancels the body, and its error is raised here. If the body raises an
        error of its own, that one is raised instead.
        """
        background, self._background = self._background, None
        return background is not None and await background.leave(error)

    async def start(self, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Run tasks until `stop` is called.

        ``await task_group.start(worker.start)`` returns once the worker is ready. A cancellation
        ends it too: running tasks are cancelled and released.

        Raises:
            UsageError: this worker is running already.
            BackendError: the store could not be opened, or had no connection for the heartbeats.
                If the store fails later, the worker waits until it is back.
            Exception: what a resource raised that could not be opened, or could not be closed.
            SitqError: the heartbeat thread has ended with an error that is not the store's; running
                tasks were released.
        """
        await self._run(task_status, drain=False)

    async def drain(self) -> int:
        """Run tasks until none is due any more, and return how many attempts were started.

        Tasks with a later eta, and those that wait for a retry, are left. A task that is tried
        again counts once for each attempt. The thread of a plain function that was abandoned at its
        timeout is not waited for.

        Raises:
            UsageError: this worker is running already.
            BackendError: the store failed.
        """
        return await self._run(anyio.TASK_STATUS_IGNORED, drain=True)

    def run(self, *, drain: bool = False, backend: EventLoop = "asyncio") -> int:
        """Run the worker in an event loop of its own, until a signal ends it; for scripts.

        In the main thread, SIGINT and SIGTERM (on Windows SIGBREAK too) end it: the first as `stop`
        does; the second at once, with running tasks cancelled and released. A signal that the
        process ignores stays ignored. Afterwards the handlers are those from before.

        Args:
            drain: end when nothing is due any more, as `drain` does.
            backend: the event loop: ``"asyncio"`` or ``"trio"``.

        Returns:
            How many attempts were started, once the worker has ended by a stop or a drain.

        Raises:
            SystemExit: a second signal has ended it; the code is 128 and the signal's number.
            UsageError: this thread runs an event loop, the worker is running already, or trio is
                not installed.
            ValidationError: ``backend`` is no event loop.
            BackendError: the store could not be opened, or failed during a drain.
        """

        async def work() -> int:
            return await self._run(anyio.TASK_STATUS_IGNORED, drain=drain)

        return run_script(work, self._stop_soon, backend, self._log_fields)

    def _stop_soon(self) -> None:
        if self._run_state is not None:
            self._run_state.stop()

    async def stop(self) -> None:
        """End `start`: reserve no more tasks, let running ones finish, release the rest.

        Returns once the worker has ended. It may be called twice, from another task, or from
        another thread's event loop; if the worker is not running, it does nothing. A task that
        stops its own worker does not wait, since the worker waits for that task.
        """
        run = self._run_state
        if run is not None:
            run.stop()
            caller = CURRENT.get(None)
            if caller is None or not run.runs(caller):
                await run.finished.wait()

    async def _run(self, task_status: TaskStatus[None], *, drain: bool) -> int:
        if self._run_state is not None:
            raise UsageError("this worker is running already; stop() it first, or make another")
        refuse_green_threads("a worker")
        worker_id = secrets.token_hex(8)
        resources = OpenResources(self._resources, worker_id)
        runtime = WorkerRuntime(
            worker_id,
            self._backend,
            self._serializer,
            self._options,
            self._hooks,
            resources,
        )
        self._log_fields["worker_id"] = worker_id
        run = self._run_state = WorkerRun(runtime, self._registry, drain=drain)
        error: BaseException | None = None
        try:
            await self._backend.open()
            try:
                async with resources:
                    await run.run(task_status)
            finally:
                runtime.clients.end()
                await self._backend.close()
        except BaseException as raised:
            error = raised
            raise
        finally:
            self._run_state = None
            if runtime.events is not None:
                runtime.events.worker_stopped(run.started, error)
            run.finished.set()
            error = None  # breaks the cycle with its own traceback
        return run.started


def _names_of_queues(queues: object) -> tuple[str, ...]:
    """Return what is given as ``queues`` as a tuple; each name is checked elsewhere."""
    if isinstance(queues, str) and queues == "*":
        return ALL_QUEUES
    if isinstance(queues, str) or not isinstance(queues, Iterable):
        kind = type(queues).__name__
        raise ValidationError(
            f"queues: give a sequence of names, ('default',) say, or '*' (got {kind})"
        )
    names = tuple(map(plain, queues))
    if not names:
        raise ValidationError("queues: give at least one name, or '*' for every queue (got none)")
    if "*" in names and len(names) > 1:
        raise ValidationError(
            "queues: '*' means every queue, so give it without other names "
            f"(got {len(names)} names)"
        )
    return names


def _factories_of(resources: object) -> tuple[Callable[[], object], ...]:
    if not isinstance(resources, Iterable) or isinstance(resources, str):
        kind = type(resources).__name__
        raise ValidationError(f"resources: give a list of factories, [database] say (got {kind})")
    return tuple(checked_factory("resources", each) for each in resources)


def _check_resources(registry: Registry, factories: Sequence[Callable[[], object]]) -> None:
    """Refuse functions given to the worker that need a resource which it does not have."""
    for function in dict.fromkeys(registry.by_name.values()):
        for name, factory in function.needs().items():
            if factory not in factories:
                missing = name_of_factory(factory)
                raise ValidationError(
                    f"tasks: {function.label} needs the resource {missing} for its parameter "
                    f"{name!r}; give it: Worker(resources=[{missing}])"
                )


def _registry_of(tasks: Iterable[ModuleType | Callable[..., object]] | None) -> Registry:
    """Return a registry of the functions of this process and of those given as ``tasks``."""
    registry = Registry(parent=default_registry)
    if tasks is None:
        return registry
    if isinstance(tasks, ModuleType) or callable(tasks):
        tasks = [tasks]
    try:
        entries: list[Any] = list(tasks)
    except TypeError:
        entries = [None]
    for entry in entries:
        if isinstance(entry, ModuleType):
            registry.add_module(entry)
        elif callable(entry):
            registry.add(entry)
        else:
            kind = type(entry).__name__
            message = f"tasks: give modules and functions, [my_module] say (got {kind})"
            raise ValidationError(message)
    return registry
