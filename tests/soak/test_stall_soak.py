"""
Servers over HTTP that stop talking, by the clock on the wall: acceptance 71 with its 60 and 300 s.

All at once, so it takes five minutes; meanwhile the same server goes on answering others. Peers
whose network is gone are in test_network_soak.py.
"""

from __future__ import annotations

import time
from typing import Any

import pytest
import pytest_twisted
import raw
from faulty_upstream import FaultyUpstream, Received
from live import Live, behind, startLive
from posting import connected, posted
from soaking import wait
from twisted.internet import reactor
from twisted.internet.defer import DeferredList, ensureDeferred

pytestmark = pytest.mark.soak

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 99\r\n\r\n{"


def stalls(request: Received) -> bool:
    """By what the call is named, or which session's stream it is."""
    if request.method == b"GET":
        if not stalls.silent:  # type: ignore[attr-defined]
            request.stream()
        return True
    if request.rpc != "tools/call":
        return False
    how = request.message["params"]["name"]
    if how == "half a head":
        request.raw(b"HTTP/1.1 200 OK\r\nCo")
    elif how == "half a body":
        request.raw(HEAD)
    elif how == "no event":
        request.stream()
    return bool(how != "answer")


@pytest.mark.acceptance(71)
@pytest_twisted.ensureDeferred
async def test_acceptance_71_each_stall_ends_in_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(raw, "PATIENCE", 400.0)
    upstream = FaultyUpstream()
    upstream.script = stalls
    upstream.start(reactor)
    gateway = await startLive(
        behind(upstream.url, "behind", timeout=60.0), behind(upstream.url, "patient", timeout=400.0)
    )
    seen: dict[str, tuple[float, str]] = {}
    over = False

    async def called(what: str, server: str, how: str) -> None:
        session = await gateway.session(server)
        call = {"jsonrpc": "2.0", "id": 7, "method": "tools/call", "params": {"name": how}}
        began = time.monotonic()
        answer = await gateway.post(server, call, session)
        assert answer.status == 200 and answer.message["id"] == 7
        seen[what] = time.monotonic() - began, answer.reason

    async def listened(what: str, silent: bool) -> None:
        session = await gateway.session("patient")
        client = await connected(gateway)
        stalls.silent = silent  # type: ignore[attr-defined]
        client.send(posted(gateway.base, "/servers/patient/mcp", session, None, "GET"))
        began = time.monotonic()
        await wait(1.0)
        head = await client.head()
        if head.status == 200:
            assert await client.event() is None
        seen[what] = time.monotonic() - began, str(head.status)
        client.reset()
        await client.ended

    async def others() -> int:
        session, count = await gateway.session("behind"), 0
        while not over:
            answer = await gateway.call("behind", session, "answer")
            assert answer.message["result"]["name"] == "answer"
            count += 1
            await wait(0.5)
        return count

    beside = ensureDeferred(others())
    running: list[Any] = [ensureDeferred(listened("GET, no head", True))]
    await wait(2.0)
    running.append(ensureDeferred(listened("GET, no event", False)))
    await wait(2.0)
    for what, server, how in (
        ("call, no head (timeout 60)", "behind", "nothing"),
        ("call, half a head (timeout 60)", "behind", "half a head"),
        ("call, no event (timeout 60)", "behind", "no event"),
        ("call, half a body", "patient", "half a body"),
    ):
        running.append(ensureDeferred(called(what, server, how)))
    await DeferredList(running, fireOnOneErrback=True, consumeErrors=True)
    over = True
    answered = await beside
    await stopped(gateway, upstream)
    told = "; ".join(f"{what}: {how} after {took:.1f} s" for what, (took, how) in seen.items())
    print(f"\nstalls: {told}; {answered} calls answered meanwhile")
    for what, (took, how) in seen.items():
        due = 300 if what in ("GET, no event", "call, half a body") else 60
        assert due - 1 <= took <= due + 3, (what, took)
        assert how == {"GET, no head": "405", "GET, no event": "200"}.get(what, "timeout"), what
    assert answered > 500


async def stopped(gateway: Live, upstream: FaultyUpstream) -> None:
    await gateway.stop()
    await upstream.close()
