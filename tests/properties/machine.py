"""A hypothesis state machine that drives stores with the same verbs on one fake clock.

Each store is held to a history of its own making; where there are several, they must agree on
every answer. Values are few, so that they collide: three queues, two unique keys, four
priorities, and leases drawn from all that were ever issued.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from itertools import combinations, permutations, product
from typing import Any, ClassVar

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    precondition,
    rule,
    run_state_machine_as_test,
)

from sitq.ids import TaskId
from sitq.models import ALL_QUEUES, Lease, Outcome, OutcomeKind, Progress, RetryPolicy, Task
from tests.properties.history import BrokenRuleError, Call, History
from tests.properties.lives import present
from tests.properties.runs import OpenStores, call, in_loop
from tests.properties.stores import Maker, Seen, postgres

__all__ = ["StoreMachine", "search"]

QUEUES = ("a", "b", "c")
EVERYTHING = 1000
LONG = 2 * 24 * 3600.0


def _id(number: int) -> TaskId[Any]:
    """Ids that repeat from run to run, in another order than that of their making."""
    mixed = number * 2_654_435_761 % 2**32
    return TaskId(f"{mixed:08x}-0000-7000-8000-{number:012x}")


# Offsets from now (seconds), so that both sides of every boundary come up.
_offsets = st.sampled_from([None, -1.0, -3600.0, 0.0, 1e-6, 1.0, 30.0, 3600.0])
_options = st.fixed_dictionaries(
    {"retry": st.sampled_from([None, *(RetryPolicy(max_attempts=n) for n in (1, 1, 2, 3))])},
    optional={
        "queue": st.sampled_from(QUEUES),
        "priority": st.sampled_from([-100, 0, 1, 100]),
        "eta": _offsets,
        "expires_at": st.sampled_from([None, 3600.0, 30.0, 1.0, -1.0]),
        "unique_key": st.sampled_from([None, "one", "two"]),
        "unique_until": st.sampled_from(["end", "start"]),
        "result_ttl": st.sampled_from([0.0, 1.0, 30.0, LONG]),
        "timeout": st.sampled_from([None, 0.5]),
        "payload": st.sampled_from([b"", b"\x00\xff", b"data"]),
        "headers": st.sampled_from([{}, {"trace": "1"}]),
    },
)
_some_options = st.lists(_options, min_size=1, max_size=4)
_back = st.one_of(st.integers(0, 3), st.integers(0, 60))
_delays = st.sampled_from([0.0, 1e-6, 1.0, 30.0])
# Half of the leases are current ones, the others any that were ever issued.
_which = st.tuples(st.booleans(), _back)
_some_of_them = st.lists(_which, min_size=1, max_size=4)
_kinds = st.sampled_from([*OutcomeKind, OutcomeKind.RETRY])
_ends = st.tuples(_which, _kinds, _delays)
_some_queues = st.one_of(
    st.just(QUEUES),
    st.just(ALL_QUEUES),
    st.lists(st.sampled_from([*QUEUES, "unused"]), max_size=3).map(tuple),
)
_limits = st.sampled_from([EVERYTHING, 0, 1, 2, 5])
_lease_seconds = st.sampled_from([30.0, 1e-6, 1.0, 3600.0])
_moves = st.sampled_from([0.0, 1e-6, 1.0, 29.999999, 30.0, 3600.0])
# Cancel, enqueue, finish, renew ("n"), reserve, sweep.
_RACES = ("rr", "rrs", "cr", "fs", "ns", "ss", "frs", "cf", "cfs", "ff", "fn", "ee", "ce", "re")
_crashes = st.sampled_from([1, 2, 3])


def _outcome(lease: Lease, kind: OutcomeKind, delay: float) -> Outcome:
    match kind:
        case OutcomeKind.SUCCESS:
            return Outcome.success(lease, b"value of %d" % lease.epoch)
        case OutcomeKind.FAILURE:
            return Outcome.failure(lease, f"ValueError: {lease.epoch}", "a traceback")
        case OutcomeKind.RETRY:
            return Outcome.retry(lease, delay, f"OSError: {lease.epoch}", "another")
        case OutcomeKind.RELEASE:
            return Outcome.release(lease)
        case OutcomeKind.UNKNOWN_FUNCTION:
            return Outcome.unknown_function(lease, delay)
        case OutcomeKind.CANCELLED:
            return Outcome.cancelled(lease)


class StoreMachine(RuleBasedStateMachine):
    """Drives the stores of ``makers``, which stay in ``open_stores``."""

    makers: ClassVar[tuple[Maker, ...]]
    open_stores: ClassVar[OpenStores]

    def __init__(self) -> None:
        super().__init__()
        self.clock = self.open_stores.clock
        self.history = History()
        self.task_ids: list[TaskId[Any]] = [_id(0)]  # the first one is never enqueued
        self.failed = True  # until the stores are open
        self.stores = self.open_stores.begin()
        self.failed = False

    def teardown(self) -> None:
        try:
            if not self.failed:
                self.drain()
        finally:
            self.open_stores.end(failed=self.failed)

    def drain(self) -> None:
        """Once every lease and eta is over, work gives an end to all that was enqueued."""
        self.clock.advance(LONG)
        self.do("sweep", 1, EVERYTHING)
        self.do("reserve", "the last", QUEUES, EVERYTHING, 30.0)
        last = self.history.leases[-EVERYTHING:]
        self.do("finish", [Outcome.success(lease, b"at last") for lease in last])
        left = [life for life in self.history.lives.values() if life.end is None]
        if left:
            raise BrokenRuleError(f"I1: {left} never ended")

    # -- running calls ------------------------------------------------------------------------

    def do(self, name: str, *arguments: Any) -> None:
        """Have every store carry out one call, and hold the answers to the rules."""
        self.race([Call(name, arguments)])

    def race(self, calls: Sequence[Call]) -> None:
        """Run calls at once: the answers must be those of some order, one after the other."""
        self.failed = True
        first, *others = call(self._run, calls)
        self.history = self._judged(calls, first)
        for other in others:
            assert other == first, f"the stores disagree: {first} and {other}"
        self.failed = False

    async def _run(self, calls: Sequence[Call]) -> list[Seen]:
        return [await store.run(calls, self.task_ids) for store in self.stores]

    def _judged(self, calls: Sequence[Call], seen: Seen) -> History:
        error: BrokenRuleError | None = None
        orders = permutations(list(zip(calls, seen.answers, strict=True)))
        for order, held in product(orders, self._held(calls)):
            history = self.history.copy(held)
            try:
                for call, answer in order:
                    history.judge(call, answer, self.clock.now())
                history.inspect(self.task_ids, seen.infos, seen.results)
            except BrokenRuleError as broken:
                error = broken
            else:
                return history
        assert error is not None
        raise error

    def _held(self, calls: Sequence[Call]) -> list[set[TaskId[Any]]]:
        """What a sweep may pass over: tasks that others hold at that moment, where stores do so."""
        touched: set[TaskId[Any]] = set()
        if postgres in self.makers and len(calls) > 1:
            for call in calls:
                if call.name == "finish":
                    touched |= {outcome.task_id for outcome in call.arguments[0]}
                elif call.name == "renew":
                    touched |= {lease.task_id for lease in call.arguments[0]}
        counts = range(len(touched) + 1)
        return [set(some) for count in counts for some in combinations(touched, count)]

    def new_task(self, options: dict[str, Any]) -> Task:
        now = self.clock.now()
        for name in ("eta", "expires_at"):
            if options.get(name) is not None:
                options = {**options, name: now + timedelta(seconds=options[name])}
        number = len(self.task_ids)
        self.task_ids.append(_id(number))
        earlier = self.task_ids[number // 2] if number % 3 == 0 else None
        fields = {"payload": b"", "queue": QUEUES[0], **options}
        return Task(id=_id(number), function="module:run", retry_of=earlier, **fields)

    def lease(self, which: tuple[bool, int]) -> Lease:
        """One that is current, the first to end in front; or one of all, the latest in front."""
        only_current, back = which
        current = [life for life in self.history.lives.values() if life.lease_end is not None]
        if only_current and current:
            current.sort(key=lambda life: present(life.lease_end))
            life = current[back % len(current)]
            return Lease(life.task.id, life.starts)
        leases = self.history.leases
        return leases[-1 - back % len(leases)]

    def newly_reserved(self, limit: int, seconds: float) -> list[Lease]:
        known = len(self.history.leases)
        self.do("reserve", "worker", QUEUES, limit, seconds)
        return self.history.leases[known:]

    # -- the verbs ----------------------------------------------------------------------------

    @initialize(options=_some_options, limit=_limits, seconds=_lease_seconds)
    def begin(self, options: list[dict[str, Any]], limit: int, seconds: float) -> None:
        """Most of what can go wrong needs a task, and a lease."""
        self.do("enqueue", [self.new_task(each) for each in options])
        self.do("reserve", "worker", QUEUES, limit, seconds)

    @rule(options=_some_options)
    def enqueue(self, options: list[dict[str, Any]]) -> None:
        self.do("enqueue", [self.new_task(each) for each in options])

    @precondition(lambda self: self.history.lives)
    @rule(options=_some_options, key=st.sampled_from([None, "one"]), back=_back)
    def enqueue_again(self, options: list[dict[str, Any]], key: str | None, back: int) -> None:
        """An id that is in use spoils its whole batch, unless its unique key is held."""
        lives = list(self.history.lives)
        taken = {"id": lives[back % len(lives)], "unique_key": key}
        tasks = [self.new_task(each) for each in options]
        again = self.new_task({}).model_copy(update=taken)
        self.do("enqueue", [*tasks, again])

    @rule(queues=_some_queues, limit=_limits, seconds=_lease_seconds)
    def reserve(self, queues: tuple[str, ...], limit: int, seconds: float) -> None:
        self.do("reserve", "worker", queues, limit, seconds)

    @rule(
        ends=st.lists(st.tuples(_kinds, _delays), min_size=1, max_size=4),
        pause=_moves,
        cancelled=st.integers(0, 2),
    )
    def work(self, ends: list[tuple[OutcomeKind, float]], pause: float, cancelled: int) -> None:
        """A worker's round: reserve, run for a while, be cancelled perhaps, tell how it ended."""
        mine = self.newly_reserved(len(ends), 30.0)
        for lease in mine[:cancelled]:
            self.do("cancel", lease.task_id)
        self.clock.advance(pause)
        outcomes = [_outcome(lease, *end) for lease, end in zip(mine, ends, strict=False)]
        self.do("finish", outcomes)

    @rule(
        limit=_limits,
        pause=st.sampled_from([1.0, 0.999999, 30.0]),
        late=st.booleans(),
        max_crashes=_crashes,
    )
    def die(self, limit: int, pause: float, late: bool, max_crashes: int) -> None:
        """A worker reserves and is not heard of any more, or only when its lease is over."""
        mine = self.newly_reserved(limit, 1.0)
        self.clock.advance(pause)
        if late:
            self.do("renew", mine, 30.0)
        self.do("sweep", max_crashes, EVERYTHING)

    @precondition(lambda self: self.history.leases)
    @rule(ends=st.lists(_ends, min_size=1, max_size=4))
    def finish(self, ends: list[tuple[tuple[bool, int], OutcomeKind, float]]) -> None:
        self.do("finish", [_outcome(self.lease(which), kind, delay) for which, kind, delay in ends])

    @precondition(lambda self: self.history.leases)
    @rule(which=_some_of_them)
    def succeed(self, which: list[tuple[bool, int]]) -> None:
        """Successes alone take a way of their own through a store."""
        self.do("finish", [Outcome.success(self.lease(each), b"%d" % each[1]) for each in which])

    @precondition(lambda self: self.history.leases)
    @rule(which=_which, kind=_kinds, shift=st.sampled_from([-1, 1]), stranger=st.booleans())
    def finish_what_was_never_issued(
        self, which: tuple[bool, int], kind: OutcomeKind, shift: int, stranger: bool
    ) -> None:
        lease = self.lease(which)
        wrong = Lease(self.task_ids[0] if stranger else lease.task_id, lease.epoch + shift)
        self.do("finish", [_outcome(wrong, kind, 1.0)])

    @precondition(lambda self: self.history.leases)
    @rule(which=_some_of_them, seconds=_lease_seconds)
    def renew(self, which: list[tuple[bool, int]], seconds: float) -> None:
        self.do("renew", [self.lease(each) for each in which], seconds)

    @precondition(lambda self: self.history.leases)
    @rule(which=_which, done=st.integers(0, 3))
    def set_progress(self, which: tuple[bool, int], done: int) -> None:
        progress = Progress(done=done, total=3, note="so far")
        self.do("set_progress", self.lease(which), progress)

    @rule(back=_back)
    def cancel(self, back: int) -> None:
        self.do("cancel", self.task_ids[-1 - back % len(self.task_ids)])

    @precondition(lambda self: self.history.leases)
    @rule(which=_which)
    def cancel_what_ran(self, which: tuple[bool, int]) -> None:
        self.do("cancel", self.lease(which).task_id)

    @rule(max_crashes=_crashes, limit=st.sampled_from([EVERYTHING, 1, 2]))
    def sweep(self, max_crashes: int, limit: int) -> None:
        self.do("sweep", max_crashes, limit)

    @rule(older_than=st.sampled_from([30.0, 1.0, 0.0]), limit=st.sampled_from([1, EVERYTHING]))
    def prune(self, older_than: float, limit: int) -> None:
        self.do("prune", older_than, limit)

    @rule(back=_back)
    def load_task(self, back: int) -> None:
        self.do("load_task", self.task_ids[-1 - back % len(self.task_ids)])

    @rule(seconds=_moves)
    def advance(self, seconds: float) -> None:
        self.clock.advance(seconds)

    @rule(seconds=st.sampled_from([1.0, -1.0, 60.0, -60.0, 3600.0, -3600.0]))
    def jump(self, seconds: float) -> None:
        self.clock.jump(seconds)

    @rule()
    def reopen(self) -> None:
        for store in self.stores:
            call(store.reopen)
        self.race([])

    # Which of two racers is first may differ from store to store, so one store runs alone.
    @precondition(lambda self: len(self.stores) == 1)
    @rule(data=st.data(), names=st.sampled_from(_RACES))
    def run_at_once(self, data: st.DataObject, names: str) -> None:
        """Races start where they matter: one task runs, its lease is over, another is due."""
        self.do("enqueue", [self.new_task({"result_ttl": LONG, "priority": 100})])
        mine = self.newly_reserved(1, 1.0)
        self.do("enqueue", [self.new_task({"result_ttl": LONG, "priority": 100})])
        self.clock.advance(1.0)
        self.race([self._racer(name, mine, data) for name in names])

    def _racer(self, name: str, mine: list[Lease], data: st.DataObject) -> Call:
        lease = data.draw(st.sampled_from([*mine, self.lease((True, 0))]))
        match name:
            case "c":
                return Call("cancel", (data.draw(st.sampled_from([self.task_ids[-1], lease[0]])),))
            case "e":
                key = {
                    "unique_key": "one",
                    "unique_until": data.draw(st.sampled_from(["end", "start"])),
                }
                return Call("enqueue", ([self.new_task(key)],))
            case "f":
                return Call("finish", ([_outcome(lease, data.draw(_kinds), 1.0)],))
            case "n":
                return Call("renew", ([lease], 30.0))
            case "r":
                return Call("reserve", ("racer", QUEUES, data.draw(_limits), 30.0))
            case _:
                return Call("sweep", (data.draw(_crashes), EVERYTHING))


def search(
    chosen: settings,
    *makers: Maker,
    loop: str = "asyncio",
    kind: type[StoreMachine] = StoreMachine,
) -> None:
    """Look for calls after which a store breaks a rule, or the stores of ``makers`` disagree."""
    stores = OpenStores(makers)
    machine = type("Machine", (kind,), {"makers": makers, "open_stores": stores})

    def run() -> None:
        try:
            run_state_machine_as_test(machine, settings=chosen)
        finally:
            stores.end(failed=True)

    in_loop(loop, run)
