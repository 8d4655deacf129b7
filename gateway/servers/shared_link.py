"""One session's part of a link that many share."""

from __future__ import annotations

from typing import Protocol

from attrs import define, field
from twisted.internet.defer import Deferred, succeed
from zope.interface import implementer

from gateway.links.interfaces import ILink, ILinkListener
from gateway.servers.entries import Member
from gateway.wire.context import CallContext
from gateway.wire.envelope import Message

__all__ = ["SharedLink"]


class _Hub(Protocol):
    """The shared link, as those on it see it."""

    link: ILink

    def send(
        self, member: Member, message: Message, call: object | None, context: CallContext
    ) -> bool:
        """A session says something. False: the queue is full."""

    def gaveUp(self, member: Member, call: object) -> None:
        """A session waits no longer for a call."""

    def left(self, member: Member) -> None:
        """A session left."""


@implementer(ILink)
@define(eq=False, repr=False)
class SharedLink:
    """
    One session's part of the shared link.

    It ends with `close`, which leaves the shared one as it is, or with the shared one.

    refused: whether it waits for room. doomed: whether its user was told that the server forgot
    the session, and makes another link.
    """

    answer: Message
    listener: ILinkListener
    _hub: _Hub
    member: Member = field(init=False)
    over: bool = field(default=False, init=False)
    refused: bool = field(default=False, init=False)
    doomed: bool = field(default=False, init=False)

    @property
    def sessionless(self) -> bool:
        """See ILink."""
        return self._hub.link.sessionless

    @property
    def multiplexed(self) -> bool:
        """See ILink."""
        return self._hub.link.multiplexed

    def send(self, message: Message, call: object | None, context: CallContext) -> bool:
        """See ILink. Also False once the link is over."""
        if self.over:
            return False
        taken = self._hub.send(self.member, message, call, context)
        self.refused = self.refused or not taken
        return taken

    def cancel(self, call: object) -> None:
        """See ILink; but the server, which goes on, is told where it was not."""
        if not self.over:
            self._hub.gaveUp(self.member, call)

    def hold(self, origin: object | None) -> None:
        """See ILink: only the stream of a call of one's own is ever held."""
        self._weigh(origin, hold=True)

    def release(self, origin: object | None) -> None:
        """See ILink."""
        self._weigh(origin, hold=False)

    def _weigh(self, origin: object | None, *, hold: bool) -> None:
        entry = None if self.over else self.member.calls.get(origin)
        if entry is not None and not self.multiplexed:
            (self._hub.link.hold if hold else self._hub.link.release)(entry)

    def close(self) -> Deferred[None]:
        """Leave the shared link. Fires at once."""
        if not self.over:
            self.over = True
            self._hub.left(self.member)
            # It refers to us: what is left of us need not wait for the garbage collector.
            del self.listener
        return succeed(None)
