"""
The streams of a server's own that go straight through to the client, and what is owed where its
server cannot resume one any more (`numbered.py` has the rules).
"""

from __future__ import annotations

from typing import Any, Protocol

from attrs import define, field

from gateway.guard.limits import Limits
from gateway.links.interfaces import EventMark, ILink
from gateway.relay.effects import Answer, Call, Deliver, Effect
from gateway.relay.numbered import Numbered
from gateway.relay.router import Router
from gateway.relay.target import Target
from gateway.wire.envelope import Message
from gateway.wire.refusals import Reason, callFailed

__all__ = ["Straight"]


class _Relay(Protocol):
    """The relay, as these streams see it."""

    def gone(self, target: object) -> None:
        """The client no longer waits on this target."""

    def ended(self, call: Call, answer: Message, reason: Reason) -> None:
        """A call was taken out and failed; its answer goes another way."""

    def drop(self, why: str) -> None:
        """A message went nowhere."""


@define(eq=False)
class Straight:
    """
    Those of one session. Life: made when its first link tells that it passes streams on → `end`.

    numbered: which call an event id is of.
    """

    relay: _Relay
    router: Router
    limits: Limits
    numbered: Numbered = field(init=False)
    _links: dict[object, ILink] = field(factory=dict, init=False)
    """By the client's streams: whose they are."""

    def __attrs_post_init__(self) -> None:
        self.numbered = self.router.numbered = Numbered(self.limits)

    def opens(self, stream: object, link: ILink) -> None:
        """One is opened on this link for a client's; until `detach`."""
        self._links[stream] = link

    def detach(self, stream: object) -> None:
        """The client's ended, and the server's with it."""
        self.numbered.left(stream)
        link = self._links.pop(stream, None)
        if link is not None:
            link.cancel(stream)

    def isUsed(self, link: ILink) -> bool:
        """Whether a stream of a link is open."""
        return link in self._links.values()

    # Event ids.

    def received(self, origin: object, id: bytes, effects: list[Effect]) -> None:
        """A message came in an event with an id; effects: what the router makes of it."""
        if not isinstance(origin, Call):
            self._forgot(self.numbered.wentOn(origin, id))
            return
        for effect in effects:
            if isinstance(effect, Deliver) and effect.target is origin.target:
                self._sent(origin, id)
            elif isinstance(effect, Answer):
                self.numbered.answered(effect.call)

    def marked(self, origin: object, mark: EventMark) -> None:
        """An event came that has an id or a retry, and no message."""
        if isinstance(origin, Call):
            if origin.present and origin.streams:
                if mark.id is not None:
                    self._sent(origin, mark.id)
                origin.target.marked(mark)  # type: ignore[attr-defined]
        elif origin in self.router.streams:
            if mark.id is not None:
                self._forgot(self.numbered.wentOn(origin, mark.id))
            stream: Any = origin
            stream.marked(mark)

    def _sent(self, call: Call, id: bytes) -> None:
        call.numbered = True
        self._forgot(self.numbered.sent(call, id))

    def _forgot(self, kept: int) -> None:
        for _ in range(kept):
            self.relay.drop("client_gone")

    def unheard(self, call: Call, answer: Message) -> bool:
        """A call ended whose client left its stream. Returns whether that can still be told."""
        stream: Any = self.numbered.resuming(call)
        if stream is None:
            return self.numbered.keep(call, answer)
        stream.answer(answer)
        return True

    # Resuming.

    def isLost(self, last: bytes, link: ILink) -> bool:
        """
        Whether the stream that had the event id `last` cannot be resumed on this link, whatever
        its server says: its call is over, or ran in a session that the server has lost since.
        """
        known = self.numbered.find(last)
        if known is None:
            return False
        call = self.router.calls.get(known.upstream)
        return known.kept is not None or (call is not None and call.via is not link)

    def resumes(self, last: bytes, stream: Target) -> None:
        """The server resumes on this stream the one that had the event id `last`."""
        known = self.numbered.find(last)
        if known is not None:
            self.numbered.resumed(known, stream)

    def owed(self, last: bytes) -> Message | None:
        """
        The answer to a call whose stream had the event id `last` and will not be resumed. The call
        is over then. None where there is no such call, or nothing left of it to tell.
        """
        known = self.numbered.find(last)
        if known is None:
            return None
        self.numbered.forget(known)
        call = self.router.calls.get(known.upstream)
        if call is None:
            unseen = _unresumed(known.id) if known.answered else None
            return known.kept or unseen
        if call.present:
            # Its client has left that stream for this one.
            self.relay.gone(call.target)
            call.target.close()  # type: ignore[attr-defined]
        del self.router.calls[call.upstream]
        answer = _unresumed(call.id)
        self.relay.ended(call, answer, Reason.OUTCOME_UNKNOWN)
        return answer

    def end(self) -> None:
        """The session is over."""
        self._forgot(self.numbered.end())


def _unresumed(id: bytes) -> Message:
    return callFailed(id, Reason.OUTCOME_UNKNOWN, "the server cannot resume the call's stream")
