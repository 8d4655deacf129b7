"""
One configured server as it is served: the server, and the proxies in front of it.

A reload that changes a server makes its next generation, and retires the one before:

 1. What belongs to no session goes to the next generation; where there is none, there is no such
    server (404 -32000), also for what came up the ladder before.
 2. A session in which nothing runs ends at once: 404 -32001, so that its client starts over.
 3. A session in which calls run, or its handshake, ends with the last of them. Until then it takes
    what belongs to these (answers to what the server asked, cancellations) and no new request:
    404 -32001. Over HTTP+SSE the answers come on the session's own stream, so there a new request
    is told `shutting_down`.
 4. A modern call that waits for its client's input is finished here, too: the request that brings
    it is led to where the call runs. While the gateway drains nobody brings it.
 5. What still runs, or waits, after `drain_grace` seconds is told `shutting_down`.
 6. Then streams of `subscriptions/listen` end in order, and links, children and connections go.
"""

# Twisted is annotated in part only.
# mypy: allow-untyped-calls

from __future__ import annotations

from collections.abc import Iterable, Sequence

import attrs
from attrs import define, field
from twisted.internet.defer import Deferred, DeferredList
from twisted.internet.task import deferLater
from twisted.logger import Logger

from gateway.app import Mount
from gateway.links.interfaces import IServer
from gateway.observe.observer import BoundReached
from gateway.proxies.admitted import Admitted
from gateway.proxies.ladder import Ladder
from gateway.proxies.shared import Shared
from gateway.proxies.sse import SSEProxy
from gateway.proxies.streamable import StreamableProxy
from gateway.proxies.transparent import TransparentProxy
from gateway.sessions.registry import Session
from gateway.settings import HTTPSettings, ServerSettings
from gateway.wire import refusals

__all__ = ["LOOK", "Generation", "gathered"]

LOOK = 0.1
"""Seconds between two looks whether the last call has finished."""

_log = Logger()


@define(eq=False)
class Generation:
    """
    One server, from the configuration that brought it to the one that replaces or removes it.

    Life: made → served by its proxies → `retire`, or `stop` with the gateway. Either leaves nothing
    of it.

    settings: as they were configured. server: drained by this. mount: its proxies.
    """

    settings: ServerSettings
    server: IServer
    shared: Shared
    ladder: Ladder
    mount: Mount = field(init=False)

    def __attrs_post_init__(self) -> None:
        server, shared, ladder = self.server, self.shared, self.ladder
        settings = self.settings
        passing = isinstance(settings, HTTPSettings) and settings.proxy == "transparent"
        kind = TransparentProxy if passing and settings.isolation == "session" else StreamableProxy
        self.mount = Mount(kind(server, shared, ladder), SSEProxy(server, shared, ladder))

    @property
    def name(self) -> str:
        """The name it is configured under."""
        return self.settings.name

    def serves(self, settings: ServerSettings) -> bool:
        """Whether it is what these settings ask for; which server is the default is no server's."""
        return attrs.evolve(self.settings, default=settings.default) == settings

    @property
    def sessions(self) -> list[Session]:
        """Its sessions."""
        number = self.server.generation
        return [
            session
            for session in self.shared.registry
            if session.record.server == self.name and session.record.generation == number
        ]

    def running(self) -> bool:
        """Whether calls run that belong to no session of the registry."""
        return self.mount.http.running()

    # The end.

    def retire(self, successor: Generation | None) -> Deferred[None]:
        """
        Serve nothing new, let what runs finish, and go. Fires when nothing of it is left.

        successor: what takes its place, if anything does.
        """
        old, new = self.mount, None if successor is None else successor.mount
        old.http.retire(self._unknown if new is None else new.http.takeOver)
        old.sse.retire(self._unknown if new is None else new.sse.takeOver)
        if new is not None:
            new.http.modern.follows(old.http.modern)
        return Deferred.fromCoroutine(self._retired())

    def _unknown(self, admitted: Admitted) -> None:
        self.ladder.refuse(admitted.exchange, refusals.unknownServer(), "route", admitted.id)

    async def _retired(self) -> None:
        shared = self.shared
        until = shared.clock.seconds() + shared.limits.drain_grace
        while self._finishing() or self.running() or self._awaited():
            if shared.clock.seconds() >= until:
                shared.observer.observed(BoundReached("drain_grace", self.name))
                break
            await deferLater(shared.clock, LOOK)
        await self.stop("replaced")

    def _awaited(self) -> bool:
        """Whether calls wait here for their clients' input, and those may still bring it."""
        return self.shared.accepting and self.mount.http.modern.parked()

    def _finishing(self) -> bool:
        """End the sessions in which nothing runs. Returns whether there are others."""
        busy = False
        for session in self.sessions:
            session.retired = True
            if session.busy:
                busy = True
            else:
                self.shared.registry.end(session, "replaced")
        return busy

    async def stop(self, reason: str) -> None:
        """End everything of it now; reason: of the end of its sessions."""
        end, load = self.shared.registry.end, self.shared.load
        load.suspend()
        try:
            ends = [end(session, reason) for session in self.sessions]
            stopping = Deferred.fromCoroutine(self.mount.http.stop())
        finally:
            load.resume()
        await gathered([*ends, stopping])
        await gathered([self.server.drain()])


async def gathered(deferreds: Iterable[Deferred[None] | None]) -> None:
    """Wait for all, whatever becomes of each; a failure is logged."""
    waited: Sequence[Deferred[None]] = [one for one in deferreds if one is not None]
    for succeeded, result in await DeferredList(waited):
        if not succeeded:
            _log.failure("while something of the gateway ended", result)
