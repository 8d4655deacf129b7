"""
The streams of `subscriptions/listen` of one caller, over all its legacy sessions
(MCP 2026-07-28, basic/patterns/subscriptions).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable, Iterable

import msgspec
from attrs import define, field

from gateway.bridge.asmodern import listenEnded, tagged
from gateway.bridge.spelling import items
from gateway.guard.limits import Limits
from gateway.relay.pooled import LIST_CHANGES, UPDATED, Pooled
from gateway.relay.replies import Replies, Reply
from gateway.wire.envelope import Message, members, notification, quote, text

__all__ = ["BadFilter", "Filter", "Listens", "filterOf"]

_encode = msgspec.json.encode

_LONGEST = 8192
"""The longest URI, in characters, that is looked at for the resources it is part of."""

_SEPARATOR = re.compile("[/?#]")


class BadFilter(Exception):
    """`params.notifications` is no filter. The argument says why."""


@define(eq=False)
class Filter:
    """
    What a listen wants to hear. lists: of which lists, by the names of their capabilities.
    uris: the resources it subscribes to, each once, in order; None where it said nothing of them.
    """

    lists: tuple[str, ...]
    uris: tuple[str, ...] | None

    def spelled(self) -> bytes:
        """As `notifications` of an acknowledgment."""
        said: dict[str, object] = {f"{name}ListChanged": True for name in self.lists}
        if self.uris is not None:
            said["resourceSubscriptions"] = self.uris
        return _encode(said)

    def honoured(self, pooled: Pooled) -> Filter:
        """What of it a server can honour, by its capabilities."""
        lists = tuple(name for name in self.lists if pooled.declares(name, "listChanged"))
        uris = self.uris if pooled.declares("resources", "subscribe") else None
        return Filter(lists, uris)

    def isIn(self, pooled: Pooled) -> bool:
        """Whether a server can honour all of it."""
        can = self.honoured(pooled)
        return can.lists == self.lists and can.uris == self.uris


def filterOf(request: Message) -> Filter:
    """The filter of a `subscriptions/listen`. Raises: BadFilter."""
    spelled = request.param("notifications")
    if spelled is None or spelled[:1] != b"{":
        raise BadFilter("notifications must be an object")
    said = members(spelled)
    lists = []
    for name in LIST_CHANGES.values():
        wanted = bytes(said.get(f"{name}ListChanged", b"false"))
        if wanted not in (b"true", b"false"):
            raise BadFilter(f"{name}ListChanged must be a boolean")
        if wanted == b"true":
            lists.append(name)
    listed = said.get("resourceSubscriptions")
    if listed is None:
        return Filter(tuple(lists), None)
    if bytes(listed)[:1] != b"[":
        raise BadFilter("resourceSubscriptions must be an array")
    uris: dict[str, None] = {}
    for item in items(listed):
        uri = text(item)
        if uri is None:
            raise BadFilter("resourceSubscriptions must hold strings")
        uris[uri] = None
    return Filter(tuple(lists), tuple(uris))


@define(eq=False)
class Listens:
    """
    One caller's, by what it is known.

    replies: where the streams are. dropped: told why something reached nobody.
    sessions: the caller's, each with whatever link it has. home: the one that is kept alive while
    anybody listens. streams: those acknowledged. attempts: how often in a row it could not be
    brought back.
    """

    who: Hashable
    replies: Replies
    limits: Limits
    dropped: Callable[[str], None]
    bound: Callable[[str], None]
    sessions: dict[Pooled, None] = field(factory=dict, init=False)
    home: Pooled | None = field(default=None, init=False)
    attempts: int = field(default=0, init=False)
    streams: dict[Reply, Filter] = field(factory=dict, init=False)
    _starting: dict[Reply, Filter] = field(factory=dict, init=False)
    _counts: dict[str, int] = field(factory=dict, init=False)

    @property
    def wanted(self) -> bool:
        """Whether anybody listens, acknowledged or about to be."""
        return bool(self.streams or self._starting)

    @property
    def newest(self) -> Reply:
        """The stream that was opened last."""
        return next(reversed(self._starting or self.streams))

    def start(self, reply: Reply, wanted: Filter, pooled: Pooled) -> None:
        """
        Subscribe to what a listen wants to hear of, acknowledge it, then let it hear.

        pooled: a session that is open.
        """
        honoured = wanted.honoured(pooled)
        if honoured.uris is not None:
            honoured.uris = self._room(honoured.uris)
        self._starting[reply] = honoured
        for uri in honoured.uris or ():
            self._counts[uri] = self._counts.get(uri, 0) + 1
        for session in list(self.sessions):
            self.linked(session)
        # Whoever was told that it listens misses nothing that it brings about itself.
        pooled.whenSubscribed(lambda: self._acknowledge(reply, pooled))

    def _acknowledge(self, reply: Reply, pooled: Pooled) -> None:
        honoured = self._starting.pop(reply, None)
        if honoured is None:
            return
        refused = list(filter(pooled.refused, honoured.uris or ()))
        if refused:
            honoured.uris = tuple(uri for uri in honoured.uris or () if uri not in refused)
            for uri in refused:
                self._uncount(uri, reply)
        self.streams[reply] = honoured
        said = notification(
            "notifications/subscriptions/acknowledged", notifications=honoured.spelled()
        )
        self.replies.deliver(reply, tagged(said, reply.id))

    def _room(self, uris: Iterable[str]) -> tuple[str, ...]:
        """Those for which there is room among the caller's subscriptions."""
        most = self.limits.max_subscriptions
        new: set[str] = set()
        taken: list[str] = []
        for uri in uris:
            if uri not in self._counts:
                if len(self._counts) + len(new) >= most:
                    continue
                new.add(uri)
            taken.append(uri)
        if len(taken) < len(list(uris)):
            self.bound("max_subscriptions")
        return tuple(taken)

    def linked(self, pooled: Pooled) -> None:
        """A session is open: subscribe there, too."""
        if self._counts and pooled.isOpen:
            pooled.subscribe(list(self._counts), self.newest.context)

    def end(self, reply: Reply) -> None:
        """A stream is over, whoever ended it; what only it subscribed to is given back."""
        honoured = self.streams.pop(reply, None) or self._starting.pop(reply, None)
        for uri in (honoured and honoured.uris) or ():
            self._uncount(uri, reply)

    def _uncount(self, uri: str, reply: Reply) -> None:
        self._counts[uri] -= 1
        if not self._counts[uri]:
            del self._counts[uri]
            for pooled in list(self.sessions):
                pooled.unsubscribe(uri, reply.context)

    def finish(self, reply: Reply) -> bool:
        """End a stream in order. Returns whether it was acknowledged, and so could be."""
        if reply not in self.streams:
            return False
        self.end(reply)
        info = None if self.home is None else self.home.serverInfo
        self.replies.answer(reply, listenEnded(reply.id, info))
        return True

    def unhonoured(self, pooled: Pooled) -> list[Reply]:
        """The streams that a server cannot give what they were promised."""
        return [reply for reply, wanted in self.streams.items() if not wanted.isIn(pooled)]

    def heard(self, message: Message) -> bool:
        """
        A notification that belongs to no call: it goes to every stream that wants it. Returns
        whether it is one that may be listened to.
        """
        if message.method in LIST_CHANGES:
            name = LIST_CHANGES[message.method]
            hear = [reply for reply, wanted in self.streams.items() if name in wanted.lists]
        elif message.method == UPDATED:
            wholes = _wholes(message.paramText("uri") or "")
            hear = [
                reply
                for reply, wanted in self.streams.items()
                if wanted.uris and not wholes.isdisjoint(wanted.uris)
            ]
        else:
            return False
        if not hear:
            self.dropped("no_stream")
        for reply in hear:
            self.replies.deliver(reply, tagged(message, reply.id))
        return True

    def recovered(self, pooled: Pooled, *, replaced: bool) -> None:
        """
        The session that is kept has a server again: say once more what was said to the last, and
        tell what may have been missed.

        replaced: whether the session is another, so that its relay tells nobody of changed lists.
        """
        self.attempts = 0
        self.linked(pooled)
        if replaced:
            for method in LIST_CHANGES:
                self._missed(notification(method))
        for uri in list(self._counts):
            self._missed(notification(UPDATED, uri=quote(uri)))

    def _missed(self, message: Message) -> None:
        if any(self._wants(wanted, message) for wanted in self.streams.values()):
            self.heard(message)

    @staticmethod
    def _wants(wanted: Filter, message: Message) -> bool:
        return message.method == UPDATED or LIST_CHANGES[message.method] in wanted.lists


def _wholes(uri: str) -> set[str]:
    """
    The resources of which one is part: itself, and what it continues with a path, a query or a
    fragment (`ResourceUpdatedNotification`: "a sub-resource").
    """
    wholes = {uri}
    if len(uri) <= _LONGEST:
        for found in _SEPARATOR.finditer(uri):
            wholes.add(uri[: found.start()])
            if found[0] == "/":
                wholes.add(uri[: found.end()])
    return wholes
