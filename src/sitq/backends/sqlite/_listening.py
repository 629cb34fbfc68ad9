"""Listeners of the SQLite store: by its bell, or by looking where files cannot be watched."""

from __future__ import annotations

import threading
import time
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING

import anyio

from sitq.backends.sqlite._bell import Watch
from sitq.errors import SitqError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection, Iterable, Iterator

    from sitq._loops import LoopRef
    from sitq._mailbox import Mailbox
    from sitq.protocols import Listener, Topic

__all__ = ["Listeners"]

# How often to look at a file that cannot be watched, in seconds.
_LOOK_EVERY = 0.05
# For so many seconds after the last listener a bell may ring in vain: to have the loop watch it
# anew for each result takes longer.
_LINGER = 1.0


class _Ear:
    """Hears what is told; where nobody else's bell can be heard, `look` tells of the others."""

    def __init__(self, look: Callable[[], Awaitable[int]] | None) -> None:
        self._look = look
        self._changed = anyio.Event()
        self._version: int | None = None

    def ring(self) -> None:
        self._changed.set()

    async def wait(self) -> None:
        look = self._look
        if look is None:
            await self._changed.wait()
        else:
            while not (self._changed.is_set() or await self._differs(look)):
                with anyio.move_on_after(_LOOK_EVERY):
                    await self._changed.wait()
        self._changed = anyio.Event()

    async def _differs(self, look: Callable[[], Awaitable[int]]) -> bool:
        """Tell if others have changed the store; the first look cannot tell, so it says yes."""
        try:
            version = await look()
        except SitqError:  # a store in trouble has not changed
            return False
        before, self._version = self._version, version
        return version != before


class Listeners:
    """All that listen to one open store.

    They hear of the commits of this instance at once, and of all others by the bell.

    Args:
        loop: the loop that they run in.
        mail: reaches it from the database threads.
        bell: the bell's path; ``None``: nobody else can change the store.
        look: the version of the store, which changes with the commits of others.
        prompt: called when others have stored tasks; returns those who need not hear of it.
    """

    def __init__(
        self,
        loop: LoopRef,
        mail: Mailbox,
        bell: str | None,
        look: Callable[[], Awaitable[int]],
        prompt: Callable[[], Collection[Listener]],
    ) -> None:
        self._loop = loop
        self._mail = mail
        self._bell = bell
        self._look = look
        self._prompt = prompt
        self._mark: bytes | None = None
        self._lock = threading.Lock()
        self._kept: dict[Topic, Watch] = {}
        self._watching: dict[Topic, Callable[[], object]] = {}
        self._left_at: dict[Topic, float] = {}
        self._ending = False
        self._closed = False
        self._ears: dict[Topic, set[_Ear]] = {
            "tasks": set(),
            "results": set(),
            "cancels": set(),
        }

    def know(self, mark: bytes) -> None:
        """Take no notice of new work under this mark: `notify` tells of it."""
        self._mark = mark

    def are_for(self, topic: Topic) -> bool:
        """Tell if anybody listens to a topic; from any thread."""
        return bool(self._ears[topic])

    def notify(self, topics: set[Topic]) -> None:
        """Tell of a commit of this instance, after its bell has rung; from any thread."""
        for topic in topics:
            if self._ears[topic]:
                self._mail.post(lambda: self._ring(topics))
                return

    def _ring(self, topics: Iterable[Topic], told: Collection[Listener] = ()) -> None:
        for topic in topics:
            for ear in self._ears[topic]:
                if ear not in told:
                    ear.ring()

    @contextmanager
    def listen(self, topic: Topic) -> Iterator[Listener]:
        """Listen from now on."""
        ears = self._ears[topic]
        if not ears and topic not in self._watching:
            self._watch(topic)
        is_deaf = self._bell is not None and topic not in self._watching
        ear = _Ear(self._look if is_deaf else None)
        ears.add(ear)
        try:
            yield ear
        finally:
            ears.discard(ear)
            if not ears:
                self._left_at[topic] = time.monotonic()
                if self._ending:
                    self._unwatch(topic)

    def _watch(self, topic: Topic) -> None:
        """Have the bell heard, where it can be."""
        if self._bell is None:
            return
        with self._lock:
            watch = self._kept.pop(topic, None)
        if watch is not None:
            watch.forget()
        else:
            try:
                watch = Watch(self._bell, topic)
            except OSError:  # no inotify, or none left of what the system allows
                return
        stop = self._loop.when_readable(watch.fileno(), partial(self._hear, topic, watch))
        self._watching[topic] = partial(self._stop, topic, watch, stop)

    def _hear(self, topic: Topic, watch: Watch) -> None:
        watch.forget()
        if not self._ears[topic]:
            if time.monotonic() - self._left_at[topic] > _LINGER:
                self._unwatch(topic)
            return
        # Whoever rang before this instance did is heard with it: `notify` comes after the bell.
        if topic != "tasks":
            self._ring((topic,))
        elif watch.mark() != self._mark:
            self._ring((topic,), told=self._prompt())

    def watch_anew(self) -> None:
        """Watch the bell that is there now, and have everybody look; from within."""
        watched = list(self._watching)
        for topic in watched:
            self._unwatch(topic)
        self._give_up_kept()
        for topic in watched:
            if self._ears[topic]:
                self._watch(topic)
        self._ring(self._ears)

    def _give_up_kept(self) -> None:
        with self._lock:
            kept, self._kept = self._kept, {}
        for watch in kept.values():
            watch.close()

    def _unwatch(self, topic: Topic) -> None:
        stop = self._watching.pop(topic, None)
        if stop is not None:
            stop()

    def end(self) -> None:
        """Have the loop watch no longer what nobody listens for; from within, before the close."""
        self._ending = True
        for topic in list(self._watching):
            if not self._ears[topic]:
                self._unwatch(topic)

    def _stop(self, topic: Topic, watch: Watch, stop: Callable[[], object]) -> None:
        """Keep a watcher for the next who listens: one that is closed takes long to end."""
        stop()
        with self._lock:
            if not self._closed and topic not in self._kept:
                self._kept[topic] = watch
                return
        watch.close()

    def close(self) -> None:
        """Keep no watchers any more; from any thread."""
        with self._lock:
            self._closed = True
        self._give_up_kept()
