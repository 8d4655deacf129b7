"""
One link for many sessions: which message is whose. Pure; `gateway.servers.hub` drives it.

Theory of operation (docs/isolation.md has it as a table):

 1. A request gets an id of this core's own towards the server, and its progress token, if any,
    becomes that id; the answer, the progress and `notifications/cancelled` are mapped back.
 2. Subscriptions and log levels outlast the request that asks for them: subscriptions.py and
    loglevels.py say what the server hears of them.
 3. A message that names nobody belongs to the session whose calls alone are running; to all, while
    no call runs; to nobody, while calls of several run, for it could tell one what another does.
    A log message is for those whose level admits it; while no call runs, for those who asked for
    one. `list_changed` is for all.
 4. Nobody may answer for another: requests of the server are refused, but for `ping`. Tasks would
    be seen by all, so there are none.
 5. Who leaves takes with it what it asked for: its calls are cancelled, since the server goes on;
    subscriptions and log level are given back, a few at a time.
 6. A call that was given up counts as running, and as somebody else's, for `cancel_wait` seconds:
    the server may say something about it until it has heard. A request whose outcome lasts does
    so until it is answered, at most `timeout` seconds, and no more than `max_calls` of them.
"""

from __future__ import annotations

from attrs import define, field

from gateway.guard.limits import Limits
from gateway.servers.entries import (
    Asked,
    Deliver,
    Dropped,
    Effect,
    Entry,
    Forgotten,
    Member,
    Reached,
    Send,
    Step,
)
from gateway.servers.loglevels import SET_LEVEL, LogLevels
from gateway.servers.subscriptions import SUBSCRIBE, UNSUBSCRIBE, Subscriptions
from gateway.wire.context import CallContext
from gateway.wire.envelope import Kind, Message, emptyResult, notification, quote, request
from gateway.wire.refusals import Reason, callFailed, errorMessage

__all__ = ["WINDOW", "Sharing"]

WINDOW = 32
"""How many requests of the gateway's own run at once, so that the sessions' find room."""

_UNOFFERED = frozenset(
    {"notifications/roots/list_changed", "notifications/progress", "notifications/tasks/status"}
)
"""Notifications of a client about what the server cannot have asked anybody for."""

_UNSHAREABLE = frozenset(
    {
        "notifications/cancelled",
        "notifications/elicitation/complete",
        "notifications/tasks/status",
    }
)
"""Notifications of the server about what no session can have asked for."""


@define(eq=False)
class Sharing:
    """
    The sessions of one link.

    context: for what the gateway says in its own name. timeout: seconds a request may take.
    members: the sessions. entries: the requests the server has. busy: the sessions that have
    calls among them. full: whether the server's queue is, so that nothing is given back now.
    """

    context: CallContext
    limits: Limits
    timeout: float
    members: dict[Member, None] = field(factory=dict, init=False)
    entries: dict[bytes, Entry] = field(factory=dict, init=False)
    busy: dict[Member, None] = field(factory=dict, init=False)
    full: bool = field(default=False, init=False)
    _subscriptions: Subscriptions = field(factory=Subscriptions, init=False)
    _levels: LogLevels = field(factory=LogLevels, init=False)
    _fading: dict[bytes, float] = field(factory=dict, init=False)
    """Calls that were given up, and until when they count; in that order."""
    _lasting: dict[bytes, float] = field(factory=dict, init=False)
    """Requests whose outcome lasts and which nobody waits for, the gateway's own among them."""
    _own: int = field(default=0, init=False)
    _lastID: int = field(default=0, init=False)

    def join(self, host: object) -> Member:
        """A session comes."""
        member = Member(host)
        self.members[member] = None
        return member

    # From a session.

    def request(
        self, member: Member, message: Message, call: object, context: CallContext, now: float
    ) -> list[Effect]:
        """A session asks."""
        assert message.id is not None
        method = message.method
        uri = level = ""
        if method.startswith("tasks/"):
            return [_refused(member, message, call, -32601, "Tasks are not shared")]
        if method == "tools/call":
            message = _withoutTask(message)
        elif method == SET_LEVEL:
            level = message.paramText("level") or ""
            if not self._levels.isLevel(level):
                return [_refused(member, message, call, -32602, "No such log level")]
        elif method in (SUBSCRIBE, UNSUBSCRIBE):
            uri = message.paramText("uri") or ""
            most = self.limits.max_subscriptions
            if method == SUBSCRIBE and uri not in member.topics and len(member.topics) >= most:
                answer = callFailed(message.id, Reason.OVERLOADED, "too many subscriptions")
                return [Reached("max_subscriptions"), Deliver(member, answer, call)]
        entry = self._entry(member, message, call, context)
        entry.uri, entry.level = uri, level
        member.calls[call] = entry
        effects = self._expired(now)
        if level:
            effects += self._steps(self._levels.ask(entry))
        elif uri:
            effects += self._steps(self._subscriptions.ask(entry))
        else:
            effects.append(self._send(entry, message))
        return effects + self._restored(now)

    def notification(self, member: Member, message: Message, context: CallContext) -> list[Effect]:
        """A session tells something."""
        if message.method == "notifications/initialized":
            # The gateway said so itself.
            return []
        if message.method in _UNOFFERED:
            return [Dropped("not_offered")]
        if message.method != "notifications/cancelled":
            return [Send(message, None, context)]
        id = message.param("requestId")
        for entry in member.calls.values():
            if entry.id == id:
                if entry.standing:
                    # Others may depend on its outcome.
                    return []
                told = message.withParam("requestId", entry.ours)
                return [Send(told, None, context, stops=entry)]
        return [Dropped("stray_cancel")]

    def gaveUp(self, member: Member, call: object, now: float) -> list[Effect]:
        """A session waits no longer for a request."""
        entry = member.calls.get(call)
        if entry is None:
            return []
        effects = self._expired(now)
        self._detach(entry)
        if entry.standing:
            if self._levels.gaveUp(entry) if entry.level else self._subscriptions.gaveUp(entry):
                effects += self._lasts(entry, now)
            return effects
        self._fading[entry.ours] = now + self.limits.cancel_wait
        effects.append(Forgotten(entry))
        if not entry.cancelled:
            cancelled = notification("notifications/cancelled", requestId=entry.ours)
            effects.append(Send(cancelled, None, entry.context, stops=entry))
        return effects

    def left(self, member: Member, now: float) -> list[Effect]:
        """A session is over."""
        effects: list[Effect] = []
        for call in list(member.calls):
            effects += self.gaveUp(member, call, now)
        self._subscriptions.left(member)
        self._levels.left(member)
        self.members.pop(member, None)
        return effects + self._restored(now)

    # From the server.

    def fromServer(self, message: Message, origin: Entry | None, now: float) -> list[Effect]:
        """The server said something; origin: the request on whose stream it came, or None."""
        effects = self._expired(now)
        if message.kind is Kind.RESPONSE:
            return effects + self._answered(message, now)
        if message.kind is Kind.REQUEST:
            return [*effects, self._asked(message, origin)]
        method = message.method
        if method == "notifications/progress":
            effects.append(self._progressed(message))
        elif method == "notifications/resources/updated":
            uri = message.paramText("uri") or ""
            heard = self._subscriptions.subscribers(uri)
            effects += [Deliver(one, message) for one in heard] or [Dropped("not_subscribed")]
        elif method.endswith("/list_changed"):
            effects += [Deliver(one, message) for one in self.members]
        elif method in _UNSHAREABLE:
            effects.append(Dropped("not_offered"))
        else:
            effects += self._someones(message, origin)
        return effects

    def settled(self, entry: Entry, now: float) -> list[Effect]:
        """A request is over without an answer."""
        if self.entries.pop(entry.ours, None) is None:
            return []
        return self._over(entry, granted=False) + self._restored(now)

    def notTaken(self, entry: Entry) -> list[Effect]:
        """The server's queue is full: what was to be sent is not, until `drained`."""
        self.full = True
        self.entries.pop(entry.ours, None)
        if not entry.own:
            return self._over(entry, granted=False)
        self._detach(entry)
        if entry.level:
            return self._steps(self._levels.notRenewed(entry))
        return self._steps(self._subscriptions.notReleased(entry))

    def drained(self, now: float) -> list[Effect]:
        """The server's queue has room again."""
        self.full = False
        return self._restored(now)

    def _answered(self, message: Message, now: float) -> list[Effect]:
        assert message.id is not None
        entry = self.entries.pop(message.id, None)
        if entry is None:
            known = message.id.isdigit() and 0 < int(message.id) <= self._lastID
            return [Dropped("late_answer" if known else "unknown_id")]
        effects: list[Effect] = []
        if entry.member is not None:
            effects.append(Deliver(entry.member, message.withID(entry.id), entry.call))
        elif not entry.own:
            effects.append(Dropped("late_answer"))
        return effects + self._over(entry, not message.isError) + self._restored(now)

    def _asked(self, message: Message, origin: Entry | None) -> Send:
        assert message.id is not None
        context = self.context if origin is None else origin.context
        if message.method == "ping":
            return Send(emptyResult(message.id), None, context)
        why = "No one client could answer"
        return Send(errorMessage(message.id, -32601, why), None, context)

    def _progressed(self, message: Message) -> Effect:
        entry = self.entries.get(message.param("progressToken") or b"")
        if entry is None or entry.member is None or entry.token is None:
            return Dropped("unknown_token")
        told = message.withParam("progressToken", entry.token)
        return Deliver(entry.member, told, entry.call)

    def _someones(self, message: Message, origin: Entry | None) -> list[Effect]:
        """A message that names nobody."""
        logs = message.method == "notifications/message"
        call = None
        if origin is not None:
            heard, call = [origin.member], origin.call
        elif len(self.busy) + bool(self._fading or self._lasting) > 1:
            return [Dropped("of_several")]
        elif self._fading or self._lasting:
            heard = [None]
        elif self.busy:
            heard = [*self.busy]
        else:
            heard = [one for one in self.members if one.level or not logs]
        level = message.paramText("level") if logs else None
        effects: list[Effect] = [
            Deliver(one, message, call)
            for one in heard
            if one is not None and self._levels.admits(one, level)
        ]
        if effects:
            return effects
        return [Dropped("client_gone" if None in heard else "not_wanted")]

    # What runs.

    def _entry(
        self, member: Member | None, message: Message, call: object, context: CallContext
    ) -> Entry:
        self._lastID += 1
        id, ours, token = message.id or b"", b"%d" % self._lastID, message.meta("progressToken")
        return Entry(member, call, id, token, ours, message, context, own=member is None)

    def _send(self, entry: Entry, message: Message) -> Send:
        self.entries[entry.ours] = entry
        if entry.member is not None:
            entry.member.running += 1
            self.busy[entry.member] = None
        if entry.token is not None:
            message = message.withMeta("progressToken", entry.ours)
        return Send(message.withID(entry.ours), entry, entry.context)

    def _steps(self, steps: list[Step]) -> list[Effect]:
        effects: list[Effect] = []
        for step in steps:
            entry = step.entry
            if isinstance(step, Asked):
                effects.append(self._send(entry, step.message))
            elif entry.member is not None:
                member = entry.member
                del member.calls[entry.call]
                effects.append(Deliver(member, emptyResult(entry.id), entry.call))
        return effects

    def _over(self, entry: Entry, granted: bool) -> list[Effect]:
        """The server does not have this request any more."""
        steps: list[Step] = []
        if entry.level:
            steps = self._levels.over(entry, granted)
        elif entry.uri:
            steps = self._subscriptions.over(entry, granted)
        self._detach(entry, sent=True)
        return self._steps(steps) if steps else []

    def _detach(self, entry: Entry, sent: bool | None = None) -> None:
        """Nobody waits for this request any more."""
        self._fading.pop(entry.ours, None)
        if self._lasting and self._lasting.pop(entry.ours, None) is not None and entry.own:
            self._own -= 1
        member, entry.member = entry.member, None
        if member is None:
            return
        member.calls.pop(entry.call, None)
        if sent or entry.ours in self.entries:
            member.running -= 1
            if not member.running:
                self.busy.pop(member, None)

    def _lasts(self, entry: Entry, now: float) -> list[Effect]:
        """Wait for the outcome of this request, though nobody else does."""
        effects: list[Effect] = []
        if len(self._lasting) >= self.limits.max_calls:
            effects.append(Reached("max_calls"))
            effects += self._expire(next(iter(self._lasting)))
        self._lasting[entry.ours] = now + self.timeout
        return effects

    def _expired(self, now: float) -> list[Effect]:
        """Wait no longer for what nobody waits for."""
        effects: list[Effect] = []
        if not (self._fading or self._lasting):
            return effects
        for waits in (self._fading, self._lasting):
            while waits and next(iter(waits.values())) <= now:
                effects += self._expire(next(iter(waits)))
        return effects

    def _expire(self, ours: bytes) -> list[Effect]:
        entry = self.entries.pop(ours)
        forgotten: list[Effect] = [Forgotten(entry)] if entry.standing else []
        return forgotten + self._over(entry, granted=False)

    def _restored(self, now: float) -> list[Effect]:
        """Give back what no session wants any more."""
        effects: list[Effect] = []
        if not (self._levels.stale or self._subscriptions.stale):
            return effects
        while not self.full and self._own < min(WINDOW, self.limits.max_calls):
            level = self._levels.nextStale()
            if level is not None:
                entry = self._ownEntry(SET_LEVEL, level=level)
                self._levels.renew(entry)
            else:
                uri = self._subscriptions.nextStale()
                if uri is None:
                    break
                entry = self._ownEntry(UNSUBSCRIBE, uri=uri)
                self._subscriptions.release(entry)
            self._own += 1
            effects += self._lasts(entry, now)
            effects.append(self._send(entry, entry.request))
        return effects

    def _ownEntry(self, method: str, *, uri: str = "", level: str = "") -> Entry:
        params = {"uri": quote(uri)} if uri else {"level": quote(level)}
        entry = self._entry(None, request(method, **params), None, self.context)
        entry.uri, entry.level = uri, level
        return entry


def _refused(member: Member, message: Message, call: object, code: int, why: str) -> Deliver:
    assert message.id is not None
    return Deliver(member, errorMessage(message.id, code, why), call)


def _withoutTask(message: Message) -> Message:
    """
    A call that asks for a task, as an ordinary one: no task is declared, so that is what the
    server has to make of it (MCP 2025-11-25, basic/utilities/tasks, Capability Negotiation).
    """
    raw = message.fields.get("params")
    whole = b"" if raw is None else bytes(raw)
    # Scanning first spares large params a second parse; an escape may hide it.
    if b'"task"' not in whole and b"\\u" not in whole:
        return message
    return message.withoutParam("task")
