"""
Mutated streams of MCP requests through a whole gateway, held against what h11 makes of them.

What reaches the server behind the transparent proxy are requests that h11 sees in the stream too,
in its order, with the bytes of its bodies, and none it does not see.
"""

from __future__ import annotations

import json
from collections import Counter
from random import Random
from typing import Any

from attrs import define, field
from listening import HOST, Caller, Front
from listening import request as plain
from raw import hello
from streams import Call, Reading, cut, difference, judge, mutated, read, request, stricter

from gateway.testing.scripted import ScriptedLink
from gateway.wire.envelope import Kind

TARGET = b"/servers/two/mcp"


def call(session: bytes, token: int, host: bytes = HOST, tabs: bool = True) -> Call:
    """A call with a number of its own."""
    body = b'{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"token":%d}}' % token
    kind = (b"Content-Type", b"application/json")
    return Call(TARGET, host, (kind, (b"Mcp-Session-Id", session)), body, tabs)


def streamOf(
    random: Random, session: bytes, first: int, host: bytes = HOST, tabs: bool = True
) -> tuple[bytes, bytes]:
    """A stream of calls, numbered from `first`: well-formed, and mutated or not."""
    calls = [call(session, first + n, host, tabs) for n in range(random.randrange(1, 5))]
    if random.random() < 0.5:
        good = b"".join(request(random, one) for one in calls)
    else:
        # The same head again and again, but for the length.
        spelling = random.randrange(2**32)
        padded = [one.body + b" " * random.choice((0, 1, 9, 30, 900)) for one in calls]
        pairs = zip(calls, padded, strict=True)
        good = b"".join(request(Random(spelling), one, body) for one, body in pairs)
    return good, mutated(random, good) if random.random() < 0.9 else good


def params(body: bytes) -> Any:
    """What a body asks, None where it is no JSON-RPC message."""
    try:
        message = json.loads(body)
    except ValueError:
        return None
    return message.get("params") if isinstance(message, dict) else None


def subsequence(few: list[Any], many: list[Any]) -> bool:
    """Whether these occur among those, in their order."""
    rest = iter(many)
    return all(any(one == other for other in rest) for one in few)


@define(eq=False)
class Differential:
    """A run. Life: made → `one` for each stream → `stop`."""

    front: Front = field(factory=Front)
    counts: Counter[str] = field(factory=Counter)
    rules: Counter[str] = field(factory=Counter)
    session: bytes = b""

    @property
    def link(self) -> ScriptedLink:
        """The session's link; another session where that is over."""
        if not self.session or not self.front.two.newest.alive:
            opened = self.front.ask(plain(b"POST", TARGET, hello())).answer()
            self.session = opened.header(b"mcp-session-id") or b""
        return self.front.two.newest

    def one(self, seed: int) -> None:
        """One stream. AssertionError where anybody sees anything that h11 does not."""
        random = Random(seed)
        link = self.link
        good, data = streamOf(random, self.session, seed % 1_000_000_000)
        ours, theirs = read([data]), judge(data)
        assert not difference(data, ours, theirs), (seed, data)
        rules = stricter(ours, theirs)
        assert rules != [], (seed, data)
        self.rules.update(rules or ())
        places = [random.randrange(len(data) + 1) for _ in range(random.randrange(4))]
        caller = self.front.connect()
        received: list[Any] = []
        for piece in cut(data, places):
            self._send(caller, piece)
            self._answer(link, received)
        self._held(seed, data, good, received, ours, theirs)
        answers = [answer for answer in caller.answers() if answer.status != 100]
        assert len(answers) <= len(ours.requests) + bool(ours.refused), (seed, data)
        self.counts.update(streams=1, received=len(received), refused=bool(ours.refused))
        caller.leave()
        self.front._callers.clear()
        self.front.observer.events.clear()

    def _send(self, caller: Caller, piece: bytes) -> None:
        for _ in range(8):
            if caller.wire.producerState == "producing":
                break
            self.front.turn()
        caller.send(piece)

    def _answer(self, link: ScriptedLink, received: list[Any]) -> None:
        while link.sent:
            sent = link.sent.pop(0)
            raw = sent.message.fields.get("params")
            if sent.message.method == "notifications/initialized":
                continue
            received.append(None if raw is None else json.loads(bytes(raw)))
            if sent.message.kind is Kind.REQUEST:
                link.reply(sent)
            else:
                link.accept(sent)

    def _held(
        self,
        seed: int,
        data: bytes,
        good: bytes,
        received: list[Any],
        ours: Reading,
        theirs: Reading,
    ) -> None:
        seen = [params(one.body) for one in theirs.requests if one.ended]
        # Who asks for it in HTTP/1.0 is kept alive by us alone; there h11 has stopped.
        if any(one.version == b"1.0" and one.persistent for one in ours.complete):
            seen = [params(one.body) for one in ours.complete]
        assert subsequence(received, seen), (seed, received, seen, data)
        if data == good:
            assert received == seen, (seed, received, seen, data)
            self.counts["unharmed"] += 1

    def stop(self) -> None:
        self.front.stop()
