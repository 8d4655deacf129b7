"""
What an HTTP server that misbehaves costs in memory: `pytest -m soak -s tests/soak`.

The gateway is a process of its own, so that its memory is not the test's.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from attrs import define
from faulty_upstream import FaultyUpstream, Received
from memory import MIB, Memory
from posting import posted
from processes import Gateway, startGateway
from raw import RawClient
from twisted.internet import reactor
from twisted.internet.endpoints import TCP4ClientEndpoint, connectProtocol

from gateway.guard.limits import Limits

pytestmark = [
    pytest.mark.soak,
    pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="looks into /proc"),
]

MOST = 8 * MIB
SMALL = 4 * 1024 * 1024
"""Bytes an answer may have in the one half of the runs; in the other, what it may by default."""
TIMES = 10
"""How often each server misbehaves, one time after the other: what one leaves would add up."""

OK = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
PATH = "/servers/one/mcp"


@define(eq=False)
class Endless:
    """A body without end, as fast as it is read; each answer begins with `beginning`."""

    beginning: bytes
    piece: bytes
    sent: int = 0
    _request: Received | None = None

    def __call__(self, request: Received) -> None:
        self._request = request
        request.raw(self.beginning)
        request.connection.transport.registerProducer(self, False)

    def resumeProducing(self) -> None:
        assert self._request is not None
        self.sent += len(self.piece)
        self._request.raw(self.piece)

    def stopProducing(self) -> None:
        """The gateway cut it."""


def chunks(data: bytes, size: int) -> bytes:
    """A part of a chunked body, in chunks of this size."""
    parts = (data[at : at + size] for at in range(0, len(data), size))
    return b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts)


def large(field: bytes) -> bytes:
    return OK + b"X-Large: " + field * (1_000_000 // len(field)) + b"\r\n\r\n"


CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"
STREAM = CHUNKED.replace(b"application/json", b"text/event-stream")
CODED = CHUNKED[:-2] + b"Content-Encoding: gzip\r\n\r\n"

BAD: dict[str, Callable[[Received], Any]] = {
    "bad framing": lambda r: r.raw(OK + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\n12"),
    "a head of a megabyte": lambda r: r.raw(large(b"x")),
    "many fields": lambda r: r.raw(large(b"x\r\nX-L: ")),
    "a gzip bomb": Endless(CODED, chunks(b"\x1f\x8b" * 32_000, 64_000)),
    "another Content-Type": lambda r: r.reply(200, b"<" * 4_000_000, type=b"text/html"),
    "bytes after the body": lambda r: r.raw(OK + b"Content-Length: 2\r\n\r\n{}" + b"x" * 4_000_000),
}
"""Nothing of the body is wanted."""

ENDLESS: dict[str, Endless] = {
    "JSON without end": Endless(CHUNKED + b'1\r\n"\r\n', chunks(b"x" * 64_000, 64_000)),
    "the same in chunks of two": Endless(CHUNKED + b'1\r\n"\r\n', chunks(b"x" * 8_000, 2)),
    "an event without end": Endless(STREAM + chunks(b"data: ", 6), chunks(b"x" * 64_000, 64_000)),
    "an event of lines": Endless(STREAM, chunks(b"data: xxxxxxxxx\n" * 4_000, 64_000)),
}
"""What is collected of these is an answer, until it is larger than one may be."""


async def connected(gateway: Gateway) -> RawClient:
    port = int(gateway.base.rpartition(":")[2])
    endpoint = TCP4ClientEndpoint(reactor, "127.0.0.1", port)
    client: RawClient = await connectProtocol(endpoint, RawClient())
    return client


async def said(client: RawClient, gateway: Gateway, session: str, message: object) -> Any:
    client.send(posted(gateway.base, PATH, session, message))
    return await client.response()


@pytest.mark.acceptance(72)
@pytest.mark.parametrize("largest", [SMALL, Limits().max_answer])
@pytest.mark.parametrize("name", [*BAD, *ENDLESS])
@pytest_twisted.ensureDeferred
async def test_acceptance_72_a_bad_answer_costs_no_memory(
    tmp_path: Path, name: str, largest: int
) -> None:
    """
    Each is one error on a connection that is not used again, and takes 8 MiB at most. Of what could
    have become an answer that holds where answers may have 4 MiB; by default they may have 16, and
    then it is 8 beside that.
    """
    upstream = FaultyUpstream()
    upstream.start(reactor)
    config = tmp_path / "servers.json"
    limits = {"limits": {"max_answer": largest}}
    config.write_text(json.dumps({"mcpServers": {"one": {"url": upstream.url}}, "gateway": limits}))
    gateway = await startGateway("--config", str(config))
    try:
        memory = Memory(gateway.process.transport.pid)
        client = await connected(gateway)
        hello = {"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "s"}}
        first = {"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": hello}
        session = (await said(client, gateway, "", first)).header(b"mcp-session-id").decode()
        call = {"jsonrpc": "2.0", "id": 7, "method": "tools/call", "params": {"name": "x"}}
        assert (await said(client, gateway, session, call)).json["result"] == {"name": "x"}
        base, began = memory.now(), time.monotonic()
        memory.begin()
        script = {**BAD, **ENDLESS}[name]
        for _ in range(TIMES):
            upstream.script = lambda r: r.rpc == "tools/call" and (script(r), True)
            refused = await said(client, gateway, session, call)
            assert b'"reason":"bad_answer"' in refused.body, refused
            one = upstream.requests[-1].connection
            upstream.script = lambda r: False
            assert (await said(client, gateway, session, call)).json["result"]
            assert upstream.requests[-1].connection is not one
            upstream.requests.clear()
        highest, left = memory.highest() - base, memory.now() - base
        print(
            f"\n{name}, max_answer {largest}: {base / MIB:.1f} MiB, "
            f"{highest / MIB:+.1f} MiB at most, {left / MIB:+.1f} MiB left "
            f"after {TIMES} times, {time.monotonic() - began:.1f} s"
        )
        more = largest / 1024 if name in ENDLESS and largest > SMALL else 0
        assert highest <= MOST + more
        client.close()
        await client.ended
    finally:
        assert await gateway.stop() == 0
        await upstream.close()
