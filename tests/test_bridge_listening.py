"""
The stream of changes against a server of its own mind: whatever comes in whatever order, what a
client subscribed to it is told of.
"""

from __future__ import annotations

import json
from collections import deque
from typing import Any

from attrs import define, field
from bridge_support import Bridge
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from gateway.links.interfaces import Reason
from gateway.testing.scripted import Sent

URIS = ("a:1", "a:2", "a:3")
TOOLS = "tools"


@define(eq=False)
class Registered:
    """A stream the server keeps."""

    sent: Sent
    kinds: set[str]


@define(eq=False)
class Server:
    """
    What is at the other end: requests that it has not read yet, streams, and what it said that
    the client has not read yet, by channel: one for all, or one a stream.
    """

    bridge: Bridge
    seen: int = 0
    unread: deque[Sent] = field(factory=deque)
    streams: list[Registered] = field(factory=list)
    said: dict[object, deque[tuple[str, Sent, Any]]] = field(factory=dict)
    kills: int = 0

    def look(self) -> None:
        """Requests arrive; over HTTP a stream that was closed is gone with all on it."""
        for sent in self.bridge.inner.sent[self.seen :]:
            self.unread.append(sent)
        self.seen = len(self.bridge.inner.sent)
        if self.bridge.http:
            gone = self.bridge.inner.cancelled
            self.streams = [one for one in self.streams if one.sent.call not in gone]
            self.unread = deque(one for one in self.unread if one.call not in gone)
            for call in gone:
                self.said.pop(call, None)

    def serve(self, which: int) -> None:
        """Read one request: over HTTP whichever comes first."""
        self.look()
        if not self.unread:
            return
        if self.bridge.http:
            self.unread.rotate(-(which % len(self.unread)))
        sent = self.unread.popleft()
        params = self.bridge.params(sent)
        if sent.method == "subscriptions/listen":
            wanted = params["notifications"]
            kinds = set(wanted.get("resourceSubscriptions", ()))
            kinds |= {TOOLS} if wanted.get("toolsListChanged") else set()
            self.streams.append(Registered(sent, kinds))
            self.say("acknowledge", sent, None)
        else:
            self.streams = [
                one for one in self.streams if json.loads(one.sent.id) != params["requestId"]
            ]

    def say(self, what: str, sent: Sent, value: Any) -> None:
        channel = sent.call if self.bridge.http else None
        self.said.setdefault(channel, deque()).append((what, sent, value))

    def change(self, what: str) -> None:
        for one in self.streams:
            if what in one.kinds:
                self.say("changed", one.sent, what)

    def kill(self, which: int) -> None:
        if self.streams:
            one = self.streams.pop(which % len(self.streams))
            self.kills += 1
            self.say("end", one.sent, which)

    def isDue(self, queue: deque[tuple[str, Sent, Any]]) -> bool:
        """
        Whether the first of these can be what the client reads next.

        Streams of their own overtake each other, but not by a whole round trip: what was said two
        streams ago was read before another acknowledgement is.
        """
        what, sent, _ = queue[0]
        if what != "acknowledge":
            return True
        listens = self.bridge.inner.of("subscriptions/listen")
        before = [one.call for one in listens[: max(0, listens.index(sent) - 1)]]
        return not self.bridge.http or not any(self.said.get(call) for call in before)

    def deliver(self, which: int) -> bool:
        """The client reads one message."""
        self.look()
        channels = [channel for channel, queue in self.said.items() if queue and self.isDue(queue)]
        if not channels:
            return False
        what, sent, value = self.said[channels[which % len(channels)]].popleft()
        bridge = self.bridge
        if what == "acknowledge":
            bridge.acknowledge(sent)
        elif what == "end" and value % 2:
            bridge.inner.reply(sent, b'{"resultType":"complete"}')
        elif what == "end" and bridge.http:
            bridge.inner.settle(sent, Reason.OUTCOME_UNKNOWN)
        elif what == "end":
            bridge.push("notifications/cancelled", requestId=json.loads(sent.id))
        elif value == TOOLS:
            bridge.pushOn(sent, "notifications/tools/list_changed")
        else:
            bridge.pushOn(sent, "notifications/resources/updated", uri=value)
        return True


@define(eq=False)
class Client:
    """
    What the client knows. granted: what it was told that it is subscribed to. owed: of those, what
    changed since it was told last. heard, changes: how often of each.
    """

    bridge: Bridge
    asked: dict[int, str] = field(factory=dict)
    wanted: set[str] = field(factory=set)
    granted: set[str] = field(factory=set)
    owed: set[str] = field(factory=set)
    heard: dict[str, int] = field(factory=dict)

    def ask(self, method: str, uri: str) -> None:
        id = len(self.asked) + 1
        self.asked[id] = uri if method == "subscribe" else ""
        self.bridge.ask(id, f"resources/{method}", uri=uri)
        if method == "subscribe":
            self.wanted.add(uri)
        else:
            for each in (self.wanted, self.granted, self.owed):
                each.discard(uri)
            # An earlier `subscribe` that is answered later says nothing any more.
            self.asked = {key: "" if of == uri else of for key, of in self.asked.items()}

    def hear(self) -> None:
        for one in self.bridge.take():
            if "id" in one:
                assert one.get("result") == {} or one["error"]["code"] != -32601
                if "result" in one and self.asked[one["id"]]:
                    self.granted |= {self.asked[one["id"]], TOOLS}
                elif "error" in one:
                    self.wanted.discard(self.asked[one["id"]])
                continue
            what = one["params"]["uri"] if "uri" in one.get("params", {}) else TOOLS
            if one["method"] == "notifications/resources/list_changed":
                continue
            self.owed.discard(what)
            self.heard[what] = self.heard.get(what, 0) + 1


def choices(server: Server, client: Client) -> list[str]:
    """What may happen next; what has an effect more often than what has none."""
    server.look()
    can = ["change", "change", "subscribe"]
    if client.wanted:
        can += ["unsubscribe", "change", "wait"]
    if server.unread:
        can += ["serve"] * 4
    if any(server.said.values()):
        can += ["deliver"] * 4
    if server.streams:
        can += ["kill", "change"]
    return can


@settings(
    max_examples=300,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    phases=(Phase.explicit, Phase.reuse, Phase.generate),
)
@given(st.data(), st.booleans(), st.booleans(), st.integers(0, 60))
def test_no_change_is_missed_and_none_comes_twice_to_who_reads_in_time(
    data: st.DataObject, http: bool, inTime: bool, length: int
) -> None:
    bridge = Bridge(http=http, validated=False)
    server, client = Server(bridge), Client(bridge)
    changes: dict[str, int] = {}
    bridge.tell("notifications/initialized")
    for _ in range(length):
        what = data.draw(st.sampled_from(choices(server, client)))
        if what == "subscribe":
            client.ask(what, data.draw(st.sampled_from(URIS)))
        elif what == "unsubscribe":
            client.ask(what, data.draw(st.sampled_from(sorted(client.wanted))))
        elif what == "change":
            value = data.draw(st.sampled_from([*sorted(client.granted), TOOLS]))
            changes[value] = changes.get(value, 0) + 1
            if value in client.granted:
                client.owed.add(value)
            server.change(value)
        elif what == "wait":
            while http and server.deliver(0):
                # What takes longer than an old stream is read on is lost with it.
                client.hear()
            bridge.clock.advance(data.draw(st.sampled_from((0.3, 1.0, 2.0))))
        else:
            getattr(server, what)(data.draw(st.integers(0, 3)))
        while inTime and server.deliver(0):
            pass
        client.hear()
    settle(bridge, server, client)
    assert not client.owed
    assert client.wanted <= client.granted
    # One stream is left, and it is for what is wanted.
    (left,) = server.streams
    assert left.kinds == {TOOLS, *client.wanted}
    if inTime:
        for uri, count in client.heard.items():
            assert count <= changes.get(uri, 0) + server.kills
    bridge.link.close()
    assert not bridge.clock.getDelayedCalls()


def settle(bridge: Bridge, server: Server, client: Client) -> None:
    """Let everything come to rest: nothing waits for the acknowledgement of a lost stream."""
    for _ in range(30):
        for _ in range(100):
            server.serve(0)
            if not server.deliver(0) and not server.unread:
                break
        client.hear()
        bridge.clock.advance(5)
        client.hear()
