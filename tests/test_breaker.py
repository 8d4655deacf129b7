"""The circuit breaker: a server that keeps failing is left alone, and nobody else is."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
import relay_support
from hypothesis import given
from hypothesis import strategies as st
from live import Start as LiveStart
from live import faulty
from live import live as live
from raw import Start, hello
from raw import start as start
from stdio_support import CONTEXT, FAULTY, QUICK, Bench, Listener, benches, call
from twisted.internet import reactor
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock

from gateway.guard.limits import Limits
from gateway.links.interfaces import Health, ILink, LinkFailed, Reason
from gateway.links.process import Reaper
from gateway.observe.observer import BoundReached, CircuitClosed, CircuitOpened
from gateway.servers.breaker import Attempt, Breaker
from gateway.servers.stdio import StdioServer
from gateway.settings import StdioSettings

LIMITS = Limits()


# The breaker alone.


def failing(breaker: Breaker, times: int, now: float = 0.0) -> list[bool]:
    """So many attempts at once that fail."""
    told = []
    for _ in range(times):
        attempt = breaker.begin(now)
        assert attempt is not None
        told.append(breaker.failed(attempt, now))
    return told


def worked(breaker: Breaker, now: float) -> Attempt:
    attempt = breaker.begin(now)
    assert attempt is not None
    breaker.succeeded(attempt, now)
    return attempt


@pytest.mark.acceptance(48)
def test_acceptance_48_theFifthFailureOpensItAndOneProbeClosesIt() -> None:
    breaker = Breaker(LIMITS)
    assert failing(breaker, 5) == [False] * 4 + [True]
    assert breaker.isOpen
    assert breaker.wait(0.0) == 10.0
    assert breaker.begin(9.9) is None
    probe = breaker.begin(10.0)
    assert probe is not None and probe.probe
    # One at a time.
    assert breaker.begin(10.0) is None
    assert breaker.wait(10.0) == LIMITS.retry_after
    assert breaker.succeeded(probe, 11.0)
    assert not breaker.isOpen
    assert breaker.wait(11.0) == 0.0
    assert failing(breaker, 4, 12.0) == [False] * 4


def test_onlyFailuresWithinTheWindowCount() -> None:
    breaker = Breaker(Limits(circuit_window=60.0))
    for n in range(20):
        assert failing(breaker, 1, n * 15.0) == [False]
    assert failing(breaker, 1, 19 * 15.0 + 1) == [True]


def test_aGoodLinkBetweenThemClearsThem() -> None:
    breaker = Breaker(LIMITS)
    failing(breaker, 4)
    worked(breaker, 1.0)
    # Whether it is good shows only when it has lived for a while.
    assert failing(breaker, 1, 7.0) == [False]
    assert failing(breaker, 4, 8.0) == [False] * 3 + [True]


def test_aLinkThatDiesYoungIsAFailure() -> None:
    breaker = Breaker(Limits(circuit_young=5.0))
    for n in range(5):
        attempt = worked(breaker, n * 6.0)
        assert breaker.died(attempt, n * 6.0 + 4.9) == (n == 4)
    assert breaker.isOpen
    breaker = Breaker(Limits(circuit_young=5.0))
    for n in range(50):
        attempt = worked(breaker, float(n))
        assert not breaker.died(attempt, n + 5.0)


def test_theCoolDownGrowsAndIsBounded() -> None:
    breaker = Breaker(Limits(circuit_first=10.0, circuit_last=50.0))
    failing(breaker, 5)
    now = 0.0
    for expected in (10.0, 20.0, 40.0, 50.0, 50.0):
        assert breaker.wait(now) == expected
        now += expected
        probe = breaker.begin(now)
        assert probe is not None
        assert breaker.failed(probe, now)
    # A probe whose link dies young was none that worked.
    now += 50.0
    probe = breaker.begin(now)
    assert probe is not None and breaker.succeeded(probe, now)
    assert breaker.died(probe, now + 1.0)
    assert breaker.wait(now + 1.0) == 50.0
    now += 51.0
    worked(breaker, now)
    # It opens with the first again once it stayed closed for the window.
    now += LIMITS.circuit_window
    failing(breaker, 5, now)
    assert breaker.wait(now) == 10.0


def test_aProbeThatIsGivenUpIsFollowedByAnother() -> None:
    breaker = Breaker(LIMITS)
    failing(breaker, 5)
    probe = breaker.begin(10.0)
    assert probe is not None
    breaker.abandoned(probe)
    assert breaker.isOpen
    again = breaker.begin(10.0)
    assert again is not None and again.probe


def test_whatBeganBeforeItOpenedCountsOnlyIfItWorks() -> None:
    breaker = Breaker(LIMITS)
    early = [breaker.begin(0.0) for _ in range(3)]
    failing(breaker, 5)
    assert early[0] is not None and early[1] is not None and early[2] is not None
    assert not breaker.failed(early[0], 1.0)
    assert breaker.wait(1.0) == 9.0
    assert breaker.succeeded(early[1], 2.0)
    assert not breaker.isOpen
    # A probe that was on its way decides nothing any more.
    breaker = Breaker(LIMITS)
    late = breaker.begin(0.0)
    failing(breaker, 5)
    probe = breaker.begin(10.0)
    assert probe is not None and late is not None
    assert breaker.succeeded(late, 11.0)
    assert not breaker.failed(probe, 12.0)
    assert not breaker.isOpen


_STEPS = st.lists(
    st.tuples(
        st.sampled_from(["begin", "succeed", "fail", "abandon", "die"]),
        st.integers(0, 5),
        st.floats(0.0, 40.0),
    ),
    max_size=100,
)


@given(_STEPS)
def test_itNeverStaysOpenWithoutAWayOut(steps: list[tuple[str, int, float]]) -> None:
    breaker = Breaker(LIMITS)
    now = 0.0
    running: list[Attempt] = []
    made: list[Attempt] = []
    for what, which, seconds in steps:
        now += seconds
        if what == "begin":
            attempt = breaker.begin(now)
            if attempt is not None:
                running.append(attempt)
            else:
                assert breaker.isOpen
                assert 0.0 < breaker.wait(now) <= LIMITS.circuit_last
        elif what == "die" and made:
            breaker.died(made.pop(which % len(made)), now)
        elif what != "die" and running:
            attempt = running.pop(which % len(running))
            if what == "succeed":
                breaker.succeeded(attempt, now)
                made.append(attempt)
                assert not breaker.isOpen
            elif what == "fail":
                breaker.failed(attempt, now)
            else:
                breaker.abandoned(attempt)
        assert sum(attempt.probe for attempt in running) <= 1 or not breaker.isOpen
        assert len(breaker._failures) < LIMITS.circuit_failures
    for attempt in running:
        breaker.abandoned(attempt)
    assert breaker.begin(now + LIMITS.circuit_last) is not None


# In front of children.


def breakable(folder: Path) -> tuple[tuple[str, ...], Path, Callable[[], int]]:
    """
    A server that exits at once while a file is there: its arguments, the file, and how many
    times it was started.
    """
    broken, starts, script = folder / "broken", folder / "starts", folder / "server.py"
    starts.write_text("")
    script.write_text(
        "import os, runpy, sys\n"
        f"open({str(starts)!r}, 'a').write('x')\n"
        f"if os.path.exists({str(broken)!r}): sys.exit(3)\n"
        "sys.argv = ['x']\n"
        f"runpy.run_path({FAULTY!r}, run_name='__main__')\n"
    )
    return (str(script),), broken, lambda: len(starts.read_text())


@pytest_twisted.async_yield_fixture
async def bench() -> Any:
    async for make in benches():
        yield make


async def failure(one: Bench) -> LinkFailed:
    try:
        await one.link()
    except LinkFailed as failed:
        return failed
    raise AssertionError("it did not fail")


@pytest.mark.acceptance(48)
@pytest_twisted.ensureDeferred
async def test_acceptance_48_fiveFailuresOpenTheCircuit(bench: Any, tmp_path: Path) -> None:
    clock = Clock()
    args, broken, started = breakable(tmp_path)
    broken.write_text("yes")
    one = bench(args=args, clock=clock)
    other = bench(clock=clock)
    for n in range(5):
        failed = await failure(one)
        assert failed.reason is Reason.SERVER_EXITED
        assert failed.retryAfter == (10.0 if n == 4 else 0.0)
        clock.advance(1.0)
    assert one.observed.of(CircuitOpened) == [CircuitOpened("faulty", 10.0)]
    bounds = [event.limit for event in one.observed.of(BoundReached)]
    assert bounds.count("circuit_failures") == 1
    assert one.server.health() is Health.DOWN
    assert started() == 5
    for _ in range(20):
        failed = await failure(one)
        assert failed.reason is Reason.UPSTREAM_UNREACHABLE
        assert failed.retryAfter == 9.0
    assert started() == 5
    # Nobody else's circuit.
    link, _ = await other.link()
    await link.close()
    # The probe fails: longer.
    clock.advance(9.0)
    assert (await failure(one)).retryAfter == 20.0
    assert started() == 6
    assert (await failure(one)).reason is Reason.UPSTREAM_UNREACHABLE
    # The next one works, while others are refused.
    broken.unlink()
    clock.advance(20.0)
    probing = Deferred.fromCoroutine(one.link())
    assert (await failure(one)).retryAfter == LIMITS.retry_after
    link, _ = await probing
    assert one.observed.of(CircuitClosed) == [CircuitClosed("faulty")]
    assert one.server.health() is Health.UP
    await link.close()
    link, _ = await one.link()
    await link.close()
    assert started() == 8


@pytest.mark.acceptance(48)
@pytest.mark.parametrize("kind", ["missing", "forbidden", "no directory", "nonsense", "silent"])
@pytest_twisted.ensureDeferred
async def test_acceptance_48_whateverTheFailureIsItCounts(
    bench: Any, tmp_path: Path, kind: str
) -> None:
    clock = Clock()
    plain = tmp_path / "plain"
    plain.write_text("#!/bin/sh\n")
    flags = {"nonsense": ("--handshake", "nonsense"), "silent": ("--handshake", "silent")}
    options: dict[str, Any] = {
        "missing": {"command": "/nowhere/at/all"},
        "forbidden": {"command": str(plain)},
        "no directory": {"cwd": "/nowhere/at/all"},
    }.get(kind, {})
    one = bench(*flags.get(kind, ()), clock=clock, handshake_timeout=10.0, **options)
    for n in range(5):
        waiting = Deferred.fromCoroutine(failure(one))
        if kind == "silent":
            clock.advance(10.0)
        failed = await waiting
        assert failed.reason in (
            Reason.UPSTREAM_UNREACHABLE,
            Reason.SERVER_EXITED,
            Reason.TIMEOUT,
        )
        assert len(one.observed.of(CircuitOpened)) == (n == 4)
    assert (await failure(one)).retryAfter > 0


@pytest.mark.acceptance(48)
@pytest_twisted.ensureDeferred
async def test_acceptance_48_aServersOwnErrorLocksNobodyOut(bench: Any) -> None:
    one = bench("--handshake", "error")
    for _ in range(7):
        failed = await failure(one)
        assert failed.answer is not None
        assert failed.retryAfter == 0.0
    assert one.observed.of(CircuitOpened) == []


@pytest_twisted.ensureDeferred
async def test_whatIsGivenUpCountsForNothing(bench: Any) -> None:
    one = bench("--handshake", "silent")
    for _ in range(7):
        linking = Deferred.fromCoroutine(one.link())
        linking.cancel()
        with pytest.raises(CancelledError):
            await linking
    assert one.observed.of(CircuitOpened) == []


@pytest_twisted.ensureDeferred
async def test_aChildThatDiesYoungCountsUnlessACallRan(bench: Any) -> None:
    one = bench()

    async def died(verb: str) -> None:
        link: ILink
        listener: Listener
        link, listener = await one.link()
        link.send(call(1, verb), object(), CONTEXT)
        await listener.loss()
        await link.close()

    for _ in range(6):
        await died("exit")
    assert one.observed.of(CircuitOpened) == []
    for _ in range(5):
        await died("last_words")
    assert len(one.observed.of(CircuitOpened)) == 1
    assert (await failure(one)).retryAfter > 0


@pytest_twisted.ensureDeferred
async def test_aDrainedServerOpensNoCircuit(bench: Any) -> None:
    one = bench("--handshake", "silent")
    waiting = [Deferred.fromCoroutine(one.link()) for _ in range(6)]
    await one.server.drain()
    for linking in waiting:
        with pytest.raises(LinkFailed):
            await linking
    assert one.observed.of(CircuitOpened) == []


@pytest.mark.acceptance(48)
def test_acceptance_48_whereAttemptsFailAtOnceASessionDoesNotWait() -> None:
    it = relay_support.Bench().opened()
    it.server.newest.lose()
    for _ in range(4):
        why = "left alone"
        refused = LinkFailed(Reason.UPSTREAM_UNREACHABLE, why, retryAfter=9.0)
        it.server.failures.append(refused)
        assert it.ask().reason == "upstream_unreachable"
    answered = it.ask()
    assert len(it.server.links) == 2
    it.server.newest.reply(it.server.newest.last("tools/call"))
    assert "result" in answered.json
    it.end()


# At the gateway's front.


@pytest.mark.acceptance(48)
@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("missing", "upstream_unreachable"),
        ("forbidden", "upstream_unreachable"),
        ("exit", "server_exited"),
        ("nonsense", "server_exited"),
        ("silent", "timeout"),
    ],
)
@pytest_twisted.ensureDeferred
async def test_acceptance_48_initializeFailsInTimeWithItsCause(
    start: Start, tmp_path: Path, kind: str, reason: str
) -> None:
    plain = tmp_path / "plain"
    plain.write_text("#!/bin/sh\n")
    command = {"missing": "/nowhere/at/all", "forbidden": str(plain)}.get(kind, sys.executable)
    flags = {"exit": ("--exit", "3")}.get(kind, ("--handshake", kind))
    settings = StdioSettings(
        name="one", command=command, args=(FAULTY, *flags), handshake_timeout=10.0
    )
    stack = await start({}, default="one", limits=QUICK)
    reaper = Reaper(reactor)
    server = StdioServer(settings, QUICK, reactor, stack.clock, stack.observer, reaper)  # type: ignore[arg-type]
    stack.mount("one", server)
    for n in range(6):
        client = await stack.send(b"POST", b"/mcp", hello(id=n))
        if kind == "silent" and n < 5:
            await stack.until(lambda: server._links)
            stack.pass_(10)
        answer = await client.response()
        assert (answer.status, answer.json["id"]) == (200, n)
        assert answer.header(b"mcp-session-id") is None
        error = answer.json["error"]
        assert error["code"] == -32000
        assert str(tmp_path) not in answer.body.decode() and "nowhere" not in answer.body.decode()
        if n < 4:
            assert error["data"] == {"reason": reason}
        elif n == 4:
            assert error["data"] == {"reason": reason, "retryAfterMs": 10_000}
        else:
            assert error["data"] == {"reason": "upstream_unreachable", "retryAfterMs": 10_000}
        # What is left of the child ends.
        await stack.until(lambda: not server._links)
    assert len(stack.shared.registry) == 0
    stack.pass_(11)
    assert server.health() is Health.DOWN
    await server.drain()
    await reaper.close()


@pytest.mark.acceptance(48)
@pytest_twisted.ensureDeferred
async def test_acceptance_48_recoveriesFailAtOnceAndOthersGoOn(
    live: LiveStart, tmp_path: Path
) -> None:
    args, broken, _ = breakable(tmp_path)
    failing = StdioSettings(name="failing", command=sys.executable, args=args)
    gateway = await live(
        failing, faulty(name="well"), respawn_first=0.01, respawn_last=0.01, circuit_first=0.5
    )
    session = await gateway.session("failing")
    well = await gateway.session("well")
    broken.write_text("yes")
    assert (await gateway.call("failing", session, "exit")).reason == "server_exited"
    for _ in range(5):
        assert (await gateway.call("failing", session, "echo")).reason == "server_exited"
    assert len(gateway.recorder.of(CircuitOpened)) == 1
    for _ in range(5):
        refused = await gateway.call("failing", session, "echo")
        assert refused.reason == "upstream_unreachable"
        assert (await gateway.initialize("failing")).reason == "upstream_unreachable"
        answer = await gateway.call("well", well, "echo", x=1)
        assert answer.message["result"]["structuredContent"] == {"x": 1}
    broken.unlink()
    while True:
        answer = await gateway.call("failing", session, "echo", x=2)
        if "result" in answer.message:
            break
        assert answer.reason == "upstream_unreachable"
    assert len(gateway.recorder.of(CircuitClosed)) == 1
