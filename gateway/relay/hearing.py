"""
Who hears a session's links: for each of them a Hearing, and behind it the session's listener, or
nobody once the session is over.

A Hearing knows which link it hears, so that nothing a retired one says is taken for the word of the
one in use.
"""

from __future__ import annotations

from typing import Protocol

from attrs import define
from twisted.internet.defer import Deferred
from zope.interface import implementer

from gateway.links.interfaces import EventMark, ILink, ILinkListener, LinkFailed, Settled
from gateway.relay.effects import Call
from gateway.wire.context import CallContext
from gateway.wire.envelope import REQUEST, Message
from gateway.wire.refusals import Reason

__all__ = ["NOBODY", "Hearing", "IKeptListener"]


class IKeptListener(ILinkListener):
    """Who hears the links of a keeper; `lost` is of the one in use, or being greeted."""

    def greet(link: ILink, again: bool, context: CallContext) -> Deferred[None] | None:
        """
        A link was made. Say to it what has to be said before anybody else gets it.

        again: whether it is not the first. context: of whoever needed it.
        Returns: fires when that is done; None where it is. What it raises, or fails with, fails
            the attempt and closes the link.
        """

    def isUsed(link: ILink) -> bool:
        """Whether anything is still awaited on a link that was retired."""

    def retiredLost(link: ILink, reason: Reason, message: str) -> None:
        """A retired link ended; what is pending on it may have run."""


class _Keeper(Protocol):
    """The keeper of the links, as it is heard for."""

    listener: IKeptListener

    def isRetired(self, link: ILink | None) -> bool:
        """Whether a link was retired, and not closed yet."""

    def dropped(self, why: str) -> None:
        """A message went nowhere."""

    def lost(self, link: ILink, reason: Reason) -> bool:
        """A link is gone by itself. Returns whether it was the one in use, or being greeted."""


@implementer(ILinkListener)
@define(eq=False)
class Hearing:
    """
    What hears one link, for the keeper's listener.

    link: the one it hears; None until the keeper has it, and when it is lost. failure: why the
    keeper never will have it.
    """

    keeper: _Keeper
    link: ILink | None = None
    failure: LinkFailed | None = None

    def received(
        self, message: Message, origin: object | None, mark: EventMark | None = None
    ) -> None:
        if message.kind is REQUEST and self.keeper.isRetired(self.link):
            # Its session is lost, so no answer could be delivered.
            self.keeper.dropped("session_lost")
        else:
            self.keeper.listener.received(message, origin, mark)

    def marked(self, origin: object | None, mark: EventMark) -> None:
        self.keeper.listener.marked(origin, mark)

    def ended(self, origin: object) -> None:
        self.keeper.listener.ended(origin)

    def accepted(self, call: object) -> None:
        self.keeper.listener.accepted(call)

    def settled(self, call: object, settled: Settled) -> None:
        self.keeper.listener.settled(call, settled)

    def drained(self) -> None:
        self.keeper.listener.drained()

    def lost(self, reason: Reason, message: str) -> None:
        link, self.link = self.link, None
        if link is None:
            self.failure = LinkFailed(reason, message)
        elif self.keeper.lost(link, reason):
            self.keeper.listener.lost(reason, message)
        else:
            self.keeper.listener.retiredLost(link, reason, message)


@implementer(IKeptListener)
class _Nobody:
    """
    In place of the listener when the session is over.

    The parts of a relay refer to each other; in the end they refer to this, and nothing is left of
    them that only the garbage collector would find.
    """

    __slots__ = ()

    def greet(self, link: ILink, again: bool, context: CallContext) -> Deferred[None] | None:
        return None

    def isUsed(self, link: ILink) -> bool:
        return False

    def received(
        self, message: Message, origin: object | None, mark: EventMark | None = None
    ) -> None:
        pass

    def marked(self, origin: object | None, mark: EventMark) -> None:
        pass

    def ended(self, origin: object) -> None:
        pass

    def accepted(self, call: object) -> None:
        pass

    def settled(self, call: object, settled: Settled) -> None:
        pass

    def drained(self) -> None:
        pass

    def lost(self, reason: Reason, message: str) -> None:
        pass

    def retiredLost(self, link: ILink, reason: Reason, message: str) -> None:
        pass

    # As a sender sees its upstream.

    def unsent(self, call: Call, reason: Reason, why: str) -> None:
        pass

    def isRunning(self, call: Call) -> bool:
        return False

    def forgotten(self, link: ILink | None) -> None:
        pass

    def over(self) -> None:
        pass


NOBODY = _Nobody()
