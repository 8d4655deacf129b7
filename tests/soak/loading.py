"""
Clients of a gateway, in a process of their own: what they do does not count as the gateway's.

    python tests/soak/loading.py PORT JOB JSON

Standard library only. A job prints one line of JSON when it is over. All clients speak Streamable
HTTP.

Jobs, and the members of their JSON
  calls    sessions, clients, seconds, path, who: closed loops of `tools/call`; who is refused calls
           again when it was told to, at the earliest `rest` seconds later. With `health`, /healthz
           is asked for ten times a second meanwhile.
  vanish   count, lanes, path: `initialize`, and the connection is reset
  churn    count, lanes, path: sessions that are opened and deleted; every third has a GET stream
  paced    session, path, size, rate, seconds, lanes: calls with so large a body, so many a second,
           whether or not the last one was answered
  resets   path, count, lanes, seed: the connection is reset in the head, the body, while the answer
           is waited for and amid its events, so often each; now and then a call is answered
  rush     path, count: so many connections at once, each of which asks once
"""

from __future__ import annotations

import asyncio
import json
import random
import selectors
import socket
import struct
import sys
import time
from collections import Counter
from collections.abc import Coroutine
from typing import Any

JSON = "application/json"
NOW = struct.pack("ii", 1, 0)
"""SO_LINGER with which close is a reset."""


def hello(revision: str = "2025-06-18") -> dict[str, Any]:
    params = {"protocolVersion": revision, "capabilities": {}, "clientInfo": {"name": "load"}}
    params["clientInfo"]["version"] = "1"  # type: ignore[index]
    return {"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": params}


def call(verb: str, **arguments: Any) -> dict[str, Any]:
    params = {"name": verb, "arguments": arguments}
    return {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params}


class Client:
    """One connection, kept alive."""

    def __init__(self, port: int, path: str) -> None:
        self.port = port
        self.path = path
        self.reader: asyncio.StreamReader
        self.writer: asyncio.StreamWriter

    async def open(self) -> Client:
        self.reader, self.writer = await asyncio.open_connection("127.0.0.1", self.port)
        return self

    def bytes(
        self, method: str, message: object = None, session: str = "", path: str = "", **more: str
    ) -> bytes:
        body = b"" if message is None else json.dumps(message).encode()
        lines = [
            f"{method} {path or self.path} HTTP/1.1",
            f"Host: 127.0.0.1:{self.port}",
            f"Accept: {JSON}, text/event-stream",
        ]
        if message is not None:
            lines += [f"Content-Type: {JSON}", f"Content-Length: {len(body)}"]
        if session:
            lines.append(f"Mcp-Session-Id: {session}")
        lines += [f"{name.replace('_', '-')}: {value}" for name, value in more.items()]
        return "\r\n".join([*lines, "", ""]).encode() + body

    async def head(self) -> tuple[int, dict[str, str]]:
        head = (await self.reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        pairs = (line.partition(": ") for line in head[1:] if line)
        return int(head[0].split()[1]), {name.lower(): value for name, _, value in pairs}

    async def ask(self, data: bytes) -> tuple[int, dict[str, str], bytes]:
        self.writer.write(data)
        status, fields = await self.head()
        if "content-length" in fields:
            return status, fields, await self.reader.readexactly(int(fields["content-length"]))
        body = b""
        while fields.get("transfer-encoding") == "chunked":
            size = int(await self.reader.readuntil(b"\r\n"), 16)
            body += (await self.reader.readexactly(size + 2))[:-2]
            if not size:
                break
        return status, fields, body

    async def begin(self, revision: str = "2025-06-18") -> str:
        status, fields, body = await self.ask(self.bytes("POST", hello(revision)))
        assert status == 200 and "mcp-session-id" in fields, (status, body)
        session = fields["mcp-session-id"]
        told = {"jsonrpc": "2.0", "method": "notifications/initialized"}
        assert (await self.ask(self.bytes("POST", told, session)))[0] == 202
        return session

    def reset(self) -> None:
        self.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, NOW)
        self.writer.transport.abort()


async def calls(port: int, job: dict[str, Any]) -> dict[str, Any]:
    until = time.monotonic() + job["seconds"]
    answered: list[float] = []
    refused: list[float] = []
    health: list[float] = []
    reasons: Counter[str] = Counter()

    async def one(session: str) -> None:
        client = await Client(port, job["path"]).open()
        data = client.bytes("POST", call("sleep", seconds=0.05), session, X_Who=job["who"])
        while (began := time.perf_counter()) and time.monotonic() < until:
            status, _, body = await client.ask(data)
            took = time.perf_counter() - began
            said = json.loads(body)
            assert status == 200, body
            if "result" in said:
                answered.append(took)
                continue
            refused.append(took)
            told = said["error"]["data"]
            reasons[told["reason"]] += 1
            assert told["retryAfterMs"] > 0
            await asyncio.sleep(job["rest"])
        client.reset()

    async def look() -> None:
        while time.monotonic() < until:
            began = time.perf_counter()
            client = await Client(port, "/healthz").open()
            assert (await client.ask(client.bytes("GET")))[0] == 200
            health.append(time.perf_counter() - began)
            client.reset()
            await asyncio.sleep(0.1)

    sessions = job["sessions"]
    running = [one(sessions[n % len(sessions)]) for n in range(job["clients"])]
    await asyncio.gather(*running, *([look()] if job.get("health") else []))
    return {"answered": answered, "refused": refused, "health": health, "reasons": reasons}


async def lanes(count: int, work: Coroutine[Any, Any, None] | Any) -> None:
    await asyncio.gather(*(work() for _ in range(count)))


async def vanish(port: int, job: dict[str, Any]) -> dict[str, Any]:
    left = job["count"]
    statuses: Counter[int] = Counter()
    began = time.monotonic()

    async def lane() -> None:
        nonlocal left
        while left > 0:
            left -= 1
            client = await Client(port, job["path"]).open()
            client.writer.write(client.bytes("POST", hello()))
            status, _ = await client.head()
            statuses[status] += 1
            client.reset()

    await lanes(job["lanes"], lane)
    return {"statuses": statuses, "seconds": time.monotonic() - began}


async def churn(port: int, job: dict[str, Any]) -> dict[str, Any]:
    left = job["count"]
    began = time.monotonic()

    async def lane() -> None:
        nonlocal left
        client = await Client(port, job["path"]).open()
        while left > 0:
            number = left = left - 1
            session = await client.begin("2025-11-25" if number % 2 else "2025-06-18")
            stream = None
            if not number % 3:
                stream = await Client(port, job["path"]).open()
                stream.writer.write(stream.bytes("GET", None, session))
                assert (await stream.head())[0] == 200
            status, _, body = await client.ask(client.bytes("DELETE", None, session))
            assert status == 204, (status, body)
            if stream:
                await stream.reader.readuntil(b"0\r\n\r\n")
                stream.reset()
        client.reset()

    await lanes(job["lanes"], lane)
    return {"seconds": time.monotonic() - began}


async def paced(port: int, job: dict[str, Any]) -> dict[str, Any]:
    times: list[float] = []
    late: list[float] = []
    due = began = time.monotonic() + 0.1
    until = began + job["seconds"]
    message = call("sink", text="x" * job["size"])

    async def lane() -> None:
        nonlocal due
        client = await Client(port, job["path"]).open()
        data = client.bytes("POST", message, job["session"])
        while due < until:
            mine, due = due, due + 1 / job["rate"]
            if (left := mine - time.monotonic()) > 0:
                await asyncio.sleep(left)
            late.append(time.monotonic() - mine)
            sent = time.perf_counter()
            status, _, body = await client.ask(data)
            assert status == 200 and b'"result"' in body, (status, body)
            times.append(time.perf_counter() - sent)
        client.reset()

    await lanes(job["lanes"], lane)
    return {"times": times, "late": late, "seconds": time.monotonic() - began}


async def resets(port: int, job: dict[str, Any]) -> dict[str, Any]:
    dice, path = random.Random(job["seed"]), job["path"]
    left = Counter(dict.fromkeys(("head", "body", "waiting", "events"), job["count"]))
    done: Counter[str] = Counter()

    async def lane() -> None:
        client = await Client(port, path).open()
        session = await client.begin("2025-11-25")
        asked = 0
        while phases := [phase for phase, count in left.items() if count > 0]:
            phase = dice.choice(phases)
            left[phase] -= 1
            doomed = await Client(port, path).open()
            verb = "progress" if phase == "events" else "sleep"
            message = call(verb, seconds=dice.random() / 20, count=5)
            message["params"]["_meta"] = {"progressToken": 1}
            data = doomed.bytes("POST", message, session)
            head = data.index(b"\r\n\r\n") + 4
            cut = {"head": dice.randint(1, head - 1), "body": dice.randint(head, len(data) - 1)}
            doomed.writer.write(data[: cut.get(phase, len(data))])
            await doomed.writer.drain()
            if phase == "waiting":
                await asyncio.sleep(dice.random() / 20)
            elif phase == "events":
                await doomed.head()
                await doomed.reader.read(dice.randint(1, 300))
            doomed.reset()
            done[phase] += 1
            asked += 1
            if asked % 20 == 0:
                status, _, body = await client.ask(client.bytes("POST", call("echo"), session))
                assert status == 200 and b'"result"' in body, (status, body)
                done["answered"] += 1
        assert (await client.ask(client.bytes("DELETE", None, session)))[0] == 204
        client.reset()

    await lanes(job["lanes"], lane)
    return {"done": done}


async def rush(port: int, job: dict[str, Any]) -> dict[str, Any]:
    request = Client(port, job["path"]).bytes("GET")
    statuses: Counter[int] = Counter()
    found = selectors.DefaultSelector()
    began = time.monotonic()
    connected = 0.0
    for _ in range(job["count"]):
        one = socket.socket()
        one.setblocking(False)
        one.connect_ex(("127.0.0.1", port))
        found.register(one, selectors.EVENT_WRITE)
    waiting, asking = job["count"], job["count"]
    while waiting:
        for key, events in found.select():
            one = key.fileobj  # type: ignore[assignment]
            if events & selectors.EVENT_WRITE:
                one.sendall(request)
                found.modify(one, selectors.EVENT_READ)
                asking -= 1
                connected = connected or (0.0 if asking else time.monotonic() - began)
            else:
                # It is small, and comes in one piece.
                statuses[int((one.recv(65536) or b"HTTP/1.1 0 closed").split()[1])] += 1
                found.unregister(one)
                waiting -= 1
    took = time.monotonic() - began
    return {"statuses": statuses, "connected": connected, "answered": took}


def main() -> None:
    port, job, told = int(sys.argv[1]), sys.argv[2], json.loads(sys.argv[3])
    jobs: dict[str, Any] = {"calls": calls, "vanish": vanish, "churn": churn, "paced": paced}
    jobs |= {"resets": resets, "rush": rush}
    print(json.dumps(asyncio.run(jobs[job](port, told))), flush=True)


if __name__ == "__main__":
    main()
