"""What a server asked its client, under ids of the gateway's own, until it is answered. Pure."""

from __future__ import annotations

from attrs import define, field

from gateway.wire.envelope import Message

__all__ = ["Question", "Questions"]


@define(eq=False)
class Question:
    """
    A request of the server.

    id, token: its id and progress token as the server spelled them.
    until: when nobody waits for the client any longer.
    target: the stream it went out on; None while it waits for one.
    """

    id: bytes
    token: bytes | None
    until: float
    target: object = None


@define(eq=False)
class Questions:
    """The open questions of one session, by the ids the client knows them by."""

    _open: dict[bytes, Question] = field(factory=dict, init=False)
    _lastID: int = field(default=0, init=False)
    _closed: tuple[bytes, Question] | None = field(default=None, init=False)

    def __len__(self) -> int:
        return len(self._open)

    def ask(self, message: Message, until: float) -> Message:
        """Open a question. Returns it as the client gets it."""
        assert message.id is not None
        self._lastID += 1
        ours = b"%d" % self._lastID
        token = message.meta("progressToken")
        self._open[ours] = Question(message.id, token, until)
        if token is not None:
            message = message.withMeta("progressToken", ours)
        return message.withID(ours)

    def find(self, ours: bytes | None) -> Question | None:
        """The open question the client knows by this id."""
        return None if ours is None else self._open.get(ours)

    def named(self, theirs: bytes | None) -> bytes | None:
        """The client's id of the open question the server knows by this id."""
        for ours, question in self._open.items():
            if question.id == theirs:
                return ours
        return None

    def close(self, ours: bytes) -> Question:
        """It is answered, or void."""
        question = self._open.pop(ours)
        self._closed = ours, question
        return question

    def reopen(self, ours: bytes) -> bool:
        """The question closed last is open after all. Returns whether this was it."""
        if self._closed is None or self._closed[0] != ours:
            return False
        self._open[ours] = self._closed[1]
        return True

    def overdue(self, now: float) -> list[bytes]:
        """The client's ids of those nobody waits for any longer."""
        return [ours for ours, question in self._open.items() if question.until <= now]

    @property
    def due(self) -> float:
        """When the time of the first is over; never without one."""
        return min((question.until for question in self._open.values()), default=float("inf"))

    def all(self) -> list[bytes]:
        """The client's ids of all."""
        return list(self._open)
