"""Calls that wait for their principal's turn, and what else happens meanwhile."""

from __future__ import annotations

from typing import Any

import pytest
import pytest_twisted
from attrs import define
from modern_support import LISTENING, ModernServer, enveloped, posted
from raw import AnsweringServer, NamedInHeader, Start, hello, rpc
from raw import start as start
from relay_support import CONTEXT, MemoryTarget, notify, request
from relay_support import Bench as RelayBench
from stdio_support import Observed
from test_reload import CALL, Bench, reason
from twisted.internet.defer import Deferred
from zope.interface import implementer

from gateway.guard.limits import Limits
from gateway.guard.load import Account, Load
from gateway.guard.policy import Direction, IPolicy
from gateway.links.interfaces import EventMark, ILink
from gateway.testing import ScriptedServer
from gateway.wire.context import ANONYMOUS, CallContext
from gateway.wire.envelope import Message

ONE = {"max_calls_per_principal": 1, "max_waiting_per_principal": 8}


def counted(bench: Bench) -> tuple[int, int]:
    """Calls of all, and accounts."""
    return loadOf(bench).total.calls, len(loadOf(bench))


def loadOf(bench: Bench) -> Load:
    return bench.gateway.service._started().shared.load


def test_modern_calls_that_wait_are_served_where_their_server_was_replaced() -> None:
    """In the order they came, each once: who had its turn does not wait for another."""
    old, new = ModernServer("one", era="modern"), ModernServer("one", era="modern", timeout=9.0)
    bench = Bench(old, **ONE)
    asked = [posted(bench.gateway, enveloped(CALL, id, name="echo")) for id in (1, 2, 3, 4)]
    assert loadOf(bench).total.calls == 4
    bench.reload(new)
    asked += [posted(bench.gateway, enveloped(CALL, id, name="echo")) for id in (5, 6)]
    old.newest.reply(old.newest.last(CALL))
    assert asked[0].json()["id"] == 1
    for n, one in enumerate(asked[1:]):
        assert len(new.newest.of(CALL)) == n + 1
        new.newest.reply(new.newest.last(CALL))
        assert one.json()["id"] == n + 2
    assert loadOf(bench).total.calls == 0
    bench.end()
    assert old.drained


def test_a_modern_call_whose_turn_comes_in_the_beat_that_ends_its_time() -> None:
    server = ModernServer("one", era="modern", timeout=10.0, http=True)
    bench = Bench(server, **ONE)
    first = posted(bench.gateway, enveloped(CALL, 1, name="echo"))
    second = posted(bench.gateway, enveloped(CALL, 2, name="echo"))
    bench.gateway.advance(10.5)
    for asked in (first, second):
        assert asked.started
    assert loadOf(bench).total.calls == 0 and len(loadOf(bench)) == 0
    bench.end()


def test_what_waits_has_its_turn_in_a_drain_in_either_era() -> None:
    old, new = ScriptedServer("one"), ModernServer("two", era="modern")
    bench = Bench(old, new, **ONE)
    client = bench.open("one")
    legacy = [client.post(client.request(id, CALL)) for id in (1, 2)]
    modern_ = posted(bench.gateway, enveloped(CALL, 3, name="echo"), "two")
    stopped = bench.gateway.stop()
    bench.gateway.advance(1.5)
    assert reason(client.post(client.request(4, CALL))) == "shutting_down"
    for _ in legacy:
        old.newest.reply(old.newest.last(CALL))
    new.newest.reply(new.newest.last(CALL))
    assert [one.json()["id"] for one in (*legacy, modern_)] == [1, 2, 3]
    bench.gateway.advance(0.2)
    assert stopped.called


@define(eq=False)
class Beats:
    """Leaves, and has another leave, at its first beat."""

    pulse: Any
    others: list[Beats]
    beats: int = 0

    def beat(self, now: float) -> None:
        self.beats += 1
        for one in self.others:
            self.pulse.leave(one)


def test_who_left_the_pulse_hears_of_no_beat_that_was_under_way() -> None:
    from twisted.internet.task import Clock

    from gateway.proxies.pulse import Pulse

    clock = Clock()
    pulse = Pulse(clock)
    both: list[Beats] = []
    both += [Beats(pulse, both), Beats(pulse, both)]
    for one in both:
        pulse.join(one)
    clock.advance(1)
    assert [one.beats for one in both] == [1, 0]
    assert not len(pulse) and not clock.getDelayedCalls()


@define(eq=False)
class Waits:
    """A Turn that does something when it comes."""

    does: Any
    over: bool = False

    def waits(self) -> bool:
        return not self.over

    def comes(self) -> None:
        self.over = True
        self.does()


def full(each: int = 1) -> tuple[Load, Account]:
    load = Load(Limits(max_calls_per_principal=each, max_waiting_per_principal=8), Observed())
    account = load.accountOf(ANONYMOUS)
    account.calls = each
    return load, account


def test_who_comes_while_another_ends_at_once_is_not_forgotten() -> None:
    """A client that pipelines: the answer to one call brings the next two."""
    load, account = full()
    begun: list[str] = []
    last = Waits(lambda: begun.append("last"))

    def endsAtOnce() -> None:
        begun.append("first")
        account.left()
        # One more has room, and runs; the other waits for it.
        account.calls += 2
        load.wait(account, last)

    account.calls += 1
    load.wait(account, Waits(endsAtOnce))
    account.left()
    assert begun == ["first"]
    account.left()
    assert begun == ["first", "last"]


def test_one_whose_turn_breaks_the_gateway_keeps_nobody_else_waiting(
    expectedFailures: list[Any],
) -> None:
    load, account = full()
    begun: list[str] = []

    def breaks() -> None:
        raise RuntimeError("a turn")

    account.calls += 1
    load.wait(account, Waits(breaks))
    account.left()
    account.calls += 1
    load.wait(account, Waits(lambda: begun.append("next")))
    account.left()
    assert begun == ["next"]


@pytest.mark.parametrize("reloads", [False, True])
@pytest.mark.parametrize("era", ["legacy", "modern", "both"])
def test_what_waits_when_all_is_over_begins_no_more(reloads: bool, era: str) -> None:
    """It is told that it did not run, so it must not."""
    served = "modern" if era == "modern" else "legacy"
    old, new = ModernServer("one", era=served), ModernServer("one", era=served, timeout=9.0)
    bench = Bench(old, drain_grace=3.0, **ONE)
    if era == "both":
        first = bench.open("one")
        running = first.post(first.request(1, CALL))
        waits = posted(bench.gateway, enveloped(CALL, 2, name="echo"))
    elif era == "legacy":
        first, second = bench.open("one"), bench.open("one")
        running = first.post(first.request(1, CALL))
        waits = second.post(second.request(2, CALL))
    else:
        running, waits = (posted(bench.gateway, enveloped(CALL, id, name="echo")) for id in (1, 2))
    assert sum(len(link.of(CALL)) for link in old.links) == 1
    if reloads:
        bench.reload(new)
    else:
        stopped = bench.gateway.stop()
    bench.gateway.clock.pump([0.5] * 12)
    assert [reason(one) for one in (running, waits)] == ["shutting_down"] * 2
    assert sum(len(link.of(CALL)) for link in (*old.links, *new.links)) == 1
    assert counted(bench) == (0, 0) if reloads else stopped.called
    if reloads:
        bench.end()


# What breaks.


@implementer(IPolicy)
class Broken:
    """A policy that fails."""

    def admits(self, context: CallContext) -> bool:
        return True

    def allows(self, direction: Direction, method: str, name: str, context: CallContext) -> bool:
        raise RuntimeError(method)


def test_what_a_policy_fails_to_judge_is_not_permitted(expectedFailures: list[Any]) -> None:
    bench = RelayBench(policy=Broken()).opened(initialized=False)
    assert bench.ask().reason == "forbidden"
    waits = MemoryTarget()
    bench.relay.request(request(2), waits, True, CONTEXT, lambda turn: None)
    assert waits.reason == "forbidden"
    assert bench.tell(notify("notifications/initialized")) == [True]
    bench.server.newest.push(notify("notifications/message").encode())
    assert not bench.server.newest.requests
    assert (bench.session.running, bench.session.total.calls) == (0, 0)
    bench.end()


class BrokenTarget(MemoryTarget):
    """A target that fails."""

    def answer(self, message: Message, mark: EventMark | None = None) -> None:
        raise RuntimeError("answer")

    def close(self) -> None:
        raise RuntimeError("close")


def test_a_target_that_fails_keeps_nothing_else_from_ending(expectedFailures: list[Any]) -> None:
    bench = RelayBench().opened()
    bench.ask(1, target=BrokenTarget())
    asked = bench.ask(2)
    broken, stream = BrokenTarget(), MemoryTarget()
    for one in (broken, stream):
        bench.relay.attach(one)
        bench.relay.readerOpened(one, one)
    bench.end()
    assert asked.reason == "cancelled" and stream.closed
    assert (bench.session.running, bench.session.total.calls) == (0, 0)


class SlowToGiveUp(AnsweringServer):
    """Its handshakes take time to be given up, as one does whose child has to be ended."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.ended: Deferred[None] = Deferred()

    def link(self, *asked: Any, **more: Any) -> Deferred[ILink]:
        async def shake() -> ILink:
            try:
                await Deferred()
            finally:
                await self.ended
            raise AssertionError

        return Deferred.fromCoroutine(shake())


@pytest_twisted.ensureDeferred
async def test_nothing_is_kept_of_who_left_within_a_handshake(start: Start) -> None:
    server = SlowToGiveUp("one")
    stack = await start({"one": server}, authenticator=NamedInHeader())
    who = [(b"X-Who", b"alice")]
    stream, endpoint = await stack.openSSE(headers=who)
    assert (await stack.ask(b"POST", endpoint, hello(), who)).status == 202
    load = stack.shared.load
    await stack.until(lambda: load.total.calls == 1)
    stream.reset()
    await stack.until(lambda: not len(stack.shared.registry))
    server.ended.callback(None)
    await stack.until(lambda: load.total.calls == 0)
    assert len(load) == 0


@pytest_twisted.ensureDeferred
async def test_a_numbered_stream_that_nobody_can_resume_ends_its_call(start: Start) -> None:
    """A server without sessions has no GET at the gateway: what it closes is closed."""
    server = AnsweringServer("one", http=True, sessionless=True)
    stack = await start({"one": server})
    assert (await stack.ask(b"POST", b"/mcp", rpc("tools/call", 0))).status == 200
    server.answers = False
    asked = await stack.send(b"POST", b"/mcp", rpc("tools/call", 1))
    await stack.until(lambda: stack.shared.load.total.calls == 1)
    link = server.newest
    sent = link.last("tools/call")
    link.push(rpc("notifications/message", level="info", data=1), sent.call, EventMark(b"e1"))
    await asked.head()
    assert (await asked.message())["method"] == "notifications/message"
    link.settle(sent)
    assert (await asked.message())["error"]["data"]["reason"] == "outcome_unknown"
    assert (stack.shared.load.total.calls, len(stack.shared.load)) == (0, 0)


def test_an_id_that_comes_twice_is_still_its_calls() -> None:
    bench = RelayBench(transparent=True, server=ScriptedServer(http=True)).opened()
    assert bench.relay.straight is not None
    numbered = bench.relay.straight.numbered
    bench.ask(1)
    (call,) = bench.relay.router.calls.values()
    for _ in range(2):
        assert numbered.sent(call, b"e1") == 0
    assert numbered.keep(call, request(1))
    assert numbered.find(b"e1").kept is not None
    assert numbered.sent(call, b"e1") == 0, "what is kept is not forgotten"
    bench.end()


def test_what_waits_for_the_era_of_its_server_counts_as_what_runs() -> None:
    server = ModernServer("one")
    server.handshakeHeld = True
    bench = Bench(server, **ONE)
    asked = [posted(bench.gateway, enveloped(CALL, id, name="echo")) for id in (1, 2, 3)]
    listening = posted(bench.gateway, enveloped("subscriptions/listen", 4, **LISTENING))
    assert counted(bench) == (3, 1)
    listening.leave()
    asked[1].leave()
    assert counted(bench) == (2, 1)
    server.handshakeHeld = False
    while server._pending:
        server.finishHandshake()
    for id in (1, 3):
        bench.gateway.advance(0.1)
        assert counted(bench)[0] == (2 if id == 1 else 1)
        assert len(server.newest.of(CALL)) == (1 if id == 1 else 2)
        server.newest.reply(server.newest.last(CALL))
    assert [one.json()["id"] for one in (asked[0], asked[2])] == [1, 3]
    assert counted(bench) == (0, 0)
    bench.end()


def test_what_waits_begins_no_more_in_a_session_that_is_lost_with_its_server() -> None:
    server = ScriptedServer("one", on_exit="lost")
    bench = Bench(server, **ONE)
    client = bench.open("one")
    asked = [client.post(client.request(id, CALL)) for id in (1, 2)]
    server.newest.lose()
    assert [reason(one) for one in asked] == ["server_exited"] * 2
    assert server.handshakes == 1
    assert client.post(client.request(3, CALL)).status == 404
    assert counted(bench) == (0, 0)
    bench.end()


def test_a_target_that_fails_keeps_no_other_from_its_answer(expectedFailures: list[Any]) -> None:
    bench = RelayBench().opened()
    bench.ask(1, target=BrokenTarget())
    asked = bench.ask(2)
    bench.server.newest.lose()
    assert asked.reason == "server_exited"
    assert (bench.session.running, bench.session.total.calls) == (0, 0)
    bench.end()


def test_nothing_begins_among_the_relays_of_a_replaced_server_without_sessions() -> None:
    old, new = (ScriptedServer("one", http=True, sessionless=True, timeout=t) for t in (9.0, 8.0))
    bench = Bench(old, drain_grace=3.0, **ONE)
    asked = []
    for revision in ("2025-06-18", "2025-03-26"):
        client = bench.gateway.client("one", MCP_Protocol_Version=revision)
        asked.append(client.post(client.request(len(asked), CALL)))
        old.newest.accept(old.newest.last("notifications/initialized"))
    for link in old.links:
        link.slowClose = True
    assert counted(bench) == (2, 1) and len(old.links) == 2
    bench.reload(new)
    bench.gateway.clock.pump([0.5] * 8)
    for link in old.links:
        link.finishClose()
    bench.gateway.clock.pump([0.5] * 2)
    for link in old.links:
        link.finishClose()
    assert [reason(one) for one in asked] == ["shutting_down"] * 2
    assert sum(len(link.of(CALL)) for link in old.links) == 1
    assert counted(bench) == (0, 0)
    bench.end()
