"""
The calls of one legacy client at a modern server: ids, rounds, and what the client is asked.

Pure: it takes messages, returns effects, and calls nothing. Theory of operation (MCP 2026-07-28,
basic/patterns/mrtr, cancellation, progress):

 1. Each request to the server has an id of its own. The relay's progress tokens are unique among
    its calls and stay; all rounds of a call have the same.
 2. A result that asks for input ends the request, not the call: the client is asked, each input
    by a request of its own; when all are answered the request is sent again with the answers and
    the server's `requestState`. A result that asks for nothing is followed by the next request at
    once, from the second such in a row on after a back-off.
 3. A call takes at most `maxRounds` such results; then it fails.
 4. What the client refuses, or cannot be asked, fails the call, and the rest of what it was asked
    is cancelled.
 5. A call is over with its answer, or when the relay gives it up. A call that is cancelled
    between two requests is just not sent again.
"""

from __future__ import annotations

from collections.abc import Callable

from attrs import define, field

from gateway.bridge.asking import NotAskable, askedOf, inputRefused
from gateway.bridge.capabilities import Greeting
from gateway.bridge.effects import (
    AskAgain,
    Dropped,
    Effect,
    Errand,
    Forget,
    Reached,
    Round,
    Say,
    Send,
    Tell,
)
from gateway.bridge.requests import retried, stamped
from gateway.bridge.results import asLegacy, errorAsLegacy, notCarried, resultType
from gateway.wire.context import CallContext
from gateway.wire.envelope import Message, members, notification
from gateway.wire.modern import MAY_ASK

__all__ = ["Conversation"]


@define(eq=False)
class Conversation:
    """
    The calls of one bridged link. Its link drives it and forgets it.

    greeting: what the client said of itself. maxRounds: how often one call may be answered by a
    request for input. tells: whether cancellation is a notification to the server; else closing
    the response is. newID: makes an `elicitationId`.
    level: the log level, as spelled.
    """

    greeting: Greeting
    maxRounds: int
    tells: bool
    newID: Callable[[], str]
    level: bytes | None = None
    _errands: dict[object, Errand] = field(factory=dict, init=False)
    _named: dict[bytes, Errand] = field(factory=dict, init=False)
    """By the relay's ids."""
    _rounds: dict[bytes, Round] = field(factory=dict, init=False)
    _questions: dict[bytes, Errand] = field(factory=dict, init=False)
    _asked: set[bytes] = field(factory=set, init=False)
    """Those of the questions that the relay was told."""
    _lastID: int = field(default=0, init=False)
    _lastQuestion: int = field(default=0, init=False)

    def nextID(self) -> bytes:
        """An id that no request to this server had."""
        self._lastID += 1
        return b"%d" % self._lastID

    def errandOf(self, call: object) -> Errand | None:
        """What the relay knows by this object."""
        return self._errands.get(call)

    def roundOf(self, id: bytes | None) -> Round | None:
        """The running request with this id."""
        return None if id is None else self._rounds.get(id)

    # From the relay.

    def request(self, message: Message, call: object, context: CallContext) -> list[Effect]:
        """A request that goes to the server: one effect."""
        assert message.id is not None
        errand = Errand(call, message, stamped(message, self.greeting, self.level), context)
        self._errands[call] = self._named[message.id] = errand
        return [self._send(errand, errand.request)]

    def _send(self, errand: Errand, message: Message) -> Send:
        errand.round = round = Round(errand, self.nextID())
        self._rounds[round.id] = round
        return Send(message.withID(round.id), round)

    def response(self, message: Message) -> list[Effect]:
        """The client answered what it was asked."""
        assert message.id is not None
        errand = self._questions.pop(message.id, None)
        if errand is None:
            return [Dropped("stray_response")]
        self._asked.discard(message.id)
        key, method = errand.open.pop(message.id)
        if message.isError:
            error = bytes(message.fields["error"])
            return self._failed(errand, inputRefused(errand.asked.id, method, error))
        errand.gathered[key] = message.fields["result"]
        return [] if errand.open else self._next(errand)

    def cancelled(self, message: Message) -> list[Effect]:
        """The client cancelled a call. It is over when the relay gives it up."""
        errand = self._named.get(message.param("requestId") or b"")
        if errand is None or errand.cancelled:
            return [Dropped("stray_cancel")]
        errand.cancelled = True
        effects = self._void(errand)
        if errand.round is not None:
            if self.tells:
                effects.append(Say(message.withParam("requestId", errand.round.id)))
            else:
                effects += self._closed(errand)
        return effects

    def gaveUp(self, call: object) -> list[Effect]:
        """The relay waits no longer for a call."""
        errand = self._errands.get(call)
        if errand is None:
            return []
        effects = self._void(errand)
        if errand.round is not None:
            if self.tells and not errand.cancelled:
                id = errand.round.id
                effects.append(Say(notification("notifications/cancelled", requestId=id)))
            effects += self._closed(errand)
        self._over(errand)
        return effects

    def _closed(self, errand: Errand) -> list[Effect]:
        """End the request that runs."""
        round, errand.round = errand.round, None
        assert round is not None
        self._rounds.pop(round.id, None)
        return [Forget(round)]

    def _void(self, errand: Errand) -> list[Effect]:
        """Nobody waits for what the client was asked."""
        asked, errand.open = errand.open, {}
        effects: list[Effect] = []
        for id in asked:
            del self._questions[id]
            if id in self._asked:
                self._asked.discard(id)
                cancelled = notification("notifications/cancelled", requestId=id)
                effects.append(Tell(cancelled, errand.call))
        return effects

    def _over(self, errand: Errand) -> None:
        self._errands.pop(errand.call, None)
        assert errand.asked.id is not None
        if self._named.get(errand.asked.id) is errand:
            del self._named[errand.asked.id]

    # From the server.

    def answered(self, answer: Message) -> list[Effect]:
        """The server answered a request of a call."""
        assert answer.id is not None
        round = self._rounds.pop(answer.id, None)
        if round is None:
            known = answer.id.isdigit() and 0 < int(answer.id) <= self._lastID
            return [Dropped("late_answer" if known else "unknown_id")]
        errand = round.errand
        errand.round = None
        kind = "complete" if answer.isError else resultType(answer)
        if kind == "complete":
            return self._ended(errand, answer)
        if kind == "input_required" and errand.asked.method in MAY_ASK:
            return [] if errand.cancelled else self._asks(errand, answer)
        why = (
            f"The server answered {errand.asked.method} with a result of type {kind[:64]}, which "
            f"revision {self.greeting.revision} of this session does not have"
        )
        return self._failed(errand, notCarried(errand.asked.id, why))

    def _ended(self, errand: Errand, answer: Message) -> list[Effect]:
        self._over(errand)
        assert errand.asked.id is not None
        legacy = asLegacy(errand.asked, answer, self.greeting.revision)
        return [Tell(legacy.withID(errand.asked.id), errand.call)]

    def _failed(self, errand: Errand, answer: Message) -> list[Effect]:
        effects = self._void(errand)
        self._over(errand)
        return [*effects, Tell(answer, errand.call)]

    def _asks(self, errand: Errand, answer: Message) -> list[Effect]:
        """A result that asks for input; rules 2 to 4."""
        errand.rounds += 1
        if errand.rounds > self.maxRounds:
            why = f"The server asked for input more than {self.maxRounds} times for one call"
            failed = self._failed(errand, notCarried(errand.asked.id, why))
            return [Reached("max_input_rounds"), *failed]
        result = members(answer.fields["result"])
        state = result.get("requestState")
        errand.state = None if state is None else bytes(state)
        errand.inputs, errand.gathered = None, {}
        if "inputRequests" not in result:
            errand.bare += 1
            if errand.bare == 1:
                return self._next(errand)
            return [AskAgain(errand, errand.bare - 1)]
        errand.bare = 0
        try:
            asked = askedOf(bytes(result["inputRequests"]), self.greeting.revision, self.newID)
        except NotAskable as error:
            why = f"The call needs what cannot be carried: {error}"
            return self._failed(errand, notCarried(errand.asked.id, why))
        errand.inputs = [key for key, _ in asked]
        effects: list[Effect] = []
        for key, message in asked:
            self._lastQuestion += 1
            id = b"%d" % self._lastQuestion
            errand.open[id] = key, message.method
            self._questions[id] = errand
            effects.append(Tell(message.withID(id), errand.call))
        return effects or self._next(errand)

    def _next(self, errand: Errand) -> list[Effect]:
        """Send the request again, with what was gathered."""
        if errand.cancelled:
            return []
        responses = None
        if errand.inputs is not None:
            responses = {key: errand.gathered[key] for key in errand.inputs}
        errand.gathered = {}
        return [self._send(errand, retried(errand.request, responses, errand.state))]

    def again(self, errand: Errand) -> list[Effect]:
        """The back-off of an `AskAgain` is over."""
        if self._errands.get(errand.call) is not errand or errand.round is not None:
            return []
        return self._next(errand)

    def asks(self, question: Message) -> bool:
        """The client is asked this now. False: nobody waits for its answer any more."""
        assert question.id is not None
        if question.id not in self._questions:
            return False
        self._asked.add(question.id)
        return True

    def settled(self, round: Round, body: Message | None) -> tuple[Errand, Message | None] | None:
        """
        A request ended without an answer, and its call with it.

        body: the server's error response, where it gave one.
        Returns: its errand, and that error as the legacy era has it; None where nobody waits.
        """
        errand = round.errand
        if self._rounds.pop(round.id, None) is None:
            return None
        errand.round = None
        self._over(errand)
        if body is not None and body.isError:
            body = errorAsLegacy(errand.asked, body)
        return errand, body
