"""A gateway inside somebody's service: under a Site, several in one process, start and stop."""

from __future__ import annotations

import json
import sys
from typing import Any

import pytest
import pytest_twisted
import treq
from attrs import define, field
from stdio_support import children
from twisted.internet import reactor
from twisted.internet.defer import Deferred, fail
from twisted.internet.testing import MemoryReactorClock
from twisted.web.resource import Resource
from twisted.web.server import Site
from zope.interface import implementer

from gateway.config import ConfigurationError, readConfiguration
from gateway.service import GatewayService, State
from gateway.sessions.record import SessionRecord
from gateway.sessions.store import Gone, ISessionStore, MemoryStore, Remote, StoreRefused
from gateway.testing import MemoryGateway, ScriptedServer

HELLO = {
    "jsonrpc": "2.0",
    "id": 1,
    "method": "initialize",
    "params": {"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {}},
}


def settings(**gateway: Any) -> dict[str, object]:
    demo = {"command": sys.executable, "args": ["-I", "gateway/demo.py"]}
    return {"mcpServers": {"demo": demo}, "gateway": gateway}


async def posted(url: str, body: object = HELLO, **headers: str) -> tuple[int, Any, str | None]:
    """Status, decoded body and session id."""
    answer = await treq.post(url, json=body, headers=headers, persistent=False)
    content = await treq.content(answer)
    ids = answer.headers.getRawHeaders("mcp-session-id") or [None]
    return answer.code, json.loads(content) if content else None, ids[0]


def test_without_allowed_hosts_there_is_no_resource() -> None:
    gateway = GatewayService(readConfiguration(settings()), reactor, listen=False)
    with pytest.raises(ValueError, match=r"gateway\.allowed_hosts"):
        gateway.resource()


def test_a_mistake_in_an_object_is_told_as_in_a_file() -> None:
    with pytest.raises(ConfigurationError, match=r"configuration: mcpServers\.a\.comand: found an"):
        readConfiguration({"mcpServers": {"a": {"comand": "x"}}})


@pytest.mark.parametrize("prefix", ["tools", "a/b/c", "sp%20ace"])
@pytest_twisted.ensureDeferred
async def test_it_serves_at_any_place_and_across_starts(prefix: str) -> None:
    gateway = GatewayService(
        readConfiguration(settings(allowed_hosts=["127.0.0.1:*"])), reactor, listen=False
    )
    root = parent = Resource()
    *above, last = prefix.replace("%20", " ").encode().split(b"/")
    for name in above:
        parent.putChild(name, child := Resource())
        parent = child
    parent.putChild(last, gateway.resource())
    port = reactor.listenTCP(0, Site(root), interface="127.0.0.1")  # type: ignore[attr-defined]
    base = f"http://127.0.0.1:{port.getHost().port}/{prefix}"
    for _ in range(2):
        status, body, _ = await posted(f"{base}/mcp")
        assert (status, "id" in body) == (503, False)
        gateway.startService()
        assert gateway.ports == []
        status, body, id = await posted(f"{base}/servers/demo/mcp")
        assert status == 200 and body["result"]["serverInfo"] and id
        status, body, _ = await posted(f"{base}/mcp", **{"Mcp-Session-Id": "x", "Host": "evil.org"})
        assert status == 403
        stream = await treq.get(f"{base}/sse", unbuffered=True, persistent=False)
        assert stream.headers.getRawHeaders("content-type") == ["text/event-stream"]
        read: list[bytes] = []
        reading = treq.collect(stream, read.append)
        await gateway.stopService()
        await reading
        assert b"".join(read).startswith(b"event: endpoint\ndata: messages?session_id=")
    await port.stopListening()
    assert children() == []


@pytest_twisted.ensureDeferred
async def test_a_body_over_the_limit_is_refused_there_too() -> None:
    configured = settings(allowed_hosts=["127.0.0.1:*"], limits={"max_body": 1000})
    gateway = GatewayService(readConfiguration(configured), reactor, listen=False)
    root = Resource()
    root.putChild(b"t", gateway.resource())
    port = reactor.listenTCP(0, Site(root), interface="127.0.0.1")  # type: ignore[attr-defined]
    gateway.startService()
    status, body, _ = await posted(
        f"http://127.0.0.1:{port.getHost().port}/t/mcp", {**HELLO, "x": "y" * 1000}
    )
    assert (status, body["error"]["code"]) == (413, -32000)
    await gateway.stopService()
    await port.stopListening()


@pytest_twisted.ensureDeferred
async def test_gateways_of_one_process_know_nothing_of_each_other() -> None:
    configured = settings(listen=["tcp:0:interface=127.0.0.1"])
    one, two = (GatewayService(readConfiguration(configured), reactor) for _ in range(2))
    for gateway in (one, two):
        gateway.startService()
    urls = [f"http://127.0.0.1:{g.ports[0].getHost().port}/mcp" for g in (one, two)]
    ids = [(await posted(url))[2] for url in urls]
    ping = {"jsonrpc": "2.0", "id": 2, "method": "ping"}
    assert (await posted(urls[1], ping, **{"Mcp-Session-Id": str(ids[0])}))[0] == 404
    await one.stopService()
    assert (await posted(urls[1], ping, **{"Mcp-Session-Id": str(ids[1])}))[0] == 200
    await two.stopService()
    assert children() == []


# The life of a service, and a store of the host's own, in memory.


@implementer(ISessionStore)
@define(eq=False)
class HostsStore(MemoryStore):
    """The host's own. refuses: whether it takes no record; log: what it was asked to do."""

    refuses: bool = False
    log: list[str] = field(factory=list)

    def put(self, record: SessionRecord) -> Deferred[None]:
        self.log.append("put")
        return fail(StoreRefused()) if self.refuses else super().put(record)

    def remove(self, id: str) -> Deferred[None]:
        self.log.append("remove")
        return super().remove(id)

    def locate(self, id: str) -> Deferred[Remote | Gone]:
        self.log.append("locate")
        return super().locate(id)


def test_sessions_are_kept_in_the_store_of_the_host() -> None:
    store = HostsStore()
    gateway = MemoryGateway([ScriptedServer("tools")], options={"store": store})
    client = gateway.client("tools")
    client.initialize()
    assert client.session is not None
    (written,) = store.records.values()
    record = SessionRecord.deserialize(written)
    assert record is not None
    assert (record.id, record.server, record.transport) == (client.session, "tools", "streamable")
    assert b'"memory"' in record.initialize, "what the client said of itself"
    # Only what is not known here is asked for.
    store.log.clear()
    assert client.post({"jsonrpc": "2.0", "method": "notifications/x"}).status == 202
    assert store.log == []
    assert gateway.client("tools", Mcp_Session_Id="A" * 43).get().status == 404
    assert store.log == ["locate"]
    assert client.delete().status == 204
    assert store.records == {}
    # One that takes nothing more takes no session; those there are go on.
    client.initialize()
    store.refuses = True
    full = gateway.client("tools").initialize()
    assert (full.status, full.header("retry-after")) == (503, "5")
    assert full.json()["error"]["code"] == -32000
    assert client.post({"jsonrpc": "2.0", "method": "notifications/x"}).status == 202
    gateway.stop()


def test_to_stop_what_was_never_started_is_nothing_and_to_start_twice_is_once() -> None:
    clock = MemoryReactorClock()
    configured = settings(listen=["tcp:0:interface=127.0.0.1"])
    gateway = GatewayService(readConfiguration(configured), clock)
    assert gateway.stopService().called
    assert (gateway.state, clock.tcpServers) == (State.STOPPED, [])
    gateway.startService()
    gateway.startService()
    assert (gateway.state, len(clock.tcpServers)) == (State.READY, 1)
    for _ in range(2):
        stopped = gateway.stopService()
        clock.pump([0.1] * 10)
        assert stopped.called and gateway.state is State.STOPPED
    assert not clock.getDelayedCalls()
