"""
Pure: which call an event id of a server's belongs to, where its streams pass straight through.

A server that numbers its streams is the one who resumes them. What it cannot give any more is owed
to the client all the same, for a call that was taken ends in one answer:

 1. The newest ids are known, `max_logged_events` of a session and `max_logged_bytes` of them.
 2. What the gateway says of a call while its client is away is kept until that comes again; where
    the client is back already, it goes to the stream that resumes the call's.
 3. An answer in a numbered event may be cut with its client, and the server then says it again,
    under an id that runs no more: on the stream that resumes it, once, it is that answer still.
 4. What its server cannot resume ends there: `outcome_unknown`, once.
"""

from __future__ import annotations

from attrs import define, field

from gateway.guard.limits import Limits
from gateway.relay.effects import Call
from gateway.wire.envelope import Message

__all__ = ["Numbered", "NumberedCall"]


@define(eq=False)
class NumberedCall:
    """
    A call some of whose events had ids.

    id: as its client spelled it. upstream: the gateway's own, towards the server.
    kept: what the gateway said when its client was away. answered: whether it was answered by an
        event that had an id, so that whoever resumes from one before did not see that.
    """

    id: bytes
    upstream: bytes
    kept: Message | None = None
    answered: bool = False
    _known: int = 0


@define(eq=False)
class Numbered:
    """What is known of the event ids that one session was given."""

    limits: Limits
    _calls: dict[bytes, NumberedCall] = field(factory=dict, init=False)
    """By their ids towards the server."""
    _ids: dict[bytes, NumberedCall] = field(factory=dict, init=False)
    """By event id, the oldest first."""
    _resuming: dict[object, NumberedCall] = field(factory=dict, init=False)
    """By the stream that resumes theirs."""
    _size: int = field(default=0, init=False)

    def sent(self, call: Call, id: bytes) -> int:
        """
        An event of the call had this id.

        Returns of how many calls that makes forget what was kept.
        """
        known = self._calls.get(call.upstream)
        if known is None:
            known = self._calls[call.upstream] = NumberedCall(call.id, call.upstream)
        return self._learn(known, id)

    def wentOn(self, stream: object, id: bytes) -> int:
        """An event on a stream that may be one that resumes had this id. Returns: see `sent`."""
        known = self._resuming.get(stream)
        return 0 if known is None else self._learn(known, id)

    def _learn(self, known: NumberedCall, id: bytes) -> int:
        before, forgotten = self._ids.get(id), 0
        if before is known:
            # The newest again; it is not to be forgotten between.
            self._ids[id] = self._ids.pop(id)
            return 0
        if before is not None:
            forgotten = self._drop(id)
        self._ids[id] = known
        self._size += len(id)
        known._known += 1
        while len(self._ids) > self.limits.max_logged_events or (
            self._size > self.limits.max_logged_bytes
        ):
            forgotten += self._drop(next(iter(self._ids)))
        return forgotten

    def _drop(self, id: bytes) -> int:
        known = self._ids.pop(id)
        self._size -= len(id)
        known._known -= 1
        if known._known:
            return 0
        self._calls.pop(known.upstream, None)
        return int(known.kept is not None)

    def find(self, id: bytes) -> NumberedCall | None:
        """The call whose event had this id."""
        return self._ids.get(id)

    def answered(self, call: Call) -> None:
        """It was answered by an event with an id."""
        known = self._calls.get(call.upstream)
        if known is not None:
            known.answered = True

    def keep(self, call: Call, answer: Message) -> bool:
        """It ended while its client was away. Returns whether the answer is kept for it."""
        known = self._calls.get(call.upstream)
        if known is None:
            return False
        known.kept = answer
        return True

    def resumed(self, known: NumberedCall, stream: object) -> None:
        """The server resumes its stream on this one, until `left`."""
        self._resuming[stream] = known

    def left(self, stream: object) -> None:
        """A stream ended."""
        self._resuming.pop(stream, None)

    def resuming(self, call: Call) -> object | None:
        """The stream that resumes a call's, if there is one; the call's end is told there now."""
        for stream, known in self._resuming.items():
            if known.upstream == call.upstream:
                self.forget(known)
                del self._resuming[stream]
                return stream
        return None

    def again(self, message: Message, stream: object) -> Message | None:
        """A response to nothing that runs; if it is rule 3's, as its client shall get it."""
        known = self._resuming.get(stream)
        if known is None or not known.answered or known.upstream != message.id:
            return None
        del self._resuming[stream]
        return message.withID(known.id)

    def forget(self, known: NumberedCall) -> None:
        """Its client was told how it ended."""
        self._calls.pop(known.upstream, None)
        for id in [id for id, one in self._ids.items() if one is known]:
            del self._ids[id]
            self._size -= len(id)

    def end(self) -> int:
        """The session is over. Returns of how many calls something was kept."""
        kept = sum(one.kept is not None for one in self._calls.values())
        self._calls.clear()
        self._ids.clear()
        self._resuming.clear()
        self._size = 0
        return kept
