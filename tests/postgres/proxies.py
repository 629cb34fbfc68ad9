"""A proxy between sitq and the server that loses the next question, or the answer to it."""

from __future__ import annotations

import asyncio
import threading
from typing import Literal, Self

__all__ = ["Proxy"]

Loses = Literal["question", "answer"]


class Proxy:
    """Listens on a port of its own, in a thread of its own, and passes on what comes.

    Args:
        path: the server's socket.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._loses: Loses | None = None
        self._silent = False
        self._writers: set[asyncio.StreamWriter] = set()
        self.lost = threading.Event()
        self.port = 0

    @property
    def dsn(self) -> str:
        return f"postgresql://postgres@127.0.0.1:{self.port}/postgres?sslmode=disable"

    def __enter__(self) -> Self:
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._listen(), self._loop).result()
        return self

    def __exit__(self, *_: object) -> None:
        asyncio.run_coroutine_threadsafe(self._end(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def lose(self, what: Loses) -> None:
        """Lose the next question that is asked, or its answer, and the connection with it."""
        self.lost.clear()
        self._loses = what

    def forget_the_way(self) -> None:
        """Let nobody through any more who is not through already."""
        self._path = "/nowhere"

    def cut(self) -> None:
        """Close all connections; the server finds out once it reads or writes."""

        def close() -> None:
            for writer in list(self._writers):
                writer.transport.abort()

        self._loop.call_soon_threadsafe(close)

    def fall_silent(self) -> None:
        """Pass nothing on any more, and close nothing: as when a cable is cut."""
        self._silent = True

    async def _listen(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]

    async def _end(self) -> None:
        self._server.close()
        for writer in list(self._writers):
            writer.transport.abort()
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            answers, questions = await asyncio.open_unix_connection(self._path)
        except OSError:
            writer.transport.abort()
            return
        ends = {writer, questions}
        self._writers |= ends
        losing = asyncio.Event()

        async def ask() -> None:
            while data := await reader.read(1 << 16):
                if self._loses is not None:
                    loses, self._loses = self._loses, None
                    if loses == "question":
                        break
                    losing.set()
                if not self._silent:
                    questions.write(data)

        async def answer() -> None:
            while data := await answers.read(1 << 16):
                if losing.is_set():
                    break
                if not self._silent:
                    writer.write(data)

        sides = [asyncio.ensure_future(ask()), asyncio.ensure_future(answer())]
        await asyncio.wait(sides, return_when=asyncio.FIRST_COMPLETED)
        for side in sides:
            side.cancel()
        await asyncio.gather(*sides, return_exceptions=True)
        for end in ends:
            end.transport.abort()
        self._writers -= ends
        self.lost.set()
