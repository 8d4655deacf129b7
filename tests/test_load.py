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
    LOOK,
    MemoryWatch,
    limitOfCgroup,
    resident,
    stageOf,
)
from gateway.observe.observer import CallFailed, MemoryPressed, SessionEnded
from gateway.service import GatewayService
from gateway.wire.context import ANONYMOUS

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
        limits=Limits(max_calls_per_principal=2),
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
    stack = await start({"one": known(server)}, limits=Limits(**{bound: 1}))
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
