"""
A call whose stream its HTTP server numbers, resumed straight through: whatever became of the server
meanwhile, whoever resumes it learns how it ended.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import pytest_twisted
from raw import Start
from raw import start as start
from test_transparent_proxy import Bench, _recover, bench, notice
from twisted.internet.defer import fail

from gateway.links.interfaces import EventMark, LinkFailed, Reason
from gateway.observe.observer import CallFailed, MessageDropped
from gateway.testing.scripted import Sent

LAST = (b"Last-Event-ID", b"up-1")


async def _cut(it: Bench, id: object = "x") -> Sent:
    """A call that was given the event `up-1`, and whose client has gone since."""
    client, sent = await it.call(id)
    it.link.push(notice(), sent.call, EventMark(b"up-1"))
    await client.head()
    await client.event()
    client.reset()
    await client.ended
    await it.stack.until(lambda: sent.call in it.link.cancelled)
    return sent


async def _learns(it: Bench, reason: str, id: object = "x", last: Any = LAST) -> None:
    """Whoever resumes gets that one error, and the end of the stream."""
    get = await it.get(last)
    told = await get.message()
    assert (told["id"], told["error"]["code"]) == (id, -32000)
    assert told["error"]["data"] == {"reason": reason}
    assert await get.event() is None
    (session,) = it.stack.shared.registry
    assert (session.running, session._streams) == (0, 0)
    assert not session.live.router.calls  # type: ignore[attr-defined]


def _goesAway(it: Bench) -> None:
    gone = LinkFailed(Reason.UPSTREAM_UNREACHABLE, "the server cannot be reached")
    it.link.listen = lambda *_: fail(gone)  # type: ignore[method-assign]


def _refuses(status: int) -> Callable[[Bench], None]:
    def refuse(it: Bench) -> None:
        it.link.refusesListen = status

    return refuse


@pytest.mark.acceptance(70)
@pytest.mark.parametrize(
    "becomes",
    [_refuses(404), _refuses(405), _refuses(400), _refuses(500), _goesAway],
    ids=["lost", "nothing left", "refused", "broken", "gone"],
)
@pytest_twisted.ensureDeferred
async def test_acceptance_70_aServerThatCannotResumeIsToldOfOnce(
    start: Start, becomes: Callable[[Bench], None]
) -> None:
    it = await bench(start)
    await _cut(it)
    becomes(it)
    await _learns(it, "outcome_unknown")
    assert [event.reason for event in it.stack.observer.of(CallFailed)] == ["outcome_unknown"]
    # Once: whoever comes again has nothing left to resume.
    it.link.refusesListen = it.server.refusesListen = 405
    asking = await it.stack.send(b"GET", b"/mcp", None, [*it.named, LAST])
    await it.stack.turns()
    await _recover(it)
    assert (await asking.response()).status == 405


@pytest.mark.acceptance(70)
@pytest_twisted.ensureDeferred
async def test_acceptance_70_aStreamOfALostSessionIsAskedOfNoOther(start: Start) -> None:
    """Another call found the session lost, and the link was made again."""
    it = await bench(start)
    await _cut(it)
    first = it.link
    client, sent = await it.call("y")
    first.settle(sent, status=404)
    second = await _recover(it)
    assert second is not first
    second.reply(second.last("tools/call"), b'"again"')
    assert (await client.response()).json["result"] == "again"
    await _learns(it, "outcome_unknown")
    assert second.listened == []
    # Nothing holds the old link any more.
    assert first.closed


@pytest_twisted.ensureDeferred
async def test_whatTheGatewaySaidMeanwhileIsKept(start: Start) -> None:
    it = await bench(start)
    await _cut(it)
    it.stack.pass_(700.0)
    await it.stack.turns()
    await _learns(it, "timeout")
    assert it.link.listened == []
    assert not it.stack.observer.of(MessageDropped)
    it.link.refusesListen = 405
    assert (await it.refusedGet(LAST)).status == 405


@pytest_twisted.ensureDeferred
async def test_whatTheGatewaySaysOfAResumedCallGoesThere(start: Start) -> None:
    """The server takes the GET, and says nothing."""
    it = await bench(start)
    await _cut(it)
    get = await it.get(LAST)
    it.stack.pass_(700.0)
    told = await get.message()
    assert (told["id"], told["error"]["data"]["reason"]) == ("x", "timeout")
    assert not it.stack.observer.of(MessageDropped)
    get.reset()
    await get.ended
    await it.stack.until(lambda: not it.link.listening)
    it.link.refusesListen = 405
    assert (await it.refusedGet(LAST)).status == 405


@pytest_twisted.ensureDeferred
async def test_aMalformedAnswerOnAResumedStreamEndsTheCallThere(start: Start) -> None:
    it = await bench(start)
    sent = await _cut(it)
    get = await it.get(LAST)
    assert it.link.spoilt is not None and sent.message.id is not None
    it.link.spoilt(b"4711")
    it.link.spoilt(sent.message.id)
    told = await get.message()
    assert (told["id"], told["error"]["data"]["reason"]) == ("x", "bad_answer")
    (session,) = it.stack.shared.registry
    assert session.running == 0
    assert not session.live.router.calls  # type: ignore[attr-defined]
    assert [event.reason for event in it.stack.observer.of(CallFailed)] == ["bad_answer"]


@pytest_twisted.ensureDeferred
async def test_aStreamThatItsServerClosedIsResumedFromAnyOfItsIDs(start: Start) -> None:
    """SEP-1699: the server closes, the client comes again, and the server lost its session."""
    it = await bench(start, "2025-11-25")
    client, sent = await it.call("x")
    it.link.mark(sent.call, EventMark(b"up-0", b"500"))
    it.link.push(notice(), sent.call, EventMark(b"up-1"))
    it.link.settle(sent, Reason.OUTCOME_UNKNOWN)
    await client.head()
    while await client.event() is not None:
        pass
    it.link.refusesListen = 404
    await _learns(it, "outcome_unknown", last=(b"Last-Event-ID", b"up-0"))


@pytest_twisted.ensureDeferred
async def test_aResumedStreamMayBeLostAgain(start: Start) -> None:
    it = await bench(start)
    await _cut(it)
    get = await it.get(LAST)
    (origin,) = it.link.listening
    it.link.push(notice("2"), origin, EventMark(b"up-2"))
    assert (await get.event()).id == b"up-2"  # type: ignore[union-attr]
    get.reset()
    await get.ended
    await it.stack.until(lambda: not it.link.listening)
    it.link.refusesListen = 404
    await _learns(it, "outcome_unknown", last=(b"Last-Event-ID", b"up-2"))


@pytest.mark.acceptance(74)
@pytest_twisted.ensureDeferred
async def test_acceptance_74_anAnswerThatDidNotArriveIsGivenAgain(start: Start) -> None:
    """The server's answer was written, and its client did not read it any more."""
    it = await bench(start)
    client, sent = await it.call("x")
    it.link.push(notice(), sent.call, EventMark(b"up-1"))
    it.link.reply(sent, b'"done"', EventMark(b"up-2"))
    await client.head()
    await client.event()
    client.reset()
    await client.ended
    get = await it.get(LAST)
    (origin,) = it.link.listening
    answer = b'{"jsonrpc":"2.0","id":%b,"result":"done"}' % sent.message.id
    it.link.push(answer, origin, EventMark(b"up-2"))
    event = await get.event()
    assert event is not None and (event.id, json.loads(event.data)["id"]) == (b"up-2", "x")
    # Once for each time it is resumed, and never where nobody did.
    it.link.push(answer, origin, EventMark(b"up-2"))
    other = await it.get()
    it.link.push(answer, it.link.listening[-1], EventMark(b"up-2"))
    await it.stack.turns()
    assert (get.unread, other.unread) == (b"", b"")
    dropped = [event.why for event in it.stack.observer.of(MessageDropped)]
    assert dropped == ["late_answer"] * 2


@pytest_twisted.ensureDeferred
async def test_onlyWhoWasGivenAnIDIsAnswered(start: Start) -> None:
    it = await bench(start)
    await _cut(it)
    it.link.refusesListen = 405
    for made in (b"up-2", b"up", b"", b"x" * 5000):
        assert (await it.refusedGet((b"Last-Event-ID", made))).status == 405, made
    it.server.answers = True
    other = await it.stack.open(revision="2025-06-18")
    assert other is not None
    it.link.refusesListen = 405
    refused = await it.stack.ask(b"GET", b"/mcp", None, [(b"Mcp-Session-Id", other), LAST])
    assert refused.status == 405


@pytest_twisted.ensureDeferred
async def test_idsAreKnownWithinABound(start: Start) -> None:
    it = await bench(start)
    most = it.stack.shared.limits.max_logged_events
    await _cut(it, "old")
    it.stack.pass_(700.0)
    await it.stack.turns()
    client, sent = await it.call("new")
    for number in range(most):
        it.link.push(notice(), sent.call, EventMark(b"more-%d" % number))
    await client.head()
    for _ in range(most):
        await client.event()
    # The old call's client never came: what was kept for it is counted.
    assert [event.why for event in it.stack.observer.of(MessageDropped)] == ["client_gone"]
    it.link.refusesListen = 405
    assert (await it.refusedGet(LAST)).status == 405
    it.link.reply(sent)
    await client.message()


@pytest_twisted.ensureDeferred
async def test_atTheSessionsEndWhatWasKeptIsCounted(start: Start) -> None:
    it = await bench(start)
    await _cut(it)
    it.stack.pass_(700.0)
    await it.stack.turns()
    await it.stack.ask(b"DELETE", b"/mcp", None, it.named)
    assert [event.why for event in it.stack.observer.of(MessageDropped)] == ["client_gone"]
