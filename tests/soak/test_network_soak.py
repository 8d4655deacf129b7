"""
Peers that die without a word: a link between two network namespaces goes down. Acceptance 43, 71.

It takes root, and Linux. The times are the default ones, so each run lasts minutes. Nothing of it
is seen outside the namespaces.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from attrs import define
from processes import ROOT, Process, start
from soaking import Watched, tiny, wait

pytestmark = pytest.mark.soak

NEAR, FAR = "10.234.77.1", "10.234.77.2"


@define(frozen=True)
class Link:
    """Two namespaces and the link between them."""

    near: str
    far: str

    def run(self, *words: str) -> None:
        subprocess.run(["ip", *words], check=True, capture_output=True)

    def inside(self, name: str) -> tuple[str, ...]:
        """What stands before a command to run it in there."""
        return ("ip", "netns", "exec", name)

    def cut(self) -> None:
        self.run("-n", self.far, "link", "set", "far0", "down")


@pytest.fixture
def link() -> Iterator[Link]:
    if os.geteuid() or shutil.which("ip") is None:
        pytest.skip("network namespaces take root and iproute2")
    made = Link(f"gw-near-{os.getpid()}", f"gw-far-{os.getpid()}")
    try:
        made.run("netns", "add", made.near)
        made.run("netns", "add", made.far)
    except subprocess.CalledProcessError as error:
        pytest.skip(f"no network namespaces: {error.stderr!r}")
    try:
        pair = ("type", "veth", "peer", "name", "far0", "netns", made.far)
        made.run("-n", made.near, "link", "add", "near0", *pair)
        for name, device, address in ((made.near, "near0", NEAR), (made.far, "far0", FAR)):
            made.run("-n", name, "addr", "add", f"{address}/24", "dev", device)
            made.run("-n", name, "link", "set", device, "up")
            made.run("-n", name, "link", "set", "lo", "up")
        yield made
    finally:
        for name in (made.near, made.far):
            subprocess.run(["ip", "netns", "del", name], check=False)


CLIENT = """
import json, socket, sys, time
host, kinds = sys.argv[1], sys.argv[2].split(",")

def request(method, path, message=None, *lines):
    body = b"" if message is None else json.dumps(message).encode()
    head = [f"{method} {path} HTTP/1.1", f"Host: {host}:8080", *lines]
    if message is not None:
        head += ["Content-Type: application/json", f"Content-Length: {len(body)}"]
    return "\\r\\n".join([*head, "", ""]).encode() + body

def ask(data):
    client = socket.create_connection((host, 8080))
    client.sendall(data)
    got = b""
    while b"\\r\\n\\r\\n" not in got or b"text/event-stream" in got and b"endpoint" not in got \
            and b"/sse" in data:
        got += client.recv(65536)
    return client, got

info = {"name": "dies", "version": "1"}
params = {"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": info}
hello = {"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": params}
kept = []
for kind in kinds:
    if kind == "sse":
        client, got = ask(request("GET", "/servers/own/sse"))
        path = got.partition(b"event: endpoint")[2].partition(b"data: ")[2].split()[0].decode()
        kept.append(client)
        kept.append(ask(request("POST", path, hello))[0])
        continue
    client, got = ask(request("POST", "/servers/all/mcp", hello))
    kept.append(client)
    lines = got.decode().split("\\r\\n")
    (name,) = [line for line in lines if line.lower().startswith("mcp-session-id")]
    if kind == "get":
        client, got = ask(request("GET", "/servers/all/mcp", None, name))
        assert b" 200 " in got, got
        kept.append(client)
print("ready", flush=True)
time.sleep(3600)
"""


@pytest.mark.acceptance(43)
@pytest_twisted.ensureDeferred
async def test_acceptance_43_clients_whose_network_is_gone(tmp_path: Path, link: Link) -> None:
    """Twenty with an HTTP+SSE session and a child each, twenty with a GET stream."""
    count = 20
    config = tmp_path / "servers.json"
    servers = {"own": tiny(), "all": tiny(isolation="shared", idle_stop=5)}
    # Half an hour by default: when the stream is gone the session has as long as it ever had.
    gateway = {"allow_public": True, "allowed_hosts": [f"{NEAR}:8080"]}
    gateway["limits"] = {"session_idle": 60}
    config.write_text(json.dumps({"mcpServers": servers, "gateway": gateway}))
    words = ["-m", "tests.lab.watched", "--listen", f"tcp:8080:interface={NEAR}"]
    argv = [*link.inside(link.near), sys.executable, *words, "--config", str(config)]
    process = start(argv, cwd=str(ROOT))
    await process.line("is ready")
    one = Watched(process, 8080)
    base = await one.held()
    kinds = ",".join(["sse", "get"] * count)
    clients: Process = start([*link.inside(link.far), sys.executable, "-c", CLIENT, NEAR, kinds])
    await clients.line("ready")
    full = await one.held()
    assert full["sessions"] == 2 * count and full["children"] == count + 1, full
    link.cut()
    began = time.monotonic()
    gone: dict[str, float] = {}
    now: dict[str, int] = {}
    while time.monotonic() - began < 240 and "everything" not in gone:
        await wait(1.0)
        now, took = await one.held(), time.monotonic() - began
        reached: dict[str, Any] = {
            "the first stream": now["fds"] < full["fds"] - count,
            "HTTP+SSE sessions and children": now["sessions"] <= count and now["children"] <= 1,
            # Three are the reaper's.
            "all connections": now["fds"] <= base["fds"] + 3 + 3 * now["children"],
            "everything": now["sessions"] == now["children"] == 0,
        }
        for what, is_ in reached.items():
            if is_:
                gone.setdefault(what, took)
    clients.kill()
    await clients.ended
    told = ", ".join(f"{what} after {took:.0f} s" for what, took in gone.items())
    print(f"\nlink down: {base}, with clients {full}; gone were {told}; then {now}")
    assert gone["HTTP+SSE sessions and children"] <= 90
    assert gone["all connections"] <= 90
    assert "everything" in gone, now
    await one.stop()


PEER = """
import http.server, json, time

class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def log_message(self, *_): pass
    def do_GET(self): self.answer(405, b"")
    def do_POST(self):
        said = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if said.get("method") == "initialize":
            told = {"protocolVersion": "2025-06-18", "capabilities": {}, "serverInfo": {}}
            told = {"jsonrpc": "2.0", "id": said["id"], "result": told}
            self.answer(200, json.dumps(told).encode())
        elif "id" in said:
            time.sleep(3600)
        else:
            self.answer(202, b"")
    def answer(self, status, body):
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Mcp-Session-Id", "x")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

server = http.server.ThreadingHTTPServer(("FAR", 8000), Handler)
print("serves", flush=True)
server.serve_forever()
"""

ASKER = """
import http.client, json, time
client = http.client.HTTPConnection("127.0.0.1", 8080)
fields = {"Content-Type": "application/json"}
def ask(message):
    client.request("POST", "/mcp", json.dumps(message), fields)
    answer = client.getresponse()
    return answer.getheader("Mcp-Session-Id"), answer.read()
info = {"name": "a", "version": "1"}
params = {"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": info}
fields["Mcp-Session-Id"], _ = ask(dict(jsonrpc="2.0", id=1, method="initialize", params=params))
ask(dict(jsonrpc="2.0", method="notifications/initialized"))
print("asks", flush=True)
_, answer = ask(dict(jsonrpc="2.0", id=2, method="tools/call", params={"name": "x"}))
print("answer", answer.decode().splitlines()[-2 if b"data: " in answer else -1], flush=True)
"""


@pytest.mark.acceptance(71)
@pytest_twisted.ensureDeferred
async def test_acceptance_71_a_server_whose_network_is_gone(link: Link) -> None:
    """A call that runs there: its time would be ten minutes."""
    server = start([*link.inside(link.far), sys.executable, "-c", PEER.replace("FAR", FAR)])
    await server.line("serves")
    words = [sys.executable, "-m", "gateway.tap", "--listen", "tcp:8080:interface=127.0.0.1"]
    gateway = start([*link.inside(link.near), *words, f"http://{FAR}:8000/mcp"], cwd=str(ROOT))
    await gateway.line("is ready")
    asker = start([*link.inside(link.near), sys.executable, "-c", ASKER])
    await asker.line("asks")
    await wait(1.0)
    link.cut()
    began = time.monotonic()
    answer = (await asker.line(r"answer (.*)"))[1]
    took = time.monotonic() - began
    print(f"\nserver's link down: after {took:.1f} s {answer}")
    assert '"outcome_unknown"' in answer and took <= 75
    server.kill(9)
    gateway.kill()
    assert await gateway.ended == 0
    await server.ended
