"""
Clocks that jump, with a real process under libfaketime (Debian's `faketime`): acceptance 40, 110.

GATEWAY_FAKETIME: the library, if it is not where Debian has it.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from posting import connected, posted
from processes import ROOT, Gateway, start
from raw import RawClient
from soaking import wait
from twisted.internet.defer import DeferredList, ensureDeferred

pytestmark = pytest.mark.soak

PATH = "/servers/faulty/mcp"
TWISTD = [str(Path(sys.executable).with_name("twistd")), "-n", "--pidfile=", "mcp-gateway"]
SCRIPT = [sys.executable, "-m", "gateway.tap"]
HOUR = 3600


def library() -> str:
    place = os.environ.get("GATEWAY_FAKETIME")
    found = [Path(place)] if place else list(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"))
    if not found or not found[0].exists():
        pytest.skip("libfaketime is not installed")
    return str(found[0])


class Faked:
    """A gateway whose clock is what a file says, and clients of it whose clock is the real one."""

    def __init__(self, folder: Path, monotonic: bool) -> None:
        self.file = folder / "time"
        self.set(0)
        self.environ = {
            "LD_PRELOAD": library(),
            "FAKETIME_TIMESTAMP_FILE": str(self.file),
            "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "0" if monotonic else "1",
            "DONT_FAKE_MONOTONIC": "0" if monotonic else "1",
        }
        self.gateway: Gateway
        self._ids = 0

    def set(self, offset: float) -> None:
        new = self.file.with_suffix(".new")
        new.write_text(f"{offset:+.0f}\n")
        new.rename(self.file)

    async def start(self, command: list[str], config: Path) -> None:
        listen = ["--listen", "tcp:0:interface=127.0.0.1", "--config", str(config)]
        process = start([*command, *listen], environ=self.environ)
        found = await process.line(r"(http://127\.0\.0\.1:\d+)/servers/")
        self.gateway = Gateway(process, found[1])

    async def ask(self, session: str, message: object, method: str = "POST") -> Any:
        client: RawClient = await connected(self.gateway)
        client.send(posted(self.gateway.base, PATH, session, message, method))
        answer = await client.response()
        client.close()
        await client.ended
        return answer

    async def session(self) -> str:
        info = {"name": "clock", "version": "1"}
        params = {"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": info}
        message = {"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": params}
        session = (await self.ask("", message)).header(b"mcp-session-id").decode()
        return str(session)

    async def call(self, session: str, verb: str) -> Any:
        self._ids += 1
        params = {"name": verb, "arguments": {}}
        message = {"jsonrpc": "2.0", "id": self._ids, "method": "tools/call", "params": params}
        return await self.ask(session, message)

    async def stream(self, session: str) -> RawClient:
        client: RawClient = await connected(self.gateway)
        client.send(posted(self.gateway.base, PATH, session, None, "GET"))
        assert (await client.head()).status == 200
        return client


def configured(folder: Path, limits: str = "", server: str = "") -> Path:
    config = folder / "servers.toml"
    script = ROOT / "tests" / "faulty_server.py"
    config.write_text(
        f'[mcpServers.faulty]\ncommand = "{sys.executable}"\nargs = ["{script}"]\n'
        f'isolation = "shared"\n{server}\n[gateway.limits]\n{limits}\n'
    )
    return config


@pytest.mark.acceptance(110)
@pytest.mark.parametrize("command", [SCRIPT, TWISTD], ids=["script", "twistd"])
@pytest_twisted.ensureDeferred
async def test_acceptance_110_the_wall_clock_jumps_two_hours(
    tmp_path: Path, command: list[str]
) -> None:
    """Forth and back, while everything that has a time runs; each may be wrong by a second."""
    faked = Faked(tmp_path, monotonic=False)
    limits = "heartbeat = 2\nsession_unused = 4\nhead_timeout = 5\nkeep_alive = 6\ndrain_grace = 3"
    await faked.start(command, configured(tmp_path, limits, "timeout = 3"))
    wrong: dict[str, float] = {}
    over = False

    def took(what: str, began: float, due: float) -> None:
        wrong[what] = max(wrong.get(what, 0.0), abs(time.monotonic() - began - due))

    async def heartbeats() -> None:
        stream = await faked.stream(await faked.session())
        last = None
        while not over:
            assert await stream.chunk() == b":\n\n"
            if last is not None:
                took("heartbeat, 2 s", last, 2)
            last = time.monotonic()
        stream.reset()

    async def timeouts() -> None:
        session = await faked.session()
        while not over:
            began = time.monotonic()
            answer = await faked.call(session, "hang")
            assert answer.json["error"]["data"]["reason"] == "timeout"
            took("call, 3 s", began, 3)

    async def unused() -> None:
        while not over:
            began = time.monotonic()
            session = await faked.session()
            # To ask for it would be to use it.
            await wait(5)
            assert (await faked.call(session, "echo")).status == 404
            session = await faked.session()
            await wait(began + 5 + 3 - time.monotonic())
            assert (await faked.call(session, "echo")).status == 200
            wrong.setdefault("unused session, 4 s", 0.0)

    async def heads() -> None:
        while not over:
            client: RawClient = await connected(faked.gateway)
            began = time.monotonic()
            client.send(b"POST /mcp HTTP/1.1\r\nHost: ")
            assert (await client.response()).status == 408
            took("head, 5 s", began, 5)
            client.reset()
            await client.ended

    async def kept() -> None:
        while not over:
            client: RawClient = await connected(faked.gateway)
            client.send(posted(faked.gateway.base, "/healthz", "", None, "GET"))
            assert (await client.response()).status == 200
            began = time.monotonic()
            await client.ended
            took("kept connection, 6 to 7 s", began, 6.5)

    running = [ensureDeferred(one()) for one in (heartbeats, timeouts, unused, heads, kept)]
    for hours in (2, 0, -2, 2, -2, 0):
        await wait(2.3)
        faked.set(hours * HOUR)
    await wait(2.3)
    over = True
    await DeferredList(running, fireOnOneErrback=True, consumeErrors=True)
    session = await faked.session()
    hanging = ensureDeferred(faked.call(session, "hang"))
    await wait(0.5)
    faked.set(2 * HOUR)
    began = time.monotonic()
    faked.gateway.process.kill()
    await hanging
    await faked.gateway.process.ended
    # The call's own 3 s come half a second before the grace's.
    took("drain, 2.5 s", began, 2.5)
    told = ", ".join(f"{what} by {seconds:.2f} s" for what, seconds in wrong.items())
    print(f"\nwall clock, 7 jumps of 2 and 4 hours: off were {told}")
    assert max(wrong.values()) <= 1.0
    assert "Traceback" not in faked.gateway.process.err


@pytest.mark.acceptance(40)
@pytest_twisted.ensureDeferred
async def test_acceptance_40_a_day_goes_by(tmp_path: Path) -> None:
    """With the default times, on a monotonic clock that jumps."""
    faked = Faked(tmp_path, monotonic=True)
    await faked.start(SCRIPT, configured(tmp_path))
    now = 0.0

    async def pass_(seconds: float) -> None:
        nonlocal now
        now += seconds
        faked.set(now)
        await wait(1.2)

    unused, used, streamed, running = [await faked.session() for _ in range(4)]
    assert (await faked.call(used, "echo")).status == 200
    stream = await faked.stream(streamed)
    await pass_(50)
    for session in (used, running):
        assert (await faked.call(session, "echo")).status == 200
    await pass_(13)
    assert (await faked.call(unused, "echo")).status == 404
    await pass_(29 * 60)
    for session in (used, running):
        assert (await faked.call(session, "echo")).status == 200
    await pass_(31 * 60)
    assert (await faked.call(used, "echo")).status == 404
    assert (await faked.call(running, "echo")).status == 404
    # An open stream is use, until the day is over.
    assert (await faked.call(streamed, "echo")).status == 200
    for _ in range(22):
        await pass_(HOUR)
        assert not stream.ended.called
    assert (await faked.call(streamed, "echo")).status == 200
    await pass_(HOUR)
    await pass_(2)
    assert (await faked.call(streamed, "echo")).status == 404
    await stream.rest()
    print(
        f"\na day: unused 404 after 63 s, idle after 31 min, with a stream after {now / HOUR:.1f} h"
    )
    assert await faked.gateway.stop() == 0
