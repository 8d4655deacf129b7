"""
The SSE proxy: the old HTTP+SSE transport in front of any server
(MCP 2024-11-05, basic/transports, HTTP with SSE).

 GET /sse        opens the session and its one stream; the first event names the other endpoint.
 POST /messages  202; what there is to say about the message comes on the stream.

The session lives as long as its stream. Two clients never share one, so neither sees what is the
other's.
"""

from __future__ import annotations

from attrs import define, field
from twisted.internet.defer import Deferred
from twisted.logger import Logger

from gateway.links.interfaces import EventMark, IServer
from gateway.observe.observer import CallFailed, MessageDropped
from gateway.proxies.admitted import Admitted, Then
from gateway.proxies.batches import parted
from gateway.proxies.channel import Channel
from gateway.proxies.entrance import Entrance, Naming
from gateway.proxies.ladder import Ladder
from gateway.proxies.opening import ask, handshake, newRelay, newSession
from gateway.proxies.shared import Shared
from gateway.proxies.streams import openStream
from gateway.relay.relay import Relay
from gateway.relay.target import Target
from gateway.sessions.registry import Session
from gateway.wire import refusals
from gateway.wire.context import CallContext
from gateway.wire.envelope import Kind, Message, NotAMessage, encodeBatch
from gateway.wire.exchange import Exchange
from gateway.wire.refusals import Reason, Refusal, callFailed, errorMessage
from gateway.wire.sse import encodeEvent

__all__ = ["SSEProxy"]


@define(eq=False)
class _Conversation:
    """What serves an HTTP+SSE session: its relay, its one stream, and whether it was greeted."""

    relay: Relay
    stream: Channel
    asked: bool = False


@define(eq=False)
class _BatchAnswer:
    """Collects the answers to a batch and sends them whole. A relay's target."""

    stream: Channel
    expected: int
    collected: list[bytes]

    def deliver(self, message: Message, mark: EventMark | None = None) -> bool:
        return self.stream.deliver(message, mark)

    def marked(self, mark: EventMark) -> None:
        self.stream.marked(mark)

    def answer(self, message: Message, mark: EventMark | None = None) -> None:
        self.collected.append(message.encode())
        self.send()

    def send(self) -> None:
        if len(self.collected) == self.expected:
            self.stream.answerEncoded(encodeBatch(self.collected))

    def lost(self, id: bytes) -> None:
        self.stream.lost(id)

    def close(self) -> None:
        self.stream.close()


@define(eq=False)
class SSEProxy:
    """
    One server's pair of HTTP+SSE endpoints.

    successor: see StreamableEndpoint.
    """

    server: IServer
    shared: Shared
    ladder: Ladder
    successor: Then | None = field(default=None, init=False)
    _entrances: dict[bytes, Entrance] = field(factory=dict, init=False)
    _log: Logger = field(factory=Logger, init=False)

    def serveStream(self, exchange: Exchange, path: bytes) -> None:
        """Answer one request to the stream's endpoint, `path`."""
        self.ladder.climb(exchange, self._entrance(path, b"GET"), self._opened)

    def serveMessages(self, exchange: Exchange, path: bytes) -> None:
        """Answer one request to the messages' endpoint, `path`."""
        self.ladder.climb(exchange, self._entrance(path, b"POST"), self._posted)

    def _entrance(self, path: bytes, method: bytes) -> Entrance:
        entrance = self._entrances.get(path)
        if entrance is None:
            entrance = Entrance(self.server, path, (method,), Naming.QUERY)
            self._entrances[path] = entrance
        return entrance

    def retire(self, successor: Then) -> None:
        """See StreamableEndpoint."""
        self.successor = successor

    def takeOver(self, admitted: Admitted) -> None:
        """Open the stream that came up the ladder of the server that this one replaces."""
        path = admitted.exchange.head.path.removesuffix(b"/")
        self.ladder.judgeAnew(admitted, self._entrance(path, b"GET"))
        self._opened(admitted)

    # GET

    def _opened(self, admitted: Admitted) -> None:
        if self.successor is not None:
            self.successor(admitted)
            return
        flow = Deferred.fromCoroutine(self._open(admitted))
        flow.addErrback(self.ladder.broke, admitted.exchange)

    async def _open(self, admitted: Admitted) -> None:
        exchange, context, shared = admitted.exchange, admitted.context, self.shared
        gone: list[bool] = []
        exchange.onGone = lambda: gone.append(True)
        session = await newSession(shared, self.server, context, "sse")
        if isinstance(session, Refusal):
            self.ladder.refuse(exchange, session, "session")
            return
        if gone:
            await shared.registry.end(session, "stream_closed")
            return
        try:
            self._openStream(exchange, session, context)
        except BaseException:
            await shared.registry.end(session, "failed")
            raise

    def _openStream(self, exchange: Exchange, session: Session, context: CallContext) -> None:
        shared = self.shared
        relay = newRelay(shared, self.server, session, context)
        channel = Channel(shared, self.server.name)

        def closed() -> None:
            channel.stream = None
            relay.detach(channel)
            relay.gone(channel)
            relay.readerClosed(stream)
            shared.registry.end(session, "stream_closed")

        stream = openStream(exchange, shared, self.server.name, closed, watch=relay)
        channel.stream = stream
        session.live = _Conversation(relay, channel)
        now = shared.clock.seconds()
        session.opened(now)
        session.streamOpened(now)
        relay.readerOpened(stream, channel)
        stream.write(encodeEvent(_endpoint(exchange, session), event=b"endpoint"))
        relay.attach(channel)

    # POST

    def _posted(self, admitted: Admitted) -> None:
        session = admitted.session
        assert session is not None
        conversation = session.live
        assert isinstance(conversation, _Conversation)
        # The Python writers send nothing more before the 202 is there.
        admitted.exchange.answer(202, ())
        refusal = admitted.refusal
        if refusal is not None:
            self._refuse(conversation, refusal, admitted.id)
        elif admitted.batch is not None:
            self._batch(conversation, admitted, admitted.batch)
        elif admitted.message is not None:
            self._message(conversation, admitted, admitted.message)

    def _refuse(self, conversation: _Conversation, refusal: Refusal, id: bytes | None) -> None:
        error = errorMessage(id, refusal.code, refusal.message, refusal.data)
        conversation.stream.answer(error)

    def _message(self, conversation: _Conversation, admitted: Admitted, message: Message) -> None:
        relay, stream = conversation.relay, conversation.stream
        if message.kind is not Kind.REQUEST:
            if conversation.asked:
                self._tell(conversation, admitted, message)
            else:
                dropped = MessageDropped(self.server.name, "before_initialize")
                self.shared.observer.observed(dropped)
        elif message.method == "initialize":
            if conversation.asked:
                again = refusals.notAMessage("this session is initialized already")
                self._refuse(conversation, again, message.id)
                return
            conversation.asked = True
            flow = Deferred.fromCoroutine(self._initialize(conversation, admitted, message))
            flow.addErrback(lambda failure: self._log.failure("a handshake broke", failure))
        elif not relay.session.record.revision:
            early = refusals.notAMessage("the session starts with initialize")
            self._refuse(conversation, early, message.id)
        else:
            self._ask(conversation, message, stream, admitted.context)

    def _ask(
        self, conversation: _Conversation, message: Message, target: Target, context: CallContext
    ) -> None:
        if not conversation.relay.session.retired:
            ask(self.shared, conversation.relay, message, target, True, context)
            return
        # Its stream is kept for what runs; to end it now would lose that.
        reason = Reason.SHUTTING_DOWN
        self.shared.observer.observed(CallFailed(self.server.name, message.method, reason.value))
        target.answer(callFailed(message.id, reason, "the server is being replaced"))

    def _tell(self, conversation: _Conversation, admitted: Admitted, message: Message) -> None:
        """Relay a notification or response; the stream hears if it could not be taken."""
        told = conversation.relay.message(message, admitted.context)
        if told is True or told is False:
            self._told(told, conversation)
            return
        told.addCallback(self._told, conversation)
        told.addErrback(lambda failure: self._log.failure("while sending", failure))

    def _told(self, taken: bool, conversation: _Conversation) -> None:
        if not taken:
            refusal = refusals.queueFull(self.shared.limits.retry_after)
            self._refuse(conversation, refusal, None)

    async def _initialize(
        self, conversation: _Conversation, admitted: Admitted, message: Message
    ) -> None:
        relay, stream = conversation.relay, conversation.stream
        # It is waited for as any call.
        relay.session.callStarted(self.shared.clock.seconds())
        answer, succeeded = await handshake(self.shared, relay, message, admitted.context)
        relay.session.callEnded(self.shared.clock.seconds())
        if relay.session.ended:
            # It was its last call.
            self.shared.load.forget(relay.session.record.principal)
        if not succeeded:
            # Another try is the client's right: nothing has come of this one.
            conversation.asked = False
        stream.answer(answer)

    def _batch(
        self,
        conversation: _Conversation,
        admitted: Admitted,
        batch: list[Message | NotAMessage],
    ) -> None:
        requests, others, bad = parted(batch)
        for item in others:
            self._tell(conversation, admitted, item)
        answer = _BatchAnswer(conversation.stream, len(requests) + len(bad), bad)
        if bad and not requests:
            answer.send()
        for item in requests:
            self._ask(conversation, item, answer, admitted.context)


def _endpoint(exchange: Exchange, session: Session) -> bytes:
    """
    The URI of the messages' endpoint, without an origin.

    At our own listener path-absolute. Under a host's Site the public prefix is not known, so
    there it is relative to the stream's own path.
    """
    head = exchange.head
    query = b"?session_id=" + session.record.id.encode()
    if head.mounted:
        return (b"../messages" if head.path.endswith(b"/") else b"messages") + query
    base = head.path.rstrip(b"/").rpartition(b"/")[0]
    return base + b"/messages" + query
