"""The command line, as real processes: the script and the twistd sub-command."""

from __future__ import annotations

import json
import signal
import socket
import sys
from pathlib import Path

import pytest
import pytest_twisted
import treq
from attrs import define
from certificate import selfSigned
from processes import ROOT, Process, start, startGateway
from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.task import Clock

import gateway
from gateway.banner import banner
from gateway.config import readConfiguration
from gateway.own import _ownPoll as ownPoll
from gateway.tap import Options

INITIALIZE = {
    "jsonrpc": "2.0",
    "id": "first",
    "method": "initialize",
    "params": {
        "protocolVersion": "2025-06-18",
        "capabilities": {},
        "clientInfo": {"name": "test", "version": "1"},
    },
}
SCRIPT = [sys.executable, "-m", "gateway.tap"]
TWISTD = [str(Path(sys.executable).with_name("twistd")), "-n", "--pidfile=", "mcp-gateway"]


async def initialize(url: str) -> dict[str, object]:
    response = await treq.post(url, json=INITIALIZE, persistent=False)
    assert response.code == 200
    assert len(response.headers.getRawHeaders("mcp-session-id")[0]) == 43
    return await response.json()


@pytest_twisted.ensureDeferred
async def test_the_demo_runs_with_nothing_said() -> None:
    running = await startGateway()
    try:
        answer = await initialize(f"{running.base}/mcp")
        assert answer["id"] == "first"
        assert answer["result"]["serverInfo"]["name"] == "mcp-gateway-demo"
        assert f"claude mcp add --transport http demo {running.base}/servers/demo/mcp" in (
            running.process.out
        )
    finally:
        assert await running.stop() == 0


@define
class Port:
    """Stands for a listening port."""

    address: object
    _type: str = "TCP"

    def getHost(self) -> object:
        return self.address


@pytest.mark.parametrize(
    ("port", "said"),
    [
        (Port(IPv4Address("TCP", "127.0.0.1", 8080)), "http://127.0.0.1:8080/servers/demo/mcp"),
        (Port(IPv4Address("TCP", "0.0.0.0", 80)), "http://127.0.0.1:80/servers/demo/mcp"),  # noqa: S104
        (Port(IPv6Address("TCP", "::", 80)), "http://127.0.0.1:80/servers/demo/mcp"),
        (Port(IPv6Address("TCP", "::1", 9)), "http://[::1]:9/servers/demo/sse"),
        (Port(IPv4Address("TCP", "10.0.0.1", 443), "TLS"), "https://10.0.0.1:443/servers/demo/mcp"),
        (Port(UNIXAddress("/run/gateway")), "listening on UNIXAddress('/run/gateway')"),
    ],
)
def test_the_banner_says_where_every_server_is(port: Port, said: str) -> None:
    options = Options()
    options.parseOptions([])
    assert said in banner(options["configuration"], [port])


def test_the_banner_says_nothing_of_where_a_server_is() -> None:
    servers = {"mcpServers": {"far": {"url": "https://api.example/v1/mcp?key=canary"}}}
    said = banner(readConfiguration(servers), [Port(IPv4Address("TCP", "127.0.0.1", 8080))])
    assert "http://127.0.0.1:8080/servers/far/mcp  (Streamable HTTP)" in said
    assert "canary" not in said and "example" not in said


@pytest_twisted.ensureDeferred
async def test_a_command_is_served() -> None:
    demo = str(ROOT / "gateway" / "demo.py")
    running = await startGateway("--", sys.executable, demo)
    try:
        answer = await initialize(f"{running.base}/mcp")
        assert answer["result"]["serverInfo"]["name"] == "mcp-gateway-demo"
    finally:
        assert await running.stop() == 0


@pytest_twisted.ensureDeferred
async def test_a_url_is_served() -> None:
    behind = await startGateway()
    running = await startGateway(f"{behind.base}/mcp")
    try:
        answer = await initialize(f"{running.base}/mcp")
        assert answer["result"]["serverInfo"]["name"] == "mcp-gateway-demo"
    finally:
        assert await running.stop() == 0
        assert await behind.stop() == 0


def loaded(process: Process) -> str:
    """The files that a process has mapped into its memory."""
    return Path(f"/proc/{process.transport.pid}/maps").read_text()


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="looks into /proc")
@pytest_twisted.ensureDeferred
async def test_tls_is_loaded_where_it_is_spoken(tmp_path: Path) -> None:
    pem = selfSigned(tmp_path)
    listen = f"ssl:0:privateKey={pem}:certKey={pem}:interface=127.0.0.1"
    behind = start([*SCRIPT, "--listen", listen])
    plain = await startGateway()
    try:
        port = (await behind.line(r"https://127\.0\.0\.1:(\d+)/servers/"))[1]
        argv = [*SCRIPT, "--listen", "tcp:0:interface=127.0.0.1", f"https://localhost:{port}/mcp"]
        running = start(argv, {"SSL_CERT_FILE": str(pem)})
        try:
            base = (await running.line(r"(http://127\.0\.0\.1:\d+)/servers/"))[1]
            answer = await initialize(f"{base}/mcp")
            assert answer["result"]["serverInfo"]["name"] == "mcp-gateway-demo"
            await initialize(f"{plain.base}/mcp")
            assert "cryptography" in loaded(behind)
            assert "cryptography" in loaded(running)
            assert "cryptography" not in loaded(plain.process)
        finally:
            running.kill()
            assert await running.ended == 0
    finally:
        behind.kill()
        assert await behind.ended == 0
        assert await plain.stop() == 0


@pytest_twisted.ensureDeferred
async def test_twistd_takes_the_same_options() -> None:
    process = start([*TWISTD, "--listen", "tcp:0:interface=127.0.0.1"])
    try:
        found = await process.line(r"(http://127\.0\.0\.1:\d+)/servers/demo/mcp")
        answer = await initialize(f"{found[1]}/mcp")
        assert answer["id"] == "first"
    finally:
        process.kill()
        # twistd stops in order, then ends by the signal it got.
        assert await process.ended == -signal.SIGTERM


@pytest.mark.parametrize("command", [SCRIPT, TWISTD], ids=["script", "twistd"])
@pytest_twisted.ensureDeferred
async def test_a_taken_port_ends_it_at_once(command: list[str]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        process = start([*command, "--listen", f"tcp:{port}:interface=127.0.0.1"])
        assert await process.ended == 1
    assert f"cannot listen on 127.0.0.1:{port}" in process.err + process.out
    assert "Traceback" not in process.err + process.out


@pytest.mark.parametrize("command", [SCRIPT, TWISTD], ids=["script", "twistd"])
@pytest_twisted.ensureDeferred
async def test_a_mistake_in_the_configuration_ends_it_and_starts_nothing(
    command: list[str], tmp_path: Path
) -> None:
    config = tmp_path / "servers.json"
    started = tmp_path / "started"
    config.write_text(
        json.dumps(
            {
                "mcpServers": {
                    "good": {"command": "touch", "args": [str(started)]},
                    "bad": {"comand": "npx", "args": "-y"},
                }
            }
        )
    )
    process = start([*command, "--config", str(config)])
    assert await process.ended != 0
    said = process.err + process.out
    assert "servers.json" in said
    assert "mcpServers.bad.comand" in said
    assert 'did you mean "command"' in said
    assert "Traceback" not in said
    assert not started.exists()


@pytest_twisted.ensureDeferred
async def test_check_tells_and_starts_nothing(tmp_path: Path) -> None:
    config = tmp_path / "servers.json"
    config.write_text(json.dumps({"mcpServers": {"one": {"command": "true"}}}))
    process = start([*SCRIPT, "--config", str(config), "--check"])
    assert await process.ended == 0
    assert "servers: one" in process.out
    assert "ready" not in process.out


@pytest_twisted.ensureDeferred
async def test_version() -> None:
    process = start([*SCRIPT, "--version"])
    assert await process.ended == 0
    assert process.out == f"mcp-gateway {gateway.__version__}\n"


@pytest.mark.acceptance(107)
@pytest_twisted.ensureDeferred
async def test_acceptance_107_a_public_address_needs_a_flag() -> None:
    process = start([*SCRIPT, "--listen", "tcp:0"])
    assert await process.ended != 0
    assert "allow-public" in process.err or "allow_public" in process.err
    assert "Traceback" not in process.err
    process = start([*SCRIPT, "--listen", "tcp:0", "--allow-public"])
    await process.line("is ready")
    process.kill()
    assert await process.ended == 0


@pytest.mark.acceptance(107)
def test_acceptance_107_it_binds_loopback_by_default() -> None:
    options = Options()
    options.parseOptions([])
    assert options["configuration"].gateway.listen == ("tcp:8080:interface=127.0.0.1",)


@pytest_twisted.ensureDeferred
async def test_sigint_ends_it_in_order() -> None:
    running = await startGateway()
    await initialize(f"{running.base}/mcp")
    running.process.kill(signal.SIGINT)
    assert await running.process.ended == 0


class Reads:
    """A descriptor that counts what it was told, and may fail at it."""

    def __init__(self, end: socket.socket, raises: Exception | None = None) -> None:
        self.fileno = end.fileno
        self.raises = raises
        self.heard = 0
        self.lost: list[object] = []

    def logPrefix(self) -> str:
        return "nobody asks"

    def doRead(self) -> None:
        self.heard += 1
        if self.raises is not None:
            raise self.raises

    def connectionLost(self, reason: object) -> None:
        self.lost.append(reason)
        if self.raises is not None:
            raise self.raises


@pytest.mark.skipif(sys.platform != "linux", reason="there is no epoll")
def test_the_reactor_does_what_is_ready_and_a_failure_fails_itself_alone(
    expectedFailures: list[dict[str, object]],
) -> None:
    from twisted.internet.epollreactor import EPollReactor

    reactor = EPollReactor()
    ownPoll(reactor)
    assert reactor.doIteration != reactor.doPoll
    ours, theirs = zip(*(socket.socketpair() for _ in range(3)), strict=True)
    good, bad, gone = map(Reads, ours)
    bad.raises = ValueError("broken")
    good.doRead = lambda: reactor.removeReader(gone) or Reads.doRead(good)  # type: ignore[method-assign]
    try:
        for reader in (good, bad, gone):
            reactor.addReader(reader)
        for end in theirs:
            end.send(b"x")
        reactor.doIteration(0)
        reactor.doIteration(0)
        assert (good.heard, bad.heard) == (2, 1)
        assert len(bad.lost) == 1
        assert gone.heard <= 1
        reactor.doIteration(0.001)
    finally:
        reactor.removeAll()
        for end in (*ours, *theirs):
            end.close()


def test_another_reactor_is_left_alone() -> None:
    clock = Clock()
    ownPoll(clock)
    assert not hasattr(clock, "doIteration")
