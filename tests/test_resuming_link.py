"""A session with a Streamable HTTP server as one plain link: it listens and resumes by itself."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
import pytest_twisted
from attrs import define, field
from faulty_upstream import FaultyUpstream, Received
from link_support import Observed, Session, hello, message
from twisted.internet import reactor
from twisted.internet.task import Clock, deferLater
from zope.interface.verify import verifyObject

from gateway.guard.limits import Limits
from gateway.links.interfaces import (
    EventMark,
    ILink,
    ILinkListener,
    Outcome,
    Reason,
    Settled,
)
from gateway.links.resuming import ResumingLink
from gateway.observe.observer import BoundReached, NoiseSkipped
from gateway.servers.http import HTTPServer
from gateway.settings import HTTPSettings
from gateway.wire.context import CallContext
from gateway.wire.envelope import Message

CONTEXT = CallContext("up")


@define(eq=False)
class Listening(Session):
    """Hears where a message came from, too, and nothing from within what it calls."""

    origins: list[object] = field(factory=list)
    calling: bool = False
    onSettled: Callable[[], None] = lambda: None

    def received(
        self, message: Message, origin: object | None, mark: EventMark | None = None
    ) -> None:
        assert not self.calling and mark is None
        super().received(message, origin, mark)
        self.origins.append(origin)

    def settled(self, call: object, settled: Settled) -> None:
        assert not self.calling
        super().settled(call, settled)
        self.onSettled()

    def lost(self, reason: Reason, message: str) -> None:
        assert not self.calling
        super().lost(reason, message)

    def cancel(self, call: object) -> None:
        self.calling = True
        self.link.cancel(call)
        self.calling = False


class Bench:
    """An upstream whose every request after the handshake is answered by the test."""

    def __init__(self, session: bytes | None = b"upstream-session-1", **settings: Any) -> None:
        self.upstream = FaultyUpstream(session=session)
        self.upstream.start(reactor)
        self.clock, self.session, self.observed = Clock(), Listening(), Observed()
        url, self.limits = self.upstream.url, Limits(max_upstream_streams=4)
        made = HTTPSettings(name="up", url=url, transport="streamable-http", **settings)
        self.server = HTTPServer(made, self.limits, reactor, self.clock, self.observed)

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
        names = {call: getattr(call.func, "__qualname__", "") for call in calls}
        return [call for call, name in names.items() if name.startswith("ResumingLink.")]

    async def until(self, holds: Any) -> None:
        for _ in range(2000):
            if holds():
                return
            await deferLater(reactor, 0.001)
        raise AssertionError("it did not come about")

    async def waits(self, streams: int = 1) -> float:
        """How long the link waits now for so many streams: for the first of them."""
        await self.until(lambda: len(self.timers) >= streams)
        timers = self.timers
        assert len(timers) == streams
        return float(min(timer.getTime() for timer in timers) - self.clock.seconds())

    async def waited(self, streams: int = 1) -> tuple[float, Received]:
        """How long it waited, and the GET it waited with."""
        wait = await self.waits(streams)
        # A sum of floats may come out before its due time.
        self.clock.advance(wait + 1e-6)
        request = await self.upstream.next()
        assert request.method == b"GET"
        return wait, request

    async def cut(self, last: str = "p0", retry: int | None = 100) -> object:
        """A call whose stream was cut after an event id; it waits to be resumed."""
        call, post = await self.call()
        post.stream()
        post.event(None, id=last, retry=retry)
        post.end()
        await self.until(lambda: bool(self.timers))
        return call

    async def turns(self) -> None:
        """Whatever would come about by now has."""
        await deferLater(reactor, 0.02)

    @property
    def bounds(self) -> list[str]:
        return [one.limit for one in self.observed.events if isinstance(one, BoundReached)]

    async def closed(self) -> None:
        """The end; nothing is left."""
        self.upstream.script = lambda request: False
        await self.server.drain()
        await self.upstream.close()
        assert not self.clock.getDelayedCalls()

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
    await made.closed()


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
    for _ in range(bench.limits.max_resumptions + 1):
        request = await bench.resumed(0.1)
        request.stream()
        request.end()
    await bench.until(lambda: bool(bench.session.ends))
    assert bench.session.ends[0][1].reason is Reason.OUTCOME_UNKNOWN
    assert bench.bounds == ["max_resumptions"]


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
    bench.session.cancel(call)
    assert not bench.timers and bench.session.ends == []


# A stream that is refused.


@pytest.mark.parametrize("status", [400, 401, 403, 410, 418, 204, 302])
@pytest_twisted.ensureDeferred
async def test_a_stream_that_is_refused_is_asked_for_ever_more_seldom(
    bench: Bench, status: int
) -> None:
    """Only 405 says that there is none: credentials change, and another may have answered."""
    get = await bench.listening()
    before = 0.0
    for n in range(14):
        get.reply(status, type=None)
        wait, get = await bench.waited()
        assert wait > before or n > 10
        before = wait * 1.25 if wait * 1.25 < 600 else 0.0
    assert wait >= 480.0, "a refusal costs little in the end"
    get.stream()
    get.event({"jsonrpc": "2.0", "method": "notifications/a"})
    await bench.until(lambda: len(bench.session.heard) == 1)
    get.end()
    # What was refused before counts no more.
    assert await bench.waits() <= 1.0
    assert bench.session.losses == []


@pytest_twisted.ensureDeferred
async def test_what_is_no_event_stream_is_a_refusal(bench: Bench) -> None:
    get = await bench.listening()
    waits = []
    for _ in range(12):
        get.reply(200, b"<html>", type=b"text/html")
        wait, get = await bench.waited()
        waits.append(wait)
    assert waits[-1] > 400.0


@pytest.mark.parametrize("status", [500, 503, 408, 429])
@pytest_twisted.ensureDeferred
async def test_a_server_that_fails_is_never_asked_as_seldom(bench: Bench, status: int) -> None:
    get = await bench.listening()
    for _ in range(12):
        get.reply(status, type=None)
        wait, get = await bench.waited()
    assert 20.0 < wait < 40.0
    assert bench.bounds[0] == "respawn_first" and bench.bounds[-1] == "respawn_last"


@pytest_twisted.ensureDeferred
async def test_a_refusal_after_an_outage_is_the_first(bench: Bench) -> None:
    get = await bench.listening()
    for _ in range(10):
        get.reply(503, type=None)
        _, get = await bench.waited()
    get.reply(401, type=None)
    assert await bench.waits() < 1.0


@pytest_twisted.ensureDeferred
async def test_waiting_as_long_as_the_server_says_is_no_bound(bench: Bench) -> None:
    get = await bench.listening()
    get.stream()
    get.event({"jsonrpc": "2.0", "method": "notifications/a"}, retry=3000)
    get.end()
    assert (await bench.waits()) == 3.0
    assert bench.bounds == []


@pytest_twisted.ensureDeferred
async def test_a_resumption_that_is_refused_is_tried_again_only_so_often(bench: Bench) -> None:
    await bench.cut()
    (wait, get), waits = await bench.waited(), []
    for _ in range(bench.limits.max_resumptions):
        get.reply(403, type=None)
        wait, get = await bench.waited()
        waits.append(wait)
    assert waits == sorted(waits) and bench.session.ends == []
    get.reply(403, type=None)
    await bench.until(lambda: bool(bench.session.ends))
    assert bench.session.ends[0][1].reason is Reason.OUTCOME_UNKNOWN
    assert bench.bounds[-1] == "max_resumptions" and not bench.timers


@pytest_twisted.ensureDeferred
async def test_a_refused_resumption_may_be_granted_the_next_time(bench: Bench) -> None:
    await bench.cut()
    _, get = await bench.waited()
    get.reply(401, type=None)
    _, get = await bench.waited()
    assert get.header(b"last-event-id") == b"p0"
    get.stream()
    get.event(answer(7, "done"))
    await bench.until(lambda: bool(bench.session.heard))
    assert bench.session.heard[0]["result"] == "done"


@pytest_twisted.ensureDeferred
async def test_at_the_bound_on_streams_it_waits_for_room(bench: Bench) -> None:
    """The gateway itself refused: that says nothing about the server."""
    others = [object() for _ in range(bench.limits.max_upstream_streams)]
    for other in others:
        opened = bench.link.inner.listen(other, None, CONTEXT)
        (await bench.upstream.next()).stream()
        await opened
    bench.session.tell("notifications/initialized", "note")
    (await bench.upstream.next()).reply(202, type=None)
    await bench.waits()
    for other in others:
        bench.link.inner.cancel(other)
    _, get = await bench.waited()
    get.stream()
    assert bench.bounds == ["max_upstream_streams", "respawn_first"]


@pytest_twisted.ensureDeferred
async def test_a_server_without_sessions_cannot_lose_one() -> None:
    bench = await Bench(session=None).opened()
    get = await bench.listening()
    assert bench.link.sessionless
    get.reply(404, type=None)
    await bench.cut()
    _, first = await bench.waited(2)
    _, second = await bench.waited()
    for get in (first, second):
        get.reply(404, type=None)
    await bench.waits(2)
    assert bench.session.ends == [] and bench.session.losses == []
    await bench.closed()


@pytest_twisted.ensureDeferred
async def test_an_id_that_is_refused_again_and_again_is_given_up(bench: Bench) -> None:
    """A server that restarted may know the session, but not the event: better some than none."""
    get = await bench.listening()
    get.stream()
    get.event({"jsonrpc": "2.0", "method": "notifications/a"}, id="e1")
    get.end()
    _, get = await bench.waited()
    for _ in range(bench.limits.max_resumptions):
        assert get.header(b"last-event-id") == b"e1"
        get.reply(400, type=None)
        _, get = await bench.waited()
    assert get.header(b"last-event-id") is None


@pytest.mark.parametrize("status", [401, 403, 503])
@pytest_twisted.ensureDeferred
async def test_but_not_for_credentials_or_a_failure(bench: Bench, status: int) -> None:
    get = await bench.listening()
    get.stream()
    get.event({"jsonrpc": "2.0", "method": "notifications/a"}, id="e1")
    get.end()
    for _ in range(bench.limits.max_resumptions + 3):
        _, get = await bench.waited()
        assert get.header(b"last-event-id") == b"e1"
        get.reply(status, type=None)


@pytest_twisted.ensureDeferred
async def test_credentials_are_those_of_the_newest_request_where_they_are_forwarded() -> None:
    for forwards in (True, False):
        bench = await Bench(forward_authorization=forwards).opened()
        get = await bench.listening()
        get.reply(401, type=None)
        renewed = CallContext("up", headers=((b"authorization", b"new"),))
        post = message(b'{"jsonrpc":"2.0","id":7,"method":"ping"}')
        bench.link.send(post, "call", renewed)
        (await bench.upstream.next()).result(1)
        _, get = await bench.waited()
        assert get.header(b"authorization") == (b"new" if forwards else None)
        await bench.closed()


# What is progress.


NOTE = {"jsonrpc": "2.0", "method": "notifications/progress"}


@pytest.mark.parametrize("replayed", [["p0"], ["p1", "p0"], ["p0", "p1", "p2", "p3"]])
@pytest_twisted.ensureDeferred
async def test_what_is_replayed_is_no_progress(bench: Bench, replayed: list[str]) -> None:
    await bench.cut()
    for n in range(bench.limits.max_resumptions + 1):
        _, get = await bench.waited()
        get.stream()
        for id in replayed:
            get.event({**NOTE, "params": {"for": id}}, id=id)
        get.end()
        await bench.until(lambda n=n: len(bench.session.heard) == (n + 1) * len(replayed))
    await bench.until(lambda: bool(bench.session.ends))
    assert bench.session.ends[0][1].reason is Reason.OUTCOME_UNKNOWN
    assert not bench.timers and bench.bounds == ["max_resumptions"]


@pytest.mark.parametrize("kind", ["another id", "another message", "a message without an id"])
@pytest_twisted.ensureDeferred
async def test_what_is_new_is(bench: Bench, kind: str) -> None:
    call = await bench.cut()
    for n in range(bench.limits.max_resumptions * 3):
        _, get = await bench.waited()
        get.stream()
        if kind == "another id":
            get.event(None, id=f"p{n}")
        else:
            id = "p0" if kind == "another message" else None
            get.event({**NOTE, "params": {"progress": n}}, id=id)
        get.end()
    _, get = await bench.waited()
    get.stream()
    get.event(answer(7))
    await bench.until(lambda: bool(bench.session.heard[-1:] == [answer(7)]))
    assert bench.session.origins[-1] is call and bench.session.ends == []


@pytest_twisted.ensureDeferred
async def test_the_same_without_an_id_is_not(bench: Bench) -> None:
    await bench.cut()
    for _ in range(bench.limits.max_resumptions + 1):
        _, get = await bench.waited()
        get.stream()
        get.event(NOTE)
        get.end()
    await bench.until(lambda: bool(bench.session.ends))


@pytest_twisted.ensureDeferred
async def test_a_stream_that_lasted_is_no_failure(bench: Bench) -> None:
    """An intermediary may cut whatever is quiet for a while."""
    call = await bench.cut()
    for _ in range(bench.limits.max_resumptions * 2):
        _, get = await bench.waited()
        get.stream()
        await bench.turns()
        bench.clock.advance(bench.limits.respawn_last)
        get.cut()
    await bench.waits()
    assert bench.session.ends == []
    bench.session.cancel(call)


@pytest_twisted.ensureDeferred
async def test_a_stream_that_says_the_same_each_time_is_asked_for_ever_more_seldom(
    bench: Bench,
) -> None:
    get = await bench.listening()
    for _ in range(8):
        get.stream()
        get.event(NOTE, id="e1")
        get.end()
        wait, get = await bench.waited()
    assert wait > 20.0
    assert bench.bounds[-1] == "respawn_last"


@pytest_twisted.ensureDeferred
async def test_a_server_that_wants_to_be_asked_at_once_is_asked_a_little_later(
    bench: Bench,
) -> None:
    await bench.cut(retry=0)
    assert await bench.waits() >= 0.1


@pytest_twisted.ensureDeferred
async def test_an_id_that_cannot_be_sent_is_none(bench: Bench) -> None:
    get = await bench.listening()
    get.stream()
    get.event(NOTE, id="e\x01")
    get.end()
    _, get = await bench.waited()
    assert get.header(b"last-event-id") is None
    get.stream()
    call, post = await bench.call()
    post.stream()
    post.event(None, id="p\x7f")
    post.end()
    await bench.until(lambda: bool(bench.session.ends))
    assert bench.session.ends[0][0] is call


# A session that is lost.


def refused(bench: Bench) -> list[tuple[object, int]]:
    return [(call, how.status) for call, how in bench.session.ends]


@pytest_twisted.ensureDeferred
async def test_who_was_told_of_the_loss_by_a_call_hears_no_other(bench: Bench) -> None:
    get = await bench.listening()
    get.stream()
    stays, post = await bench.call(1)
    lost, other = await bench.call(2)
    other.reply(404, type=None)
    await bench.until(lambda: bool(bench.session.ends))
    assert refused(bench) == [(lost, 404)]
    # It listens no more, and opens nothing again.
    await bench.until(lambda: get.connection not in bench.upstream.connections)
    assert not bench.timers
    post.stream()
    post.event(NOTE, id="p1")
    await bench.until(lambda: len(bench.session.heard) == 1)
    post.end()
    await bench.until(lambda: len(bench.session.ends) == 2)
    assert bench.session.ends[1][0] is stays
    assert bench.session.ends[1][1].outcome is Outcome.MAYBE_RAN
    await bench.turns()
    assert not bench.timers and bench.session.losses == []
    assert [r.method for r in bench.upstream.requests].count(b"GET") == 1


@pytest.mark.parametrize("told", ["by a call", "by a stream", "by a note"])
@pytest_twisted.ensureDeferred
async def test_what_waits_to_be_resumed_ends_with_the_session(bench: Bench, told: str) -> None:
    get = await bench.listening()
    waits = await bench.cut()
    if told == "by a stream":
        get.reply(404, type=None)
    elif told == "by a call":
        _, post = await bench.call(2)
        post.reply(404, type=None)
    else:
        bench.session.tell("notifications/x", "x")
        (await bench.upstream.next()).reply(404, type=None)
    await bench.until(lambda: waits in dict(refused(bench)))
    assert not bench.timers
    await bench.turns()
    assert bench.session.losses == ([Reason.SERVER_EXITED] if told == "by a stream" else [])


@pytest_twisted.ensureDeferred
async def test_a_loss_found_by_a_stream_is_told_after_the_last_call_was_cancelled(
    bench: Bench,
) -> None:
    get = await bench.listening()
    one, _ = await bench.call(1)
    two, _ = await bench.call(2)
    get.reply(404, type=None)
    await bench.turns()
    bench.session.cancel(one)
    bench.session.cancel(two)
    assert bench.session.losses == [], "never from within"
    bench.clock.advance(0)
    assert bench.session.losses == [Reason.SERVER_EXITED]
    assert not bench.timers and bench.session.ends == []


@pytest.mark.parametrize("how", ["close", "send", "drain"])
@pytest_twisted.ensureDeferred
async def test_what_is_done_before_it_is_told_comes_first(bench: Bench, how: str) -> None:
    get = await bench.listening()
    call, _ = await bench.call(1)
    get.reply(404, type=None)
    await bench.turns()
    bench.session.cancel(call)
    if how == "send":
        # It is refused, and that tells.
        again, post = await bench.call(2)
        bench.clock.advance(0)
        assert bench.session.losses == []
        post.reply(404, type=None)
        await bench.until(lambda: bool(bench.session.ends))
        assert refused(bench) == [(again, 404)]
        await bench.turns()
        assert bench.session.losses == []
        return
    if how == "close":
        await bench.link.close()
    else:
        await bench.server.drain()
    bench.clock.advance(0)
    assert bench.session.losses == ([] if how == "close" else [Reason.SHUTTING_DOWN])


@pytest_twisted.ensureDeferred
async def test_who_hears_that_a_call_is_refused_may_close_the_link(bench: Bench) -> None:
    await bench.cut()
    bench.session.onSettled = bench.link.close
    _, post = await bench.call(2)
    post.reply(404, type=None)
    await bench.until(lambda: bool(bench.session.ends))
    await bench.turns()
    assert len(bench.session.ends) == 1 and not bench.timers


# What else may come.


@pytest_twisted.ensureDeferred
async def test_a_loss_that_is_found_while_a_stream_is_opened(bench: Bench) -> None:
    await bench.cut()
    _, get = await bench.waited()
    _, post = await bench.call(2)
    post.reply(404, type=None)
    await bench.until(lambda: bool(bench.session.ends))
    get.reply(404, type=None)
    await bench.until(lambda: len(bench.session.ends) == 2)
    await bench.turns()
    assert not bench.timers and bench.session.losses == []


@pytest.mark.parametrize("how", ["close", "drain", "cancel", "answer"])
@pytest_twisted.ensureDeferred
async def test_it_may_end_while_a_stream_is_opened(bench: Bench, how: str) -> None:
    get = await bench.listening()
    get.stream()
    call = await bench.cut()
    _, opening = await bench.waited()
    bench.upstream.script = lambda request: request.method != b"DELETE"
    if how == "close":
        await bench.link.close()
    elif how == "drain":
        await bench.server.drain()
    elif how == "cancel":
        bench.session.cancel(call)
    else:
        get.event(answer(7, "here"))
        await bench.until(lambda: bool(bench.session.heard))
        assert bench.session.origins == [call]
    await bench.until(lambda: opening.connection not in bench.upstream.connections)
    assert bench.session.ends == [] and not bench.timers
    assert bench.session.losses == ([Reason.SHUTTING_DOWN] if how == "drain" else [])
    assert bench.bounds == []


@pytest_twisted.ensureDeferred
async def test_an_answer_on_the_servers_stream_ends_the_calls_own(bench: Bench) -> None:
    get = await bench.listening()
    get.stream()
    call, post = await bench.call()
    post.stream()
    post.event(None, id="p0")
    get.event(answer(7, "here"))
    await bench.until(lambda: bool(bench.session.heard))
    assert bench.session.origins == [call]
    await bench.until(lambda: post.connection not in bench.upstream.connections)
    await bench.turns()
    assert bench.session.ends == [] and not bench.timers


@pytest.mark.parametrize("on", ["the call's own, resumed", "the server's"])
@pytest_twisted.ensureDeferred
async def test_a_malformed_answer_on_a_get_ends_its_call_at_once(bench: Bench, on: str) -> None:
    get = await bench.listening()
    get.stream()
    call: object
    if on == "the server's":
        call, post = await bench.call()
        post.stream()
        post.event(None, id="p0")
    else:
        call = await bench.cut()
        get = await bench.resumed(0.1)
        get.stream()
    get.chunk(b'data: {"jsonrpc":"2.0","id":7,"result":{},"error":{}}\n\n')
    await bench.until(lambda: bool(bench.session.ends))
    ((ended, settled),) = bench.session.ends
    assert ended is call
    assert (settled.outcome, settled.reason) == (Outcome.MAYBE_RAN, Reason.BAD_ANSWER)
    await bench.turns()
    # Nothing of the call is waited for, on the wire or here; the server's stream goes on.
    assert not bench.timers and len(bench.upstream.connections) == 1
    assert sum(isinstance(e, NoiseSkipped) for e in bench.observed.events) == 1


@pytest.mark.parametrize(
    "said",
    [
        b'text that quotes {"jsonrpc":"2.0","id":7}',
        b'{"id":7}',
        b'{"jsonrpc":"2.0","id":8,"result":{},"error":{}}',
        b'{"jsonrpc":"2.0","id":7,"method":"roots/list","params":null}',
        b'{"jsonrpc":"2.0","id":7,"method":"roots/list","params":{"a":NaN}}',
    ],
    ids=["quoted", "of another kind", "nobody's", "asks", "asks in no JSON"],
)
@pytest_twisted.ensureDeferred
async def test_what_is_no_answer_on_a_get_ends_no_call(bench: Bench, said: bytes) -> None:
    await bench.cut()
    get = await bench.resumed(0.1)
    get.stream()
    get.chunk(b"data: %b\n\n" % said)
    get.event(answer(7, "good"))
    await bench.until(lambda: bool(bench.session.heard))
    assert bench.session.heard[-1]["result"] == "good" and bench.session.ends == []


@pytest_twisted.ensureDeferred
async def test_an_id_that_is_used_again_is_the_newest_calls(bench: Bench) -> None:
    get = await bench.listening()
    get.stream()
    old = await bench.cut()
    new, post = await bench.call(7)
    bench.session.cancel(old)
    assert not bench.timers
    get.event(answer(7, "new"))
    await bench.until(lambda: bool(bench.session.heard))
    assert bench.session.origins == [new]
    await bench.until(lambda: post.connection not in bench.upstream.connections)


@pytest_twisted.ensureDeferred
async def test_what_belongs_to_no_call_comes_without_one(bench: Bench) -> None:
    get = await bench.listening()
    get.stream()
    get.event(NOTE)
    call = await bench.cut()
    _, resumed = await bench.waited()
    resumed.stream()
    await bench.until(lambda: bool(bench.session.heard))
    resumed.event(NOTE)
    await bench.until(lambda: len(bench.session.heard) == 2)
    get.event(answer(99))
    await bench.until(lambda: len(bench.session.heard) == 3)
    assert bench.session.origins == [None, call, None]
    bench.session.cancel(call)


@pytest_twisted.ensureDeferred
async def test_what_is_held_stays_so_over_a_resumption(bench: Bench) -> None:
    call = await bench.cut()
    bench.link.hold(call)
    _, get = await bench.waited()
    get.stream()
    get.event(answer(7))
    await bench.turns()
    assert bench.session.heard == []
    bench.link.release(call)
    await bench.until(lambda: bool(bench.session.heard))
    call = await bench.cut()
    bench.link.hold(call)
    bench.link.release(call)
    _, get = await bench.waited()
    bench.link.hold(None)
    get.stream()
    get.event(answer(7))
    await bench.turns()
    assert len(bench.session.heard) == 1
    bench.link.release(None)
    await bench.until(lambda: len(bench.session.heard) == 2)


@pytest_twisted.ensureDeferred
async def test_it_listens_also_when_nobody_asks_after_the_greeting(bench: Bench) -> None:
    bench.session.tell("notifications/initialized")
    (await bench.upstream.next()).reply(202, type=None)
    get = await bench.upstream.next()
    assert get.method == b"GET"
    get.stream()
    assert bench.session.taken == []


@pytest.mark.parametrize("status", [400, 500])
@pytest_twisted.ensureDeferred
async def test_it_listens_also_when_the_greeting_was_refused(bench: Bench, status: int) -> None:
    bench.session.tell("notifications/initialized", "note")
    (await bench.upstream.next()).reply(status, type=None)
    assert (await bench.upstream.next()).method == b"GET"
    assert refused(bench) == [("note", status)]


@pytest_twisted.ensureDeferred
async def test_it_does_not_listen_to_a_session_lost_at_once(bench: Bench) -> None:
    bench.session.tell("notifications/initialized", "note")
    (await bench.upstream.next()).reply(404, type=None)
    await bench.until(lambda: bool(bench.session.ends))
    await bench.turns()
    assert not bench.timers and bench.session.losses == []
    assert b"GET" not in [request.method for request in bench.upstream.requests]
