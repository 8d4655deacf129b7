"""Modern requests to real legacy children: `LegacyPool` over a StdioServer, no door in front."""

from __future__ import annotations

import json
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from pool_support import ALL, FORM, PREFIX, modern
from processes import start
from schema_support import RESULTS, conforms, conformsToRequest
from stdio_support import Bench, Observed, benches
from twisted.internet import reactor
from twisted.internet.defer import Deferred

import gateway
from gateway.guard.limits import Limits
from gateway.guard.policy import AllowAll
from gateway.links.interfaces import EventMark, IServer
from gateway.relay.pool import LegacyPool
from gateway.relay.relay import Relay
from gateway.servers.http import HTTPServer
from gateway.sessions.registry import Session, SessionRegistry
from gateway.sessions.store import MemoryStore
from gateway.settings import HTTPSettings
from gateway.wire.context import CallContext
from gateway.wire.envelope import Message

DEMO = str(Path(gateway.__file__).with_name("demo.py"))
FIXTURE = str(Path(__file__).with_name("peers") / "conformance_fixture.py")
CONTEXT = CallContext("faulty")
REVISION = "2026-07-28"


class Target:
    """Waits for the answer to one request, and keeps what came before."""

    def __init__(self) -> None:
        self.heard: list[Any] = []
        self.answered: Deferred[Any] = Deferred()
        self._waiting: list[tuple[Callable[[], bool], Deferred[None]]] = []

    def deliver(self, message: Message, mark: EventMark | None = None) -> bool:
        self.heard.append(json.loads(message.encode()))
        conformsToRequest(self.heard[-1], REVISION)
        for entry in list(self._waiting):
            if entry[0]():
                self._waiting.remove(entry)
                entry[1].callback(None)
        return True

    def marked(self, mark: EventMark) -> None:
        pass

    def answer(self, message: Message, mark: EventMark | None = None) -> None:
        self.answered.callback(json.loads(message.encode()))

    def lost(self, id: bytes) -> None:
        pass

    def close(self) -> None:
        pass

    def until(self, condition: Callable[[], bool]) -> Deferred[None]:
        waiter: Deferred[None] = Deferred()
        if condition():
            waiter.callback(None)
        else:
            self._waiting.append((condition, waiter))
        return waiter.addTimeout(20, reactor)  # type: ignore[arg-type]


class Client:
    """A modern client of one pool; answers what it is asked."""

    def __init__(self, server: IServer, limits: Limits) -> None:
        observed = Observed()
        registry = SessionRegistry(reactor, limits, MemoryStore(), observed)  # type: ignore[arg-type]

        def makeRelay(session: Session, context: CallContext) -> Relay:
            return Relay(
                session,
                server,
                registry,
                AllowAll(),
                limits,
                reactor,  # type: ignore[arg-type]
                observed,
                context,
            )

        self.pool = LegacyPool(server, limits, reactor, observed, makeRelay)  # type: ignore[arg-type]

    def send(self, method: str, params: dict[str, Any] | None = None, **options: Any) -> Target:
        target = Target()
        self.pool.request(modern("id", method, params, **options), target, CONTEXT)
        return target

    async def ask(self, method: str, params: dict[str, Any] | None = None, **options: Any) -> Any:
        answer = await self.send(method, params, **options).answered
        assert answer["id"] == "id"
        if "result" in answer:
            asks = answer["result"]["resultType"] == "input_required"
            conforms(answer["result"], REVISION, "InputRequiredResult" if asks else RESULTS[method])
        else:
            conforms(answer, REVISION, "JSONRPCErrorResponse")
        return answer

    async def call(self, name: str, **arguments: Any) -> Any:
        """Call a tool, answering what it asks; its result, and what was asked."""
        params: dict[str, Any] = {"name": name, "arguments": arguments}
        asked: list[Any] = []
        while True:
            result = (await self.ask("tools/call", params, caps=ALL))["result"]
            if result["resultType"] == "complete":
                return result, asked
            params = {**params, "requestState": result["requestState"], "inputResponses": {}}
            for key, request in result["inputRequests"].items():
                asked.append(request)
                params["inputResponses"][key] = REPLIES[request["method"]]


REPLIES = {
    "elicitation/create": {"action": "accept", "content": {"username": "u", "email": "e@x"}},
    "sampling/createMessage": {
        "role": "assistant",
        "content": {"type": "text", "text": "Paris"},
        "model": "m",
    },
    "roots/list": {"roots": [{"uri": "file:///r", "name": "R"}]},
}


@pytest_twisted.async_yield_fixture()
async def client() -> AsyncIterator[Callable[..., Client]]:
    """Makes clients of pools over children; sees that none is left."""
    made: list[Client] = []
    async for make in benches():

        def new(*args: str, make: Callable[..., Bench] = make) -> Client:
            limits = Limits(eof_wait=0.2, term_wait=0.2)
            made.append(Client(make(args=args, limits=limits).server, limits))
            return made[-1]

        yield new
        for one in made:
            await one.pool.stop()


def said(result: Any) -> str:
    text: str = result["content"][0]["text"]
    return text


@pytest_twisted.ensureDeferred
async def test_theDemoServer(client: Callable[..., Client]) -> None:
    one = client(DEMO)
    found = (await one.ask("server/discover"))["result"]
    assert found["supportedVersions"] == [REVISION]
    for method in ("tools/list", "resources/list", "resources/templates/list", "prompts/list"):
        listed = (await one.ask(method))["result"]
        assert (listed["ttlMs"], listed["cacheScope"]) == (0, "private")
    result, asked = await one.call("ask_user", question="who?")
    assert [request["method"] for request in asked] == ["elicitation/create"]
    result, asked = await one.call("ask_model", prompt="capital?")
    assert "Paris" in said(result) and asked[0]["method"] == "sampling/createMessage"
    result, asked = await one.call("list_roots")
    assert "file:///r" in said(result) and asked[0]["method"] == "roots/list"
    missing = await one.ask("resources/read", {"uri": "none:such"})
    assert missing["error"]["code"] == -32602
    counts = one.send(
        "tools/call", {"name": "countdown", "arguments": {"start": 2, "interval": 0.01}}, token="t"
    )
    assert (await counts.answered)["result"]
    assert {note["params"]["progressToken"] for note in counts.heard} == {"t"}
    logs = one.send(
        "tools/call", {"name": "log", "arguments": {"message": "m", "level": "error"}}, level="info"
    )
    assert (await logs.answered)["result"]
    assert [note["method"] for note in logs.heard] == ["notifications/message"]
    quiet = one.send("tools/call", {"name": "log", "arguments": {"message": "m", "level": "error"}})
    assert (await quiet.answered)["result"] and not quiet.heard


@pytest_twisted.ensureDeferred
async def test_listeningToTheDemoServer(client: Callable[..., Client]) -> None:
    one = client(DEMO)
    resources = (await one.ask("resources/list"))["result"]["resources"]
    uris = [resource["uri"] for resource in resources]
    stream = one.send("subscriptions/listen", {"notifications": {"resourceSubscriptions": uris}})
    await stream.until(lambda: bool(stream.heard))
    # In the sessions of other calls of the caller, too, which come later.
    for caps in ({}, FORM):
        before = len(stream.heard)
        await one.ask("tools/call", {"name": "bump_counter", "arguments": {"by": 1}}, caps=caps)
        await stream.until(lambda before=before: len(stream.heard) > before)
    assert all(
        note["params"]["_meta"] == {PREFIX + "subscriptionId": "id"} for note in stream.heard
    )
    await one.pool.stop()
    assert (await stream.answered)["result"]["resultType"] == "complete"


@pytest_twisted.ensureDeferred
async def test_theServerOfTheSDK(client: Callable[..., Client]) -> None:
    for module in ("mcp", "uvicorn", "starlette"):
        pytest.importorskip(module)
    await throughItsPaces(client(FIXTURE, "--stdio"))


@pytest.mark.parametrize("transport", ["--http", "--sse"])
@pytest_twisted.ensureDeferred
async def test_theServerOfTheSDKOverHTTP(transport: str) -> None:
    for module in ("mcp", "uvicorn", "starlette"):
        pytest.importorskip(module)
    process = start([sys.executable, FIXTURE, transport, "0"])
    url = (await process.line(r"ready (http://\S+)"))[1]
    settings = HTTPSettings(name="faulty", url=url)
    server = HTTPServer(settings, Limits(), reactor, reactor, Observed())  # type: ignore[arg-type]
    client = Client(server, Limits())
    try:
        await throughItsPaces(client)
    finally:
        await client.pool.stop()
        await server.drain()
        process.kill()
        await process.ended


async def throughItsPaces(one: Client) -> None:
    """All that the fixture asks, logs and tells of."""
    result, asked = await one.call("test_elicitation", message="who?")
    assert "action=accept" in said(result) and asked[0]["params"]["message"] == "who?"
    result, asked = await one.call("test_sampling", prompt="capital?")
    assert said(result) == "LLM response: Paris" and len(asked) == 1
    result, asked = await one.call("test_simple_text")
    assert not asked
    logs = one.send("tools/call", {"name": "test_tool_with_logging", "arguments": {}}, level="info")
    assert (await logs.answered)["result"]
    assert len(logs.heard) == 3
    steps = one.send("tools/call", {"name": "test_tool_with_progress", "arguments": {}}, token=7)
    assert (await steps.answered)["result"]
    assert [note["params"]["progressToken"] for note in steps.heard] == [7, 7, 7]
    missing = await one.ask("resources/read", {"uri": "none:such"})
    assert missing["error"]["code"] == -32602
    gone = one.send(
        "tools/call", {"name": "test_elicitation", "arguments": {"message": "m"}}, caps=ALL
    )
    one.pool.gone(gone)
    result, asked = await one.call("test_elicitation", message="again?")
    assert len(asked) == 1
