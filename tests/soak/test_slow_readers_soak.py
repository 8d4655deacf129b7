"""
Readers that read nothing, beside one that does:
`pytest -m soak -s tests/soak/test_slow_readers_soak.py`.

GATEWAY_SOAK_READERS: how many. The gateway is a process of its own, so its memory is nobody else's.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import time
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from attrs import define, field
from live import PROTOCOL
from processes import ROOT, Gateway, startGateway

pytestmark = pytest.mark.soak

KIB = 1024
FIELDS = {"Content-Type": "application/json", "Accept": "application/json, text/event-stream"}


def resident(pid: int) -> int:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def percentile(times: list[float], part: float) -> float:
    """In ms."""
    return sorted(times)[int(len(times) * part)] * 1000


@define(eq=False)
class Caller:
    """A client with a session of its own, whose child it has to itself."""

    port: int
    wire: HTTPConnection = field(init=False)
    fields: dict[str, str] = field(init=False)
    _ids: int = 0

    def __attrs_post_init__(self) -> None:
        self.wire = HTTPConnection("127.0.0.1", self.port, timeout=20)
        self.wire.connect()
        # A small window, so that what a client does not read soon stays with the gateway.
        self.wire.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        self.fields = dict(FIELDS)
        params: dict[str, Any] = {"protocolVersion": PROTOCOL, "capabilities": {}}
        params["clientInfo"] = {"name": "soak", "version": "1"}
        self.post({"id": 0, "method": "initialize", "params": params})
        self.post({"method": "notifications/initialized"})
        self.call("echo")

    def post(self, message: dict[str, Any], read: bool = True) -> bytes:
        body = json.dumps({"jsonrpc": "2.0", **message})
        self.wire.request("POST", "/servers/faulty/mcp", body, self.fields)
        if not read:
            return b""
        answer = self.wire.getresponse()
        said = answer.read()
        assert answer.status in (200, 202), said
        if session := answer.getheader("Mcp-Session-Id"):
            self.fields["Mcp-Session-Id"] = session
        return said

    def call(self, verb: str, read: bool = True, **arguments: object) -> None:
        self._ids += 1
        params = {"name": verb, "arguments": arguments}
        said = self.post({"id": self._ids, "method": "tools/call", "params": params}, read)
        assert not read or json.loads(said)["id"] == self._ids

    @property
    def cut(self) -> bool:
        """Whether the gateway ended its connection; nothing is read for that."""
        self.wire.sock.setblocking(False)
        try:
            self.wire.sock.send(b"")
            return self.wire.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) != 0
        except BlockingIOError:
            return False
        except OSError:
            return True

    def timed(self) -> float:
        """How long a call takes."""
        began = time.monotonic()
        self.call("echo")
        return time.monotonic() - began


@pytest.mark.acceptance(13, 77)
@pytest.mark.parametrize("how", ["streams", "answers"])
@pytest_twisted.ensureDeferred
async def test_acceptance_13_77_who_reads_nothing_is_bounded_and_cut(
    tmp_path: Path, how: str
) -> None:
    """What each holds, when it is cut, and what others notice of it."""
    count = int(os.environ.get("GATEWAY_SOAK_READERS", 20))
    server = {"command": sys.executable, "args": [str(ROOT / "tests" / "faulty_server.py")]}
    file = tmp_path / "gateway.json"
    file.write_text(json.dumps({"mcpServers": {"faulty": server}}))
    # What else the machine does falls on the clients of both.
    running, other = [await startGateway("--config", str(file)) for _ in range(2)]
    try:
        _compared(count, how, running, other)
    finally:
        ended = [await running.stop(), await other.stop()]
    assert ended == [0, 0]


def _compared(count: int, how: str, running: Gateway, other: Gateway) -> None:
    pid, port = running.process.transport.pid, int(running.base.rpartition(":")[2])
    good, elsewhere = Caller(port), Caller(int(other.base.rpartition(":")[2]))
    readers = [Caller(port) for _ in range(count)]
    before = resident(pid)
    began = time.monotonic()
    for reader in readers:
        if how == "streams":
            # 20 MB each, if anybody read them.
            params = {"data": "x" * 1000}
            reader.call("notify", read=False, count=20_000, params=params)
        else:
            reader.call("long", read=False, bytes=1024 * KIB)
    # Until they block; a child that fills its pipe is as busy as any other.
    time.sleep(3)
    beside: list[float] = []
    quiet: list[float] = []
    # By turns, for what else the machine does comes in bursts.
    while time.monotonic() < began + 25:
        beside.append(good.timed())
        quiet.append(elsewhere.timed())
        time.sleep(0.002)
    held = (resident(pid) - before) / count
    cuts: dict[Caller, float] = {}
    while len(cuts) < count and time.monotonic() < began + 60:
        time.sleep(0.1)
        for reader in readers:
            if reader not in cuts and reader.cut:
                cuts[reader] = time.monotonic() - began
    p50, p99 = ((percentile(quiet, part), percentile(beside, part)) for part in (0.5, 0.99))
    assert cuts
    print(
        f"\n{count} readers of {how} that read nothing: {held / KIB:.0f} KiB held for each; "
        f"cut after {min(cuts.values()):.1f} to {max(cuts.values()):.1f} s; of {len(beside):,} "
        f"calls beside them p50 {p50[1]:.2f} and p99 {p99[1]:.2f} ms, of as many at another "
        f"gateway {p50[0]:.2f} and {p99[0]:.2f}"
    )
    for caller in (good, elsewhere, *readers):
        caller.wire.close()
    assert len(cuts) == count
    # 30 s, looked at once a second, and what it takes to fill the buffers first.
    assert min(cuts.values()) >= 29 and max(cuts.values()) <= 36
    # One answer is held whole (`max_answer`); of a stream, `max_stream_bytes` and a read more. The
    # C library keeps some of what was freed, for all of them together (`gateway.own`).
    most = (1024 + 256 if how == "answers" else 256 + 128) * KIB
    assert held <= most + 32 * KIB * KIB / count
    assert p99[1] <= 1.1 * p99[0] + 1
