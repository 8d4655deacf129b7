"""A link that was made before anybody needs it: who hears it is settled later."""

from __future__ import annotations

from attrs import define, field
from zope.interface import implementer

from gateway.links.interfaces import EventMark, ILinkListener, Reason, Settled
from gateway.observe.observer import IObserver, MessageDropped
from gateway.wire.envelope import Message

__all__ = ["Handover"]


@implementer(ILinkListener)
@define(eq=False, repr=False)
class Handover:
    """
    Hears a link until it is handed over; from then on it passes everything on.

    over: whether the link was lost before.
    """

    name: str
    observer: IObserver
    over: bool = field(default=False, init=False)
    _target: ILinkListener | None = field(default=None, init=False)

    def to(self, listener: ILinkListener) -> None:
        """Hand the link over."""
        self._target = listener

    def received(
        self, message: Message, origin: object | None, mark: EventMark | None = None
    ) -> None:
        if self._target is not None:
            self._target.received(message, origin, mark)
        else:
            self.observer.observed(MessageDropped(self.name, "undeliverable"))

    def marked(self, origin: object | None, mark: EventMark) -> None:
        if self._target is not None:
            self._target.marked(origin, mark)

    def ended(self, origin: object) -> None:
        if self._target is not None:
            self._target.ended(origin)

    def accepted(self, call: object) -> None:
        if self._target is not None:
            self._target.accepted(call)

    def settled(self, call: object, settled: Settled) -> None:
        if self._target is not None:
            self._target.settled(call, settled)

    def drained(self) -> None:
        if self._target is not None:
            self._target.drained()

    def lost(self, reason: Reason, message: str) -> None:
        self.over = True
        if self._target is not None:
            self._target.lost(reason, message)
