"""A client that loses its connections: it reads, drops, and resumes from the last id it saw."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from typing import Any

from attrs import define, field
from raw import RawClient, Response
from twisted.internet import reactor
from twisted.internet.endpoints import TCP4ClientEndpoint, connectProtocol

__all__ = ["Reading", "opened"]


async def opened(port: int, request: bytes) -> RawClient:
    """A connection to a local port with a request on it."""
    endpoint = TCP4ClientEndpoint(reactor, "127.0.0.1", port)
    client: RawClient = await connectProtocol(endpoint, RawClient())
    client.send(request)
    return client


@define(eq=False)
class Reading:
    """
    One event stream, read over any number of connections.

    resumed: opens a connection with `Last-Event-ID`. client: the connection that is read.
    messages: what was read, in order. ids: of every event read, the primer's included. last: the
    id to resume from; b"" before the first. over: whether the stream ended in order. proxied:
    whether nginx is in between.
    """

    resumed: Callable[[bytes], Awaitable[RawClient]]
    client: RawClient
    messages: list[Any] = field(factory=list)
    ids: list[bytes] = field(factory=list)
    over: bool = False
    proxied: bool = False

    @property
    def last(self) -> bytes:
        return self.ids[-1] if self.ids else b""

    async def head(self) -> Response:
        head = await self.client.head()
        assert head.status == 200, (head, self.client.unread)
        assert head.header(b"content-type") == b"text/event-stream"
        assert head.header(b"cache-control") == b"no-store"
        # nginx obeys this field and keeps it.
        assert head.header(b"x-accel-buffering") == (None if self.proxied else b"no")
        return head

    async def one(self) -> bool:
        """Read one event. False: the stream ended."""
        event = await self.client.event()
        if event is None:
            self.over = True
            return False
        assert event.id is not None
        assert event.id not in self.ids, "an event came twice"
        self.ids.append(event.id)
        if event.data:
            self.messages.append(json.loads(event.data))
        return True

    async def read(self, count: int) -> None:
        """Read until so many messages were read in all."""
        while len(self.messages) < count:
            assert await self.one(), f"ended after {self.messages}"

    async def rest(self) -> list[Any]:
        """Read to the end; returns every message."""
        while await self.one():
            pass
        return self.messages

    async def drop(self) -> None:
        """Lose the connection, with whatever is on it."""
        self.client.reset()
        await self.client.ended

    async def resume(self) -> None:
        """Go on from the last id, on another connection."""
        self.client = await self.resumed(self.last)
        await self.head()
