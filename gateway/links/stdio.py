"""
One handshake over the stdin and stdout of a child process (MCP, transports, "stdio"), of either era
(`gateway.links.opening`).

Rules:

 1. One message a line, in UTF-8; a line over `max_line` ends the child.
 2. A line that is no message is noise: skipped, counted, logged once a minute. Only where it
    looks like the answer to a call in flight, that call has failed.
 3. The gateway's id of the handshake is 0; those of the calls begin at 1.
 4. What the server sends before it answered that waits until the listener can hear it; a ping is
    answered, since a server may wait for that. A modern server may ask nothing: what it asks is
    dropped and counted.
 5. What it wrote before it exited is heard; then the listener is told once that it is lost, and
    after that nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum

from attrs import frozen
from msgspec import Raw
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorProcess, IReactorTime
from twisted.logger import Logger
from zope.interface import implementer

from gateway.guard.limits import Limits
from gateway.links.interfaces import ILink, ILinkListener, LinkFailed, Outcome, Reason, Settled
from gateway.links.opening import Opening
from gateway.links.process import Child, Program, Reaper
from gateway.links.serverlog import ServerLog
from gateway.links.stdout import Stdout
from gateway.observe.observer import BoundReached, IObserver, MessageDropped
from gateway.wire.context import CallContext
from gateway.wire.envelope import REQUEST, RESPONSE, Message

__all__ = ["StdioLink", "StdioParts"]

_log = Logger()
_NOT_STARTED = (126, 127)


class _State(Enum):
    WARM = "its child runs, and waits for its handshake"
    SHAKING = "the handshake is under way"
    OPEN = "the listener hears what the server says"
    OVER = "closed, lost or failed"


_WARM, _SHAKING, _OPEN, _OVER = _State


@frozen
class StdioParts:
    """What the links of one server share."""

    log: ServerLog
    limits: Limits
    reactor: IReactorProcess
    clock: IReactorTime
    observer: IObserver
    reaper: Reaper

    @property
    def name(self) -> str:
        """The server's configured name."""
        return self.log.name


@implementer(ILink)
class StdioLink:
    """
    A child process and the handshake with it.

    `open` starts both, or `warm` the child and, after `adopt`, `open` the handshake; whoever asked
    for the link closes it. It is over when it was closed, when the child went away
    (`ILinkListener.lost`), or when the handshake failed.

    died: called when the child went away by itself after its handshake, with how many calls ran
        on it.
    answer: the server's response to the handshake.
    sessionless: whether it is of the modern era.
    gone: fires when nothing of the child is left, or none could be started.
    """

    answer: Message
    sessionless = False
    multiplexed = True
    _handshake: Opening

    def __init__(
        self,
        parts: StdioParts,
        listener: ILinkListener,
        died: Callable[[int], None] = lambda calls: None,
    ) -> None:
        self._parts = parts
        self._listener = listener
        self._died = died
        self._state = _SHAKING
        self._child = Child(self, parts.limits, parts.reactor, parts.clock, parts.reaper)
        self._stdin = self._child.stdin
        self._stdout = Stdout(self, parts.log, parts.limits.max_line)
        self._stderr = parts.log.stderr()
        self._calls: dict[bytes, object] = {}
        self._early: list[Message] = []
        self._earlySize = 0
        self._spoilt: Callable[[StdioLink], None] | None = None
        self._opening: Deferred[None] | None = None
        self._timeout: IDelayedCall | None = None
        self.gone: Deferred[None] = Deferred()

    def warm(self, program: Program, spoilt: Callable[[StdioLink], None]) -> bool:
        """
        Start the child alone.

        spoilt: called when it exits before it is adopted.
        Returns: whether it was started.
        """
        self._state = _WARM
        self._spawn(program)
        self._spoilt = spoilt
        return self._state is _WARM

    def adopt(self, listener: ILinkListener, died: Callable[[int], None]) -> None:
        """A child that waits for its handshake gets who hears it; see the class."""
        self._listener, self._died, self._spoilt = listener, died, None

    def open(self, program: Program | None, handshake: Opening, timeout: float) -> Deferred[None]:
        """
        Start the child and shake hands.

        program: None where the child was started by `warm`. timeout: seconds.
        Fires when the server answered. Fails with LinkFailed. Cancelling ends the child.
        """
        opening: Deferred[None] = Deferred(self._abandoned)
        self._opening = opening
        self._handshake, self.sessionless = handshake, handshake.modern
        if program is not None:
            self._spawn(program)
        elif self._state is _WARM:
            self._state = _SHAKING
        if self._state is _SHAKING:
            self._timeout = self._parts.clock.callLater(timeout, self._timedOut)
            line = handshake.request.replace(b"\n", b" ").replace(b"\r", b" ")
            self._stdin.write(line + b"\n")
        return opening

    def _spawn(self, program: Program) -> None:
        try:
            self._child.spawn(program)
        except OSError as error:
            self._unstarted(error, Reason.OVERLOADED, "the server could not be started now")
        except ValueError as error:
            self._unstarted(error, Reason.UPSTREAM_UNREACHABLE, "the server could not be started")

    @property
    def isOpen(self) -> bool:
        """Whether the handshake is made, and the child there."""
        return self._state is _OPEN

    # ILink

    def send(self, message: Message, call: object | None, context: CallContext) -> bool:
        """See ILink. Also False once the link is over."""
        if self._state is not _OPEN:
            return False
        if not self._stdin.write(message.encodeLine()) and self._stdin.full:
            self._parts.observer.observed(BoundReached(self._stdin.full, self._parts.name))
            return False
        # A child that is ending takes nothing more, but it is not busy: `lost` is about to say so.
        if call is not None and message.id is not None:
            self._calls[message.id] = call
        return True

    def cancel(self, call: object) -> None:
        """See ILink."""
        for id, pending in self._calls.items():
            if pending is call:
                del self._calls[id]
                return

    def hold(self, origin: object | None) -> None:
        """See ILink. A child has one stream for all; other origins than None change nothing."""
        if origin is None and self._state is _OPEN:
            self._child.pause()

    def release(self, origin: object | None) -> None:
        """See ILink."""
        if origin is None:
            self._child.resume()

    def close(self) -> Deferred[None]:
        """See ILink. Fires also where the child could not be ended, after SIGKILL."""
        self._over()
        ended = self._child.end()
        self._failOpening(LinkFailed(Reason.SHUTTING_DOWN, "the server is being shut down"))
        return ended

    # IChildOwner

    def stdoutReceived(self, data: bytes) -> None:
        """Bytes came on the child's stdout."""
        self._stdout.feed(data)

    def stderrReceived(self, data: bytes) -> None:
        """Bytes came on the child's stderr."""
        self._stderr.feed(data)

    def stdinDrained(self) -> None:
        """The child's stdin takes lines again."""
        if self._state is _OPEN:
            self._listener.drained()

    def exited(self, status: int | None) -> None:
        """The child exited; all it wrote was heard."""
        self._stderr.close()
        if self._state is _SHAKING and status in _NOT_STARTED:
            reason, message = Reason.UPSTREAM_UNREACHABLE, "the server could not be started"
        elif self._state is _SHAKING:
            reason, message = Reason.SERVER_EXITED, "the server exited during the handshake"
        else:
            reason, message = Reason.SERVER_EXITED, "the server exited"
        if self._state is not _OVER:
            _log.info(
                "{server}: exited, status {status}",
                server=self._parts.name,
                status="of a signal" if status is None else status,
            )
        self._lost(reason, message)

    def outlived(self, limit: str) -> None:
        """The child did not end in time."""
        self._parts.observer.observed(BoundReached(limit, self._parts.name))

    def vanished(self) -> None:
        """Nothing is left of the child."""
        if not self.gone.called:
            self.gone.callback(None)

    # what the server says

    def messageReceived(self, message: Message) -> None:
        """The child wrote a message."""
        if self._state is _OPEN:
            if message.kind is RESPONSE and message.id is not None:
                self._calls.pop(message.id, None)
            elif message.kind is REQUEST and self.sessionless:
                self._dropped("server_request")
                return
            self._tell(message)
        elif message.kind is RESPONSE:
            if message.id == b"0" and self._state is _SHAKING:
                self._answered(message)
            else:
                self._dropped("unknown_id")
        elif message.kind is REQUEST and self.sessionless:
            self._dropped("server_request")
        elif message.kind is REQUEST and message.method == "ping":
            self._respond(message, "result", b"{}")
        else:
            self._receivedEarly(message)

    def _tell(self, message: Message) -> None:
        try:
            self._listener.received(message, None)
        except Exception:
            # Let out, it would close the child's pipe.
            _log.failure("{server}: a message was not taken", server=self._parts.name)

    def _receivedEarly(self, message: Message) -> None:
        limits = self._parts.limits
        size = len(message.encode())
        if len(self._early) >= limits.max_queued_messages:
            full = "max_queued_messages"
        elif self._earlySize + size > limits.max_queued_bytes:
            full = "max_queued_bytes"
        else:
            self._early.append(message)
            self._earlySize += size
            return
        self._parts.observer.observed(BoundReached(full, self._parts.name))
        self._dropped("undeliverable")
        if message.kind is REQUEST:
            self._respond(message, "error", b'{"code":-32603,"message":"Too many requests"}')

    def _dropped(self, why: str) -> None:
        self._parts.observer.observed(MessageDropped(self._parts.name, why))

    def _respond(self, request: Message, member: str, value: bytes) -> None:
        id = request.id or b"0"
        fields = {"jsonrpc": Raw(b'"2.0"'), "id": Raw(id), member: Raw(value)}
        self._stdin.write(Message(RESPONSE, fields, id).encode() + b"\n")

    def answerSpoilt(self, id: bytes) -> None:
        """The child wrote what is no message, but would be the answer to a request."""
        if self._state is _OPEN and id in self._calls:
            why = "the server's answer is malformed"
            settled = Settled(Outcome.MAYBE_RAN, Reason.BAD_ANSWER, why)
            self._listener.settled(self._calls.pop(id), settled)
        elif self._state is _SHAKING and id == b"0":
            self._fail(self._unanswered(Reason.BAD_ANSWER, "the server's answer is malformed"))

    def lineTooLong(self) -> None:
        """The child wrote a line over the limit: it is of no use any more."""
        self._parts.observer.observed(BoundReached("max_line", self._parts.name))
        self._child.kill().addErrback(self._unended)
        self._lost(Reason.BAD_ANSWER, "the server wrote a line over the limit")

    def _answered(self, answer: Message) -> None:
        try:
            self._handshake.judged(answer)
        except LinkFailed as failed:
            self._fail(failed)
            return
        self.answer = answer
        self._state = _OPEN
        self._stopTimeout()
        opening, self._opening = self._opening, None
        if opening is not None:
            opening.callback(None)
        early, self._early = self._early, []
        for message in early:
            if self._state is not _OPEN:
                return
            self._tell(message)

    # its end

    def _timedOut(self) -> None:
        self._timeout = None
        why = "the server did not answer the handshake in time"
        self._fail(self._unanswered(Reason.TIMEOUT, why))

    def _lost(self, reason: Reason, message: str) -> None:
        state, calls = self._state, len(self._calls)
        self._over()
        if state is _OPEN:
            self._died(calls)
            self._listener.lost(reason, message)
        elif state is _SHAKING:
            self._failOpening(self._unanswered(reason, message))
        elif self._spoilt is not None:
            self._spoilt(self)

    def _unanswered(self, reason: Reason, message: str) -> LinkFailed:
        return self._handshake.failed(LinkFailed(reason, message))

    def _fail(self, failed: LinkFailed) -> None:
        """The handshake failed for something the server did; its child is of no use."""
        self._over()
        self._child.end().addErrback(self._unended)
        self._failOpening(failed)

    def _unstarted(self, error: Exception, reason: Reason, message: str) -> None:
        _log.warn("{server}: not started: {error}", server=self._parts.name, error=error)
        self._fail(LinkFailed(reason, message))
        self.vanished()

    def _failOpening(self, failed: LinkFailed) -> None:
        opening, self._opening = self._opening, None
        if opening is not None:
            opening.errback(failed)

    def _abandoned(self, opening: Deferred[None]) -> None:
        self._opening = None
        self._over()
        self._child.end().addErrback(self._unended)

    def _over(self) -> None:
        self._state = _OVER
        self._stdout.closed = True
        self._stopTimeout()
        self._calls.clear()
        self._early = []

    def _stopTimeout(self) -> None:
        timeout, self._timeout = self._timeout, None
        if timeout is not None:
            timeout.cancel()

    def _unended(self, reason: object) -> None:
        _log.error("{server}: not ended: {reason}", server=self._parts.name, reason=reason)
