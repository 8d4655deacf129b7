"""
A modern call in a legacy session: what its server says, asks and answers meanwhile, and the calls
that wait for input of their clients.

Life: waits for a session → opening (its link, its log level) → sent → answered. Each time the
server asks something, the request that waits is answered `input_required`, and the call is parked:
it runs on upstream, nobody waits for it here, until a retry attaches another request to it.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import Protocol

from attrs import define, field

from gateway.bridge.asmodern import LEVELS
from gateway.bridge.inputs import Declared, Refused, answerTo, inputRequest
from gateway.bridge.states import newCall
from gateway.links.interfaces import EventMark
from gateway.relay.pooled import LIST_CHANGES, ROOTS, UPDATED, Pooled
from gateway.relay.replies import Replies, Reply
from gateway.wire.context import CallContext
from gateway.wire.envelope import REQUEST, Message, emptyResult, notification, quote
from gateway.wire.modern import MAY_ASK
from gateway.wire.refusals import errorMessage, lostWithSession

__all__ = ["Asking", "ModernCall", "Stage"]

_LEGACY_ONLY = frozenset(
    {
        "notifications/elicitation/complete",
        "notifications/tasks/status",
    }
)
"""What the modern revision has no word for."""


class Stage(Enum):
    """How far a call is."""

    WAITING = "waits for a session"
    OPENING = "has one, which is not ready"
    SENT = "runs"
    CANCELLED = "runs, and is to end"
    OVER = "over"


class Asking(Protocol):
    """The pool, as a call sees it."""

    replies: Replies

    def dropped(self, why: str) -> None:
        """Something reached nobody."""

    def questioned(self, call: ModernCall) -> None:
        """The server asked something; `ask` is to be called at the end of this turn."""

    def ended(self, call: ModernCall, answer: Message) -> None:
        """It is over upstream."""


@define(eq=False)
class ModernCall:
    """
    One call. It is its relay's target.

    id: under which the relay knows it. request: as the relay gets it. reply: the newest request
    that waits for it; None while it is parked, or after its client left. context, declared:
    the facts of the newest request, and what its client lets the server ask. due: when waiting for
    a session ends.
    pooled: the session it has. asker: the one it ran in, which may wait for answers after it.
    name: what a state calls it. round: counts what was asked and answered; a state is good for one
    round. until: when the client's time to answer is over. outcome: its answer, where it came
    while the call was parked.
    """

    pool: Asking
    id: bytes
    request: Message
    reply: Reply | None
    context: CallContext
    declared: Declared
    due: float
    stage: Stage = Stage.WAITING
    pooled: Pooled | None = None
    asker: Pooled | None = None
    name: bytes = field(factory=newCall)
    round: int = 1
    until: float = 0.0
    outcome: Message | None = None
    questions: dict[str, Message] = field(factory=dict, init=False)
    flushing: bool = field(default=False, init=False)
    _asked: frozenset[str] = field(default=frozenset(), init=False)
    _lastKey: int = field(default=0, init=False)

    @property
    def method(self) -> str:
        return self.request.method

    @property
    def level(self) -> int | None:
        """The rank of the log level that who waits for it asks for."""
        return None if self.reply is None else self.reply.level

    # Target: what the relay has for it.

    def deliver(self, message: Message, mark: EventMark | None = None) -> bool:
        if message.kind is REQUEST:
            self._question(message)
        elif message.method == "notifications/cancelled":
            self._void(message.param("requestId"))
        elif message.method == "notifications/progress":
            self._progressed(message)
        elif message.method == "notifications/message":
            self._logged(message)
        elif message.method == UPDATED or message.method in LIST_CHANGES:
            # Said on the call's own stream, but nothing of the call's.
            assert self.pooled is not None
            return self.pooled.deliver(message)
        elif message.method in _LEGACY_ONLY:
            self.pool.dropped("not_modern")
        else:
            self.pool.replies.deliver(self.reply, message)
        return True

    def marked(self, mark: EventMark) -> None:
        pass

    def answer(self, message: Message, mark: EventMark | None = None) -> None:
        self.pool.ended(self, message)

    def lost(self, id: bytes) -> None:
        self.pool.ended(self, lostWithSession(id))

    def close(self) -> None:
        pass

    def _progressed(self, message: Message) -> None:
        token = None if self.reply is None else self.reply.token
        if token is None:
            self.pool.dropped("client_gone" if self.reply is None else "unknown_token")
        else:
            self.pool.replies.deliver(self.reply, message.withParam("progressToken", token))

    def _logged(self, message: Message) -> None:
        level, rank = self.level, LEVELS.get(message.paramText("level") or "")
        if level is None or rank is None or rank < level:
            self.pool.dropped("no_log_asked")
        else:
            self.pool.replies.deliver(self.reply, message)

    def slow(self, blocked: bool) -> None:
        """
        Who waits for it does not read, or reads again, or is nobody any more.

        A response of its own is held; a child is not, for it tells others of the caller, too.
        """
        if self.pooled is None:
            return
        readers = self.pooled.relay.readers
        if blocked and readers.perOrigin:
            readers.opened(self, self)
            readers.blocked(self)
        else:
            readers.closed(self)

    # What the server asks.

    def _question(self, message: Message) -> None:
        assert message.id is not None
        if message.method == "ping":
            self._tell(emptyResult(message.id))
            return
        refused = self.declared.refusal(message)
        mayAsk = self.method in MAY_ASK and self.stage is Stage.SENT
        if message.method == ROOTS and not mayAsk and self.pooled is not None:
            # None of this call's, but of its session's.
            self.pooled.hold(message)
            return
        if refused is None and self.method not in MAY_ASK:
            # basic/patterns/mrtr, Supported Requests.
            refused = Refused(-32601, "This call cannot ask the client")
        if refused is None and self.stage is not Stage.SENT:
            refused = Refused(-32603, "The call is over")
        if refused is not None:
            self._tell(errorMessage(message.id, refused.code, refused.message))
            return
        self._lastKey += 1
        self.questions[f"q{self._lastKey}"] = message
        self.pool.questioned(self)

    def _void(self, id: bytes | None) -> None:
        """The server waits for an answer no more. What the client was told of stays valid."""
        for key, question in self.questions.items():
            if question.id == id:
                del self.questions[key]
                return
        self.pool.dropped("stray_cancel")

    def ask(self) -> list[tuple[str, bytes]]:
        """The values of `inputRequests` for what is open now."""
        asked = frozenset(self.questions)
        if not asked <= self._asked:
            self.round += 1
        self._asked = asked
        return [(key, inputRequest(question)) for key, question in self.questions.items()]

    def respond(self, responses: Mapping[str, bytes]) -> None:
        """
        The client answered, with the request that is its reply now: what is open and answered
        goes to the server, what the client may no longer be asked is refused.
        """
        answered = False
        for key, question in list(self.questions.items()):
            refused = self.declared.refusal(question)
            if key in responses:
                answer = answerTo(question, responses[key])
            elif refused is not None and question.id is not None:
                answer = errorMessage(question.id, refused.code, refused.message)
            else:
                continue
            del self.questions[key]
            answered = True
            self._tell(answer)
        if answered:
            self.round += 1
            self._asked = frozenset(self.questions)

    def refuse(self, why: str, but: str = "") -> None:
        """Nobody will answer what the server asked; but: a method that may be answered still."""
        for key, question in list(self.questions.items()):
            if question.method != but:
                assert question.id is not None
                del self.questions[key]
                self._tell(errorMessage(question.id, -32603, why))

    def cancel(self, why: str) -> None:
        """Tell the server that nobody waits; the relay ends the call soon, whatever it says."""
        if self.stage is Stage.SENT:
            self.stage = Stage.CANCELLED
            self.refuse(why)
            said = notification("notifications/cancelled", requestId=self.id, reason=quote(why))
            self._tell(said)

    def _tell(self, message: Message) -> None:
        if self.asker is not None:
            self.asker.tell(message, self.context)
