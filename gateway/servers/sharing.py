"""
One link for many sessions: which message is whose. Pure; `gateway.servers.shared` drives it.

Theory of operation (docs/isolation.md has it as a table):

 1. A request gets an id of this core's own towards the server, and its progress token, if any,
    becomes that id; the answer, the progress and `notifications/cancelled` are mapped back.
 2. Subscriptions are counted per URI: the server hears the first and the last. What concerns one
    URI goes to the server one after the other; what fails leaves no trace.
 3. The server's log level is the most verbose that any session asked for; each session gets what
    its own level admits.
 4. A message that names nobody belongs to the session whose calls alone are running; to all, while
    no call runs; to nobody, while calls of several run, for it could tell one what another does.
    `list_changed` is for all.
 5. Nobody may answer for another: requests of the server are refused, but for `ping`. Tasks would
    be seen by all, so there are none.
 6. Who leaves takes with it what it asked for: running calls are cancelled, since the server goes
    on; subscriptions and log level are given back.
"""

from __future__ import annotations

from collections import deque

import msgspec
from attrs import define, field, frozen
from msgspec import Raw

from gateway.wire.context import CallContext
from gateway.wire.envelope import Kind, Message, notification, quote
from gateway.wire.refusals import errorMessage

__all__ = ["Deliver", "Dropped", "Effect", "Entry", "Member", "Send", "Sharing"]

_LEVELS = {
    quote(name): rank
    for rank, name in enumerate(
        ("debug", "info", "notice", "warning", "error", "critical", "alert", "emergency")
    )
}
"""The log levels as spelled in JSON, the most verbose first (RFC 5424)."""

_UNSHAREABLE = frozenset(
    {
        "notifications/cancelled",
        "notifications/elicitation/complete",
        "notifications/tasks/status",
    }
)
"""Notifications of the server about what no session can have asked for."""


@define(eq=False)
class Member:
    """
    A session's part. host: what the driver knows it by.

    level: the log level it asked for, as spelled in JSON, or b"".
    """

    host: object
    level: bytes = b""
    calls: dict[object, Entry] = field(factory=dict)


@define(eq=False)
class Entry:
    """
    A request that runs. member: who asked, None for one of our own or whose asker gave it up.

    call: the asker's object for it. id: the asker's id. ours: the id the server knows.
    cancelled: whether the server was told to stop.
    """

    member: Member | None
    call: object
    id: bytes
    ours: bytes
    request: Message
    context: CallContext
    cancelled: bool = False


@frozen
class Send:
    """Send a message to the server; entry: the request it is."""

    message: Message
    entry: Entry | None
    context: CallContext


@frozen
class Deliver:
    """Tell a member; call: what it belongs to, where it belongs to one."""

    member: Member
    message: Message
    call: object | None = None


@frozen
class Dropped:
    """A message went nowhere, and why."""

    why: str


Effect = Send | Deliver | Dropped


@define(eq=False)
class _Topic:
    """A URI that is subscribed, or about to be."""

    members: set[Member] = field(factory=set)
    waiting: deque[Entry] = field(factory=deque)
    busy: Entry | None = None


@define(eq=False)
class Sharing:
    """The sessions of one link. context: for what the gateway says in its own name."""

    context: CallContext
    members: set[Member] = field(factory=set, init=False)
    entries: dict[bytes, Entry] = field(factory=dict, init=False)
    _topics: dict[str, _Topic] = field(factory=dict, init=False)
    _level: bytes = field(default=b"", init=False)
    """What the server was asked for."""
    _lastID: int = field(default=0, init=False)

    def join(self, host: object) -> Member:
        """A session comes."""
        member = Member(host)
        self.members.add(member)
        return member

    # From a session.

    def request(
        self, member: Member, message: Message, call: object, context: CallContext
    ) -> list[Effect]:
        """A session asks."""
        assert message.id is not None
        if message.method.startswith("tasks/"):
            why = "Tasks are not served by a shared server"
            return [Deliver(member, errorMessage(message.id, -32601, why), call)]
        entry = self._entry(member, message, call, context)
        member.calls[call] = entry
        if message.method == "logging/setLevel":
            return self._setLevel(member, entry)
        if message.method in ("resources/subscribe", "resources/unsubscribe"):
            uri = message.paramText("uri")
            if uri is not None:
                topic = self._topics.setdefault(uri, _Topic())
                topic.waiting.append(entry)
                return self._turn(uri, topic)
        return [self._send(entry)]

    def notification(self, member: Member, message: Message, context: CallContext) -> list[Effect]:
        """A session tells something."""
        if message.method in ("notifications/initialized", "notifications/roots/list_changed"):
            # Said once by the gateway itself; and no roots were offered.
            return []
        if message.method == "notifications/progress":
            return [Dropped("unknown_token")]
        if message.method == "notifications/cancelled":
            id = message.param("requestId")
            for entry in member.calls.values():
                if entry.id == id:
                    entry.cancelled = True
                    return [Send(message.withParam("requestId", entry.ours), None, context)]
            return [Dropped("stray_cancel")]
        return [Send(message, None, context)]

    def notTaken(self, entry: Entry) -> list[Effect]:
        """The server's queue is full: what was to be sent is not."""
        if entry.member is not None:
            entry.member.calls.pop(entry.call, None)
        return self.settled(entry)

    def settled(self, entry: Entry) -> list[Effect]:
        """A request is over without an answer."""
        self.entries.pop(entry.ours, None)
        if entry.member is not None:
            entry.member.calls.pop(entry.call, None)
        return self._over(entry, granted=False)

    def gaveUp(self, member: Member, call: object) -> list[Effect]:
        """A session waits no longer for a request."""
        entry = member.calls.pop(call, None)
        if entry is None:
            return []
        entry.member = None
        topic = self._topics.get(entry.request.paramText("uri") or "")
        if topic is not None and entry in topic.waiting:
            topic.waiting.remove(entry)
            return []
        if topic is not None and topic.busy is entry:
            # Its outcome must be known: the server may hold the subscription.
            return []
        if self.entries.pop(entry.ours, None) is None or entry.cancelled:
            return []
        return [
            Send(notification("notifications/cancelled", requestId=entry.ours), None, entry.context)
        ]

    def left(self, member: Member) -> list[Effect]:
        """A session is over."""
        effects: list[Effect] = []
        for call in list(member.calls):
            effects += self.gaveUp(member, call)
        self.members.discard(member)
        for uri, topic in list(self._topics.items()):
            if member not in topic.members:
                continue
            topic.members.discard(member)
            if not topic.members and topic.busy is None:
                topic.busy = self._entry(None, _request("resources/unsubscribe", uri=quote(uri)))
                effects.append(self._send(topic.busy))
        level = self._wanted()
        if member.level and level and level != self._level:
            self._level = level
            effects.append(self._own("logging/setLevel", level=level))
        return effects

    # From the server.

    def fromServer(self, message: Message, entry: Entry | None) -> list[Effect]:
        """The server said something; entry: the request on whose stream it came, or None."""
        if message.kind is Kind.RESPONSE:
            return self._answered(message)
        if message.kind is Kind.REQUEST:
            assert message.id is not None
            context = self.context if entry is None else entry.context
            if message.method == "ping":
                return [Send(_pong(message.id), None, context)]
            why = "No one client could answer: the server is shared"
            return [Send(errorMessage(message.id, -32601, why), None, context)]
        if message.method == "notifications/progress":
            asked = self.entries.get(message.param("progressToken") or b"")
            if asked is None or asked.member is None:
                return [Dropped("unknown_token")]
            told = message.withParam("progressToken", asked.id)
            return [Deliver(asked.member, told, asked.call)]
        if message.method == "notifications/resources/updated":
            return self._updated(message)
        if message.method.endswith("/list_changed"):
            return [Deliver(member, message) for member in self.members]
        if message.method in _UNSHAREABLE:
            return [Dropped("shared")]
        return self._someones(message, entry)

    def _answered(self, message: Message) -> list[Effect]:
        assert message.id is not None
        entry = self.entries.pop(message.id, None)
        if entry is None:
            known = message.id.isdigit() and 0 < int(message.id) <= self._lastID
            return [Dropped("late_answer" if known else "unknown_id")]
        effects: list[Effect] = []
        member = entry.member
        if member is not None:
            member.calls.pop(entry.call, None)
            if entry.request.method == "logging/setLevel" and not message.isError:
                member.level = entry.request.param("level") or b""
            effects.append(Deliver(member, message.withID(entry.id), entry.call))
        return effects + self._over(entry, granted=not message.isError)

    def _someones(self, message: Message, entry: Entry | None) -> list[Effect]:
        """A message that names nobody."""
        logs = message.method == "notifications/message"
        level = (message.param("level") or b"") if logs else b""
        if entry is not None:
            if entry.member is None:
                return [Dropped("client_gone")]
            return self._admitted([entry.member], message, level, entry.call)
        running = {one.member for one in self.entries.values() if one.member is not None}
        if len(running) > 1:
            return [Dropped("of_several")]
        if running:
            return self._admitted([member for member in running if member], message, level)
        # Nobody's call caused it, so only who asked for logs gets them.
        return self._admitted(
            [member for member in self.members if member.level or not logs], message, level
        )

    def _admitted(
        self, members: list[Member], message: Message, level: bytes, call: object | None = None
    ) -> list[Effect]:
        effects: list[Effect] = [
            Deliver(member, message, call)
            for member in members
            if not level
            or not member.level
            or _LEVELS.get(level, len(_LEVELS)) >= _LEVELS.get(member.level, 0)
        ]
        return effects or [Dropped("below_level" if members else "no_session")]

    def _updated(self, message: Message) -> list[Effect]:
        uri = message.paramText("uri") or ""
        heard: set[Member] = set()
        for subscribed, topic in self._topics.items():
            # The resource itself, or one below it.
            if uri == subscribed or uri.startswith(subscribed.rstrip("/") + "/"):
                heard |= topic.members
        return [Deliver(member, message) for member in heard] or [Dropped("not_subscribed")]

    # Subscriptions.

    def _turn(self, uri: str, topic: _Topic) -> list[Effect]:
        """Do what waits for this URI, as far as no answer of the server is needed."""
        effects: list[Effect] = []
        while topic.waiting and topic.busy is None:
            entry = topic.waiting.popleft()
            member = entry.member
            assert member is not None
            others = topic.members - {member}
            subscribes = entry.request.method == "resources/subscribe"
            if (subscribes and topic.members) or (member in topic.members and others):
                (topic.members.add if subscribes else topic.members.discard)(member)
                effects.append(self._granted(member, entry))
            else:
                topic.busy = entry
                effects.append(self._send(entry))
        if topic.busy is None and not topic.members:
            del self._topics[uri]
        return effects

    def _over(self, entry: Entry, granted: bool) -> list[Effect]:
        """A request that concerned a URI has its outcome."""
        uri = entry.request.paramText("uri")
        topic = None if uri is None else self._topics.get(uri)
        if uri is None or topic is None or topic.busy is not entry:
            return []
        topic.busy = None
        if granted and entry.request.method == "resources/unsubscribe":
            topic.members.clear()
        elif granted and entry.member is not None:
            topic.members.add(entry.member)
        elif granted and not topic.waiting:
            # Its asker left meanwhile: nobody wants it.
            topic.busy = self._entry(None, _request("resources/unsubscribe", uri=quote(uri)))
            return [self._send(topic.busy)]
        return self._turn(uri, topic)

    # Log levels.

    def _setLevel(self, member: Member, entry: Entry) -> list[Effect]:
        asked = entry.request.param("level") or b""
        levels = [one.level for one in self.members if one.level and one is not member]
        wanted = min([*levels, asked], key=lambda level: _LEVELS.get(level, -1))
        if asked in _LEVELS and wanted == self._level:
            member.level = asked
            return [self._granted(member, entry)]
        if asked in _LEVELS:
            self._level = wanted
        return [self._send(entry, level=wanted)]

    def _wanted(self) -> bytes:
        levels = [member.level for member in self.members if member.level]
        return min(levels, key=lambda level: _LEVELS.get(level, 0), default=b"")

    # Messages.

    def _entry(
        self,
        member: Member | None,
        message: Message,
        call: object = None,
        context: CallContext | None = None,
    ) -> Entry:
        self._lastID += 1
        ours = b"%d" % self._lastID
        return Entry(member, call, message.id or b"", ours, message, context or self.context)

    def _send(self, entry: Entry, level: bytes = b"") -> Send:
        self.entries[entry.ours] = entry
        message = entry.request
        if message.meta("progressToken") is not None:
            message = message.withMeta("progressToken", entry.ours)
        if level:
            message = message.withParam("level", level)
        return Send(message.withID(entry.ours), entry, entry.context)

    def _own(self, method: str, **params: bytes) -> Send:
        return self._send(self._entry(None, _request(method, **params)))

    def _granted(self, member: Member, entry: Entry) -> Deliver:
        """The answer to what the server need not hear."""
        member.calls.pop(entry.call, None)
        return Deliver(member, _pong(entry.id), entry.call)


def _pong(id: bytes) -> Message:
    """An empty result."""
    fields = {"jsonrpc": Raw(b'"2.0"'), "id": Raw(id), "result": Raw(b"{}")}
    return Message(Kind.RESPONSE, fields, id)


def _request(method: str, **params: bytes) -> Message:
    """A request of the gateway's own; its id is set when it is sent."""
    fields = {
        "jsonrpc": Raw(b'"2.0"'),
        "id": Raw(b"0"),
        "method": Raw(quote(method)),
        "params": Raw(msgspec.json.encode({name: Raw(value) for name, value in params.items()})),
    }
    return Message(Kind.REQUEST, fields, b"0", method)
