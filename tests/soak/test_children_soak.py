"""
What becomes of children, and of who waits for them, with the times it takes: acceptance 46, 58, 61,
62. Prints its figures.

GATEWAY_SOAK_TIMES: how often each is done.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import pytest
import pytest_twisted
from cycles import wait
from live import Live, faulty, startLive
from processes import ROOT, startGateway
from stdio_support import alive
from twisted.internet.defer import ensureDeferred, gatherResults

pytestmark = pytest.mark.soak

TIMES = int(os.environ.get("GATEWAY_SOAK_TIMES", 20))
PENDING = 50


async def pid(gateway: Live, session: str) -> int:
    answer = await gateway.call("faulty", session, "self")
    return int(answer.message["result"]["structuredContent"]["pid"])


async def gone(pids: list[int], within: float) -> float:
    """Seconds until none of these processes is left."""
    began = time.monotonic()
    while [one for one in pids if alive(one)]:
        assert time.monotonic() - began < within, [one for one in pids if alive(one)]
        await wait(0.01)
    return time.monotonic() - began


@pytest.mark.acceptance(46, 61)
@pytest.mark.parametrize("verb", ["crash_at", "orphan"])
@pytest_twisted.ensureDeferred
async def test_acceptance_46_61_fifty_pending_when_the_child_goes(verb: str) -> None:
    """
    46: it exits. 61: it does, and a grandchild that ignores SIGTERM goes on holding its stdout.
    Another session calls all the while, and notices nothing.
    """
    gateway = await startLive(faulty(), respawn_first=0.5)
    other = await gateway.session("faulty")
    errors: list[float] = []
    again: list[float] = []
    over = False

    async def beside() -> int:
        count = 0
        while not over:
            answer = await gateway.call("faulty", other, "echo", n=count)
            assert answer.message["result"]["structuredContent"] == {"n": count}
            count += 1
            await wait(0.02)
        return count

    calling = ensureDeferred(beside())
    for _ in range(TIMES):
        # One whose children exit one after the other is made to wait between them.
        session, last = await gateway.session("faulty"), 0.0

        async def pending(verb: str, session: str = session) -> None:
            nonlocal last
            answer = await gateway.call("faulty", session, verb)
            assert answer.reason == "server_exited", answer.body
            last = time.monotonic()

        before = await pid(gateway, session)
        waiting = [ensureDeferred(pending("hang")) for _ in range(PENDING - 1)]
        # A call that is answered comes after those.
        await gateway.call("faulty", session, "echo")
        began = time.monotonic()
        waiting.append(ensureDeferred(pending(verb)))
        await gatherResults(waiting, consumeErrors=True)
        errors.append(last - began)
        began = time.monotonic()
        assert await pid(gateway, session) != before
        again.append(time.monotonic() - began)
    over = True
    count = await calling
    await gateway.stop()
    print(
        f"\n{verb}: {TIMES} x {PENDING} pending: all told at most {max(errors):.2f} s after the "
        f"exit was asked for; answered by the next child at most {max(again):.2f} s later; {count} "
        f"calls of another session answered meanwhile"
    )
    assert max(errors) <= 1.0
    assert max(again) <= 2.0


@pytest.mark.acceptance(58)
@pytest_twisted.ensureDeferred
async def test_acceptance_58_stubborn_children_with_grandchildren(tmp_path: Path) -> None:
    """With the default waits: EOF, 2 s, SIGTERM, 5 s, SIGKILL to the group."""
    pids = tmp_path / "pids"
    server = faulty("--stubborn", "--grandchild", "--pids", str(pids))
    gateway = await startLive(server, eof_wait=2.0, term_wait=5.0)
    for _ in range(TIMES):
        session = await gateway.session("faulty")
        headers = {"Mcp-Session-Id": session}
        path = "/servers/faulty/mcp"
        assert (await gateway.request("DELETE", path, None, headers)).status == 204
    started = [int(line) for line in pids.read_text().split()]
    took = await gone(started, 20)
    print(
        f"\nstubborn: {len(started)} processes of {TIMES} children gone {took:.1f} s after DELETE"
    )
    assert len(started) == 2 * TIMES and 3 <= took <= 8
    await gateway.stop()


@pytest.mark.acceptance(62)
@pytest_twisted.ensureDeferred
async def test_acceptance_62_the_gateway_is_killed(tmp_path: Path) -> None:
    """Children and grandchildren, polite ones and such as ignore the end of stdin and SIGTERM."""
    took: list[float] = []
    count = 0
    for number in range(max(2, TIMES // 4)):
        pids = tmp_path / f"pids{number}"
        script = str(ROOT / "tests" / "faulty_server.py")
        flags = ["--grandchild", "--pids", str(pids), *(["--stubborn"] if number % 2 else [])]
        running = await startGateway("--", sys.executable, script, *flags)
        live = Live(None, None, running.base)  # type: ignore[arg-type]
        name = (await live.request("GET", "/readyz")).message["servers"]
        for _ in range(5):
            await live.session(next(iter(name)))
        running.process.kill(signal.SIGKILL)
        await running.process.ended
        started = [int(line) for line in pids.read_text().split()]
        took.append(await gone(started, 20))
        count += len(started)
    print(
        f"\nkilled: {count} processes of {len(took)} gateways gone at most {max(took):.1f} s later"
    )
    assert max(took) <= 5.0
