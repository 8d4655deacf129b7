"""What is measured: the gateway and its floors. The peers are in `peers.py`."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from attrs import field, frozen

import gateway
import twisted
from benchmarks.process import Background

__all__ = [
    "BEFORE",
    "ECHO_HTTP",
    "ECHO_STDIO",
    "FLOOR",
    "GATEWAY",
    "HTTP",
    "LANES",
    "SSE",
    "STREAMABLE",
    "Place",
    "Subject",
    "ourselves",
]

STREAMABLE, SSE, HTTP = "streamable", "sse", "http"
LANES = {
    STREAMABLE: "Streamable HTTP → stdio",
    SSE: "HTTP+SSE → stdio",
    HTTP: "Streamable HTTP → Streamable HTTP",
}
GATEWAY, FLOOR, BEFORE = "gateway", "floor", "before"

_SERVERS = Path(__file__).with_name("servers")
ECHO_STDIO = (sys.executable, "-I", "-S", str(_SERVERS / "echo_stdio.py"))
ECHO_HTTP = (sys.executable, str(_SERVERS / "echo_http.py"))


@frozen
class Place:
    """
    Where a subject is to run.

    port: it serves there; upstream: the port of the HTTP server behind it; bodies: of another one,
    for large bodies; directory: for its files. stdio: the command line of the stdio server behind
    it.
    """

    port: int
    upstream: int
    directory: Path
    stdio: Sequence[str] = ECHO_STDIO
    bodies: int = 0


Command = Callable[[Place], Sequence[str]]


@frozen
class Subject:
    """
    A program that is measured in one lane.

    command: makes its command line for a place, and writes the files that it reads.
    path: of its MCP endpoint, or of the stream. bodies: of the one for large bodies, where that is
    another.
    version: as it tells it.
    shared: whether its sessions share a child; None where that cannot be chosen.
    crowd: the sessions it is asked to hold at most.
    patience: rounds in which it has to get no cheaper before it counts as warm.
    """

    name: str
    lane: str
    command: Command
    path: str
    version: str
    shared: bool | None = None
    crowd: int = 10_000
    patience: int = 1
    environ: Mapping[str, str] = field(factory=dict)
    bodies: str = ""

    def start(self, place: Place) -> Background:
        """
        Start it.

        Raises: NotStarted.
        """
        servers = "" if self.lane == HTTP else ECHO_STDIO[-1]
        argv = self.command(place)
        return Background(argv, place.port, servers, environ=self.environ)


def _gateway(lane: str, shared: bool | None, checkout: Path | None = None) -> Subject:
    def command(place: Place) -> Sequence[str]:
        servers: dict[str, dict[str, object]] = {}
        if lane == HTTP:
            for name, port in (("echo", place.upstream), ("bodies", place.bodies)):
                servers[name] = {"type": "http", "url": f"http://127.0.0.1:{port}/mcp"}
        else:
            isolation = "shared" if shared else "session"
            command = {"command": place.stdio[0], "args": place.stdio[1:]}
            servers["echo"] = {**command, "isolation": isolation}
        file = place.directory / f"gateway-{place.port}.json"
        file.write_text(json.dumps({"mcpServers": servers}))
        listen = f"tcp:{place.port}:interface=127.0.0.1"
        # -P: not the gateway of the directory it is started in.
        python = [sys.executable, "-P"]
        return [*python, "-m", "gateway.tap", "--config", str(file), "--listen", listen]

    path = "/servers/echo/sse" if lane == SSE else "/servers/echo/mcp"
    bodies = "/servers/bodies/mcp" if lane == HTTP else ""
    if checkout is None:
        return Subject(GATEWAY, lane, command, path, gateway.__version__, shared, bodies=bodies)
    environ = {"PYTHONPATH": str(checkout)}
    version = "of another checkout"
    return Subject(BEFORE, lane, command, path, version, shared, environ=environ, bodies=bodies)


def _floor(lane: str, shared: bool | None) -> Subject:
    def command(place: Place) -> Sequence[str]:
        kind = {STREAMABLE: "streamable", SSE: "sse", HTTP: "proxy"}[lane]
        argv = [sys.executable, "-m", "benchmarks.floors", kind, str(place.port)]
        if lane == HTTP:
            return [*argv, "--upstream", str(place.upstream), "--bodies", str(place.bodies)]
        return [*argv, "--script", ECHO_STDIO[-1], *(["--shared"] if shared else [])]

    path = "/sse" if lane == SSE else "/mcp"
    bodies = "/bodies" if lane == HTTP else ""
    version = f"on Twisted {twisted.__version__}"
    return Subject(FLOOR, lane, command, path, version, shared, bodies=bodies)


def ourselves(lane: str, before: Path | None = None) -> list[Subject]:
    """
    The floor and the gateway in this lane, for each way that sessions can have children.

    before: another checkout of the gateway, which is measured beside them.
    """
    ways = (None,) if lane == HTTP else (False, True)
    found = [make(lane, shared) for shared in ways for make in (_floor, _gateway)]
    if before is not None:
        found += [_gateway(lane, shared, before) for shared in ways]
    return found
