"""What a server that came back is asked again, a few requests at a time."""

from __future__ import annotations

from collections.abc import Callable

from attrs import define, field

from gateway.links.interfaces import ILink
from gateway.relay.effects import Call
from gateway.wire.context import CallContext
from gateway.wire.envelope import Message

__all__ = ["WINDOW", "Repeats"]

WINDOW = 32
"""How many of these requests run at once, so that the client's own find room beside them."""


@define(eq=False)
class Repeats:
    """
    The repeated requests of one session. What it holds is bounded by what its record holds.

    send: sends a request of the gateway's own: its call, or None where a queue is full.
    failed: told of each that the server did not grant.
    Life: `start` with a new link → `ended` for each, and `more` when there is room → `forget`.
    """

    send: Callable[[Message, ILink, CallContext], Call | None]
    failed: Callable[[], None]
    _link: ILink | None = field(default=None, init=False)
    _context: CallContext | None = field(default=None, init=False)
    _left: list[Message] = field(factory=list, init=False)
    _running: dict[Call, None] = field(factory=dict, init=False)

    def start(self, requests: list[Message], link: ILink, context: CallContext) -> None:
        """Send these, in order; those for an earlier link are forgotten."""
        self.forget()
        self._link, self._context = link, context
        self._left.extend(requests)
        self.more()

    def more(self) -> None:
        """Send what there is room for."""
        while self._left and len(self._running) < WINDOW:
            assert self._link is not None and self._context is not None
            call = self.send(self._left[0], self._link, self._context)
            if call is None:
                return
            self._left.pop(0)
            self._running[call] = None

    def ended(self, call: Call, granted: bool) -> None:
        """A request of the gateway's own is over."""
        if call in self._running:
            del self._running[call]
            if not granted:
                self.failed()
            self.more()

    def forget(self) -> None:
        """The link is gone: the next one is asked all of it again."""
        self._left.clear()
        self._running.clear()
        self._link = None
