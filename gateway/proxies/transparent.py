"""
The transparent proxy: Streamable HTTP straight through to an HTTP server that speaks it.

Each request of the client becomes one of the server's, each stream one stream; ids and the
session id are mapped, nothing else. A server whose `initialize` carries no session id keeps no
sessions: then nothing is kept here either, and its requests share one link per revision, whose
handshake is the gateway's own.

A server that turns out to speak something else than Streamable HTTP is served as the streamable
proxy does.
"""

from __future__ import annotations

from functools import partial

from attrs import define, field
from twisted.internet.defer import Deferred, gatherResults
from twisted.python.failure import Failure

from gateway.links.hello import ownHello
from gateway.links.interfaces import IHTTPLink, ILink, LinkFailed, ListenRefused
from gateway.proxies.admitted import Admitted
from gateway.proxies.channel import Channel
from gateway.proxies.opening import askOfAll
from gateway.proxies.streamable import StreamableProxy
from gateway.proxies.streams import openStream
from gateway.relay.common import CommonRelay
from gateway.relay.relay import Relay
from gateway.relay.sender import SessionOver
from gateway.sessions.ids import tagOf
from gateway.sessions.record import SessionRecord
from gateway.sessions.registry import Session
from gateway.wire import refusals
from gateway.wire.context import CallContext
from gateway.wire.envelope import Kind, Message
from gateway.wire.refusals import callFailed
from gateway.wire.revisions import LEGACY

__all__ = ["TransparentProxy"]


@define(eq=False)
class TransparentProxy(StreamableProxy):
    """Streamable HTTP straight through to one server that speaks it."""

    _keepsNone: bool | None = field(default=None, init=False)
    _common: dict[str, Relay] = field(factory=dict, init=False)
    _arriving: int = field(default=0, init=False)
    """How many requests to a server that may keep no sessions wait for its link."""

    transparent = True

    def sessionless(self) -> bool | None:
        return self._keepsNone

    def withoutID(self, relay: Relay) -> bool:
        self._keepsNone = _isSessionless(relay.link)
        return self._keepsNone

    # A server without sessions.

    def withoutSession(self, admitted: Admitted) -> None:
        self._arriving += 1
        flow = Deferred.fromCoroutine(self._withoutSession(admitted))
        flow.addBoth(self._arrived)
        flow.addErrback(self.ladder.broke, admitted.exchange)

    def _arrived(self, result: Failure | None) -> Failure | None:
        self._arriving -= 1
        return result

    async def _withoutSession(self, admitted: Admitted) -> None:
        exchange, message = admitted.exchange, admitted.message
        version = (exchange.head.header(b"mcp-protocol-version") or b"").decode("latin-1")
        revision = version if version in LEGACY else LEGACY[0]
        relay = self._commonRelay(revision, admitted.context)
        try:
            try:
                link = await relay.acquire(admitted.context)
            except SessionOver:
                # It came back as another server; to nobody was the first one promised.
                await self._drop(relay)
                relay = self._commonRelay(revision, admitted.context)
                link = await relay.acquire(admitted.context)
        except LinkFailed as error:
            if message is None or message.kind is not Kind.REQUEST:
                exchange.answer(202, ())
            else:
                failed = callFailed(message.id, error.reason, error.message)
                exchange.answer(200, (refusals.JSON_TYPE,), failed.encode())
            return
        self._keepsNone = _isSessionless(link)
        if self._keepsNone:
            if message is not None and message.kind is Kind.REQUEST:
                reply = self._reply(admitted, relay)
                reply.start(False)
                askOfAll(self.shared, relay, message, reply, admitted.events, admitted.context)
            else:
                self.post(admitted, relay)
            return
        # It keeps sessions after all: this one is nobody's.
        await self._drop(relay)
        refusal = refusals.sessionRequired("Mcp-Session-Id; start with initialize")
        self.ladder.refuse(exchange, refusal, "session", admitted.id)

    def _commonRelay(self, revision: str, context: CallContext) -> Relay:
        relay = self._common.get(revision)
        if relay is not None and not relay.session.ended:
            return relay
        record = SessionRecord(
            id="",
            server=self.server.name,
            generation=self.server.generation,
            principal=context.principal,
            revision=revision,
            initialized=True,
        )
        now = self.shared.clock.seconds()
        # Not in the registry: no client holds it, and nothing of a client is in it, nor in its
        # link; each call, and the one that needs the handshake, brings its own header fields.
        session = Session(record, now, now, tagOf(revision), total=self.shared.load.total)
        common = CallContext(self.server.name, context.principal)
        shared = self.shared
        relay = CommonRelay(
            session,
            self.server,
            shared.registry,
            shared.policy,
            shared.limits,
            shared.clock,
            shared.observer,
            common,
            transparent=True,
            load=shared.load,
        )
        relay.serveAll(ownHello(revision).params)
        self._common[revision] = relay
        return relay

    def running(self) -> bool:
        if self._arriving or super().running():
            return True
        return any(relay.session.running for relay in self._common.values())

    async def stop(self) -> None:
        # All at once, or one would begin what waits while another closes its link.
        ending = [
            Deferred.fromCoroutine(self._drop(relay, "shutdown"))
            for relay in list(self._common.values())
        ]
        await super().stop()
        await gatherResults(ending)

    async def _drop(self, relay: Relay, reason: str = "dismissed") -> None:
        self._common = {key: kept for key, kept in self._common.items() if kept is not relay}
        await relay.dismiss(reason)

    # GET

    def get(self, admitted: Admitted, relay: Relay) -> None:
        if not relay.transparent:
            super().get(admitted, relay)
            return
        flow = Deferred.fromCoroutine(self._get(admitted, relay))
        flow.addErrback(self.ladder.broke, admitted.exchange)

    async def _get(self, admitted: Admitted, relay: Relay) -> None:
        """The client's stream is the server's; where the server has none, there is none."""
        exchange = admitted.exchange
        feed = Channel(self.shared, self.server.name)
        gone: list[bool] = []

        def left() -> None:
            gone.append(True)
            relay.detach(feed)

        exchange.onGone = left
        last = exchange.head.header(b"last-event-id")
        opened = await self._listen(admitted, relay, feed, last)
        exchange.onGone = None
        if relay.session.ended:
            self.ladder.refuse(exchange, refusals.sessionNotFound(), "session")
        elif not opened and (owed := _owed(relay, last)) is not None:
            feed.stream = openStream(exchange, self.shared, self.server.name, feed.cut)
            feed.finish(owed.encode())
        elif not opened:
            refusal = refusals.noStream(b"POST, DELETE, OPTIONS")
            self.ladder.refuse(exchange, refusal, "link")
        elif not gone:
            self.openGet(exchange, relay, feed)
            return
        relay.detach(feed)

    async def _listen(
        self, admitted: Admitted, relay: Relay, feed: Channel, last: bytes | None
    ) -> bool:
        """
        Open the server's stream; a lost session of the server is made again, once.

        Returns whether it is open.
        """
        for again in (False, True):
            try:
                link = await relay.acquire(admitted.context)
                straight = relay.straight
                if last and straight is not None and straight.isLost(last, link):
                    return False
                relay.opens(feed, link)
                spoilt = partial(relay.spoilt, link)
                await link.listen(feed, last, admitted.context, spoilt)  # type: ignore[attr-defined]
                if last and straight is not None:
                    straight.resumes(last, feed)
                return True
            except ListenRefused as error:
                if error.status != 404:
                    return False
                if again:
                    relay.over()
                    return False
                relay.abandon(link)
                # A stream of the lost session cannot be resumed on another.
                if last is not None:
                    return False
            except SessionOver:
                relay.over()
                return False
            except LinkFailed:
                return False
        return False


def _owed(relay: Relay, last: bytes | None) -> Message | None:
    """What is owed to whoever asks for the rest of a stream, which nobody has any more."""
    return None if relay.straight is None or not last else relay.straight.owed(last)


def _isSessionless(link: ILink | None) -> bool:
    """Whether there is no session to pass on; a link that is none of HTTP is one by itself."""
    return IHTTPLink.providedBy(link) and bool(link.sessionless)
