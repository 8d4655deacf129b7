"""
A numbered stream that is cut at every byte and resumed: nothing lost, nothing doubled, nothing of
another stream.

In memory: a cut leaves the client with so many bytes of what the gateway wrote, its framing
included, and the gateway with whatever it thinks it has sent.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from attrs import define, field

from gateway.guard.limits import Limits
from gateway.testing import MemoryClient, MemoryGateway, ScriptedServer
from gateway.testing.memory import Exchanged
from gateway.testing.scripted import ScriptedLink, Sent

TEXTS = ("", "x", "é\u2028\r\n\n", "data: no\n\nid: 9\n", "y" * 90, "\U0001f600" * 4, '"\\' * 9)
"""What the events of a stream say."""


def bodyOf(data: bytes) -> bytes:
    """What a client has of a body in chunks of which not all came."""
    rest = data.partition(b"\r\n\r\n")[2]
    body = b""
    while b"\r\n" in rest:
        size, _, rest = rest.partition(b"\r\n")
        length = int(size, 16)
        body, rest = body + rest[:length], rest[length + 2 :]
    return body


def eventsOf(body: bytes) -> Iterator[tuple[str, Any]]:
    """The whole events of a body: id, and the message or None."""
    *whole, _ = body.decode(errors="replace").split("\n\n")
    for event in whole:
        id, message = "", None
        for line in event.split("\n"):
            name, _, value = line.partition(":")
            if name == "id":
                id = value.strip()
            elif name == "data" and value.strip():
                message = json.loads(value)
        if id:
            yield id, message


@define(eq=False)
class Bench:
    """One session, and calls on it whose streams are read up to a byte."""

    gateway: MemoryGateway
    client: MemoryClient
    link: ScriptedLink
    calls: int = field(default=0)

    def call(self) -> tuple[Exchanged, Sent]:
        self.calls += 1
        params = {"name": "x", "_meta": {"progressToken": f"t{self.calls}"}}
        asked = self.client.post(MemoryClient.request(self.calls, "tools/call", params))
        return asked, self.link.requests[-1]

    def say(self, sent: Sent, number: int) -> None:
        """The server's next message of a call; the one after the texts is the answer."""
        if number == len(TEXTS):
            self.link.reply(sent, json.dumps({"said": TEXTS[1]}).encode())
            return
        token = json.loads(bytes(sent.message.fields["params"]))["_meta"]["progressToken"]
        params = {"progressToken": token, "progress": number, "message": TEXTS[number]}
        message = {"jsonrpc": "2.0", "method": "notifications/progress", "params": params}
        self.link.push(json.dumps(message).encode())

    def finish(self, sent: Sent, since: int = 0) -> None:
        for number in range(since, len(TEXTS) + 1):
            self.say(sent, number)


def bench(revision: str) -> Bench:
    server = ScriptedServer("one")
    gateway = MemoryGateway([server], Limits(max_calls=10_000))
    client = gateway.client("one")
    opening = client.initialize(revision)
    if client.session is None:
        raise AssertionError(opening.body)
    return Bench(gateway, client, server.newest)


def wanted(call: int) -> list[Any]:
    """What the client of a call must have heard in the end."""
    told = [(f"t{call}", number, text) for number, text in enumerate(TEXTS)]
    return [*told, call]


def heard(messages: list[Any]) -> list[Any]:
    return [
        message["id"]
        if "id" in message
        else tuple(message["params"][name] for name in ("progressToken", "progress", "message"))
        for message in messages
    ]


def resumed(it: Bench, call: int, before: bytes) -> list[Any] | None:
    """All a client hears that was left with so much and resumes; None if it had no id yet."""
    events = list(eventsOf(bodyOf(before)))
    if not events:
        return None
    seen = [id for id, _ in events]
    messages = [message for _, message in events if message is not None]
    again = it.client.get(seen[-1])
    if again.status == 405:
        # Nothing is left of it.
        return heard(messages)
    assert again.status == 200, again.body
    for id, message in eventsOf(again.body):
        assert id not in seen, "an event came twice"
        seen.append(id)
        if message is not None:
            messages.append(message)
    again.leave()
    return heard(messages)


@pytest.mark.acceptance(74)
@pytest.mark.parametrize(
    ("revision", "when"), [("2025-06-18", "amid"), ("2025-11-25", "after"), ("2025-11-25", "amid")]
)
def test_acceptance_74_a_stream_cut_at_every_byte(revision: str, when: str) -> None:
    """`after`: the server had said all of it before the cut. `amid`: it says the rest later."""
    it = bench(revision)
    asked, sent = it.call()
    it.finish(sent)
    size = len(asked._transport.value())
    head = size - len(asked._transport.value().partition(b"\r\n\r\n")[2])
    assert size - head > 1200
    # Ids may be a digit longer later on: cut a little further than this stream is long.
    lost = 0
    for place in range(head, size + 40):
        asked, sent = it.call()
        call = it.calls
        # Another call of the session talks in between.
        beside, other = it.call()
        said = 0
        while said <= len(TEXTS):
            if when == "amid" and len(asked._transport.value()) >= place:
                break
            it.say(sent, said)
            it.say(other, said)
            said += 1
        data = asked._transport.value()[:place]
        asked.leave()
        it.finish(sent, said)
        it.finish(other, said)
        found = resumed(it, call, data)
        if found is None:
            # It had not heard an id: that is in the first event, which came in part.
            lost += 1
        else:
            assert found == wanted(call), place
        assert heard(list(beside.events())) == wanted(call + 1)
        beside.leave()
    assert lost < 250
    it.gateway.stop()


@pytest.mark.acceptance(74)
def test_acceptance_74_a_resumption_cut_at_every_byte() -> None:
    """What resumes a stream is cut as well, anywhere, and resumed again."""
    it = bench("2025-11-25")
    asked, sent = it.call()
    it.finish(sent)
    size = len(asked._transport.value())
    for place in range(0, size + 40, 3):
        asked, sent = it.call()
        it.say(sent, 0)
        first = list(eventsOf(bodyOf(asked._transport.value())))
        asked.leave()
        it.finish(sent, 1)
        again = it.client.get(first[-1][0])
        data = again._transport.value()
        again.leave()
        begun = data.partition(b"\r\n\r\n")[0] + b"\r\n\r\n"
        kept = data[: max(place, len(begun))]
        events = list(eventsOf(bodyOf(kept)))
        messages = heard([one for _, one in [*first, *events] if one is not None])
        last = events[-1][0] if events else first[-1][0]
        third = it.client.get(last)
        rest = [] if third.status == 405 else list(eventsOf(third.body))
        assert not {id for id, _ in rest} & {id for id, _ in events}
        messages += heard([message for _, message in rest if message is not None])
        assert messages == wanted(it.calls), place
        third.leave()
    it.gateway.stop()
