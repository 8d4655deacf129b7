"""The requests of modern clients that are not answered yet."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from attrs import define, field
from msgspec import Raw
from twisted.internet.interfaces import IReactorTime

from gateway.bridge.asmodern import LEVELS
from gateway.bridge.inputs import Declared, declaredBy
from gateway.relay.target import Target
from gateway.wire.context import CallContext
from gateway.wire.envelope import Message
from gateway.wire.modern import LOG_LEVEL
from gateway.wire.refusals import FailedCall
from gateway.wire.strictjson import text

__all__ = ["Replies", "Reply"]


@define(eq=False)
class Reply:
    """
    One request that a client waits for.

    message: it, as it came. target: where its answer goes, and what comes before it.
    context: its facts. open: whether its client waits still. answered: whether its answer is there.
    declared: what its client lets a server ask.
    """

    message: Message
    target: Target
    context: CallContext
    open: bool = True
    answered: bool = False
    declared: Declared = field(init=False)

    def __attrs_post_init__(self) -> None:
        self.declared = declaredBy(self.message)

    @property
    def id(self) -> bytes:
        """Its id, as the client spelled it."""
        assert self.message.id is not None
        return self.message.id

    @property
    def token(self) -> bytes | None:
        """Its progress token, as spelled."""
        return self.message.meta("progressToken")

    @property
    def level(self) -> int | None:
        """The rank of the log level it asks for; None where it wants no log messages."""
        return LEVELS.get(text(self.message.meta(LOG_LEVEL)) or "")


@define(eq=False)
class Replies:
    """
    All of one pool.

    clock: lets answers wait for the end of the turn in which their request came.
    dropped: told why something reached nobody.
    """

    clock: IReactorTime
    dropped: Callable[[str], None]
    _open: dict[Target, Reply] = field(factory=dict, init=False)
    _within: bool = field(default=False, init=False)

    def __len__(self) -> int:
        return len(self._open)

    @contextmanager
    def opened(self, message: Message, target: Target, context: CallContext) -> Iterator[Reply]:
        """A request came; what answers it in this block answers it after this turn."""
        reply = Reply(message, target, context)
        self._open[target] = reply
        before, self._within = self._within, True
        try:
            yield reply
        finally:
            self._within = before

    def of(self, target: Target) -> Reply | None:
        """The request that a target is of, while it is not answered."""
        return self._open.get(target)

    def gone(self, target: Target) -> Reply | None:
        """The client waits no longer."""
        reply = self._open.pop(target, None)
        if reply is not None:
            reply.open = False
        return reply

    def deliver(self, reply: Reply | None, message: Message) -> bool:
        """Send what is no answer; whether it was taken, which is counted if not."""
        if reply is None or not reply.open:
            self.dropped("client_gone")
            return False
        if not reply.target.deliver(message):
            self.dropped("undeliverable")
            return False
        return True

    def answer(self, reply: Reply, message: Message) -> None:
        """Answer a request, under its client's id."""
        assert not reply.answered, "answered twice"
        reply.answered = True
        if self._within:
            self.clock.callLater(0, self._answer, reply, message)
        else:
            self._answer(reply, message)

    def _answer(self, reply: Reply, message: Message) -> None:
        if not reply.open:
            self.dropped("client_gone")
            return
        reply.open = False
        self._open.pop(reply.target, None)
        reply.target.answer(_under(message, reply.id))


def _under(message: Message, id: bytes) -> Message:
    if not isinstance(message, FailedCall):
        return message.withID(id)
    fields = {**message.fields, "id": Raw(id)}
    return FailedCall(message.kind, fields, id, why=message.why)
