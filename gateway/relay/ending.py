"""What who still waits for something of a session is told when it ends: its calls, its streams."""

from __future__ import annotations

from collections.abc import Callable

from twisted.logger import Logger

from gateway.relay.target import Stream, Target
from gateway.wire.envelope import Message
from gateway.wire.refusals import Reason, callFailed

__all__ = ["endCall", "endStream", "lastWord", "whatever"]

_log = Logger()

_ENDINGS = {
    "lost": (Reason.SERVER_EXITED, "the session is lost"),
    "shutdown": (Reason.SHUTTING_DOWN, "the gateway is shutting down"),
    "replaced": (Reason.SHUTTING_DOWN, "the server is being replaced"),
}
"""What running calls are told, by the reason of the session's end."""

_RECEDES = ("shutdown", "replaced")
"""The ends that are the gateway's own doing: clients shall come again, a little later."""


def lastWord(id: bytes, reason: str) -> tuple[Message, Reason]:
    """The error that ends a running call with this id, for the reason of the session's end."""
    why, message = _ENDINGS.get(reason, (Reason.CANCELLED, "the session was ended"))
    return callFailed(id, why, message), why


def endCall(target: Target, answer: Message, reason: str) -> None:
    """Give a call its last word; where the session is lost, that is the one 404 if it can be."""
    assert answer.id is not None
    if reason == "lost":
        target.lost(answer.id)
    else:
        target.answer(answer)


def endStream(stream: Stream, reason: str, retryAfter: int) -> None:
    """End an open stream. retryAfter: milliseconds after which its client shall come again."""
    if reason in _RECEDES:
        stream.recede(retryAfter)
    stream.close()


def whatever(end: Callable[..., None], *what: object) -> None:
    """End something of a session; if that fails, the rest is ended all the same."""
    try:
        end(*what)
    except Exception:
        _log.failure("while a session ended")
