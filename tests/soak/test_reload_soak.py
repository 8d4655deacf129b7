"""Drain and reload at scale: acceptance 108 and 109. Prints what it did."""

from __future__ import annotations

import json
import random
import time
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
import raw
from raw import rpc
from stdio_support import alive
from test_drain import CALL, Gateway, Run, configured, reloadedUnderLoad, run
from twisted.internet.defer import DeferredList, ensureDeferred

__all__ = ["run"]

pytestmark = pytest.mark.soak


def messageOf(answer: raw.Response) -> Any:
    """The one message of an answer; after ten seconds it is an event stream."""
    if answer.body.startswith(b"{"):
        return answer.json
    (data,) = (line[6:] for line in answer.body.splitlines() if line.startswith(b"data: {"))
    return json.loads(data)


@pytest.mark.acceptance(109)
@pytest_twisted.ensureDeferred
async def test_acceptance_109_twenty_reloads_during_ten_thousand_calls(
    run: Run, tmp_path: Path
) -> None:
    began = time.monotonic()
    await reloadedUnderLoad(run, tmp_path, calls=10_000)
    took = time.monotonic() - began
    print(f"\n10,000 calls, 20 reloads, {10_000 / took:.0f} calls/s, none failed")


@pytest.mark.acceptance(108)
@pytest_twisted.ensureDeferred
async def test_acceptance_108_two_hundred_calls_and_five_hundred_streams(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Calls of 0.1 to 20 s; half of them have no time to finish."""
    monkeypatch.setattr(raw, "PATIENCE", 60.0)
    seed = random.randrange(2**32)
    print(f"\nseed {seed}")
    rng = random.Random(seed)
    file, grace = tmp_path / "servers.json", 10.0
    configured(file, "one", isolation="shared", limits={"drain_grace": grace})
    gateway: Gateway = await run("--config", str(file))
    sessions = [await gateway.session() for _ in range(500)]
    pids = set()
    streams = []
    for session in sessions:
        client = await gateway.connect()
        line = b"Mcp-Session-Id: %b" % session
        client.send(gateway.bytes(b"GET", b"/mcp", b"", line, b"Accept: text/event-stream"))
        assert (await client.head()).status == 200
        streams.append(client)
    for session in sessions[:5]:
        answer = await gateway.call(session, "self")
        pids.add(answer.json["result"]["structuredContent"]["pid"])
    times = [rng.uniform(0.1, 20) for _ in range(200)]
    calls = [
        ensureDeferred(gateway.call(sessions[number], "sleep", number, seconds=seconds))
        for number, seconds in enumerate(times)
    ]
    # Each was taken before the signal: the last of them is answered after all of these.
    client = await gateway.connect()
    client.send(
        gateway.bytes(
            b"POST",
            b"/mcp",
            rpc(CALL, 1, name="echo", arguments={}),
            b"Mcp-Session-Id: %b" % sessions[-1],
        )
    )
    await client.response()
    began = time.monotonic()
    gateway.process.kill()
    answers = [answer for _, answer in await DeferredList(calls, fireOnOneErrback=True)]
    took = time.monotonic() - began
    messages = [messageOf(answer) for answer in answers]
    answered = [number for number, one in enumerate(messages) if "result" in one]
    for number, (message, seconds) in enumerate(zip(messages, times, strict=True)):
        assert message["id"] == number
        if seconds < grace - 3:
            assert "result" in message
        if number not in answered:
            assert message["error"]["data"]["reason"] == "shutting_down"
    for stream in streams:
        await stream.ended
        assert b"retry: 5000\n\n" in stream._buffer
    assert await gateway.process.ended == 0
    ended = time.monotonic() - began
    assert not [pid for pid in pids if alive(pid)]
    print(
        f"200 calls, 500 streams: {len(answered)} answered, {200 - len(answered)} told after "
        f"{took:.1f} s, exit 0 after {ended:.1f} s, grace {grace:.0f} s"
    )
