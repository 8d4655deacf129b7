"""Real clients, through the proxies, at real servers: `pytest -m peers`; the cells: matrix.py."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import matrix
import pytest
import pytest_twisted
from attrs import define, field
from installing import (
    CLIENT_2,
    EVERYTHING,
    NODE,
    SDK_1,
    SERVER_2,
    NotInstalled,
    mcp1,
    node,
    nodeModules,
)
from matrix import CLIENTS, JSON, PYTHON, ROUTES, Cell
from processes import ROOT, start, startGateway
from twisted.internet import reactor
from twisted.internet.defer import Deferred, FirstError, gatherResults

HERE = Path(__file__).parent
FIXTURE = str(HERE / "conformance_fixture.py")
CLIENT_SECONDS = 240.0
"""How long a client may take for all its steps, some of which wait; more than it ever needs."""

Argv = list[str]


@define
class Peers:
    """
    What runs, and how clients are started.

    urls: (server, transport, eras) -> the server's own URL. direct: what a client saw there.
    """

    modules: Path
    urls: dict[tuple[str, str, str], str]
    gateway: str
    direct: dict[tuple[str, tuple[str, str, str]], JSON] = field(factory=dict)

    async def through(self, program: Argv, cell: Cell) -> JSON:
        """What a client sees through the gateway."""
        route = ROUTES[cell.route]
        path = f"servers/{cell.server}-{route.entry}/{route.path}"
        return await self._seen(program, cell, f"{self.gateway}/{path}")

    async def directly(self, program: Argv, cell: Cell) -> JSON | None:
        """What it sees without, if it can, over the same transport; it has to look once."""
        if cell.direct is None:
            return None
        key = cell.client, cell.direct
        if key not in self.direct:
            self.direct[key] = await self._seen(program, cell, self.urls[cell.direct])
        return self.direct[key]

    async def _seen(self, program: Argv, cell: Cell, url: str) -> JSON:
        argv = [*program, cell.transport, url, cell.server, cell.mode]
        process = start(argv, {"NODE_PATH": str(self.modules)})
        late = reactor.callLater(CLIENT_SECONDS, process.kill, signal.SIGKILL)  # type: ignore[attr-defined]
        code = await process.ended
        if late.active():
            late.cancel()
        assert code == 0, f"exited with {code}:\n{process.err}"
        found: JSON = json.loads(process.out)
        return found


def program(name: str, modules: Path) -> Argv:
    """The command of a client program; skips the test if its SDK cannot be had."""
    if name not in PYTHON:
        return [node(modules), str(HERE / "clients" / f"{name}.cjs")]
    try:
        python = mcp1() if name == "mcp1" else sys.executable
    except NotInstalled as reason:
        pytest.skip(f"PyPI mcp 1.x could not be installed: {reason}")
    return [python, str(HERE / "clients" / f"{name}.py")]


def everything(modules: Path) -> Argv:
    """The command of server-everything, but for its transport."""
    script = modules / "@modelcontextprotocol" / "server-everything" / "dist" / "index.js"
    return [node(modules), "--require", str(HERE / "loopback.cjs"), str(script)]


def server2(modules: Path, way: str) -> Argv:
    """The command of the fixture on npm's server 2.x, speaking the modern era alone."""
    return [node(modules), str(HERE / "server2_fixture.cjs"), way, "reject"]


def fixture(state: Path, *arguments: str) -> Argv:
    """The command of the fixture; all of its processes remember together."""
    return [sys.executable, FIXTURE, "--state", str(state), *arguments]


def configuration(modules: Path, state: Path, urls: dict[tuple[str, str, str], str]) -> str:
    """Each server over every transport, and over HTTP behind two proxies; the fixture by era."""
    servers: JSON = {}

    def child(name: str, argv: Argv) -> None:
        servers[name] = {"command": argv[0], "args": argv[1:], "env": {"NODE_PATH": str(modules)}}

    for server, eras in (("fixture", "both"), ("everything", "legacy")):
        http, sse = urls[server, "http", eras], urls[server, "sse", "legacy"]
        servers[f"{server}-http"] = {"url": http}
        servers[f"{server}-gathered"] = {"url": http, "proxy": "streamable"}
        servers[f"{server}-sse"] = {"url": sse}
    child("everything-stdio", [*everything(modules), "stdio"])
    child("server2-modern-stdio", server2(modules, "stdio"))
    servers["server2-modern-http"] = {"url": urls["server2", "http", "modern"]}
    child("fixture-stdio", fixture(state, "--stdio"))
    for era in ("legacy", "modern"):
        child(f"fixture-{era}-stdio", fixture(state, "--stdio", "--era", era))
        servers[f"fixture-{era}-http"] = {"url": urls["fixture", "http", era]}
    return json.dumps({"mcpServers": servers})


@asynccontextmanager
async def running(argv: Argv, path: str, modules: Path) -> AsyncIterator[str]:
    """A server in a process of its own; its URL."""
    process = start(argv, {"PORT": "0", "NODE_PATH": str(modules)})
    try:
        yield (await process.line(r"ready (http://\S+)"))[1] + path
    finally:
        process.kill()
        await process.ended


@pytest.fixture(scope="module")
def modules() -> Path:
    """Where the npm packages are."""
    given = os.environ.get("MCP_NODE_MODULES")
    try:
        return nodeModules(given, (NODE, SDK_1, CLIENT_2, SERVER_2, EVERYTHING))
    except NotInstalled as reason:
        pytest.skip(f"the npm SDKs and servers could not be installed: {reason}")


@pytest_twisted.async_yield_fixture(scope="module")
async def peers(modules: Path, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Peers]:
    """The servers over HTTP, and a gateway in front of all of them."""
    folder = tmp_path_factory.mktemp("matrix")
    state, config = folder / "state", folder / "servers.json"
    state.mkdir()
    starts = {
        ("fixture", "sse", "legacy"): (fixture(state, "--sse", "0"), ""),
        ("everything", "http", "legacy"): ([*everything(modules), "streamableHttp"], "/mcp"),
        ("everything", "sse", "legacy"): ([*everything(modules), "sse"], "/sse"),
        ("server2", "http", "modern"): (server2(modules, "http"), ""),
    }
    for eras in ("both", "legacy", "modern"):
        starts["fixture", "http", eras] = fixture(state, "--http", "0", "--era", eras), ""
    async with AsyncExitStack() as stack:
        urls = {
            key: await stack.enter_async_context(running(argv, path, modules))
            for key, (argv, path) in starts.items()
        }
        config.write_text(configuration(modules, state, urls))
        gateway = await startGateway("--config", str(config))
        stack.push_async_callback(gateway.stop)
        yield Peers(modules, urls, gateway.base)
        assert await gateway.stop() == 0


@pytest.mark.peers
@pytest.mark.parametrize("cell", matrix.CELLS, ids=str)
@pytest_twisted.ensureDeferred
async def test_a_client_sees_through_the_gateway_what_it_sees_directly(
    cell: Cell, peers: Peers, record_property: Callable[[str, str], None]
) -> None:
    record_property("cell", str(cell))
    argv = program(cell.program, peers.modules)
    looks = peers.directly(argv, cell), peers.through(argv, cell)
    both = gatherResults(map(Deferred.fromCoroutine, looks), consumeErrors=True)
    try:
        direct, through = await both
    except FirstError as error:
        error.subFailure.raiseException()
    wrong = matrix.complaints(cell, direct, through)
    assert not wrong, "\n".join(wrong)


@pytest.mark.peers
@pytest.mark.parametrize(
    "route",
    (
        "mcp-legacy-stdio",
        "mcp-modern-stdio",
        "streamable-sse",
        "mcp-legacy-http",
        "mcp-modern-http",
    ),
)
@pytest_twisted.ensureDeferred
async def test_clients_of_both_eras_share_one_url(route: str, peers: Peers) -> None:
    """All at once: each sees what it wants to see, as if it were alone."""
    cells = [Cell(client, route, "fixture") for client in CLIENTS]
    looks = [peers.through(program(cell.program, peers.modules), cell) for cell in cells]
    seen = await gatherResults(map(Deferred.fromCoroutine, looks), consumeErrors=True)
    wrong = {
        cell.client: found
        for cell, through in zip(cells, seen, strict=True)
        if (found := matrix.complaints(cell, None, through))
    }
    assert not wrong, json.dumps(wrong, indent=1)


# What the cells are held to, without any peer.


def sights(cell: Cell) -> tuple[JSON | None, JSON]:
    """What a client would see directly and through the gateway if all were well."""
    through = {step: None for step in matrix.STEPS if step not in matrix.leftOut(cell)}
    for step, want in matrix.wanted(cell).items():
        through[step] = want.alternatives[0] if isinstance(want, matrix.OneOf) else want
    differing = {step: f"another {step}" for step in matrix.differences(cell)}
    return through | differing if cell.direct is not None else None, through


def test_a_cell_has_no_complaint_if_all_is_well() -> None:
    for cell in matrix.CELLS:
        assert matrix.complaints(cell, *sights(cell)) == []


@pytest.mark.parametrize("step", matrix.STEPS)
def test_a_cell_complains_of_each_step_that_goes_wrong(step: str) -> None:
    for cell in matrix.CELLS:
        direct, through = sights(cell)
        if step in through:
            assert matrix.complaints(cell, direct, through | {step: "wrong"})
            del through[step]
            assert matrix.complaints(cell, direct, through)


def test_a_cell_complains_of_a_difference_that_is_none() -> None:
    for cell in matrix.CELLS:
        direct, through = sights(cell)
        differs = any(one.always for one in matrix.differences(cell).values())
        wrong = matrix.complaints(cell, direct and through, through)
        assert bool(wrong) == (differs and direct is not None)


def test_the_docs_tell_every_difference_and_all_that_is_not_done() -> None:
    told = " ".join((ROOT / "docs" / "peers.md").read_text().split())
    reasons = [one.reason for one in matrix.DIFFERENCES]
    for words in (*reasons, *matrix.NOT_DONE, *matrix.NOT_DONE.values()):
        assert words in told, words
