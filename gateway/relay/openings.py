"""
What comes between a modern call's getting a session and its being sent: the session's link, and
the log level that the call asks for.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from attrs import define, field
from twisted.logger import Logger
from twisted.python.failure import Failure

from gateway.bridge.asmodern import discovered
from gateway.links.interfaces import LinkFailed
from gateway.relay.parked import ModernCall, Stage
from gateway.relay.pooled import Pooled
from gateway.relay.replies import Reply
from gateway.relay.sender import SessionOver
from gateway.wire.envelope import Message
from gateway.wire.modern import MAY_ASK
from gateway.wire.refusals import Reason, callFailed

__all__ = ["DISCOVER", "Openings"]

DISCOVER = "server/discover"
"""What the handshake of the session answers already."""

_log = Logger()


class _Pool(Protocol):
    """The pool, as its openings see it."""

    def ended(self, call: ModernCall, answer: Message) -> None:
        """A call never began."""

    def refused(self, pooled: Pooled, failed: LinkFailed) -> None:
        """The handshake of a session failed."""

    def takeAgain(self, call: ModernCall, reply: Reply) -> None:
        """A call needs another session."""

    def arm(self, when: float) -> None:
        """Look at `when` for what waited too long."""


@define(eq=False)
class Openings:
    """The calls of one pool whose sessions are being made ready. Iterated: these."""

    pool: _Pool
    _calls: dict[ModernCall, None] = field(factory=dict, init=False)

    def __iter__(self) -> Iterator[ModernCall]:
        return iter(list(self._calls))

    def leave(self, call: ModernCall) -> None:
        """A call is over."""
        self._calls.pop(call, None)

    def begin(self, call: ModernCall) -> None:
        """A call has a session: make it ready."""
        pooled = call.pooled
        assert pooled is not None
        call.stage = Stage.OPENING
        if pooled.isOpen:
            self._ready(call, pooled)
            return
        self._calls[call] = None
        self.pool.arm(call.due)
        acquired = pooled.acquire(call.context)
        acquired.addCallbacks(
            lambda _: self._opened(call, pooled),
            lambda failure: self._closed(call, pooled, failure),
        )
        acquired.addErrback(lambda failure: _log.failure("while a pooled session opened", failure))

    def _opened(self, call: ModernCall, pooled: Pooled) -> None:
        pooled.audience.linked(pooled)
        if call.pooled is pooled and call.stage is Stage.OPENING:
            self._ready(call, pooled)

    def _closed(self, call: ModernCall, pooled: Pooled, failure: Failure) -> None:
        """The handshake of a call's session did not come about."""
        error = failure.value
        if isinstance(error, SessionOver):
            # What came back is another server; nothing was promised to anybody.
            pooled.relay.over()
        elif not isinstance(error, LinkFailed):
            _log.failure("a handshake broke", failure)
            error = LinkFailed(Reason.BAD_ANSWER, "the handshake with the server broke")
        else:
            self.pool.refused(pooled, error)
        if call.pooled is not pooled or call.stage is not Stage.OPENING:
            return
        if isinstance(error, LinkFailed):
            failed = callFailed(call.id, error.reason, error.message, error.retryAfter)
            self.pool.ended(call, failed)
        elif call.reply is not None:
            # Each time one session less is there to be lost, and a new one has nothing to lose.
            self._calls.pop(call, None)
            call.pooled = None
            self.pool.takeAgain(call, call.reply)

    def _ready(self, call: ModernCall, pooled: Pooled) -> None:
        if call.method == DISCOVER:
            self.pool.ended(call, discovered(call.id, pooled.result))
            return
        self._calls[call] = None
        pooled.levelled(call, call.context, lambda: self._send(call, pooled))
        if call.stage is Stage.OPENING:
            self.pool.arm(call.due)

    def _send(self, call: ModernCall, pooled: Pooled) -> None:
        self._calls.pop(call, None)
        if call.pooled is not pooled or call.stage is not Stage.OPENING:
            return
        if pooled.session.ended:
            self.pool.ended(call, callFailed(call.id, Reason.SERVER_EXITED, "the session is lost"))
        else:
            call.stage = Stage.SENT
            call.asker = pooled
            pooled.relay.request(call.request.withID(call.id), call, True, call.context)
            if call.method in MAY_ASK and call.stage is Stage.SENT:
                for question in pooled.takeHeld():
                    call.deliver(question)
