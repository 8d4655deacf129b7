"""A session with a Streamable HTTP server as one plain link: it listens and resumes by itself."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_twisted
from faulty_upstream import FaultyUpstream, Received
from link_support import Observed, Session, hello, message
from twisted.internet import reactor
from twisted.internet.task import Clock, deferLater
from zope.interface.verify import verifyObject

from gateway.guard.limits import Limits
from gateway.links.interfaces import ILink, ILinkListener, Reason
from gateway.links.resuming import FRUITLESS, ResumingLink
from gateway.servers.http import HTTPServer
from gateway.settings import HTTPSettings
from gateway.wire.context import CallContext

CONTEXT = CallContext("up")


class Bench:
    """An upstream whose every request after the handshake is answered by the test."""

    def __init__(self) -> None:
        self.upstream = FaultyUpstream()
        self.upstream.start(reactor)
        self.clock, self.session = Clock(), Session()
        settings = HTTPSettings(name="up", url=self.upstream.url, transport="streamable-http")
        self.server = HTTPServer(settings, Limits(), reactor, self.clock, Observed())

    async def opened(self) -> Bench:
        self.link = await self.server.link(hello(), self.session, CONTEXT)
        self.session.link = self.link
        await self.upstream.next()
        self.upstream.script = lambda request: True
        return self

    async def call(self, id: int = 7) -> tuple[object, Received]:
        call = self.session.ask(id)
        return call, await self.upstream.next()

    async def listening(self) -> Received:
        """The GET that follows `initialized`."""
        self.session.tell("notifications/initialized", "note")
        (await self.upstream.next()).reply(202, type=None)
        request = await self.upstream.next()
        assert request.method == b"GET"
        return request

    @property
    def timers(self) -> list[Any]:
        """The timers of the link; connections have some, too."""
        calls = self.clock.getDelayedCalls()
        return [call for call in calls if "ResumingLink" in str(call.func)]

    async def until(self, holds: Any) -> None:
        for _ in range(2000):
            if holds():
                return
            await deferLater(reactor, 0.001)
        raise AssertionError("it did not come about")

    async def resumed(self, seconds: float) -> Received:
        """The next GET, once so much time has passed."""
        await self.until(lambda: bool(self.timers))
        before = len(self.upstream.requests)
        self.clock.advance(seconds * 0.99)
        assert len(self.upstream.requests) == before
        self.clock.advance(seconds * 0.02)
        request = await self.upstream.next()
        assert request.method == b"GET"
        return request


@pytest_twisted.async_yield_fixture
async def bench() -> AsyncIterator[Bench]:
    made = await Bench().opened()
    yield made
    made.upstream.script = lambda request: False
    await made.server.drain()
    await made.upstream.close()
    assert not made.clock.getDelayedCalls()


def answer(id: int, result: object = 1) -> dict[str, Any]:
    return {"jsonrpc": "2.0", "id": id, "result": result}


@pytest_twisted.ensureDeferred
async def test_it_is_a_plain_link_and_its_inner_ones_listener(bench: Bench) -> None:
    assert verifyObject(ILink, bench.link) and verifyObject(ILinkListener, bench.link)
    assert isinstance(bench.link, ResumingLink)
    assert not bench.link.sessionless and not bench.link.multiplexed


@pytest_twisted.ensureDeferred
async def test_it_listens_once_initialized_was_accepted(bench: Bench) -> None:
    request = await bench.listening()
    assert bench.session.taken == ["note"]
    assert request.header(b"mcp-session-id") == b"upstream-session-1"
    request.stream()
    request.event({"jsonrpc": "2.0", "method": "notifications/a"}, id="e1", retry=2500)
    await bench.until(lambda: len(bench.session.heard) == 1)
    request.end()
    again = await bench.resumed(2.5)
    assert again.header(b"last-event-id") == b"e1"
    again.stream()
    again.event({"jsonrpc": "2.0", "method": "notifications/b"})
    await bench.until(lambda: len(bench.session.heard) == 2)


@pytest_twisted.ensureDeferred
async def test_a_server_without_a_stream_is_asked_once(bench: Bench) -> None:
    (await bench.listening()).reply(405, type=None)
    _, post = await bench.call()
    post.result(1)
    await bench.until(lambda: len(bench.session.heard) == 1)
    assert not bench.timers


@pytest_twisted.ensureDeferred
async def test_a_server_that_fails_is_asked_again_ever_more_seldom(bench: Bench) -> None:
    request = await bench.listening()
    waited = []
    for _ in range(3):
        request.reply(503, type=None)
        await bench.until(lambda: bool(bench.timers))
        (timer,) = bench.timers
        waited.append(timer.getTime() - bench.clock.seconds())
        bench.clock.advance(waited[-1])
        request = await bench.upstream.next()
    assert waited[0] < waited[1] < waited[2] < 3


@pytest.mark.acceptance(70)
@pytest_twisted.ensureDeferred
async def test_a_call_whose_stream_is_cut_or_closed_is_resumed_not_repeated(bench: Bench) -> None:
    """SEP-1699: also a server that closes the stream on purpose, again and again."""
    _, post = await bench.call()
    post.stream()
    post.event(None, id="p0", retry=100)
    post.end()
    first = await bench.resumed(0.1)
    assert first.header(b"last-event-id") == b"p0"
    first.stream()
    first.event({"jsonrpc": "2.0", "method": "notifications/progress"}, id="p1")
    await bench.until(lambda: len(bench.session.heard) == 1)
    first.cut()
    second = await bench.resumed(0.1)
    assert second.header(b"last-event-id") == b"p1"
    second.stream()
    second.event(answer(7, "done"), id="p2")
    await bench.until(lambda: len(bench.session.heard) == 2)
    assert bench.session.heard[-1]["result"] == "done" and bench.session.ends == []
    assert [r.method for r in bench.upstream.requests].count(b"POST") == 2
    assert not bench.timers


@pytest_twisted.ensureDeferred
async def test_a_call_without_an_event_id_ends_at_once(bench: Bench) -> None:
    call, post = await bench.call()
    post.stream()
    post.end()
    await bench.until(lambda: bool(bench.session.ends))
    assert bench.session.ends[0][0] is call
    assert bench.session.ends[0][1].reason is Reason.OUTCOME_UNKNOWN


@pytest_twisted.ensureDeferred
async def test_a_call_is_resumed_for_nothing_only_so_often(bench: Bench) -> None:
    _, post = await bench.call()
    post.stream()
    post.event(None, id="p0", retry=100)
    post.end()
    for _ in range(FRUITLESS + 1):
        request = await bench.resumed(0.1)
        request.stream()
        request.end()
    await bench.until(lambda: bool(bench.session.ends))
    assert bench.session.ends[0][1].reason is Reason.OUTCOME_UNKNOWN


@pytest_twisted.ensureDeferred
async def test_a_refused_resumption_settles_the_call_as_it_was(bench: Bench) -> None:
    _, post = await bench.call()
    post.stream()
    post.event(None, id="p0", retry=100)
    post.end()
    (await bench.resumed(0.1)).reply(405, type=None)
    await bench.until(lambda: bool(bench.session.ends))
    assert bench.session.ends[0][1].reason is Reason.OUTCOME_UNKNOWN


@pytest_twisted.ensureDeferred
async def test_a_lost_session_is_told_when_no_call_runs_any_more(bench: Bench) -> None:
    get = await bench.listening()
    _, post = await bench.call()
    get.reply(404, type=None)
    await deferLater(reactor, 0.02)
    assert bench.session.losses == []
    post.result("still answered")
    await bench.until(lambda: bool(bench.session.losses))
    assert bench.session.heard[-1]["result"] == "still answered"
    assert bench.session.losses == [Reason.SERVER_EXITED]
    assert not bench.link.send(message(b'{"jsonrpc":"2.0","id":9,"method":"ping"}'), 9, CONTEXT)


@pytest_twisted.ensureDeferred
async def test_a_cancelled_call_waits_for_nothing(bench: Bench) -> None:
    call, post = await bench.call()
    post.stream()
    post.event(None, id="p0")
    post.end()
    await bench.until(lambda: bool(bench.timers))
    bench.link.cancel(call)
    assert not bench.timers and bench.session.ends == []
