"""
The three kinds of request of a Streamable HTTP link, and how each judges its answer (MCP,
basic/transports, Streamable HTTP).

A request's POST:

 1. 200 with `application/json`: a response with the request's id (or, as MCP 2025-03-26 has it,
    a batch with one).
 2. 200 with `text/event-stream`: events until that response. What comes after it is dropped and
    counted.
 3. Another 2xx, another media type, a content coding, what is no message, an answer to nobody,
    an answer over `max_answer`: a bad answer, and the connection is cut.
 4. 3xx (where the client did not follow it), 4xx and 5xx: refused. A JSON-RPC error in the body
    goes with it. A 400 whose error says that there is no such session is taken for the 404 that MCP
    has for it: so do the examples of the TypeScript SDK, and many servers made from them.

The POST of a notification or response: 2xx accepts it, whatever the body; the rest as in 4.

A GET: 200 with `text/event-stream` opens it, everything else refuses it. In it, what is no
message is skipped and counted; where it seems to be the answer to a request, who opened the stream
is told so.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from gateway.http1.client import Fault, ResponseHead
from gateway.links.http_answer import Stream, isMeantAsMessage
from gateway.links.interfaces import EventMark, Outcome, Reason, Settled
from gateway.observe.observer import BoundReached, MessageDropped, NoiseSkipped
from gateway.wire.envelope import RESPONSE, Message, NotAMessage, NotJSON, decode, members, text

__all__ = ["UNKNOWN", "CallStream", "GetStream", "NoteStream", "badAnswer"]

MAX_REFUSAL = 64 * 1024
"""Bytes of a refusal's body that are read for a JSON-RPC error."""

UNREACHABLE = Settled(Outcome.NOT_SENT, Reason.UPSTREAM_UNREACHABLE, "the server cannot be reached")
UNKNOWN = Settled(
    Outcome.MAYBE_RAN,
    Reason.OUTCOME_UNKNOWN,
    "the connection to the server was lost before it answered",
)


_NO_SESSION = re.compile(
    r"\b(no valid|invalid|unknown|expired) session\b|\bsession( id)? (not found|expired|invalid)\b",
    re.IGNORECASE,
)


def badAnswer(message: str) -> Settled:
    """A call that may have run and has an answer nobody can use."""
    return Settled(Outcome.MAYBE_RAN, Reason.BAD_ANSWER, message)


_FAULTS = {
    Fault.UNSENT: UNREACHABLE,
    Fault.CUT: UNKNOWN,
    Fault.BAD: badAnswer("the server did not answer in HTTP"),
    Fault.STALLED: Settled(
        Outcome.MAYBE_RAN, Reason.TIMEOUT, "the server fell silent in the middle of its answer"
    ),
}


def _refused(status: int, body: bytes, sessions: bool = True) -> Settled:
    error = _errorIn(body)
    if sessions and status == 400 and error is not None and _saysLost(error):
        status = 404
    return Settled(
        # A server, or a proxy before it, may fail with a 5xx in the middle of a call.
        Outcome.REFUSED if status < 500 else Outcome.MAYBE_RAN,
        Reason.BAD_ANSWER,
        f"the server refused with HTTP status {status}",
        status,
        error,
    )


def _saysLost(error: Message) -> bool:
    said = text(bytes(members(error.fields["error"]).get("message", b"")))
    return said is not None and _NO_SESSION.search(said) is not None


def _errorIn(body: bytes) -> Message | None:
    """The JSON-RPC error in a refusal; it may have no id, or null (MCP, basic/transports)."""
    try:
        message = decode(body)
    except NotJSON:
        return None
    except NotAMessage:
        fields = members(body.strip())
        if bytes(fields.get("error", b""))[:1] != b"{" or "method" in fields:
            return None
        fields = {name: value for name, value in fields.items() if name != "id"}
        return Message(RESPONSE, fields, None)
    return message if isinstance(message, Message) and message.isError else None


class _Post(Stream, eq=False, kw_only=True):
    """
    What the two kinds of POST share: refusals.

    sessions: whether a refusal may say that a session is lost.
    """

    sessions: bool = True
    _status: int = 0

    def settle(self, settled: Settled) -> None:
        """Leave and tell how it ended."""
        raise NotImplementedError

    def refusal(self, head: ResponseHead) -> None:
        """The server refused: see what it says, then leave."""
        self._status = head.status
        self.around.onRefused(head.status)
        if head.status < 400 or head.encoded:
            self.settle(_refused(head.status, b"", self.sessions))
            self.abort()
        else:
            self.collect(MAX_REFUSAL)
            self.linger()

    def lingered(self) -> None:
        if not self.told:
            self.settle(_refused(self._status, b"", self.sessions))
        self.abort()


class CallStream(_Post, eq=False, kw_only=True):
    """
    The POST of a request.

    id: the request's id, as spelled.
    onAccepted: judges the head of a 2xx answer first; what it returns settles the call.
    """

    id: bytes
    onAccepted: Callable[[ResponseHead], Settled | None] | None = None
    _strayed: bool = False

    def headReceived(self, head: ResponseHead) -> None:
        if head.status >= 300:
            self.refusal(head)
            return
        settled = self.onAccepted(head) if self.onAccepted is not None else None
        if settled is None and head.status == 200 and not head.encoded:
            media = head.mediaType
            if media == b"text/event-stream":
                self.parse()
                return
            if media == b"application/json":
                self.collect(self.around.limits.max_answer)
                if (head.length or 0) > self.around.limits.max_answer:
                    self.tooLarge()
                elif self.outgoing is not None:
                    # Unlike an event stream, nothing but the network holds it up now.
                    self.outgoing.bodyWait = self.around.limits.upstream_idle
                return
        self._cut(settled or badAnswer("the server's answer is neither JSON nor events"))

    def messageReceived(self, message: Message, mark: EventMark | None) -> None:
        if message.kind is not RESPONSE:
            self.listener.received(message, self.origin, mark)
        elif message.id != self.id:
            self._strayed = True
            self.around.observer.observed(MessageDropped(self.around.server, "unknown_id"))
        else:
            # Left before it is told: the listener may use the same object for its next call.
            self.leave()
            self.linger()
            self.listener.received(message, self.origin, mark)

    def noiseReceived(self, data: bytes, id: bytes | None) -> None:
        self._cut(badAnswer("the server sent what is no JSON-RPC message"))

    def tooLarge(self) -> None:
        if self._status:
            self._cut(_refused(self._status, b"", self.sessions))
            return
        self.around.observer.observed(BoundReached("max_answer", self.around.server))
        self._cut(badAnswer("the server's answer is too large"))

    def ended(self, end: Fault | bool, body: bytes) -> None:
        if self._status:
            self.settle(_refused(self._status, body if end is True else b"", self.sessions))
        elif isinstance(end, Fault):
            self.settle(_FAULTS[end])
        elif self._collected is not None:
            self._judge(body)
        elif self._strayed:
            self.settle(badAnswer("the server answered another request"))
        else:
            self.settle(UNKNOWN)

    def settle(self, settled: Settled) -> None:
        if not self.told:
            self.leave()
            self.listener.settled(self.origin, settled)

    def _cut(self, settled: Settled) -> None:
        self.settle(settled)
        self.abort()

    def _judge(self, body: bytes) -> None:
        try:
            decoded = decode(body)
        except (NotJSON, NotAMessage):
            self.settle(badAnswer("the server's answer is no JSON-RPC message"))
            return
        if isinstance(decoded, Message):
            messages = [decoded]
        else:
            # The answer may stand first; the others still belong to this call.
            messages = [one for one in decoded if isinstance(one, Message)]
            messages.sort(key=lambda one: one.id == self.id and one.method == "")
        for one in messages:
            if not self.told:
                self.messageReceived(one, None)
        if not self.told:
            self.settle(badAnswer("the server's answer is not for this request"))


class NoteStream(_Post, eq=False, kw_only=True):
    """The POST of a notification or response; without an origin nobody is told its end."""

    def headReceived(self, head: ResponseHead) -> None:
        self.answered()
        if head.status >= 300:
            self.refusal(head)
            return
        self.collect(MAX_REFUSAL)
        self.leave()
        self.linger()
        if self.origin is not None:
            self.listener.accepted(self.origin)

    def lingered(self) -> None:
        if not self.told and not self._status:
            self.settle(UNKNOWN)
        super().lingered()

    def tooLarge(self) -> None:
        if not self.told:
            self.settle(_refused(self._status, b"", self.sessions))
        self.abort()

    def ended(self, end: Fault | bool, body: bytes) -> None:
        if self._status:
            self.settle(_refused(self._status, body if end is True else b"", self.sessions))
        else:
            self.settle(_FAULTS[end] if isinstance(end, Fault) else UNKNOWN)

    def settle(self, settled: Settled) -> None:
        self.leave()
        if self.origin is not None:
            self.listener.settled(self.origin, settled)
        else:
            self.around.observer.observed(MessageDropped(self.around.server, "undeliverable"))


class GetStream(Stream, eq=False, kw_only=True):
    """
    A GET: of the server's own stream, or of one to resume.

    onOpened: called once: with 200 when it is open; else with the status, the fault, or None
        where it was given up.
    onSpoilt: called with the id of what is no message, but was meant as the answer of that id.
    """

    onOpened: Callable[[int | Fault | None], None]
    onSpoilt: Callable[[bytes], None] | None = None
    _decided: bool = False

    def headReceived(self, head: ResponseHead) -> None:
        if head.status != 200:
            self.around.onRefused(head.status)
            self._refused(head.status)
        elif head.mediaType != b"text/event-stream" or head.encoded:
            self._refused(Fault.BAD)
        else:
            self.parse()
            self._decided = True
            self.onOpened(200)

    def messageReceived(self, message: Message, mark: EventMark | None) -> None:
        self.listener.received(message, self.origin, mark)

    def noiseReceived(self, data: bytes, id: bytes | None) -> None:
        # One bad message is no reason to end a stream that belongs to no call.
        self.around.observer.observed(NoiseSkipped(self.around.server, len(data)))
        if self.onSpoilt is not None and id is not None and isMeantAsMessage(data):
            self.onSpoilt(id)

    def tooLarge(self) -> None:
        self.around.observer.observed(BoundReached("max_answer", self.around.server))
        self.leave()
        self.listener.ended(self.origin)
        self.abort()

    def ended(self, end: Fault | bool, body: bytes) -> None:
        if not self._decided:
            self._refused(end if isinstance(end, Fault) else Fault.BAD)
            return
        self.leave()
        self.listener.ended(self.origin)

    def abort(self) -> None:
        super().abort()
        self._decide(None)

    def _refused(self, why: int | Fault) -> None:
        self.leave()
        self._decide(why)
        self.abort()

    def _decide(self, why: int | Fault | None) -> None:
        if not self._decided:
            self._decided = True
            self.onOpened(why)
