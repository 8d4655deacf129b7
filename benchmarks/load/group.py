"""The sessions that a load client holds with one gateway."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress

from attrs import define, field

from benchmarks.load.connection import Connection, Pool
from benchmarks.load.sessions import Session, SSESession, StreamableSession

__all__ = ["Group"]

_AT_ONCE = 32
"""Sessions opened or closed at the same time."""


@define(eq=False)
class Group:
    """
    Sessions with one port, by one transport.

    `close` ends them.
    """

    port: int
    path: str
    sse: bool
    revision: str
    sessions: list[Session] = field(factory=list)
    pool: Pool = field(init=False)

    def __attrs_post_init__(self) -> None:
        self.pool = Pool(self.port)

    def session(self) -> Session:
        """A session that is not open yet."""
        kind = SSESession if self.sse else StreamableSession
        return kind(self.port, self.path, self.revision)

    async def open(self, count: int, streams: bool) -> None:
        """
        Open sessions, a few at a time; with `streams` each listens, too.

        Raises: Broken, Gone.
        """

        async def one() -> None:
            session = self.session()
            async with self._connection() as connection:
                await session.open(connection)
            # It is ours to close from here on.
            self.sessions.append(session)
            if streams:
                await session.listen()

        await self._all([one] * count)

    @property
    def strays(self) -> int:
        """Messages that reached a session and were not for it."""
        return sum(session.strays for session in self.sessions)

    @property
    def lost(self) -> int:
        """Streams that ended, and not by us."""
        return sum(bool(session.lost) for session in self.sessions)

    async def announce(self, wait: float) -> tuple[float, int]:
        """
        Have the server tell all sessions something.

        Returns: the seconds until the last of them heard it, and how many did not within `wait`.
        """
        missing = len(self.sessions)
        over: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def hearing() -> Callable[[], None]:
            first = True

            def heard() -> None:
                nonlocal missing, first
                if first:
                    first = False
                    missing -= 1
                    if not missing and not over.done():
                        over.set_result(None)

            return heard

        for session in self.sessions:
            session.heard = hearing()
        began = time.perf_counter()
        await self.sessions[0].announce(self.pool)
        with suppress(TimeoutError):
            await asyncio.wait_for(over, wait)
        return time.perf_counter() - began, missing

    def close(self) -> None:
        """Hang up on all of them without a word."""
        sessions, self.sessions = self.sessions, []
        for session in sessions:
            session.drop()
        self.pool.close()

    async def _all(self, tasks: list[Callable[[], Awaitable[None]]]) -> None:
        left = iter(tasks)

        async def work() -> None:
            for task in left:
                await task()

        async with asyncio.TaskGroup() as workers:
            for _ in range(min(_AT_ONCE, len(tasks))):
                workers.create_task(work())

    @asynccontextmanager
    async def _connection(self) -> AsyncIterator[Connection]:
        connection = await self.pool.take()
        try:
            yield connection
        except BaseException:
            connection.close()
            raise
        self.pool.give(connection)
