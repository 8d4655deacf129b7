"""Every example runs, as its own first lines say."""

from __future__ import annotations

import json
import shutil
import signal
import sys
from pathlib import Path
from urllib.parse import urljoin

import pytest
import pytest_twisted
import treq
from processes import ROOT, Process, start

EXAMPLES = ROOT / "examples"
HELLO = {
    "jsonrpc": "2.0",
    "id": "hello",
    "method": "initialize",
    "params": {
        "protocolVersion": "2025-06-18",
        "capabilities": {},
        "clientInfo": {"name": "t", "version": "1"},
    },
}


async def initialized(url: str, **headers: str) -> str:
    """The session id that an endpoint gives."""
    accept = {"Accept": "application/json, text/event-stream", **headers}
    response = await treq.post(url, json=HELLO, headers=accept, persistent=False)
    body = json.loads(await treq.content(response))
    assert response.code == 200 and body["id"] == "hello" and "result" in body, body
    (session,) = response.headers.getRawHeaders("mcp-session-id")
    return session


async def ended(process: Process, code: int = 0) -> None:
    process.kill()
    assert await process.ended == code, process.err
    assert "Traceback" not in process.out + process.err


def run(name: str, *words: str) -> Process:
    return start([sys.executable, str(EXAMPLES / name), *words])


@pytest_twisted.ensureDeferred
async def test_own_listener(tmp_path: Path) -> None:
    words = ["--pidfile", str(tmp_path / "pid"), "-n", "-y", str(EXAMPLES / "own_listener.py")]
    process = start([str(Path(sys.executable).with_name("twistd")), *words])
    port = (await process.line(r"Listener.* starting on (\d+)"))[1]
    await initialized(f"http://127.0.0.1:{port}/mcp")
    # When all is stopped twistd ends by the signal that it was sent.
    await ended(process, -signal.SIGTERM)


@pytest.mark.parametrize("name", ["under_a_site.py", "in_a_klein_app.py"])
@pytest_twisted.ensureDeferred
async def test_under_a_hosts_site(name: str) -> None:
    process = run(name, "0")
    url = (await process.line(r"(http://\S+/tools/servers/demo/mcp)"))[1]
    await initialized(url)
    assert await treq.content(await treq.get(urljoin(url, "/"), persistent=False)) == (
        b"the host's own page\n"
    )
    # The SDK's own client finds the messages' endpoint from the relative reference.
    client = start([sys.executable, str(ROOT / "tests" / "sse_ping.py"), url[:-3] + "sse"])
    assert await client.ended == 0, client.err
    assert json.loads(client.out) == {"tools": True}
    await ended(process)


@pytest_twisted.ensureDeferred
async def test_two_gateways() -> None:
    process = run("two_gateways.py")
    urls = (await process.line(r"(http://\S+)\n(http://\S+)\n")).groups()
    first = await initialized(urls[0])
    second = await initialized(urls[1], **{"X-Name": "ada"})
    for url, session in [(urls[1], first), (urls[0], second), (urls[1], second)]:
        response = await treq.delete(url, headers={"Mcp-Session-Id": session}, persistent=False)
        # Of the other gateway, or of another principal: not found.
        assert response.code == 404
    await ended(process)


@pytest_twisted.ensureDeferred
async def test_a_hosts_own_unit_test() -> None:
    name = str(EXAMPLES / "test_with_gateway_testing.py")
    process = start([sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", name])
    assert await process.ended == 0, process.out
    assert "1 passed" in process.out


@pytest_twisted.ensureDeferred
async def test_replicas_behind_haproxy(tmp_path: Path) -> None:
    """What tests/soak/test_replicas_soak.py runs; here both files are merely read."""
    check = ["--check", "--config", str(EXAMPLES / "haproxy" / "servers.json")]
    process = start([sys.executable, "-m", "gateway.tap", *check])
    assert await process.ended == 0, process.err
    haproxy = shutil.which("haproxy", path="/usr/sbin:/usr/bin")
    if haproxy is None:
        return
    configuration = tmp_path / "haproxy.cfg"
    text = (EXAMPLES / "haproxy" / "haproxy.cfg").read_text()
    configuration.write_text(text.replace("/run/haproxy", str(tmp_path)))
    process = start([haproxy, "-c", "-f", str(configuration)])
    assert await process.ended == 0, process.err
