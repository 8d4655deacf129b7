"""`gateway.testing`, as an embedder's tests use it."""

from __future__ import annotations

import subprocess
import sys

import pytest

from gateway.guard.limits import Limits
from gateway.links.interfaces import Reason
from gateway.testing import MemoryClient, MemoryGateway, ScriptedServer


def opened(**limits: float) -> tuple[MemoryGateway, ScriptedServer, MemoryClient]:
    server = ScriptedServer("tools")
    gateway = MemoryGateway([server], Limits(**limits))  # type: ignore[arg-type]
    client = gateway.client("tools")
    assert client.initialize().json()["result"]["serverInfo"]["name"] == "s"
    return gateway, server, client


def test_a_call_and_its_answer() -> None:
    gateway, server, client = opened()
    asked = client.post(client.request("a", "tools/call", {"_meta": {"progressToken": 5}}))
    assert not asked.started
    sent = server.newest.last("tools/call")
    server.newest.push(
        b'{"jsonrpc":"2.0","method":"notifications/progress","params":{"progressToken":%b}}'
        % (sent.message.meta("progressToken") or b"")
    )
    server.newest.reply(sent, b'{"is":1}')
    progress, answer = asked.events()
    assert progress["params"]["progressToken"] == 5
    assert answer == {"jsonrpc": "2.0", "id": "a", "result": {"is": 1}}
    assert asked.ended
    assert gateway.stop().called
    assert not gateway.clock.getDelayedCalls()


def test_time_passes_only_by_the_clock() -> None:
    gateway, _, client = opened(session_idle=60)
    gateway.advance(59)
    assert client.post({"jsonrpc": "2.0", "method": "notifications/x"}).status == 202
    gateway.advance(61)
    gone = client.post(client.request(2, "ping"))
    assert (gone.status, gone.json()["error"]["code"], gone.json()["id"]) == (404, -32001, 2)
    gateway.stop()


def test_the_stream_of_a_session_and_its_end() -> None:
    gateway, server, client = opened()
    stream = client.get()
    assert stream.header("content-type") == "text/event-stream"
    server.newest.push(b'{"jsonrpc":"2.0","method":"notifications/tools/list_changed"}')
    assert stream.events()[0]["method"] == "notifications/tools/list_changed"
    assert not stream.ended
    assert client.delete().status == 204
    assert stream.ended and server.open == []
    assert client.delete().status == 404
    gateway.stop()


def test_a_server_that_dies() -> None:
    gateway, server, client = opened()
    asked = client.post(client.request(1, "tools/call"))
    server.newest.lose(Reason.SERVER_EXITED)
    assert asked.json()["error"]["data"] == {"reason": "server_exited"}
    gateway.stop()


def test_a_client_that_leaves() -> None:
    gateway, server, client = opened()
    asked = client.post(client.request(1, "tools/call"))
    asked.leave()
    server.newest.reply(server.newest.last("tools/call"))
    assert not asked.started
    gateway.stop()


@pytest.mark.parametrize("module", ["gateway", "gateway.config"])
def test_an_import_installs_no_reactor(module: str) -> None:
    """(Klein itself does, and so gateway.service: docs/embedding.md.)"""
    code = f"import sys, {module}; sys.exit('twisted.internet.reactor' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
