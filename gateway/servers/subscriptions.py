"""
Who is subscribed to what on a shared link. Pure.

The server hears of a URI when the first session subscribes and when the last one leaves it. What
concerns one URI goes to the server one after the other, each when the one before has its outcome;
other URIs do not wait for it. What the server refuses leaves no trace. A URI that the server holds
and nobody wants any more is stale: whoever comes now gets it, else it is given back.
"""

from __future__ import annotations

import re
from collections import deque

from attrs import define, field

from gateway.servers.entries import Asked, Entry, Granted, Member, Step

__all__ = ["SUBSCRIBE", "UNSUBSCRIBE", "Subscriptions"]

SUBSCRIBE = "resources/subscribe"
UNSUBSCRIBE = "resources/unsubscribe"

_LONGEST = 8192
"""The longest URI, in characters, that is looked at for the resources it is part of."""

_SEPARATOR = re.compile("[/?#]")


@define(eq=False)
class _Topic:
    """
    One URI. members: who is subscribed. held: whether the server granted it.

    busy: the request about it that the server has. waiting: those that come after.
    """

    members: dict[Member, None] = field(factory=dict)
    held: bool = False
    busy: Entry | None = None
    waiting: deque[Entry] = field(factory=deque)


@define(eq=False)
class Subscriptions:
    """
    The subscriptions of all sessions on one link.

    stale: the URIs that may have to be given back.
    """

    _topics: dict[str, _Topic] = field(factory=dict, init=False)
    stale: dict[str, None] = field(factory=dict, init=False)

    def __len__(self) -> int:
        return len(self._topics)

    def ask(self, entry: Entry) -> list[Step]:
        """A session subscribes or unsubscribes."""
        topic = self._topics.setdefault(entry.uri, _Topic())
        topic.waiting.append(entry)
        return self._turn(entry.uri, topic)

    def over(self, entry: Entry, granted: bool) -> list[Step]:
        """What the server had has its outcome."""
        topic = self._topics.get(entry.uri)
        if topic is None or topic.busy is not entry:
            return []
        topic.busy = None
        if entry.request.method == SUBSCRIBE:
            topic.held = topic.held or granted
            if granted and entry.member is not None:
                self._join(entry.uri, topic, entry.member)
        elif granted or entry.own:
            # Of its own the gateway asks no second time.
            topic.held = False
            for member in topic.members:
                member.topics.pop(entry.uri, None)
            topic.members.clear()
        return self._turn(entry.uri, topic)

    def gaveUp(self, entry: Entry) -> bool:
        """Nobody waits for this any more. Returns whether the server has it."""
        topic = self._topics.get(entry.uri)
        if topic is not None and entry in topic.waiting:
            topic.waiting.remove(entry)
            return False
        return topic is not None and topic.busy is entry

    def left(self, member: Member) -> None:
        """A session is over."""
        for uri in member.topics:
            topic = self._topics[uri]
            topic.members.pop(member, None)
            if not topic.members and topic.busy is None:
                self.stale[uri] = None
        member.topics.clear()

    def subscribers(self, uri: str) -> list[Member]:
        """
        Who hears that a resource was updated: the subscribers of its URI, and of one it is part
        of (MCP 2025-11-25, `ResourceUpdatedNotification`: "a sub-resource"), which is a URI that
        it continues with a path, a query or a fragment.
        """
        found: dict[Member, None] = {}
        for one in self._wholes(uri):
            topic = self._topics.get(one)
            if topic is not None:
                found.update(topic.members)
        return list(found)

    @staticmethod
    def _wholes(uri: str) -> list[str]:
        wholes = [uri]
        if len(uri) <= _LONGEST:
            for found in _SEPARATOR.finditer(uri):
                wholes.append(uri[: found.start()])
                if found[0] == "/":
                    wholes.append(uri[: found.end()])
        return wholes

    # What the gateway gives back.

    def nextStale(self) -> str | None:
        """A URI to be given back with `release`."""
        while self.stale:
            uri = next(iter(self.stale))
            del self.stale[uri]
            topic = self._topics.get(uri)
            if topic is not None and not topic.members and topic.busy is None:
                return uri
        return None

    def release(self, entry: Entry) -> None:
        """The gateway's own request to unsubscribe from a stale URI is about to be sent."""
        self._topics[entry.uri].busy = entry

    def notReleased(self, entry: Entry) -> list[Step]:
        """It could not be sent."""
        topic = self._topics[entry.uri]
        topic.busy = None
        return self._turn(entry.uri, topic)

    # Inside.

    def _turn(self, uri: str, topic: _Topic) -> list[Step]:
        """Go on with what waits, as far as no answer of the server is needed."""
        steps: list[Step] = []
        while topic.waiting and topic.busy is None:
            entry = topic.waiting.popleft()
            member = entry.member
            assert member is not None, "who gave up waits no more"
            if entry.request.method == SUBSCRIBE:
                here = topic.held
                if here:
                    self._join(uri, topic, member)
            else:
                # The last one, and who never was one, hear what the server says.
                here = any(one is not member for one in topic.members)
                if here:
                    topic.members.pop(member, None)
                    member.topics.pop(uri, None)
            if here:
                steps.append(Granted(entry))
            else:
                topic.busy = entry
                steps.append(Asked(entry, entry.request))
        if topic.busy is None and not topic.members:
            if topic.held:
                self.stale[uri] = None
            else:
                del self._topics[uri]
        return steps

    def _join(self, uri: str, topic: _Topic, member: Member) -> None:
        topic.members[member] = None
        member.topics[uri] = None
