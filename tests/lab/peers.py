"""
The same faults through this gateway and through other programs that do its job, side by side.

    python -m tests.lab.peers [--peers DIR] [--only NAME,NAME]

Each is started anew for each fault, in front of the scripted stdio server, over Streamable HTTP,
with its defaults, but for a time limit of three seconds for calls of ours.
Peers are installed as benchmarks/README.md says; those that are not there are left out.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import tempfile
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

from attrs import define, field
from raw import RawClient, Response
from twisted.internet import reactor
from twisted.internet.defer import CancelledError, Deferred, ensureDeferred, gatherResults
from twisted.internet.defer import TimeoutError as DeferredTimeout
from twisted.internet.endpoints import TCP4ClientEndpoint, connectProtocol
from twisted.internet.error import ConnectError, ConnectionClosed
from twisted.internet.task import react
from twisted.internet.threads import deferToThread

import gateway
from benchmarks.peers.found import PLACE, find
from benchmarks.process import Background, NotStarted, freePort
from benchmarks.subjects import STREAMABLE, Place, Subject
from gateway.wire.sse import SSEParser

from .callers import pause
from .ledger import descendants

JSON = dict[str, Any]
CHILD = str(Path(__file__).with_name("stdio_server.py"))
PEERS = ("pypi-mcp-proxy", "fastmcp", "supergateway", "npm-mcp-proxy")
OURS = "this gateway"
PATIENCE = 5.0
"""Seconds after which a call that was not answered counts as hanging."""


@define(eq=False)
class Session:
    """A session of a client with the subject."""

    base: str
    path: str
    id: str = ""
    asked: int = 0

    def request(self, message: JSON | None, method: str = "POST") -> bytes:
        body = b"" if message is None else json.dumps(message).encode()
        lines = [
            f"{method} {self.path} HTTP/1.1",
            f"Host: {self.base.removeprefix('http://')}",
            "Accept: application/json, text/event-stream",
            "Content-Type: application/json",
            f"Content-Length: {len(body)}",
        ]
        if self.id:
            lines += [f"Mcp-Session-Id: {self.id}", "MCP-Protocol-Version: 2025-06-18"]
        return "\r\n".join([*lines, "", ""]).encode() + body

    async def connect(self) -> RawClient:
        port = int(self.base.rpartition(":")[2])
        endpoint = TCP4ClientEndpoint(reactor, "127.0.0.1", port)
        client: RawClient = await connectProtocol(endpoint, RawClient())
        return client

    async def open(self) -> str:
        """`initialize`; returns what came of it."""
        about = {"name": "lab", "version": "1"}
        params = {"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": about}
        hello = {"jsonrpc": "2.0", "id": 0, "method": "initialize", "params": params}
        for _ in range(2):
            said, head, _ = await self.exchange(hello)
            where = head.get(b"location", b"").decode()
            if not where:
                break
            # A path with a slash at its end is another one to some.
            self.path = where.removeprefix(self.base)
        self.id = head.get(b"mcp-session-id", b"").decode()
        await self.exchange({"jsonrpc": "2.0", "method": "notifications/initialized"})
        return said

    async def exchange(self, message: JSON, slow: float = 0.0) -> tuple[str, dict, JSON]:
        """
        A request and its answer: a word for it, the head, and the message.

        slow: seconds for which the client does not read.
        """
        head: dict[bytes, bytes] = {}
        client = None
        try:
            client = await self.connect()
            client.send(self.request(message))
            if slow:
                client.pause()
                await pause(slow)
                client.resume()
            reading = ensureDeferred(self._answer(client, message.get("id"), head))
            said, answer = await reading.addTimeout(PATIENCE, reactor)  # type: ignore[arg-type]
        except (DeferredTimeout, CancelledError):
            said, answer = "hangs", {}
        except (ConnectionClosed, ConnectError):
            said, answer = "cut", {}
        except ValueError:
            said, answer = "answers no JSON", {}
        if client is not None:
            client.reset()
            await client.ended
        return said, head, answer

    async def _answer(self, client: RawClient, id: object, fields: dict) -> tuple[str, JSON]:
        head = await client.head()
        fields.update({name.lower(): value for name, value in head.headers})
        if head.status != 200:
            return f"HTTP {head.status}", {}
        messages: list[JSON] = []
        async for said in self._said(client, head):
            if not isinstance(said, dict):
                return "answers what is no message", {}
            messages.append(said)
            if "method" not in said:
                break
        answers = [one for one in messages if "method" not in one]
        if not answers:
            return "ends without an answer", {}
        (answer,) = answers
        if answer.get("id") != id:
            return "another's id", answer
        return ("answered" if "result" in answer else "error"), answer

    async def _said(self, client: RawClient, head: Response) -> AsyncIterator[Any]:
        """What is in an answer, JSON or an event stream, framed either way."""
        streams = (head.header(b"content-type") or b"").startswith(b"text/event-stream")
        if streams and head.header(b"content-length") is None:
            while (event := await client.event()) is not None:
                if event.data:
                    yield json.loads(event.data)
            return
        await client.body(head)
        if not streams:
            yield json.loads(head.body)
        for event in SSEParser(1 << 24).feed(head.body) if streams else ():
            if event.data:
                yield json.loads(event.data)

    def message(self, token: str, verb: str, id: object = None, place: int = 0) -> JSON:
        self.asked += 1
        arguments = {"token": token, "verb": verb, "place": place}
        params = {"name": "do", "arguments": arguments}
        return {
            "jsonrpc": "2.0",
            "id": id or self.asked,
            "method": "tools/call",
            "params": params,
        }

    async def call(self, token: str, verb: str, slow: float = 0.0, id: object = None) -> str:
        """A call; a word for how it ended, and for a result that is another call's."""
        asked = self.message(token, verb, id, place=sum(token.encode()))
        said, _, answer = await self.exchange(asked, slow)
        if said == "answered" and (answer["result"].get("structuredContent") or {}).get(
            "token", token
        ) not in (token, None):
            return "CROSSED"
        if said == "answered" and answer["result"].get("isError"):
            return "error"
        return said


@define(eq=False)
class Trial:
    """One fault through one subject."""

    base: str
    path: str
    pid: int
    ledger: Path
    sessions: list[Session] = field(factory=list)

    async def session(self) -> Session:
        session = Session(self.base, self.path)
        said = await session.open()
        if said != "answered":
            raise NotStarted(f"initialize: {said}")
        return session

    def children(self) -> list[int]:
        """The scripted servers behind the subject."""
        found = []
        for pid in descendants(self.pid):
            try:
                line = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if CHILD.encode() in line and b"python" in line[0]:
                found.append(pid)
        return found

    def twice(self) -> int:
        """How many calls were executed more than once."""
        if not self.ledger.exists():
            return 0
        tokens = Counter(line.split()[0] for line in self.ledger.read_text().splitlines())
        return sum(times > 1 for times in tokens.values())


async def exits(it: Trial) -> str:
    session, other = await it.session(), await it.session()
    said = await session.call("a", "exit-after")
    then, others = await session.call("b", "answer"), await other.call("c", "answer")
    return f"{said}; then {then}, others {others}"


async def hangs(it: Trial) -> str:
    session, other = await it.session(), await it.session()
    hung = ensureDeferred(session.call("a", "hang"))
    await pause(0.2)
    beside = await session.call("b", "answer")
    others = await other.call("c", "answer")
    return f"{await hung}; beside it {beside}, others {others}"


async def garbage(it: Trial) -> str:
    session = await it.session()
    told = [await session.call(verb, verb) for verb in ("garbage", "noise", "truncated")]
    return f"{', '.join(told)}; then {await session.call('b', 'answer')}"


async def twoClients(it: Trial) -> str:
    sessions = [await it.session() for _ in range(2)]
    told: Counter[str] = Counter()
    for number in range(20):
        calls = [
            ensureDeferred(session.call(f"{name}-{number}", "slow", id=number % 4 + 1))
            for name, session in zip("ab", sessions, strict=True)
        ]
        told.update(await gatherResults(calls))
    return ", ".join(f"{count} {said}" for said, count in told.most_common())


async def oneClient(it: Trial) -> str:
    session = await it.session()
    calls = [
        ensureDeferred(session.call(f"{place}-{number}", "slow", id=number + 1))
        for number in range(10)
        for place in "ab"
    ]
    told = Counter(await gatherResults(calls))
    return ", ".join(f"{count} {said}" for said, count in told.most_common())


async def restarts(it: Trial) -> str:
    session = await it.session()
    before = await session.call("a", "answer")
    for pid in it.children():
        os.kill(pid, signal.SIGKILL)
    await pause(0.5)
    told = [await session.call(token, "answer") for token in ("b", "c")]
    again = await it.session()
    return f"{before}; then {told[0]}, {told[1]}; a new session {await again.call('d', 'answer')}"


async def lost(it: Trial) -> str:
    session = await it.session()
    known, session.id = session.id, "0" * 32
    if not known:
        return "has no sessions"
    return await session.call("a", "answer")


async def slow(it: Trial) -> str:
    session, other = await it.session(), await it.session()
    reading = ensureDeferred(session.call("a", "big", slow=2.0))
    await pause(0.3)
    began = reactor.seconds()  # type: ignore[attr-defined]
    others = await other.call("b", "answer")
    took = reactor.seconds() - began  # type: ignore[attr-defined]
    return f"{await reading}; others {others} in {took * 1000:.0f} ms"


async def leaves(it: Trial) -> str:
    session = await it.session()
    told: Counter[str] = Counter()
    for number in range(20):
        client = await session.connect()
        client.send(session.request(session.message(f"left-{number}", "slow", place=40)))
        await pause(0.01)
        client.reset()
        await client.ended
        told[await session.call(f"b-{number}", "answer")] += 1
    await pause(0.3)
    return ", ".join(f"{count} {said}" for said, count in told.most_common())


FAULTS: dict[str, Callable[[Trial], Awaitable[str]]] = {
    "the child exits in a call": exits,
    "the child hangs": hangs,
    "garbage, noise and a cut line before answers": garbage,
    "equal ids of two clients at once, 40 calls": twoClients,
    "equal ids in one session at once, 20 calls": oneClient,
    "the child is killed between calls": restarts,
    "a session that is not known": lost,
    "a client that does not read for 2 s": slow,
    "a client that leaves, 20 times": leaves,
}


def _ours() -> Subject:
    def command(place: Place) -> Sequence[str]:
        server = {"command": place.stdio[0], "args": place.stdio[1:], "timeout": 3}
        file = place.directory / f"gateway-{place.port}.json"
        file.write_text(json.dumps({"mcpServers": {"lab": server}}))
        listen = f"tcp:{place.port}:interface=127.0.0.1"
        return [sys.executable, "-m", "gateway.tap", "--config", str(file), "--listen", listen]

    return Subject(OURS, STREAMABLE, command, "/servers/lab/mcp", gateway.__version__)


async def tried(subject: Subject, fault: Callable[[Trial], Awaitable[str]], folder: Path) -> str:
    """What came of a fault through a subject."""
    port = freePort()
    ledger = folder / f"ledger-{port}"
    stdio = (sys.executable, "-I", "-S", CHILD, "legacy", str(ledger))
    place = Place(port, 0, folder, stdio)
    background = Background(subject.command(place), port, CHILD, environ=subject.environ)
    try:
        await deferToThread(background.waitUntilItListens)
        await pause(0.5)
        trial = Trial(f"http://127.0.0.1:{port}", subject.path, background.pid, ledger)
        try:
            said = await fault(trial)
        except (NotStarted, ConnectionClosed, ConnectError) as error:
            said = f"failed, {error}"
        twice = trial.twice()
        return f"{said}; {twice} RUN TWICE" if twice else said
    except NotStarted as error:
        return f"not started: {error}"
    finally:
        await deferToThread(background.close)


async def main(options: argparse.Namespace) -> None:
    peers = find(PEERS, options.peers)
    subjects = [_ours(), *(one for one in peers.subjects if one.lane == STREAMABLE)]
    if options.only:
        subjects = [one for one in subjects if one.name in options.only.split(",")]
    for name, why in peers.absent.items():
        print(f"{name} is left out: {why}")
    names = [f"{one.name} {one.version}" for one in subjects]
    with tempfile.TemporaryDirectory() as name:
        print("| fault | " + " | ".join(names) + " |")
        print("|" + "---|" * (len(subjects) + 1))
        for fault, act in FAULTS.items():
            if options.fault not in fault:
                continue
            told = [await tried(subject, act, Path(name)) for subject in subjects]
            print(f"| {fault} | " + " | ".join(told) + " |", flush=True)


def run(_: object, options: argparse.Namespace) -> Deferred[None]:
    return ensureDeferred(main(options))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m tests.lab.peers")
    parser.add_argument("--peers", type=Path, default=PLACE, help="where they are installed")
    parser.add_argument("--only", default="", help="these subjects")
    parser.add_argument("--fault", default="", help="those whose name has this text")
    react(run, (parser.parse_args(),))
