"""
The official conformance suite, directly against a fixture and through the gateway.

    python tests/peers/conformance.py [--node-modules DIR] [--only streamable,transparent]

It installs the suite and a Node 22 with npm (in build/peers, once), starts the fixture and a
gateway on loopback, runs the requirement set 2025-11-25 over each route, and compares check by
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

from installing import CONFORMANCE, NODE, ROOT, NotInstalled, node, nodeModules

FIXTURE = Path(__file__).with_name("conformance_fixture.py")
REQUIREMENTS = "2025-11-25"
ROUTES = {
    "streamable": "stdio",
    "transparent": "http",
    "streamable over Streamable HTTP": "gathered",
    "streamable over HTTP+SSE": "old",
    "streamable over a shared child": "shared",
}
"""The proxy under test and what is behind it, and the server that makes the gateway use them."""

NOBODY_TO_ASK = "a shared server may ask no client anything"
EXPECTED = {
    ("streamable over a shared child", scenario): NOBODY_TO_ASK
    for scenario in (
        "elicitation-sep1034-defaults",
        "elicitation-sep1330-enums",
        "tools-call-elicitation",
        "tools-call-sampling",
    )
}
"""What is lost by design: (route, scenario) -> the reason."""

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


def runSuite(modules: Path, url: str, folder: Path) -> Run:
    """Run the requirement set against a URL; results and log go to `folder`."""
    results, log = folder / "results", folder / "suite.log"
    results.mkdir(parents=True)
    suite = str(modules / ".bin" / "conformance")
    arguments = [node(modules), suite, "server", "--url", url]
    arguments += ["--requirements", REQUIREMENTS, "--output-dir", str(results)]
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


def gatewayConfiguration(upstream: str, old: str) -> str:
    """The fixture as a child, over Streamable HTTP and over HTTP+SSE."""
    servers = {
        "stdio": {"command": sys.executable, "args": [str(FIXTURE), "--stdio"]},
        "http": {"type": "http", "url": upstream},
        "gathered": {"url": upstream, "proxy": "streamable"},
        "old": {"url": old},
    }
    servers["shared"] = {**servers["stdio"], "isolation": "shared"}
    return json.dumps({"mcpServers": servers})


def runAll(modules: Path, routes: Sequence[str], folder: Path) -> dict[str, Run]:
    """Run the suite directly and over each route, one after the other."""
    gateway = folder / "gateway.log"
    with contextlib.ExitStack() as stack:

        def fixtureOver(transport: str) -> str:
            log = folder / f"fixture-{transport}.log"
            arguments = [sys.executable, str(FIXTURE), f"--{transport}", "0"]
            return awaited(stack.enter_context(running(arguments, log)), log, None)

        upstream = fixtureOver("http")
        runs = {"direct": runSuite(modules, upstream, folder / "direct")}
        if routes:
            configuration, port = folder / "servers.json", freePort()
            configuration.write_text(gatewayConfiguration(upstream, fixtureOver("sse")))
            arguments = [sys.executable, "-m", "gateway.tap", "--config", str(configuration)]
            arguments += ["--listen", f"tcp:{port}:interface=127.0.0.1"]
            base = awaited(stack.enter_context(running(arguments, gateway)), gateway, port)
            for route in routes:
                url = f"{base}/servers/{ROUTES[route]}/mcp"
                runs[route] = runSuite(modules, url, folder / ROUTES[route])
        return runs


def lost(runs: Mapping[str, Run], route: str) -> list[tuple[str, str, str]]:
    """Scenario, check id and what became of it: every check that passes directly only."""
    through = runs[route].checks
    return [
        (scenario, id, through.get((scenario, id), "not reported"))
        for (scenario, id), status in sorted(runs["direct"].checks.items())
        if status == "SUCCESS" and through.get((scenario, id)) not in FINE
    ]


def report(runs: Mapping[str, Run]) -> bool:
    """Print the table; whether no check was lost and every route ran."""
    print(f"{CONFORMANCE}, requirements {REQUIREMENTS}")
    print(f"{'route':<32} {'scenarios':>9} {'passed':>7} {'failed':>7} {'warnings':>9} {'lost':>5}")
    fine = True
    for route, run in runs.items():
        missing = [] if route == "direct" else lost(runs, route)
        statuses = [run.count(status) for status in ("SUCCESS", "FAILURE", "WARNING")]
        counts = [run.scenarios, *statuses, len(missing)]
        print("{:<32} {:>9} {:>7} {:>7} {:>9} {:>5}".format(route, *counts))
        unexpected = [one for one in missing if (route, one[0]) not in EXPECTED]
        fine = fine and not unexpected and run.count("SUCCESS") > 0
    for (scenario, id), status in sorted(runs["direct"].checks.items()):
        if status == "FAILURE":
            print(f"fails directly: {scenario} / {id}")
    for route in runs:
        for scenario, id, status in [] if route == "direct" else lost(runs, route):
            note = " (not scored)" if scenario in runs["direct"].unscored else ""
            why = EXPECTED.get((route, scenario))
            note += f" (expected: {why})" if why else ""
            print(f"lost by {route}: {scenario} / {id}: {status}{note}")
    return fine


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--node-modules", metavar="DIR", help="the suite, installed")
    parser.add_argument(
        "--only",
        default=",".join(ROUTES),
        help="the routes beside `direct`, with commas; `direct` alone starts no gateway",
    )
    parser.add_argument(
        "--keep", type=Path, metavar="DIR", help="keep the results and logs in a new folder"
    )
    chosen = parser.parse_args()
    routes = [route for route in chosen.only.split(",") if route not in ("", "direct")]
    if unknown := [route for route in routes if route not in ROUTES]:
        parser.error(f"unknown route: {', '.join(unknown)}")
    # What ends this script ends what it started.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        modules = nodeModules(chosen.node_modules, (CONFORMANCE, NODE))
        if chosen.keep:
            chosen.keep.mkdir(parents=True)
            return 0 if report(runAll(modules, routes, chosen.keep.resolve())) else 1
        with tempfile.TemporaryDirectory(prefix="conformance-") as folder:
            return 0 if report(runAll(modules, routes, Path(folder))) else 1
    except (Broken, NotInstalled) as broken:
        print(broken, file=sys.stderr)
        return 2 if isinstance(broken, NotInstalled) else 1


if __name__ == "__main__":
    sys.exit(main())
