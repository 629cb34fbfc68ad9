"""Listeners of the SQLite store: by its bell, or by looking where files cannot be watched."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

import anyio

from sitq.backends.sqlite._bell import Watch
from sitq.errors import SitqError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    from sitq._loops import LoopRef
    from sitq.protocols import Listener, Topic

__all__ = ["Listeners"]

# How often to look at a file that cannot be watched, in seconds.
_LOOK_EVERY = 0.05


class _Ear:
    """Hears of this instance's own commits; `look`, where given, tells of all the others."""

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

    Args:
        loop: the loop that they run in.
        bell: the bell's path; ``None``: nobody else can change the store.
        look: the version of the store, which changes with the commits of others.
    """

    def __init__(
        self,
        loop: LoopRef,
        bell: str | None,
        look: Callable[[], Awaitable[int]],
    ) -> None:
        self._loop = loop
        self._bell = bell
        self._look = None if bell is None else look
        self._lock = threading.Lock()
        self._kept: dict[Topic, Watch] = {}
        self._closed = False
        self._ears: dict[Topic, set[_Ear]] = {
            "tasks": set(),
            "results": set(),
            "cancels": set(),
        }

    def notify(self, topics: set[Topic]) -> None:
        """Tell those that do not hear the bell; from any thread."""
        if any(self._ears[topic] for topic in topics):
            self._loop.call_soon(lambda: self._ring(topics))

    def _ring(self, topics: set[Topic]) -> None:
        for topic in topics:
            for ear in self._ears[topic]:
                ear.ring()

    @contextmanager
    def listen(self, topic: Topic) -> Iterator[Listener]:
        """Listen from now on."""
        watch = self._watch(topic)
        if watch is not None:
            try:
                yield watch
            finally:
                self._keep(topic, watch)
            return
        ear = _Ear(self._look)
        self._ears[topic].add(ear)
        try:
            yield ear
        finally:
            self._ears[topic].discard(ear)

    def _watch(self, topic: Topic) -> Watch | None:
        if self._bell is None:
            return None
        with self._lock:
            watch = self._kept.pop(topic, None)
        if watch is not None:
            watch.forget()
            return watch
        try:
            return Watch(self._bell, topic)
        except OSError:  # no inotify, or none left of what the system allows
            return None

    def _keep(self, topic: Topic, watch: Watch) -> None:
        """Keep a watcher for the next who listens: one that is closed takes long to end."""
        with self._lock:
            if not self._closed and topic not in self._kept:
                self._kept[topic] = watch
                return
        watch.close()

    def close(self) -> None:
        """Keep no watchers any more; from any thread."""
        with self._lock:
            self._closed = True
            kept, self._kept = self._kept, {}
        for watch in kept.values():
            watch.close()
