"""What a proxy needs of whatever answers modern requests to one server."""

from __future__ import annotations

from typing import Protocol

from twisted.internet.defer import Deferred

from gateway.relay.target import Target
from gateway.wire.context import CallContext
from gateway.wire.envelope import Message

__all__ = ["ModernCalls"]


class ModernCalls(Protocol):
    """
    Where the modern requests to one server go. Whoever made it stops it.
    """

    @property
    def running(self) -> bool:
        """
        Whether a call runs that its client still waits for; open streams of
        `subscriptions/listen` do not count.
        """

    def request(self, message: Message, target: Target, context: CallContext) -> None:
        """
        Relay a request, valid in itself, of a revision that is served.

        target: gets what comes before the answer (`deliver`), then, never from within this call,
            one `answer` under the client's id: a modern response, or a FailedCall. A
            `subscriptions/listen` is answered when its stream ends in order.
        """

    def gone(self, target: Target) -> None:
        """
        The client closed the response stream: that cancels the request, which the server hears
        within a second (MCP 2026-07-28, basic/patterns/cancellation). The target gets nothing more.
        """

    def slow(self, target: Target, blocked: bool) -> None:
        """
        Its client does not read the response stream, or reads again. What feeds that stream alone
        may be held meanwhile.
        """

    def stop(self) -> Deferred[None]:
        """
        Take no more; answer what runs, streams of `subscriptions/listen` in order. Fires when
        nothing upstream is left of it.
        """
