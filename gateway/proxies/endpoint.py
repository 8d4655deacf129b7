"""
What the streamable and the transparent proxy have in common: a Streamable HTTP endpoint
(MCP 2025-03-26 to 2025-11-25, basic/transports, Streamable HTTP).

 POST    a request is answered by JSON or an event stream; notifications and responses by 202.
 GET     an event stream for what belongs to no request.
 DELETE  ends the session.

Modern requests have a ModernEndpoint beside it.
"""

from __future__ import annotations

from attrs import define, field
from twisted.internet.defer import Deferred, gatherResults
from twisted.logger import Logger

from gateway.links.interfaces import IServer
from gateway.observe.observer import BoundReached
from gateway.proxies.admitted import Admitted, Then
from gateway.proxies.batches import parted
from gateway.proxies.channel import Channel
from gateway.proxies.entrance import Entrance
from gateway.proxies.ladder import Ladder
from gateway.proxies.modern import ModernEndpoint
from gateway.proxies.opening import ask, handshake, newRelay, newSession
from gateway.proxies.reply import Reply
from gateway.proxies.shared import Shared
from gateway.proxies.streams import openStream
from gateway.relay.relay import Relay
from gateway.sessions.registry import Session
from gateway.wire import refusals
from gateway.wire.context import HeaderPairs
from gateway.wire.envelope import REQUEST, Message, NotAMessage
from gateway.wire.exchange import Exchange
from gateway.wire.refusals import JSON_TYPE, Refusal
from gateway.wire.revisions import opensAtOnce

__all__ = ["StreamableEndpoint"]


@define(eq=False)
class StreamableEndpoint:
    """
    One server's Streamable HTTP endpoint.

    Its sessions' live parts are relays; it holds nothing else of them. What differs between
    the two proxies is what their subclasses say of GET and of servers without sessions.

    successor: where what is of no session goes once the server was replaced or removed.
    """

    server: IServer
    shared: Shared
    ladder: Ladder
    modern: ModernEndpoint = field(init=False)
    successor: Then | None = field(default=None, init=False)
    log: Logger = field(factory=Logger, init=False)
    _entrances: dict[bytes, Entrance] = field(factory=dict, init=False)
    """By path: the server's own, and the default's."""

    transparent = False
    """Whether its relays pass the server's own streams on, where it has any."""

    def __attrs_post_init__(self) -> None:
        self.modern = ModernEndpoint(self.server, self.shared, self.ladder)

    def serve(self, exchange: Exchange, path: bytes) -> None:
        """Answer one request to the endpoint at `path`."""
        entrance = self._entrances.get(path) or self._entrance(path)
        self.ladder.climb(exchange, entrance, self._admitted)

    def _entrance(self, path: bytes) -> Entrance:
        methods = (b"POST", b"GET", b"DELETE")
        entrance = Entrance(self.server, path, methods, sessionless=self.sessionless)
        self._entrances[path] = entrance
        return entrance

    def retire(self, successor: Then) -> None:
        """The server was replaced or removed: only what belongs to a session is ours now."""
        self.successor = self.modern.successor = successor

    def takeOver(self, admitted: Admitted) -> None:
        """Answer what came up the ladder of the server that this one replaces."""
        path = admitted.exchange.head.path.removesuffix(b"/")
        self.ladder.judgeAnew(admitted, self._entrances.get(path) or self._entrance(path))
        self._admitted(admitted)

    def sessionless(self) -> bool | None:
        """Whether the server keeps no sessions; None while that is not known."""
        return False

    def get(self, admitted: Admitted, relay: Relay) -> None:
        """Answer a GET in a session."""
        raise NotImplementedError

    def withoutSession(self, admitted: Admitted) -> None:
        """Answer a POST that names no session, of a server that keeps none."""
        raise NotImplementedError

    def withoutID(self, relay: Relay) -> bool:
        """Whether a session that was just opened is one in name only, and is not kept."""
        return False

    def running(self) -> bool:
        """Whether calls run that belong to no session of the registry."""
        return self.modern.running()

    async def stop(self) -> None:
        """Let go of what belongs to no session. The sessions are the registry's to end."""
        await self.modern.stop()

    def _admitted(self, admitted: Admitted) -> None:
        session, message = admitted.session, admitted.message
        method = admitted.exchange.head.method
        if session is not None:
            relay = relayOf(session)
            if message is not None and message.kind is REQUEST:
                self._call(admitted, relay, message)
            elif method == b"POST":
                self.post(admitted, relay)
            elif method == b"GET":
                self.get(admitted, relay)
            else:
                self._delete(admitted, session)
        elif self.successor is not None and not self.modern.parks(admitted):
            self.successor(admitted)
        elif admitted.claim is not None:
            self.modern.serve(admitted)
        elif message is not None and message.method == "initialize" and message.id is not None:
            self._initialize(admitted, message)
        else:
            self.withoutSession(admitted)

    # initialize

    def _initialize(self, admitted: Admitted, message: Message) -> None:
        flow = Deferred.fromCoroutine(self._initialized(admitted, message))
        flow.addErrback(self.ladder.broke, admitted.exchange)

    async def _initialized(self, admitted: Admitted, message: Message) -> None:
        exchange, context, registry = admitted.exchange, admitted.context, self.shared.registry
        gone: list[bool] = []
        exchange.onGone = lambda: gone.append(True)
        session = await newSession(self.shared, self.server, context, "streamable")
        if isinstance(session, Refusal):
            self.ladder.refuse(exchange, session, "session", message.id)
            return
        relay = newRelay(self.shared, self.server, session, context, transparent=self.transparent)
        answer, succeeded = await handshake(self.shared, relay, message, context)
        fields: HeaderPairs = (JSON_TYPE,)
        if not succeeded:
            await registry.end(session, "failed")
        elif self.withoutID(relay):
            await registry.end(session, "sessionless")
        elif gone:
            # Nobody learnt the id, so nobody would ever end it.
            await registry.end(session, "unused")
        else:
            session.opened(self.shared.clock.seconds())
            fields += ((b"mcp-session-id", session.record.id.encode()),)
        exchange.onGone = None
        if not gone:
            exchange.answer(200, fields, answer.encode())

    # Requests, batches, notifications and responses.

    def post(self, admitted: Admitted, relay: Relay) -> None:
        """Relay what a POST brought."""
        message = admitted.message
        if message is None:
            assert admitted.batch is not None
            self._batch(admitted, relay, admitted.batch)
        elif message.kind is REQUEST:
            self._call(admitted, relay, message)
        else:
            self._tell(admitted, relay, [message])

    def _call(self, admitted: Admitted, relay: Relay, message: Message) -> None:
        reply = self._reply(admitted, relay)
        # A stream that is open cannot become a 404, so a session in recovery waits; and where
        # the server numbers the events, it is the server that primes.
        ours = relay.link is not None and not relay.transparent
        reply.start(ours and opensAtOnce(relay.session.record.revision))
        ask(self.shared, relay, message, reply, admitted.events, admitted.context)

    def _reply(self, admitted: Admitted, relay: Relay) -> Reply:
        return Reply(
            admitted.exchange,
            self.shared,
            self.server.name,
            relay,
            admitted.json,
            admitted.events,
            relay.events,
        )

    def _tell(self, admitted: Admitted, relay: Relay, messages: list[Message]) -> None:
        told = [relay.message(message, admitted.context) for message in messages]
        waited = [one for one in told if one is not True and one is not False]
        taken = False not in told
        if not waited:
            self._told(taken, admitted.exchange)
            return
        every = gatherResults(waited).addCallback(lambda all_: taken and all(all_))
        every.addCallback(self._told, admitted.exchange)
        every.addErrback(self.ladder.broke, admitted.exchange)

    def _told(self, taken: bool, exchange: Exchange) -> None:
        if taken:
            exchange.answer(202, ())
        else:
            refusal = refusals.queueFull(self.shared.limits.retry_after)
            self.ladder.refuse(exchange, refusal, "link")

    def _batch(self, admitted: Admitted, relay: Relay, batch: list[Message | NotAMessage]) -> None:
        """MCP 2025-03-26: the members go to the server one by one, the answer is one array."""
        requests, others, bad = parted(batch)
        if not requests and not bad:
            self._tell(admitted, relay, others)
            return
        for message in others:
            told = relay.message(message, admitted.context)
            if told is not True and told is not False:
                told.addErrback(lambda failure: self.log.failure("while a batch was sent", failure))
        reply = self._reply(admitted, relay)
        reply.collect(bad, len(requests) + len(bad))
        reply.start(False)
        if not requests:
            reply.finishBatch()
        for message in requests:
            # A stream the server numbers may end before its answer, for the client to resume;
            # an answer made of several cannot.
            streams = admitted.events and not relay.transparent
            ask(self.shared, relay, message, reply, streams, admitted.context)

    # GET and DELETE.

    def openGet(self, exchange: Exchange, relay: Relay, channel: Channel) -> None:
        """Open a stream for what belongs to no request; the oldest ends if there are many."""
        channel.owner = _Gets(self, relay)
        channel.owner.connect(exchange, channel)

    def _delete(self, admitted: Admitted, session: Session) -> None:
        ended = self.shared.registry.end(session, "deleted")
        ended.addCallback(lambda _: admitted.exchange.answer(204, ()))
        ended.addErrback(self.ladder.broke, admitted.exchange)


@define(eq=False)
class _Gets:
    """Serves the GET streams of one session."""

    endpoint: StreamableEndpoint
    relay: Relay

    def connect(self, exchange: Exchange, channel: Channel, after: int | None = None) -> None:
        endpoint, relay = self.endpoint, self.relay
        shared, session = endpoint.shared, relay.session
        open_ = relay.router.streams
        if len(open_) >= shared.limits.max_get_streams:
            shared.observer.observed(BoundReached("max_get_streams", endpoint.server.name))
            # What is resumed touches no other stream: it gets what was kept, and ends.
            ending = open_[0] if after is None else channel
            ending.close()
            # A blocked reader's stream ends later, but it counts no more.
            relay.detach(ending)
        session.streamOpened(shared.clock.seconds())

        def closed() -> None:
            if channel.stream is stream:
                channel.cut()
                relay.detach(channel)
            relay.readerClosed(stream)
            session.streamClosed(shared.clock.seconds())

        stream = openStream(exchange, shared, endpoint.server.name, closed, watch=relay)
        if after is None:
            channel.stream = stream
        else:
            channel.resume(stream, after)
        if not stream.closed:
            relay.readerOpened(stream, channel)
        if not channel.ended:
            relay.attach(channel)


def relayOf(session: Session) -> Relay:
    """The relay of a session that was opened here."""
    assert isinstance(session.live, Relay)
    return session.live
