"""
The official conformance suite, directly against a fixture and through the gateway.

    python tests/peers/conformance.py [--requirements 2026-07-28] [--only streamable,transparent]

It installs the suite and a Node 22 with npm (in build/peers, once), starts the fixture and a
gateway on loopback, runs each requirement set over each of its routes, and compares check by
check. The exit status is 1 if a check that passes directly does not through the gateway, or if a
route ran nothing; 2 if the suite could not be installed. docs/conformance.md says more.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from fixture_eras import ERAS
from installing import CONFORMANCE, NODE, ROOT, NotInstalled, node, nodeModules

FIXTURE = Path(__file__).with_name("conformance_fixture.py")
LEGACY, MODERN = "2025-11-25", "2026-07-28"
ROUTES = {
    LEGACY: {
        "streamable": "stdio",
        "transparent": "http",
        "streamable over Streamable HTTP": "gathered",
        "streamable over HTTP+SSE": "old",
        "streamable over a shared child": "shared",
        "bridge to a modern child": "modern-stdio",
        "bridge to a modern HTTP server": "modern-http",
    },
    MODERN: {
        "streamable": "stdio",
        "transparent": "http",
        "bridge to a legacy child": "legacy-stdio",
        "bridge to a legacy HTTP server": "legacy-http",
        "bridge to HTTP+SSE": "old",
    },
}
"""
By requirement set: the route under test, and the server that makes the gateway use it. `stdio` and
`http` speak both eras, so that each client finds its own; the others one.
"""

NOBODY_TO_ASK = "a shared server may ask no client anything"
UNNAMED = "a legacy server does not name its questions, so their keys are not those of the suite"
UNDECLARED = "a legacy server hears that the client does not offer it, and then decides itself"
STARTING = "a client that declares something else has a child of its own, and 600 ms for its start"
BRIDGES = ("bridge to a legacy child", "bridge to a legacy HTTP server", "bridge to HTTP+SSE")
EXPECTED: dict[tuple[str, ...], str] = {
    ("streamable over a shared child", scenario): NOBODY_TO_ASK
    for scenario in (
        "elicitation-sep1034-defaults",
        "elicitation-sep1330-enums",
        "tools-call-elicitation",
        "tools-call-sampling",
    )
}
for _bridge in BRIDGES:
    EXPECTED |= {
        (_bridge, "input-required-result-basic-elicitation"): UNNAMED,
        (_bridge, "input-required-result-ignore-extra-params"): UNNAMED,
        (_bridge, "server-stateless", "sep-2575-server-rejects-undeclared-capability"): UNDECLARED,
        (_bridge, "server-stateless", "sep-2575-missing-capability-http-400"): UNDECLARED,
    }
EXPECTED[
    BRIDGES[0], "server-stateless", "sep-2575-http-server-no-independent-requests-on-stream"
] = STARTING
"""What is lost by design: (route, scenario), or (route, scenario, check id) -> the reason."""

START_SECONDS = 30.0
STOP_SECONDS = 15.0
SUITE_SECONDS = 300.0

# From worst to best; a check that is reported several times counts as its worst.
STATUSES = ("FAILURE", "WARNING", "SKIPPED", "SUCCESS", "INFO")
# A stream that was answered as JSON, say, is noted by the suite, not judged.
FINE = ("SUCCESS", "INFO")

Checks = dict[tuple[str, str], str]
"""(scenario, check id) -> status."""


class Broken(Exception):
    """The comparison cannot be made; the message says why."""


def endGroup(process: subprocess.Popen[bytes]) -> None:
    """End a process that was started in a session of its own, and all of its group."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            print(f"killed {process.args!r}: it did not end on SIGTERM", file=sys.stderr)
    with contextlib.suppress(ProcessLookupError):
        # Also after its leader is gone: a group lives as long as a member.
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


@contextlib.contextmanager
def running(arguments: list[str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process in a group of its own, its output in `log`; ended with the block."""
    with log.open("wb") as out:
        process = subprocess.Popen(
            arguments,
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        endGroup(process)


def freePort() -> int:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port: int = taken.getsockname()[1]
        return port


def awaited(process: subprocess.Popen[bytes], log: Path, port: int | None) -> str:
    """Wait until a port is listened on, or until the log has a `ready URL` line; the URL."""
    until = time.monotonic() + START_SECONDS
    while time.monotonic() < until:
        if process.poll() is not None:
            raise Broken(f"{process.args!r} ended:\n{log.read_text(errors='replace')[-4000:]}")
        if port is None:
            found = re.search(r"^ready (http://\S+)$", log.read_text(errors="replace"), re.M)
            if found:
                return found[1]
        else:
            with contextlib.suppress(OSError):
                socket.create_connection(("127.0.0.1", port), 1).close()
                return f"http://127.0.0.1:{port}"
        time.sleep(0.05)
    raise Broken(f"{process.args!r} was not ready in time")


@dataclass
class Run:
    """What the suite said over one route."""

    checks: Checks
    unscored: frozenset[str]

    def count(self, status: str) -> int:
        return sum(one == status for one in self.checks.values())

    @property
    def scenarios(self) -> int:
        return len({scenario for scenario, _ in self.checks})


def runSuite(modules: Path, url: str, folder: Path, requirements: str) -> Run:
    """Run a requirement set against a URL; results and log go to `folder`."""
    results, log = folder / "results", folder / "suite.log"
    results.mkdir(parents=True)
    suite = str(modules / ".bin" / "conformance")
    arguments = [node(modules), suite, "server", "--url", url]
    arguments += ["--requirements", requirements, "--output-dir", str(results)]
    with running(arguments, log) as process:
        try:
            process.wait(SUITE_SECONDS)
        except subprocess.TimeoutExpired:
            raise Broken(f"the suite did not finish; see {log}") from None
    said = log.read_text(errors="replace")
    unscored = re.findall(r"^\s+\S (\S+) \((?:extension|pending|added-after-release)\)", said, re.M)
    checks: Checks = {}
    for file in sorted(results.glob("server-*/checks.json")):
        # The folder is named server-<scenario>-<timestamp>.
        scenario = re.sub(r"-\d{4}-\d\d-\d\dT[\d-]+Z$", "", file.parent.name)[len("server-") :]
        for check in json.loads(file.read_text()):
            key, status = (scenario, check["id"]), check["status"]
            checks[key] = min(status, checks.get(key, status), key=STATUSES.index)
    return Run(checks, frozenset(unscored))


def gatewayConfiguration(urls: Mapping[str, str]) -> str:
    """The fixture as a child, over Streamable HTTP and over HTTP+SSE, of both eras and of one."""
    child = {"command": sys.executable, "args": [str(FIXTURE), "--stdio"]}
    servers: dict[str, dict[str, object]] = {
        "stdio": child,
        "shared": {**child, "isolation": "shared"},
        "http": {"type": "http", "url": urls["both"]},
        "gathered": {"url": urls["both"], "proxy": "streamable"},
        "old": {"url": urls["sse"]},
    }
    for era in ("legacy", "modern"):
        servers[f"{era}-stdio"] = {**child, "args": [*child["args"], "--era", era]}
        servers[f"{era}-http"] = {"url": urls[era]}
    return json.dumps({"mcpServers": servers})


Runs = dict[str, Run]


def runAll(modules: Path, wanted: Mapping[str, Sequence[str]], folder: Path) -> dict[str, Runs]:
    """Run each set directly and over its routes, one after the other."""
    gateway = folder / "gateway.log"
    with contextlib.ExitStack() as stack:

        def fixture(name: str, *arguments: str) -> str:
            log = folder / f"fixture-{name}.log"
            command = [sys.executable, str(FIXTURE), *arguments]
            return awaited(stack.enter_context(running(command, log)), log, None)

        urls = {era: fixture(era, "--http", "0", "--era", era) for era in ERAS}
        urls["sse"] = fixture("sse", "--sse", "0")
        configuration, port = folder / "servers.json", freePort()
        configuration.write_text(gatewayConfiguration(urls))
        arguments = [sys.executable, "-m", "gateway.tap", "--config", str(configuration)]
        arguments += ["--listen", f"tcp:{port}:interface=127.0.0.1"]
        base = awaited(stack.enter_context(running(arguments, gateway)), gateway, port)
        found: dict[str, Runs] = {}
        for requirements, routes in wanted.items():
            place = folder / requirements
            runs = {"direct": runSuite(modules, urls["both"], place / "direct", requirements)}
            for route in routes:
                server = ROUTES[requirements][route]
                url = f"{base}/servers/{server}/mcp"
                runs[route] = runSuite(modules, url, place / server, requirements)
            found[requirements] = runs
        return found


def expected(route: str, scenario: str, id: str) -> str | None:
    """Why a check is lost by design; None if it is not."""
    return EXPECTED.get((route, scenario)) or EXPECTED.get((route, scenario, id))


def lost(runs: Mapping[str, Run], route: str) -> list[tuple[str, str, str]]:
    """Scenario, check id and what became of it: every check that passes directly only."""
    through = runs[route].checks
    return [
        (scenario, id, through.get((scenario, id), "not reported"))
        for (scenario, id), status in sorted(runs["direct"].checks.items())
        if status == "SUCCESS" and through.get((scenario, id)) not in FINE
    ]


def report(requirements: str, runs: Mapping[str, Run]) -> bool:
    """Print the table; whether no check was lost and every route ran."""
    print(f"{CONFORMANCE}, requirements {requirements}")
    print(f"{'route':<32} {'scenarios':>9} {'passed':>7} {'failed':>7} {'warnings':>9} {'lost':>5}")
    fine = True
    for route, run in runs.items():
        missing = [] if route == "direct" else lost(runs, route)
        statuses = [run.count(status) for status in ("SUCCESS", "FAILURE", "WARNING")]
        counts = [run.scenarios, *statuses, len(missing)]
        print("{:<32} {:>9} {:>7} {:>7} {:>9} {:>5}".format(route, *counts))
        unexpected = [one for one in missing if expected(route, one[0], one[1]) is None]
        fine = fine and not unexpected and run.count("SUCCESS") > 0
    for (scenario, id), status in sorted(runs["direct"].checks.items()):
        if status == "FAILURE":
            note = " (not scored)" if scenario in runs["direct"].unscored else ""
            print(f"fails directly: {scenario} / {id}{note}")
    for route in runs:
        for scenario, id, status in [] if route == "direct" else lost(runs, route):
            note = " (not scored)" if scenario in runs["direct"].unscored else ""
            why = expected(route, scenario, id)
            note += f" (expected: {why})" if why else ""
            print(f"lost by {route}: {scenario} / {id}: {status}{note}")
    return fine


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--node-modules", metavar="DIR", help="the suite, installed")
    parser.add_argument("--requirements", choices=ROUTES, help="one set alone")
    parser.add_argument(
        "--only",
        metavar="ROUTE,ROUTE",
        help="the routes beside `direct`, with commas; `direct` is none",
    )
    parser.add_argument(
        "--keep", type=Path, metavar="DIR", help="keep the results and logs in a new folder"
    )
    chosen = parser.parse_args()
    wanted = {
        requirements: list(routes)
        for requirements, routes in ROUTES.items()
        if chosen.requirements in (None, requirements)
    }
    if chosen.only is not None:
        only = {route for route in chosen.only.split(",") if route not in ("", "direct")}
        known = {route for routes in wanted.values() for route in routes}
        if unknown := only - known:
            parser.error(f"unknown route: {', '.join(sorted(unknown))}")
        wanted = {key: [one for one in routes if one in only] for key, routes in wanted.items()}
    # What ends this script ends what it started.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        modules = nodeModules(chosen.node_modules, (CONFORMANCE, NODE))
        if chosen.keep:
            chosen.keep.mkdir(parents=True)
            found = runAll(modules, wanted, chosen.keep.resolve())
        else:
            with tempfile.TemporaryDirectory(prefix="conformance-") as folder:
                found = runAll(modules, wanted, Path(folder))
        fine = [report(requirements, runs) for requirements, runs in found.items()]
        return 0 if all(fine) else 1
    except (Broken, NotInstalled) as broken:
        print(broken, file=sys.stderr)
        return 2 if isinstance(broken, NotInstalled) else 1


if __name__ == "__main__":
    sys.exit(main())
