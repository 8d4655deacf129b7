"""Children that are started ahead, and shared ones that end when nobody uses them."""

from __future__ import annotations

import errno
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from modern_support import ModernServer
from stdio_support import FAULTY, Bench, alive, benches, call
from test_breaker import breakable, failure
from test_modern_relay import Bench as ModernBench
from test_shared_server import Bench as SharedBench
from twisted.internet import reactor
from twisted.internet.task import deferLater

from gateway.config import ConfigurationError, readConfiguration
from gateway.guard.limits import Limits
from gateway.links.interfaces import Health, LinkFailed, Reason
from gateway.observe.observer import CircuitOpened, LinkLost
from gateway.testing.scripted import ScriptedServer

QUICK = Limits(eof_wait=0.2, term_wait=0.2, respawn_first=0.01, respawn_last=0.02)


@pytest_twisted.async_yield_fixture
async def bench() -> Any:
    async for make in benches():
        yield make


async def until(true: Any) -> None:
    for _ in range(2000):
        if true():
            return
        await deferLater(reactor, 0.005)  # type: ignore[arg-type]
    raise AssertionError("it never came about")


def ready(one: Bench) -> int:
    pool = one.server._warm
    assert pool is not None
    return len(pool)


def pids(one: Bench) -> list[int]:
    return [link._child._pid for link in one.server._links]


@pytest_twisted.ensureDeferred
async def test_a_session_takes_a_child_that_runs_and_another_is_started(
    bench: Any, tmp_path: Path
) -> None:
    args, _, started = breakable(tmp_path)
    one = bench(limits=QUICK, args=args, warm=2)
    await until(lambda: ready(one) == 2 and started() == 2)
    waiting = pids(one)
    assert one.server.health() is Health.UNKNOWN, "nothing was asked of it yet"
    link, listener = await one.link()
    link.send(call(1, "self"), object(), None)
    assert (await listener.structured(1))["pid"] in waiting
    await until(lambda: ready(one) == 2 and started() == 3)
    await link.close()
    await until(lambda: len(pids(one)) == 2)


@pytest_twisted.ensureDeferred
async def test_one_that_dies_unused_is_replaced_and_harms_nobody(
    bench: Any, tmp_path: Path
) -> None:
    args, _, started = breakable(tmp_path)
    one = bench(limits=QUICK, args=args, warm=1)
    await until(lambda: started() == 1)
    (pid,) = pids(one)
    os.kill(pid, signal.SIGKILL)
    await until(lambda: started() == 2 and ready(one) == 1)
    assert not alive(pid) and pids(one) != [pid]
    # Killed between two turns, it is taken before anybody can know; then one is started for it.
    os.kill(pids(one)[0], signal.SIGKILL)
    link, _ = await one.link()
    await link.close()


@pytest.mark.acceptance(48)
@pytest_twisted.ensureDeferred
async def test_those_that_die_young_open_the_circuit(bench: Any, tmp_path: Path) -> None:
    args, broken, started = breakable(tmp_path)
    broken.write_text("yes")
    one = bench(limits=QUICK, args=args, warm=1)
    await until(lambda: one.observed.of(CircuitOpened))
    assert started() == QUICK.circuit_failures and ready(one) == 0
    assert one.server.health() is Health.DOWN
    assert (await failure(one)).reason is Reason.UPSTREAM_UNREACHABLE
    await deferLater(reactor, 0.1)  # type: ignore[arg-type]
    assert started() == QUICK.circuit_failures, "none is started while it is open"


@pytest_twisted.ensureDeferred
async def test_what_it_says_before_its_handshake_is_no_answer(bench: Any, tmp_path: Path) -> None:
    script, told = tmp_path / "server.py", tmp_path / "told"
    script.write_text(
        "import runpy, sys\n"
        'print(\'{"jsonrpc":"2.0","id":0,"result":{}}\', flush=True)\n'
        "print('noise', flush=True)\n"
        f"open({str(told)!r}, 'w').write('x')\n"
        f"sys.argv = ['x']\nrunpy.run_path({FAULTY!r}, run_name='__main__')\n"
    )
    one = bench(limits=QUICK, args=(str(script),), warm=1)
    await until(told.exists)
    await deferLater(reactor, 0.05)  # type: ignore[arg-type]
    link, listener = await one.link()
    link.send(call(1, "echo", a=1), object(), None)
    assert await listener.structured(1) == {"a": 1}
    await link.close()


@pytest_twisted.ensureDeferred
async def test_draining_ends_those_that_wait(bench: Any) -> None:
    one = bench(limits=QUICK, warm=2)
    await until(lambda: ready(one) == 2)
    waiting = pids(one)
    await one.server.drain()
    assert not any(alive(pid) for pid in waiting)
    await until(lambda: not one.server._links)
    with pytest.raises(LinkFailed):
        await one.link()


def test_how_many_are_written() -> None:
    def read(**keys: Any) -> Any:
        document = {"mcpServers": {"a": {"command": "x", **keys}}}
        return readConfiguration(document).servers[0]

    assert (read(warm=2).warm, read(warm=0).warm, read().warm) == (2, 0, 0)
    assert (read(idle_stop=60).idle_stop, read().idle_stop) == (60.0, None)
    for wrong in (-1, 65, 1.5, "x"):
        with pytest.raises(ConfigurationError, match="warm"):
            read(warm=wrong)
    with pytest.raises(ConfigurationError, match="warm"):
        readConfiguration({"mcpServers": {"a": {"url": "http://x/mcp", "warm": 2}}})


# No process to be had.


class NoProcess:
    """A reactor that has none to spare, for as long as `error` is set."""

    def __init__(self) -> None:
        self.error = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(reactor, name)

    def spawnProcess(self, *args: Any, **options: Any) -> Any:
        if self.error:
            raise OSError(self.error, os.strerror(self.error))
        return reactor.spawnProcess(*args, **options)  # type: ignore[attr-defined]


@pytest.mark.acceptance(60)
@pytest.mark.parametrize("error", [errno.EAGAIN, errno.ENOMEM, errno.EMFILE])
@pytest_twisted.ensureDeferred
async def test_acceptance_60_a_machine_without_a_process_to_spare_is_no_fault_of_the_servers(
    bench: Any, error: int
) -> None:
    spawner = NoProcess()
    one = bench(spawner=spawner)
    spawner.error = error
    for _ in range(2 * QUICK.circuit_failures):
        failed = await failure(one)
        assert (failed.reason, failed.retryAfter) == (Reason.OVERLOADED, 0.0)
    assert not one.observed.of(CircuitOpened)
    spawner.error = 0
    link, _ = await one.link()
    await link.close()


# Nobody uses it.


def test_a_shared_child_that_nobody_uses_ends() -> None:
    bench = SharedBench(ScriptedServer(idle_stop=60.0))
    one, other = bench.join(), bench.join()
    bench.clock.advance(1000.0)
    assert bench.link.alive, "a session is use"
    assert one.link is not None and other.link is not None
    one.link.close()
    other.link.close()
    bench.clock.advance(59.0)
    again = bench.join()
    assert bench.inner.handshakes == 1 and again.link is not None
    bench.clock.advance(59.0)
    again.link.close()
    bench.clock.advance(59.0)
    assert bench.link.alive
    bench.clock.advance(1.0)
    assert bench.link.closed and not bench.clock.getDelayedCalls()
    third = bench.join()
    assert bench.inner.handshakes == 2 and third.link is not None
    bench.server.drain()
    assert not bench.clock.getDelayedCalls()


def test_a_shared_child_that_nobody_came_for_ends() -> None:
    bench = SharedBench(ScriptedServer(idle_stop=60.0))
    bench.inner.handshakeHeld = True
    asker = bench.ask()
    assert asker.waiting is not None
    asker.waiting.cancel()
    bench.inner.finishHandshake()
    assert bench.link.alive
    bench.clock.advance(60.0)
    assert bench.link.closed


def test_the_modern_child_that_nobody_uses_ends() -> None:
    bench = ModernBench(ModernServer("one", idle_stop=60.0))
    bench.ask("a")
    bench.clock.advance(100.0)
    bench.link.reply(bench.last())
    bench.clock.advance(59.0)
    assert bench.link.alive
    stream = bench.listen("l")
    bench.clock.advance(500.0)
    assert bench.link.alive, "who listens uses it"
    bench.relay.gone(stream)
    bench.clock.advance(120.0)
    assert bench.link.closed and not bench.of(LinkLost)
    bench.ask("b")
    assert bench.server.handshakes == 2
    bench.link.reply(bench.last())
    bench.relay.stop()
    assert not bench.clock.getDelayedCalls()


def test_it_stays_where_nothing_is_said() -> None:
    shared, modern = SharedBench(), ModernBench()
    asker = shared.join()
    assert asker.link is not None
    asker.link.close()
    modern.ask("a")
    modern.link.reply(modern.last())
    for one in (shared, modern):
        one.clock.advance(100_000.0)
        assert one.link.alive  # type: ignore[attr-defined]
