"""What is turned away: calls, sessions, and everything while memory is short."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import attrs
import pytest
import pytest_twisted
from hypothesis import given
from hypothesis import strategies as st
from live import Live
from modern_support import ModernServer, enveloped, fields, known
from raw import AnsweringServer, NamedInHeader, Recorder, Stack, Start, hello, rpc
from raw import start as start
from stdio_support import Observed
from twisted.internet import reactor
from twisted.internet.defer import ensureDeferred
from twisted.internet.task import Clock, deferLater

from gateway.config import ConfigurationError, readConfiguration
from gateway.guard.limits import Limits
from gateway.guard.load import Load, Stage
from gateway.guard.memory import (
    KEPT,
    LOOK,
    REVIEW,
    FreedMemory,
    MemoryWatch,
    limitOfCgroup,
    resident,
    stageOf,
)
from gateway.observe.observer import BoundReached, CallFailed, MemoryPressed, SessionEnded
from gateway.service import GatewayService
from gateway.testing import MemoryGateway, ScriptedServer
from gateway.wire.context import ANONYMOUS

MIB = 1024 * 1024
ALICE, BOB = [(b"X-Who", b"alice")], [(b"X-Who", b"bob")]


async def opened(
    stack: Stack, who: list[tuple[bytes, bytes]], path: bytes = b"/mcp"
) -> list[tuple[bytes, bytes]]:
    return [*who, (b"Mcp-Session-Id", await stack.open(path, headers=who))]


async def begun(stack: Stack, named: list[tuple[bytes, bytes]], id: int, running: int) -> Any:
    client = await stack.send(b"POST", b"/mcp", rpc("tools/call", id), named)
    await stack.until(lambda: stack.shared.load.total.calls == running)
    return client


def reasonIn(answer: Any) -> tuple[str, int]:
    data = answer.json["error"]["data"]
    return data["reason"], data["retryAfterMs"]


@pytest.mark.acceptance(41)
@pytest_twisted.ensureDeferred
async def test_acceptance_41_sessions_of_one_address(start: Start) -> None:
    limits = Limits(max_sessions_per_address=2)
    stack = await start({"one": AnsweringServer("one")}, limits=limits)
    first = await opened(stack, [])
    second = await opened(stack, [])
    for method, path, body in ((b"POST", b"/mcp", hello()), (b"GET", b"/sse", None)):
        full = await stack.ask(method, path, body)
        assert (full.status, full.header(b"retry-after")) == (503, b"5")
    assert stack.observer.bounds == ["max_sessions_per_address"] * 2
    # Those that are there go on, and a freed slot is usable at once.
    assert (await stack.ask(b"POST", b"/mcp", rpc("tools/call", 1), second)).status == 200
    assert (await stack.ask(b"DELETE", b"/mcp", None, first)).status == 204
    await opened(stack, [])


@pytest.mark.acceptance(96)
@pytest_twisted.ensureDeferred
async def test_acceptance_96_who_floods_is_turned_away_and_others_are_not(start: Start) -> None:
    server = AnsweringServer("one")
    stack = await start(
        {"one": server},
        authenticator=NamedInHeader(),
        limits=Limits(max_calls_per_principal=2, max_waiting_per_principal=0),
    )
    flooding, too = await opened(stack, ALICE), await opened(stack, ALICE)
    other = await opened(stack, BOB)
    server.answers = False
    one = await begun(stack, flooding, 1, 1)
    await begun(stack, too, 2, 2)
    for named in (flooding, too):
        full = await stack.ask(b"POST", b"/mcp", rpc("tools/call", 3), named)
        assert (full.status, full.json["id"]) == (200, 3)
        assert reasonIn(full) == ("rate_limited", 5000)
    assert stack.observer.bounds == ["max_calls_per_principal"] * 2
    assert CallFailed("one", "tools/call", "rate_limited") in stack.observer.events
    server.answers = True
    assert "result" in (await stack.ask(b"POST", b"/mcp", rpc("tools/call", 4), other)).json
    # One that ends makes room.
    link = server.links[0]
    link.reply(link.last("tools/call"))
    assert (await one.response()).json["id"] == 1
    assert "result" in (await stack.ask(b"POST", b"/mcp", rpc("tools/call", 5), flooding)).json


@pytest.mark.acceptance(96)
@pytest_twisted.ensureDeferred
async def test_acceptance_96_so_is_who_floods_a_server_without_sessions(start: Start) -> None:
    server = AnsweringServer("one", http=True, sessionless=True)
    stack = await start(
        {"one": server},
        authenticator=NamedInHeader(),
        limits=Limits(max_calls_per_principal=2, max_waiting_per_principal=0),
    )
    load = stack.shared.load
    assert (await stack.ask(b"POST", b"/mcp", rpc("tools/call", 0), ALICE)).status == 200
    server.answers = False
    one = await begun(stack, ALICE, 1, 1)
    two = await begun(stack, ALICE, 2, 2)
    full = await stack.ask(b"POST", b"/mcp", rpc("tools/call", 3), ALICE)
    assert reasonIn(full) == ("rate_limited", 5000)
    assert stack.observer.bounds == ["max_calls_per_principal"]
    # Of each there are as many, whoever else is there.
    his = await begun(stack, BOB, 4, 3)
    await begun(stack, BOB, 5, 4)
    assert len(load) == 2
    link = server.links[0]
    calls = link.of("tools/call")
    link.reply(calls[1])
    assert (await one.response()).json["id"] == 1
    again = await begun(stack, ALICE, 6, 4)
    # Who leaves has not cancelled: the call goes on, and counts.
    again.reset()
    await again.ended
    full = await stack.ask(b"POST", b"/mcp", rpc("tools/call", 7), ALICE)
    assert reasonIn(full) == ("rate_limited", 5000)
    for sent in calls[2:]:
        link.reply(sent)
    assert (await two.response()).json["id"] == 2
    assert (await his.response()).json["id"] == 4
    link.reply(link.of("tools/call")[-1])
    assert (load.total.calls, len(load)) == (0, 0)
    # So it is when all of it ends.
    await begun(stack, ALICE, 8, 1)
    await stack.mounts["one"].http.stop()
    assert (load.total.calls, len(load)) == (0, 0)


# Turns.


def waiting(stack: Stack, principal: str) -> int:
    """How many calls of a principal's wait."""
    (account,) = (
        one for who, one in stack.shared.load._accounts.items() if who.subject == principal
    )
    return 0 if account.queue is None else len(account.queue)


async def flooded(start: Start, waits: int = 2, **options: Any) -> Any:
    """Alice has a call that runs and one more that waits, by herself each in a session."""
    server = AnsweringServer("one", **options)
    limits = Limits(max_calls_per_principal=1, max_waiting_per_principal=waits)
    stack = await start({"one": server}, authenticator=NamedInHeader(), limits=limits)
    named = await opened(stack, ALICE), await opened(stack, ALICE)
    server.answers = False
    one = await begun(stack, named[0], 1, 1)
    two = await begun(stack, named[1], 2, 2)
    assert stack.observer.bounds == ["max_calls_per_principal"]
    return stack, server, named, one, two


@pytest.mark.acceptance(96)
@pytest_twisted.ensureDeferred
async def test_acceptance_96_a_flood_waits_for_its_turn_then_is_turned_away(start: Start) -> None:
    stack, server, named, one, two = await flooded(start)
    three = await begun(stack, named[0], 3, 3)
    full = await stack.ask(b"POST", b"/mcp", rpc("tools/call", 4), named[0])
    assert (full.status, full.json["id"]) == (200, 4)
    assert reasonIn(full) == ("rate_limited", 5000)
    assert stack.observer.bounds[-1] == "max_waiting_per_principal"
    first, second = server.links
    assert len(first.of("tools/call")) == 1 and not second.of("tools/call")
    # Nobody else waits for that.
    server.answers = True
    other = await opened(stack, BOB)
    assert "result" in (await stack.ask(b"POST", b"/mcp", rpc("tools/call", 5), other)).json
    server.answers = False
    # In order, each when the one before has ended.
    for client, link, id in ((one, first, 1), (two, second, 2), (three, first, 3)):
        link.reply(link.of("tools/call")[-1])
        assert (await client.response()).json["id"] == id
    load = stack.shared.load
    assert load.total.calls == 0 and waiting(stack, "alice") == 0
    server.answers = True
    assert "result" in (await stack.ask(b"POST", b"/mcp", rpc("tools/call", 6), named[1])).json


@pytest.mark.acceptance(96)
@pytest_twisted.ensureDeferred
async def test_acceptance_96_who_waits_may_be_cancelled_and_has_its_own_time(start: Start) -> None:
    stack, server, named, one, two = await flooded(start, timeout=10.0)
    told = rpc("notifications/cancelled", requestId=2)
    assert (await stack.ask(b"POST", b"/mcp", told, named[1])).status == 202
    assert (await two.response()).json["error"]["data"]["reason"] == "cancelled"
    assert waiting(stack, "alice") == 0
    stack.pass_(9.0)
    three = await begun(stack, named[1], 3, 2)
    stack.pass_(1.5)
    assert (await one.response()).json["error"]["data"]["reason"] == "timeout"
    # Its turn has come, and so much of its time is left.
    assert len(server.links[1].of("tools/call")) == 1
    stack.pass_(8.0)
    assert not three.unread
    four = await begun(stack, named[0], 4, 2)
    stack.pass_(1.0)
    assert (await three.response()).json["error"]["data"]["reason"] == "timeout"
    server.links[0].reply(server.links[0].last("tools/call"))
    assert (await four.response()).json["id"] == 4
    # What never began is never cancelled at the server.
    assert not [s for s in server.links[1].of("notifications/cancelled") if s.message is told]
    five = await begun(stack, named[0], 5, 1)
    six = await begun(stack, named[1], 6, 2)
    stack.pass_(10.5)
    for client in (five, six):
        assert (await client.response()).json["error"]["data"]["reason"] == "timeout"
    assert stack.shared.load.total.calls == 0


@pytest.mark.acceptance(96)
@pytest_twisted.ensureDeferred
async def test_acceptance_96_who_waits_is_told_when_its_session_ends(start: Start) -> None:
    stack, server, named, one, two = await flooded(start)
    assert (await stack.ask(b"DELETE", b"/mcp", None, named[1])).status == 204
    assert (await two.response()).json["error"]["data"]["reason"] == "cancelled"
    three = await begun(stack, named[0], 3, 2)
    # The child of the session dies: what ran has failed, what waited runs on the next.
    server.links[0].lose()
    assert (await one.response()).json["error"]["data"]["reason"] == "server_exited"
    await stack.until(lambda: server.links[-1].of("tools/call"))
    server.links[-1].reply(server.links[-1].last("tools/call"))
    # The stream was told what a recovered session tells.
    await three.head()
    while (await three.message()).get("id") != 3:
        pass
    assert stack.shared.load.total.calls == 0


@pytest.mark.acceptance(96)
@pytest_twisted.ensureDeferred
async def test_acceptance_96_modern_calls_wait_too(start: Start) -> None:
    server = ModernServer("one", timeout=10.0)
    limits = Limits(max_calls_per_principal=1, max_waiting_per_principal=2)
    stack = await start({"one": known(server)}, limits=limits)
    total = stack.shared.load.total
    clients = []
    for id in ("a", "b", "c"):
        body = enveloped("tools/call", id, name="x")
        clients.append(await stack.send(b"POST", b"/mcp", body, fields(body)))
        await stack.until(lambda: total.calls == len(clients))
    full = await stack.ask(b"POST", b"/mcp", body, fields(body))
    assert full.json["error"]["data"]["reason"] == "rate_limited"
    assert (full.status, full.header(b"retry-after")) == (503, b"5")
    bounds = ["max_calls_per_principal", "max_waiting_per_principal"]
    assert stack.observer.bounds == [bounds[0], bounds[0], bounds[1]]
    # Who leaves, waits no more.
    clients[1].reset()
    await stack.until(lambda: total.calls == 2)
    assert CallFailed("one", "tools/call", "cancelled") in stack.observer.events
    assert len(server.newest.of("tools/call")) == 1
    server.newest.reply(server.newest.last("tools/call"))
    assert (await clients[0].response()).json["id"] == "a"
    await stack.until(lambda: len(server.newest.of("tools/call")) == 2)
    late = await stack.send(b"POST", b"/mcp", body, fields(body))
    await stack.until(lambda: total.calls == 2)
    server.newest.reply(server.newest.last("tools/call"))
    assert (await clients[2].response()).json["id"] == "c"
    await stack.until(lambda: len(server.newest.of("tools/call")) == 3)
    more = await stack.send(b"POST", b"/mcp", body, fields(body))
    await stack.until(lambda: total.calls == 2)
    extra = await stack.send(b"POST", b"/mcp", body, fields(body))
    await stack.until(lambda: total.calls == 3)
    # The one that runs has its time, and so has who still waits then.
    stack.pass_(10.0)
    for client in (late, extra):
        assert (await client.response()).json["error"]["data"]["reason"] == "timeout"
    await stack.until(lambda: len(server.newest.of("tools/call")) == 4)
    server.newest.reply(server.newest.last("tools/call"))
    assert (await more.response()).json["id"] == "c"
    assert (total.calls, len(stack.shared.load)) == (0, 0)
    # At the end who waits is told.
    first = await stack.send(b"POST", b"/mcp", body, fields(body))
    await stack.until(lambda: total.calls == 1)
    last = await stack.send(b"POST", b"/mcp", body, fields(body))
    await stack.until(lambda: total.calls == 2)
    assert stack.mounts["one"].http.running()
    await stack.mounts["one"].http.stop()
    for client in (first, last):
        assert (await client.response()).json["error"]["data"]["reason"] == "shutting_down"
    assert (total.calls, len(stack.shared.load)) == (0, 0)


@pytest.mark.acceptance(96)
@pytest_twisted.ensureDeferred
async def test_acceptance_96_so_do_those_of_servers_without_sessions(start: Start) -> None:
    server = AnsweringServer("one", http=True, sessionless=True)
    limits = Limits(max_calls_per_principal=1, max_waiting_per_principal=1)
    stack = await start({"one": server}, authenticator=NamedInHeader(), limits=limits)
    assert (await stack.ask(b"POST", b"/mcp", rpc("tools/call", 0), ALICE)).status == 200
    server.answers = False
    one = await begun(stack, ALICE, 1, 1)
    two = await begun(stack, ALICE, 2, 2)
    full = await stack.ask(b"POST", b"/mcp", rpc("tools/call", 3), ALICE)
    assert reasonIn(full) == ("rate_limited", 5000)
    his = await begun(stack, BOB, 4, 3)
    link = server.links[0]
    calls = link.of("tools/call")
    assert len(calls) == 3
    link.reply(calls[1])
    assert (await one.response()).json["id"] == 1
    link.reply(link.of("tools/call")[3])
    assert (await two.response()).json["id"] == 2
    link.reply(calls[2])
    assert (await his.response()).json["id"] == 4
    assert (stack.shared.load.total.calls, len(stack.shared.load)) == (0, 0)


@pytest.mark.acceptance(92)
@pytest_twisted.ensureDeferred
async def test_acceptance_92_too_many_calls_of_all(start: Start) -> None:
    server = AnsweringServer("one")
    stack = await start({"one": server}, limits=Limits(max_calls_total=1))
    named = await opened(stack, [])
    stream, endpoint = await stack.openSSE()
    asked = await stack.ask(b"POST", endpoint, hello())
    assert asked.status == 202 and "result" in await stream.message()
    server.answers = False
    running = await begun(stack, named, 1, 1)
    full = await stack.ask(b"POST", b"/mcp", rpc("tools/call", 2), named)
    assert reasonIn(full) == ("overloaded", 5000)
    assert (await stack.ask(b"POST", endpoint, rpc("tools/call", 3))).status == 202
    refused = await stream.message()
    assert (refused["id"], refused["error"]["data"]["reason"]) == (3, "overloaded")
    assert stack.observer.bounds == ["max_calls_total"] * 2
    assert (await stack.ask(b"GET", b"/healthz")).status == 200
    link = server.links[0]
    link.reply(link.last("tools/call"))
    await running.response()
    assert stack.shared.load.total.calls == 0


@pytest.mark.acceptance(92, 96)
@pytest.mark.parametrize("bound", ["max_calls_total", "max_calls_per_principal"])
@pytest_twisted.ensureDeferred
async def test_acceptance_92_modern_calls_count_too(start: Start, bound: str) -> None:
    server = ModernServer("one")
    stack = await start(
        {"one": known(server)}, limits=Limits(**{bound: 1}, max_waiting_per_principal=0)
    )
    running, body = stack.shared.load.total, enveloped("tools/call", "a", name="x")
    listen = enveloped("subscriptions/listen", "l", notifications={})
    listener = await stack.send(b"POST", b"/mcp", listen, fields(listen))
    client = await stack.send(b"POST", b"/mcp", body, fields(body))
    await stack.until(lambda: running.calls == 1)
    full = await stack.ask(b"POST", b"/mcp", body, fields(body))
    reason = "overloaded" if bound == "max_calls_total" else "rate_limited"
    assert (full.status, full.json["id"]) == (503, "a")
    assert full.json["error"]["data"]["reason"] == reason
    assert full.header(b"retry-after") == b"5"
    assert stack.observer.bounds == [bound]
    assert len(stack.shared.load) == 1
    await stack.until(lambda: server.links and server.newest.of("tools/call"))
    server.newest.reply(server.newest.last("tools/call"))
    assert (await client.response()).status == 200
    assert running.calls == 0
    # A client that leaves makes room, too.
    client = await stack.send(b"POST", b"/mcp", body, fields(body))
    await stack.until(lambda: running.calls == 1)
    client.reset()
    listener.reset()
    await stack.until(lambda: running.calls == 0)
    assert len(stack.shared.load) == 0


# Memory.

MIB = 1024 * 1024


@given(st.lists(st.integers(0, 1100), min_size=1))
def test_a_stage_begins_at_its_part_and_ends_below_it(course: list[int]) -> None:
    stage = Stage.CALM
    for used in course:
        before, stage = stage, stageOf(used, 1000, stage)
        least = 3 if used >= 950 else 2 if used >= 920 else 1 if used >= 850 else 0
        most = 3 if used >= 920 else 2 if used >= 890 else 1 if used >= 820 else 0
        assert least <= stage <= most
        assert stage == least or stage <= before


def test_it_does_not_come_and_go() -> None:
    stages, stage = [], 0
    for used in (840, 851, 849, 830, 819, 921, 900, 889, 951, 930, 919, 100):
        stage = stageOf(used, 1000, stage)
        stages.append(stage)
    assert stages == [0, 1, 1, 1, 0, 2, 2, 1, 3, 3, 2, 0]


def test_what_a_burst_leaves_free_goes_back_to_the_system() -> None:
    clock, used, live, trims = Clock(), [100 * MIB], [100 * MIB], [0]

    def trim() -> None:
        trims[0] += 1
        used[0] = live[0]

    freed = FreedMemory(clock, lambda: used[0], trim)
    freed.start()
    used[0] = 100 * MIB + KEPT - 1
    clock.pump([REVIEW] * 9)
    assert trims == [0], "so much may be kept for the next large body"
    used[0] = 500 * MIB
    clock.advance(REVIEW)
    assert (trims, used) == ([1], [100 * MIB])
    # What is in use cannot be given back, and is looked at ever more seldom,
    live[0] = used[0] = 400 * MIB
    clock.pump([1.0] * 3600)
    assert 1 < trims[0] < 20
    # but when it is free it is.
    live[0] = 120 * MIB
    clock.pump([1.0] * 600)
    assert used == [120 * MIB]
    freed.stop()
    assert not clock.getDelayedCalls()


@pytest.mark.acceptance(95)
@pytest_twisted.ensureDeferred
async def test_acceptance_95_memory_in_stages_and_back(start: Start) -> None:
    server = AnsweringServer("one")
    stack = await start({"one": server})
    shared, registry = stack.shared, stack.shared.registry
    used, trimmed, collected = [0], [], []
    watch = MemoryWatch(
        stack.clock,
        stack.observer,
        shared.load,
        1000,
        registry.endIdle,
        lambda: used[0],
        lambda: trimmed.append(1),
        lambda: collected.append(1),
    )
    watch.start()
    busy = await opened(stack, [])
    server.answers = False
    running = await begun(stack, busy, 1, 1)
    server.answers = True
    idle = [await opened(stack, []) for _ in range(20)]

    used[0] = 860
    stack.pass_(LOOK)
    full = await stack.ask(b"POST", b"/mcp", hello())
    assert (full.status, full.header(b"retry-after")) == (503, b"5")
    assert "result" in (await stack.ask(b"POST", b"/mcp", rpc("ping", 2), idle[0])).json
    assert len(registry) == 21 and trimmed and len(collected) == 1

    used[0] = 930
    stack.pass_(LOOK)
    assert len(registry) == 5 and len(collected) == 1, "the longest unused, some at once"
    gone = await stack.ask(b"POST", b"/mcp", rpc("ping", 3), idle[1])
    assert (gone.status, gone.json["error"]["code"]) == (404, -32001)
    assert "result" in (await stack.ask(b"POST", b"/mcp", rpc("ping", 4), idle[0])).json
    assert {event.reason for event in stack.observer.of(SessionEnded)} == {"memory"}

    used[0] = 960
    stack.pass_(LOOK)
    assert len(registry) == 1, "what runs goes on"
    full = await stack.ask(b"POST", b"/mcp", rpc("tools/call", 5), busy)
    assert reasonIn(full) == ("overloaded", 5000)
    assert (await stack.ask(b"GET", b"/healthz")).status == 200
    server.links[0].reply(server.links[0].last("tools/call"))
    assert (await running.response()).json["id"] == 1

    used[0] = 100
    stack.pass_(LOOK)
    assert shared.load.stage == Stage.CALM
    await opened(stack, [])
    stages = [event.stage for event in stack.observer.of(MemoryPressed)]
    assert stages == [1, 2, 3, 0]
    assert set(stack.observer.bounds) == {"memory_limit"}
    watch.stop()


@pytest.mark.acceptance(95)
@pytest.mark.parametrize("replaced", [False, True])
def test_acceptance_95_idle_sessions_of_modern_callers_end_too(replaced: bool) -> None:
    server = ScriptedServer("one")
    gateway = MemoryGateway((server,), options={"observer": (observed := Observed())})
    client = gateway.client("one")
    answers = []
    for id in (1, 2):
        # Where the server may ask, each call has a session to itself.
        asks = {"io.modelcontextprotocol/clientCapabilities": {"elicitation": {"form": {}}}}
        body = enveloped("tools/call", id, meta=asks, name="x")
        pairs = {name.decode(): value.decode() for name, value in fields(body)}
        answers.append(client.send("POST", body, **pairs))
    idle, busy = server.open
    idle.reply(idle.last("tools/call"), b'{"content":[]}')
    gateway.advance(0)
    assert answers[0].json()["id"] == 1
    if replaced:
        gateway.reload((ScriptedServer("one", timeout=9.0),))
    settings = gateway.service.configuration.gateway
    pressed = attrs.evolve(settings, memory_limit=1)
    gateway.service.reload(attrs.evolve(gateway.service.configuration, gateway=pressed))
    assert server.open == [busy]
    assert BoundReached("memory_limit", "one") in observed.events
    busy.reply(busy.last("tools/call"), b'{"content":[]}')
    assert answers[1].json()["id"] == 2
    gateway.advance(60)
    assert gateway.stop().called and not server.open


def test_a_look_now_and_then_and_none_without_a_limit() -> None:
    clock, observed, looks = Clock(), Observed(), []

    def used() -> int:
        looks.append(clock.seconds())
        return 0

    load = Load(Limits(), observed)
    for limit, expected in ((0, []), (1000, [2 * LOOK, 3 * LOOK, 4 * LOOK])):
        watch = MemoryWatch(clock, observed, load, limit, lambda part: 0, used, lambda: None)
        watch.start()
        clock.pump([LOOK / 2] * 4)
        watch.stop()
        assert looks == expected
    assert not clock.getDelayedCalls()


def test_what_the_system_says(tmp_path: Path) -> None:
    assert MIB < resident() < 2**40
    assert resident(tmp_path / "none") == 0
    deep = tmp_path / "a" / "b"
    deep.mkdir(parents=True)
    own = tmp_path / "cgroup"
    own.write_text("4:memory:/x\n0::/a/b\n")
    assert limitOfCgroup(tmp_path, own) == 0
    (deep / "memory.max").write_text("max\n")
    (tmp_path / "a" / "memory.max").write_text("1048576\n")
    assert limitOfCgroup(tmp_path, own) == MIB
    (deep / "memory.max").write_text("4096\n")
    assert limitOfCgroup(tmp_path, own) == 4096
    assert limitOfCgroup(tmp_path, tmp_path / "none") == 0


@pytest.mark.parametrize(("value", "taken"), [(0, True), (64, True), (-1, False), (0.5, False)])
def test_that_nobody_waits_may_be_written(value: float, taken: bool) -> None:
    limits = {"max_waiting_per_principal": value}
    document = {"mcpServers": {"a": {"command": "x"}}, "gateway": {"limits": limits}}
    if taken:
        assert readConfiguration(document).gateway.limits.max_waiting_per_principal == value
        return
    with pytest.raises(ConfigurationError, match=r"max_waiting_per_principal.*not below 0"):
        readConfiguration(document)


def test_how_it_is_written() -> None:
    def read(limit: Any) -> Any:
        document = {"mcpServers": {"a": {"command": "x"}}, "gateway": {"memory_limit": limit}}
        return readConfiguration(document).gateway.memory_limit

    assert (read(512 * MIB), read("off")) == (512 * MIB, 0)
    for wrong in (0, -1, 1.5, "512M"):
        with pytest.raises(ConfigurationError, match="memory_limit"):
            read(wrong)


# Accounts.


def test_no_account_is_kept_when_nothing_is_in_it() -> None:
    load = Load(Limits(), Observed())
    account = load.sessionOpened(ANONYMOUS, "127.0.0.1")
    load.sessionOpened(ANONYMOUS, "")
    load.forget(ANONYMOUS)
    assert len(load) == 2 and load.accountOf(ANONYMOUS) is account
    load.sessionClosed(account, "127.0.0.1")
    load.sessionClosed(account, "")
    load.forget(ANONYMOUS)
    assert len(load) == 0


@pytest.mark.acceptance(95)
@pytest_twisted.ensureDeferred
async def test_acceptance_95_a_gateway_over_its_limit() -> None:
    """The whole of it: what this process has in memory is all that it may have."""
    document = {
        "mcpServers": {"a": {"command": "/nowhere/at/all"}},
        "gateway": {"listen": ["tcp:0:interface=127.0.0.1"], "memory_limit": resident()},
    }
    service = GatewayService(readConfiguration(document), reactor)
    service.startService()
    gateway = Live(service, Recorder(), f"http://127.0.0.1:{service.ports[0].getHost().port}")
    try:
        full = await gateway.initialize("a")
        assert (full.status, full.headers["Retry-After"]) == (503, ["5"])
        assert full.message["error"]["code"] == -32000
        for path in ("/healthz", "/readyz"):
            assert (await gateway.request("GET", path)).status == 200
    finally:
        await gateway.stop()


@pytest.mark.acceptance(95, 108)
@pytest_twisted.ensureDeferred
async def test_acceptance_95_memory_is_watched_until_the_end() -> None:
    """Calls that still run while it drains have answers, too, and clients that are gone."""
    from live import faulty, startLive

    gateway = await startLive(faulty(), drain_grace=2.0)
    service, limit = gateway.service, resident() + 64 * MIB
    configuration = service.configuration
    settings = attrs.evolve(configuration.gateway, memory_limit=limit)
    await service.reload(attrs.evolve(configuration, gateway=settings))
    named = await gateway.session("faulty")
    running = ensureDeferred(gateway.call("faulty", named, "sleep", seconds=1.0))
    await gateway.call("faulty", named, "echo")
    stopping = service.stopService()
    much = bytearray(128 * MIB)
    pressed: list[MemoryPressed] = []
    while not (pressed or stopping.called):
        await deferLater(reactor, 0.05)  # type: ignore[arg-type]
        pressed = gateway.recorder.of(MemoryPressed)
    assert pressed and pressed[-1].stage == Stage.REFUSE_CALLS, len(much)
    del much
    assert "result" in (await running).message
    await stopping
