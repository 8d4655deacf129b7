"""Streams that are cut and resumed: nothing lost, nothing doubled, nothing of anybody else's."""

from __future__ import annotations

import gc
import json
import random
from collections import Counter
from typing import Any

import pytest
import pytest_twisted
from hypothesis import given, settings
from hypothesis import strategies as st
from live import Start as LiveStart
from live import faulty
from live import live as live
from posting import posted
from raw import AnsweringServer, NamedInHeader, RawClient, Response, Stack, Start, rpc
from raw import start as start
from resuming import Reading, opened

from gateway.guard.limits import Limits
from gateway.proxies.reply import Reply
from gateway.relay.relay import Relay
from gateway.sessions.events import EventLog
from gateway.testing.scripted import ScriptedLink, Sent
from gateway.wire.exchange import RequestHead

PRIMING = "2025-11-25"
REVISIONS = ("2025-03-26", "2025-06-18", PRIMING)
HEARTBEAT = b":\n\n"
ALLOW = b"POST, DELETE, OPTIONS"


def notice(data: object) -> bytes:
    return rpc("notifications/message", level="info", data=data)


def said(messages: list[Any]) -> list[Any]:
    """What notices say, and the results of answers."""
    return [
        message["result"] if "result" in message else message["params"]["data"]
        for message in messages
    ]


class Bench:
    """One session with one server that says what the test has it say."""

    def __init__(self, stack: Stack, server: AnsweringServer, session: bytes) -> None:
        self.stack = stack
        self.server = server
        self.link: ScriptedLink = server.newest
        self.named = (b"Mcp-Session-Id", session)
        (self.relay,) = [
            session_.live
            for session_ in stack.shared.registry
            if session_.record.id.encode() == session
        ]

    @property
    def log(self) -> EventLog:
        assert isinstance(self.relay, Relay) and self.relay.events is not None
        return self.relay.events

    async def _resumed(self, last: bytes) -> RawClient:
        return await self.stack.send(b"GET", b"/mcp", None, [self.named, (b"Last-Event-ID", last)])

    async def call(self, id: object = 7, **params: object) -> tuple[Reading, Sent]:
        """A call whose stream is not read yet, and what the server got of it."""
        before = len(self.link.requests)
        body = rpc("tools/call", id, **params)
        client = await self.stack.send(b"POST", b"/mcp", body, [self.named])
        await self.stack.until(lambda: len(self.link.requests) > before)
        return Reading(self._resumed, client), self.link.requests[-1]

    async def primed(self) -> tuple[Reading, Sent]:
        """The same, of whose stream the first event was read."""
        reading, sent = await self.call()
        await reading.head()
        await reading.one()
        return reading, sent

    async def get(self) -> Reading:
        client = await self.stack.send(b"GET", b"/mcp", None, [self.named])
        reading = Reading(self._resumed, client)
        await reading.head()
        return reading

    async def seen(self) -> None:
        """Let the gateway see that a connection is gone."""
        await self.stack.turns(8)

    async def refused(self, last: bytes, *headers: tuple[bytes, bytes]) -> Response:
        fields = [*(headers or [self.named]), (b"Last-Event-ID", last)]
        return await self.stack.ask(b"GET", b"/mcp", None, fields)

    async def assertNothing(self, last: bytes, *headers: tuple[bytes, bytes]) -> None:
        answer = await self.refused(last, *headers)
        assert (answer.status, answer.header(b"allow")) == (405, ALLOW), (last, answer)
        assert answer.json["error"]["code"] == -32000


async def bench(start: Start, revision: str = PRIMING, limits: Limits | None = None) -> Bench:
    server = AnsweringServer("one")
    stack = await start({"one": server}, limits=limits)
    session = await stack.open(revision=revision)
    server.answers = False
    return Bench(stack, server, session)


# Dropped at each event.


@pytest.mark.acceptance(74)
@pytest.mark.parametrize("revision", REVISIONS)
@pytest_twisted.ensureDeferred
async def test_acceptance_74_aPostStreamDroppedAtEachEvent(start: Start, revision: str) -> None:
    it = await bench(start, revision)
    events = 6
    for place in range(0 if revision == PRIMING else 1, events + 1):
        for away in range(place, events + 2):
            # `place` events are read, then it is cut; up to `away` are said before it is back.
            reading, sent = await it.call()
            for n in range(place):
                it.link.push(notice(n))
            await reading.head()
            await reading.read(place)
            if revision == PRIMING and not place:
                await reading.one()
            await reading.drop()
            if away % 2:
                await it.seen()
            for n in range(place, min(away, events)):
                it.link.push(notice(n))
            if away > events:
                it.link.reply(sent, b'"final"')
            await reading.resume()
            for n in range(away, events):
                it.link.push(notice(n))
            if away <= events:
                it.link.reply(sent, b'"final"')
            assert said(await reading.rest()) == [*range(events), "final"]
    assert it.stack.observer.bounds == []


@pytest.mark.acceptance(74)
@pytest.mark.parametrize("revision", REVISIONS)
@pytest_twisted.ensureDeferred
async def test_acceptance_74_aGetStreamDroppedAtEachEvent(start: Start, revision: str) -> None:
    it = await bench(start, revision)
    events = 6
    for place in range(0 if revision == PRIMING else 1, events + 1):
        for away in range(place, events + 1):
            reading = await it.get()
            for n in range(place):
                it.link.push(notice(n))
            await reading.read(place)
            if revision == PRIMING and not place:
                await reading.one()
            await reading.drop()
            if away % 2:
                await it.seen()
            for n in range(place, away):
                it.link.push(notice(n))
            await reading.resume()
            for n in range(away, events):
                it.link.push(notice(n))
            await reading.read(events)
            assert said(reading.messages) == list(range(events))
            await it.seen()
            assert reading.client.unread == b""
            await reading.drop()
            await it.seen()


@pytest.mark.acceptance(74)
@pytest_twisted.ensureDeferred
async def test_acceptance_74_aHundredStreamsDroppedAnywhere(start: Start) -> None:
    """Cut up to five times each, also while it is resumed; a thousand run in the soak."""
    it = await bench(start, PRIMING, Limits(max_get_streams=2))
    seed = random.randrange(10**9)
    print(f"seed {seed}")
    dice = random.Random(seed)
    for _ in range(110):
        reading, sent = await it.call()
        await reading.head()
        await reading.one()
        events = dice.randint(0, 8)
        cuts = dice.randint(1, 5)
        said_ = 0
        while cuts or said_ <= events:
            step = dice.random()
            if step < 0.5 and said_ <= events:
                it.link.reply(sent, b'"final"') if said_ == events else it.link.push(notice(said_))
                said_ += 1
            elif step < 0.6:
                # Read what is sure to be there: not the end.
                await reading.read(dice.randint(len(reading.messages), min(said_, events)))
            elif step < 0.9 and cuts:
                cuts -= 1
                if dice.random() < 0.7:
                    await reading.drop()
                old = reading.client
                if dice.random() < 0.3:
                    # Cut again before anything of the resumption is read.
                    (await it._resumed(reading.last)).reset()
                if dice.random() < 0.5:
                    await it.seen()
                await reading.resume()
                old.reset()
                await old.ended
        assert said(await reading.rest()) == [*range(events), "final"]
        await it.assertNothing(reading.last)
    assert it.stack.observer.bounds == []


@pytest.mark.acceptance(74)
@pytest_twisted.ensureDeferred
async def test_acceptance_74_aRealChildsStreamDroppedAtEachEvent(live: LiveStart) -> None:
    gateway = await live(faulty())
    port = int(gateway.base.rpartition(":")[2])
    opening = await gateway.post(
        "faulty",
        {
            "jsonrpc": "2.0",
            "id": 1,
            "method": "initialize",
            "params": {"protocolVersion": PRIMING, "capabilities": {}, "clientInfo": {"name": "r"}},
        },
    )
    (session,) = opening.headers["Mcp-Session-Id"]

    async def resumed(last: bytes) -> RawClient:
        request = posted(gateway.base, "/servers/faulty/mcp", session, None, "GET")
        return await opened(port, request[:-2] + b"Last-Event-ID: %b\r\n\r\n" % last)

    for place in range(12):
        params = {"name": "progress", "arguments": {"count": 10}, "_meta": {"progressToken": place}}
        message = {"jsonrpc": "2.0", "id": place, "method": "tools/call", "params": params}
        request = posted(gateway.base, "/servers/faulty/mcp", session, message)
        reading = Reading(resumed, await opened(port, request))
        await reading.head()
        await reading.one()
        await reading.read(min(place, 10))
        await reading.drop()
        await reading.resume()
        if place % 2:
            await reading.drop()
            await reading.resume()
        *progress, answer = await reading.rest()
        assert len(progress) == 10
        assert all(told["params"]["progressToken"] == place for told in progress)
        steps = [told["params"]["progress"] for told in progress]
        assert steps == sorted(steps) and len(set(steps)) == 10
        assert answer["id"] == place and "result" in answer
        reading.client.close()
        await reading.client.ended


# Several at once.


@pytest.mark.acceptance(74)
@pytest.mark.parametrize("kind", ["POST", "GET"])
@pytest_twisted.ensureDeferred
async def test_acceptance_74_ofTwoResumptionsTheNewerHasItAll(start: Start, kind: str) -> None:
    it = await bench(start)
    sent = None
    if kind == "POST":
        reading, sent = await it.call()
        await reading.head()
    else:
        reading = await it.get()
    await reading.one()
    for n in range(3):
        it.link.push(notice(n))
    await reading.read(1)
    # Its old connection still seems to be open.
    first = await it._resumed(reading.last)
    await first.head()
    await it.stack.until(lambda: reading.client.ended.called)
    it.link.push(notice(3))
    second = Reading(it._resumed, await it._resumed(reading.last))
    await second.head()
    await it.stack.until(lambda: first.ended.called)
    it.link.push(notice(4))
    await second.read(4)
    assert said(second.messages) == [1, 2, 3, 4]
    if sent is not None:
        it.link.reply(sent, b'"final"')
        assert said(await second.rest())[4:] == ["final"]
    await it.seen()
    assert second.client.unread == b""


@pytest.mark.acceptance(74)
@pytest_twisted.ensureDeferred
async def test_acceptance_74_twoResumptionsInOneBreath(start: Start) -> None:
    """Neither waits for the other's head: one of them has it all, the other is cut."""
    it = await bench(start)
    for _ in range(10):
        reading, sent = await it.call()
        await reading.head()
        await reading.one()
        it.link.push(notice(0))
        await reading.drop()
        clients = [await it._resumed(reading.last) for _ in range(2)]
        await it.seen()
        it.link.push(notice(1))
        it.link.reply(sent, b'"final"')
        whole = 0
        for client in clients:
            both = Reading(it._resumed, client)
            await both.head()
            try:
                whole += said(await both.rest()) == [0, 1, "final"]
            except Exception as cut:
                assert type(cut).__name__ == "ConnectionClosed"
                assert said(both.messages) == [0][: len(both.messages)]
        assert whole == 1


@pytest.mark.acceptance(74)
@pytest_twisted.ensureDeferred
async def test_acceptance_74_theAnswerOfACutCallWaitsAndIsGivenOnce(start: Start) -> None:
    it = await bench(start)
    reading, sent = await it.primed()
    await reading.drop()
    await it.seen()
    it.link.reply(sent, b'"final"')
    await reading.resume()
    assert said(await reading.rest()) == ["final"]
    await it.assertNothing(reading.last)
    # Whoever lost it on the way can have it again until it expires.
    reading.ids.pop()
    await reading.resume()
    assert said(await reading.rest()) == ["final", "final"]
    it.stack.pass_(301)
    await it.assertNothing(reading.ids[0])


@pytest.mark.acceptance(74)
@pytest_twisted.ensureDeferred
async def test_acceptance_74_aResumedStreamIsOneLikeAnyOther(start: Start) -> None:
    """It is closed with its session, and the session with DELETE."""
    it = await bench(start)
    reading, _ = await it.primed()
    await reading.drop()
    await reading.resume()
    assert (await it.stack.ask(b"DELETE", b"/mcp", None, [it.named])).status == 204
    (ended,) = await reading.rest()
    assert ended["error"]["data"]["reason"] == "cancelled"
    answer = await it.refused(reading.last)
    assert (answer.status, answer.json["error"]["code"]) == (404, -32001)


@pytest.mark.acceptance(74)
@pytest.mark.parametrize("revision", REVISIONS)
@pytest_twisted.ensureDeferred
async def test_acceptance_74_onlyTheNewestRevisionIsPrimedButAllHaveIds(
    start: Start, revision: str
) -> None:
    it = await bench(start, revision)
    get = await it.get()
    reading, sent = await it.call()
    await it.stack.turns()
    if revision == PRIMING:
        for one in (get, reading):
            if one is reading:
                await one.head()
            chunk = await one.client.chunk()
            assert chunk is not None
            fields = dict(line.split(b": ", 1) for line in chunk.splitlines() if line)
            assert set(fields) == {b"id", b"retry", b"data"}
            assert (fields[b"data"], fields[b"retry"]) == (b"", b"1000")
    else:
        assert get.client.unread == b""
        assert reading.client.unread == b""
    it.link.push(notice("one"))
    if revision != PRIMING:
        await reading.head()
    await reading.one()
    assert said(reading.messages) == ["one"]
    it.link.push(rpc("notifications/tools/list_changed"))
    await get.one()
    assert get.ids and not set(get.ids) & set(reading.ids)
    it.link.reply(sent)
    await reading.rest()


# Ids that name nothing.


@pytest.mark.acceptance(75)
@pytest_twisted.ensureDeferred
async def test_acceptance_75_foreignAndMadeUpIdsAreGivenNothing(start: Start) -> None:
    it = await bench(start)
    session = await it.stack.open(revision=PRIMING)
    theirs = Bench(it.stack, it.server, session)
    mine, sent = await it.primed()
    it.link.push(notice("mine"))
    await mine.read(1)
    get = await theirs.get()
    await get.one()
    theirs.link.push(notice("secret"))
    await get.read(1)
    known = [*mine.ids, *get.ids]
    # Each in the other's session.
    for id in mine.ids:
        await theirs.assertNothing(id)
    for id in get.ids:
        await it.assertNothing(id)
    dice = random.Random(75)
    made: set[bytes] = {b"", b" ", b"0", b"-1", b"\xff\xfe", "ä-1".encode(), b"1" * 4000, b"null"}
    for id in known:
        place, _, tag = id.rpartition(b"-")
        stream, _, number = place.partition(b"-")
        made |= {id[:n] for n in range(len(id))} | {id + more for more in (b"0", b"-", b"\xe9")}
        made |= {b"0" + id, b"+" + id, id.upper(), place + b"-" + b"0" * 16}
        for far in range(4):
            # Another place under a tag that is right elsewhere.
            made.add(b"%d-%b-%b" % (far, number, tag))
            made.add(b"%b-%d-%b" % (stream, far, tag))
        for _ in range(20):
            changed = bytearray(id)
            changed[dice.randrange(len(id))] = dice.choice(b"0123456789abcdef-")
            made.add(bytes(changed))
    for id in made - set(known):
        answer = await it.refused(id)
        assert (answer.status, answer.header(b"allow")) == (405, ALLOW), id
        assert b"secret" not in answer.body and b"mine" not in answer.body
    # The streams they were aimed at go on.
    it.link.reply(sent, b'"final"')
    assert said(await mine.rest()) == ["mine", "final"]
    theirs.link.push(notice("more"))
    await get.read(2)


@pytest.mark.acceptance(75)
@pytest_twisted.ensureDeferred
async def test_acceptance_75_anIdOfAnotherStreamGivesThatStreamAndNoOther(start: Start) -> None:
    it = await bench(start)
    one, first = await it.call(1)
    two, second = await it.call(2)
    for reading in (one, two):
        await reading.head()
        await reading.one()
        await reading.drop()
    await it.seen()
    it.link.reply(first, b'"one"')
    it.link.reply(second, b'"two"')
    await two.resume()
    assert said(await two.rest()) == ["two"]
    await one.resume()
    assert said(await one.rest()) == ["one"]


@pytest.mark.acceptance(75)
@pytest_twisted.ensureDeferred
async def test_acceptance_75_whoMayNotUseTheSessionIsTold404First(start: Start) -> None:
    server, other = AnsweringServer("one"), AnsweringServer("two")
    stack = await start({"one": server, "two": other}, authenticator=NamedInHeader())
    alice, bob = (b"X-Who", b"alice"), (b"X-Who", b"bob")
    session = await stack.open(revision=PRIMING, headers=[alice])
    named = (b"Mcp-Session-Id", session)
    client = await stack.send(b"GET", b"/mcp", None, [named, alice])
    await client.head()
    primer = await client.event()
    assert primer is not None and primer.id is not None
    last = (b"Last-Event-ID", primer.id)
    for path, who in ((b"/mcp", bob), (b"/servers/two/mcp", alice), (b"/servers/two/mcp", bob)):
        for id in (last, (b"Last-Event-ID", b"x")):
            answer = await stack.ask(b"GET", path, None, [named, who, id])
            assert (answer.status, answer.json["error"]["code"]) == (404, -32001)
    client.close()


@pytest.mark.acceptance(75)
@settings(max_examples=300)
@given(st.data())
def test_acceptance_75_noNeighbourOfAnIdNamesAnotherEvent(data: st.DataObject) -> None:
    log = EventLog(Limits())
    streams = [log.open(n) for n in range(3)]
    ids = {
        log.append(stream, b"%d-%d" % (stream.number, n), 0.0): (stream, n + 1)
        for stream in streams
        for n in range(4)
    }
    ids |= {log.idOf(stream, 0): (stream, 0) for stream in streams}
    id = data.draw(st.sampled_from(sorted(ids)))
    at = data.draw(st.integers(0, len(id)))
    cut = data.draw(st.integers(0, 3))
    near = id[:at] + data.draw(st.binary(max_size=3)) + id[at + cut :]
    assert log.find(near, 0.0) == ids.get(near)
    assert EventLog(Limits()).find(id, 0.0) is None


@pytest.mark.acceptance(75)
@pytest_twisted.ensureDeferred
async def test_acceptance_75_anOldIdIsGivenNothing(start: Start) -> None:
    it = await bench(start)
    reading, sent = await it.primed()
    it.link.push(notice("one"))
    it.link.reply(sent)
    await reading.rest()
    it.stack.pass_(299)
    await reading.resumed(reading.ids[0])
    it.stack.pass_(2)
    for id in reading.ids:
        await it.assertNothing(id)


# A window that passed.


@pytest.mark.acceptance(76)
@pytest.mark.parametrize("bound", ["max_logged_events", "max_logged_bytes", "logged_for"])
@pytest_twisted.ensureDeferred
async def test_acceptance_76_aGapIsAnnouncedAndTheAnswerIsKept(start: Start, bound: str) -> None:
    it = await bench(start)
    reading, sent = await it.primed()
    await reading.drop()
    await it.seen()
    size = 20_000 if bound == "max_logged_bytes" else 10
    pushed = 100 if bound == "max_logged_bytes" else 300
    for n in range(pushed):
        it.link.push(notice([n, "x" * size]))
    if bound == "logged_for":
        it.stack.pass_(301)
        it.link.push(notice([pushed, ""]))
        pushed += 1
    reading.client = await it._resumed(reading.last)
    await reading.head()
    gap = await reading.client.chunk()
    assert gap == b": gap: events before the next one are no longer kept\n\n"
    assert it.stack.observer.bounds == [bound]
    # Live from here on.
    it.link.push(notice([pushed, "live"]))
    it.link.reply(sent, b'["final"]')
    got = [what[0] for what in said(await reading.rest())]
    assert got[-2:] == [pushed, "final"]
    assert got[:-1] == list(range(got[0], pushed + 1))
    assert got[0] > 0
    if bound == "max_logged_events":
        assert len(got) == 256 + 2
    await it.assertNothing(reading.last)


@pytest.mark.acceptance(76)
@pytest_twisted.ensureDeferred
async def test_acceptance_76_onlyTheAnswerIsLeftAndIsGiven(start: Start) -> None:
    """The window passed for all that came before it, and others fill it."""
    it = await bench(start)
    reading, sent = await it.primed()
    await reading.drop()
    await it.seen()
    it.link.push(notice("lost"))
    it.link.reply(sent, b'"final"')
    get = await it.get()
    for n in range(300):
        it.link.push(notice(n))
    await get.read(300)
    await reading.resume()
    assert said(await reading.rest()) == ["final"]
    assert it.stack.observer.bounds == ["max_logged_events"]


@pytest.mark.acceptance(76)
@pytest_twisted.ensureDeferred
async def test_acceptance_76_thousandsOfSmallStreamsKeepNoMoreThanOne(start: Start) -> None:
    it = await bench(start)
    running, sent = await it.call("running")
    await running.head()
    await running.one()
    cut: list[Reading] = []
    many = 2000
    for n in range(many):
        reading, small = await it.call(n)
        await reading.head()
        await reading.one()
        if n % 2:
            await reading.drop()
            await it.seen()
            cut.append(reading)
        it.link.push(rpc("notifications/progress", progressToken=0, progress=1))
        it.link.reply(small, json.dumps("x" * 100).encode())
        small.call = None
        if not n % 2:
            await reading.rest()
            reading.client.reset()
            await reading.client.ended
        it.stack._clients.remove(reading.client)
        if n == 2:
            it.link.push(notice("early"))
    assert len(it.log) <= 2 * 256
    assert it.log.streams <= 2 * 256 + 1
    gc.collect()
    alive = Counter(map(type, gc.get_objects()))
    assert alive[Reply] <= 2 * 256 + 1
    assert alive[RequestHead] < 60, "what is kept of a stream keeps its request"
    # Those nobody was given go last: the newest 256 of them are there.
    for reading in cut[-256:]:
        client = await it._resumed(reading.last)
        assert (await client.head()).status == 200
        client.reset()
        await client.ended
    await it.assertNothing(cut[-257].last)
    # What a running stream said outlives what finished ones did.
    await running.drop()
    await running.resume()
    it.link.reply(sent, b'"final"')
    assert said(await running.rest()) == ["early", "final"]


@pytest.mark.acceptance(76)
def test_acceptance_76_whatGoesFirst() -> None:
    log = EventLog(Limits(max_logged_events=4))
    running, ended, told = log.open(1), log.open(2), log.open(3)
    first = log.append(running, b"running", 0.0)
    log.append(ended, b"ended", 0.0)
    answer = log.append(ended, b"answer", 0.0, final=True)
    log.append(told, b"told", 0.0, final=True)
    log.told(told)
    for n in range(3):
        log.append(running, b"%d" % n, 0.0)
    # Of the events, that of the stream that ended; the older one of the running stream is kept.
    assert log.after(running, 0)[0] == ""
    assert log.after(ended, 0) == ("max_logged_events", [(answer, b"answer")])
    # Of the answers, the one that was told; the older one that was not is kept.
    for n in range(3):
        log.append(log.open(n), b"", 0.0, final=True)
    assert log.after(told, 0) == ("max_logged_events", [])
    assert log.exhausted(told, 0)
    assert not log.exhausted(ended, 0)
    assert log.find(first, 0.0) == (running, 1)
    # With its answer goes what was left of a stream.
    before = len(log)
    for n in range(4):
        log.append(log.open(n), b"", 0.0, final=True)
    assert log.find(answer, 0.0) is None
    assert len(log) <= before


_STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("open")),
        st.tuples(
            st.sampled_from(["say", "answer", "close", "cut", "resume", "told"]),
            st.integers(0, 5),
            st.integers(0, 60),
        ),
        st.tuples(st.just("wait"), st.integers(1, 40)),
    ),
    max_size=80,
)


@pytest.mark.acceptance(76)
@settings(max_examples=200)
@given(_STEPS)
def test_acceptance_76_theBoundsHoldWhateverHappens(steps: list[Any]) -> None:
    limits = Limits(max_logged_events=5, max_logged_bytes=120, max_answer=100, logged_for=60.0)
    log = EventLog(limits)
    now, streams = 0.0, [log.open(0)]
    sent: dict[Any, list[tuple[bytes, bytes, float]]] = {streams[0]: []}
    for step in steps:
        if step[0] == "open":
            stream = log.open(len(streams))
            streams.append(stream)
            sent[stream] = []
        elif step[0] == "wait":
            now += step[1]
            log.expire(now)
        else:
            stream = streams[-1 - step[1] % len(streams)]
            if step[0] in ("say", "answer") and not stream.ended:
                data = b"x" * step[2]
                id = log.append(stream, data, now, final=step[0] == "answer")
                sent[stream].append((id, data, now))
            elif step[0] == "told":
                log.told(stream)
            elif step[0] == "close":
                log.close(stream)
            elif step[0] == "cut" and not stream.ended:
                log.cut(stream, now)
            elif step[0] == "resume":
                log.resumed(stream)
        kept = {stream: log.after(stream, 0)[1] for stream in streams}
        assert len(log) == sum(map(len, kept.values())) <= 10
        assert sum(len(data) for all_ in kept.values() for _, data in all_) <= 220
        for stream in streams:
            # What is kept is the end of what was said; whatever is not is known to be missing.
            whole = [(id, data) for id, data, _ in sent[stream]]
            assert kept[stream] == whole[len(whole) - len(kept[stream]) :]
            assert bool(log.after(stream, 0)[0]) == (len(kept[stream]) < len(whole))
            born = [when for *_, when in sent[stream]][len(whole) - len(kept[stream]) :]
            assert all(when > now - 60 for when in born)


# Each message on one stream.


@pytest.mark.acceptance(78)
@pytest_twisted.ensureDeferred
async def test_acceptance_78_everyMessageIsOnOneStreamOnce(start: Start) -> None:
    """Sessions with GET streams, calls with progress, logs and questions; some are cut."""
    server = AnsweringServer("one")
    stack = await start({"one": server})
    seed = random.randrange(10**9)
    print(f"seed {seed}")
    dice = random.Random(seed)
    benches = [
        Bench(stack, server, await stack.open(revision=revision, sampling={}, roots={}))
        for revision in (*REVISIONS, PRIMING)
    ]
    server.answers = False
    token = 0
    gets: dict[Bench, list[Reading]] = {}
    posts: dict[Bench, list[tuple[int, Reading, Sent]]] = {}
    told: dict[Bench, Counter[str]] = {}
    for it in benches:
        gets[it] = [await it.get() for _ in range(dice.randint(1, 3))]
        posts[it], told[it] = [], Counter()
        for id in range(dice.randint(1, 5)):
            reading, sent = await it.call(id, _meta={"progressToken": f"t{id}"})
            posts[it].append((id, reading, sent))
    for _ in range(400):
        it = dice.choice(benches)
        token += 1
        name = f"m{token}"
        kind = dice.choice(["progress", "log", "changed", "question", "cut"])
        if kind == "progress":
            _, _, sent = dice.choice(posts[it])
            upstream = json.loads(sent.id)
            push = rpc("notifications/progress", progressToken=upstream, progress=1, message=name)
        elif kind == "log":
            push = notice(name)
        elif kind == "changed":
            push = rpc("notifications/resources/updated", uri=name)
        elif kind == "question":
            if sum(key.startswith("q") for key in told[it]) > 50:
                continue
            name = "q" + name
            push = rpc("sampling/createMessage", name, what=name)
        else:
            # The newest GET stream is cut and comes back.
            reading = gets[it][-1]
            await it.seen()
            if reading.last:
                await reading.drop()
                await it.seen()
                await reading.resume()
            elif not reading.client.unread:
                continue
            else:
                await reading.one()
            continue
        told[it][name] += 1
        it.link.push(push)
    for it in benches:
        for id, _, sent in dice.sample(posts[it], len(posts[it])):
            it.link.reply(sent, json.dumps(f"answer {id}").encode())
    for it in benches:
        heard: Counter[str] = Counter()
        for id, reading, _ in posts[it]:
            head = await reading.client.head()
            if head.header(b"content-type") == b"application/json":
                length = int(head.header(b"content-length") or b"0")
                reading.messages.append(json.loads(await reading.client._exactly(length)))
            else:
                await reading.rest()
            answers = [message for message in reading.messages if "result" in message]
            assert [(a["id"], a["result"]) for a in answers] == [(id, f"answer {id}")]
            assert answers == reading.messages[-1:]
            for message in reading.messages[:-1]:
                if message["method"] == "notifications/progress":
                    assert message["params"]["progressToken"] == f"t{id}"
                heard[_named(message)] += 1
        it.link.push(rpc("notifications/resources/updated", uri="last"))
        for reading in gets[it]:
            await it.seen()
            while reading.client.unread or reading.client._events:
                await reading.one()
            for message in reading.messages:
                assert "method" in message, "an answer on a GET stream"
                assert message["method"] != "notifications/progress"
                heard[_named(message)] += 1
        del heard["last"]
        assert heard == told[it]
    assert stack.observer.bounds == []


def _named(message: Any) -> str:
    params = message["params"]
    return str(params.get("message") or params.get("data") or params.get("uri") or params["what"])


# Heartbeats.


@pytest.mark.acceptance(80)
@pytest_twisted.ensureDeferred
async def test_acceptance_80_everyKindOfStreamBeats(start: Start) -> None:
    it = await bench(start)
    reading, _ = await it.call()
    await reading.head()
    get = await it.get()
    for one in (reading, get):
        await one.one()
    sse, _ = await it.stack.openSSE()
    fields = await it.stack.send(b"GET", b"/sse")
    head = await fields.head()
    assert head.header(b"cache-control") == b"no-store"
    assert head.header(b"x-accel-buffering") == b"no"
    for _ in range(3):
        it.stack.pass_(15.5)
        for client in (reading.client, get.client, sse):
            assert await client.chunk() == HEARTBEAT


@pytest.mark.acceptance(80)
@pytest.mark.parametrize("kind", ["POST", "GET"])
@pytest_twisted.ensureDeferred
async def test_acceptance_80_whenOnlyAResumedStreamIsOpen(start: Start, kind: str) -> None:
    it = await bench(start)
    if kind == "POST":
        reading, _ = await it.call()
        await reading.head()
    else:
        reading = await it.get()
    await reading.one()
    await reading.drop()
    await it.seen()
    it.stack.pass_(40)
    assert len(it.stack.shared.pulse) == 0
    await reading.resume()
    for _ in range(3):
        it.stack.pass_(15.5)
        assert await reading.client.chunk() == HEARTBEAT
    it.stack.pass_(13)
    await it.stack.turns()
    assert reading.client.unread == b""
