"""A gateway without a descriptor or a process to spare: `pytest -m soak -s tests/soak`."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import pytest_twisted
from attrs import define
from flooding import Opened, ask, opened
from posting import connected, posted
from processes import ROOT, Gateway, start
from raw import RawClient, hello

pytestmark = pytest.mark.soak

NOBODY = "65534"
"""Who has no other processes, and no right to more than its limits allow."""


def asNobody(*argv: str) -> str:
    """The output of a command, run as whoever runs the gateway: others may not touch it."""
    command = ["setpriv", f"--reuid={NOBODY}", "--clear-groups", *argv]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


@define
class Starved:
    """One run: what there is none of is given back by `fed`."""

    gateway: Gateway
    limit: str
    before: str

    @property
    def pid(self) -> int:
        return int(self.gateway.process.transport.pid)

    def starve(self) -> None:
        asNobody("prlimit", f"--pid={self.pid}", f"--{self.limit}={self.used()}:")

    def fed(self) -> None:
        asNobody("prlimit", f"--pid={self.pid}", f"--{self.limit}={self.before}:")

    def used(self) -> int:
        if self.limit == "nofile":
            return len(asNobody("ls", f"/proc/{self.pid}/fd").split())
        tasks = 0
        for path in Path("/proc").glob("[0-9]*/status"):
            text = path.read_text()
            if f"\nUid:\t{NOBODY}" in text:
                tasks += int(text.partition("\nThreads:\t")[2].split()[0])
        return tasks

    async def initialized(self, client: RawClient) -> Any:
        client.send(posted(self.gateway.base, "/servers/one/mcp", "", json.loads(hello())))
        return json.loads((await client.response()).body)

    async def called(self, who: Opened) -> None:
        asked = await ask(self.gateway, who, "one", "echo", said=1)
        assert b'"said": 1' in (await asked.client.response()).body
        await asked.end()


@pytest.fixture
def config() -> Iterator[Path]:
    """A configuration that anybody may read."""
    server = {"command": sys.executable, "args": [str(ROOT / "tests" / "faulty_server.py")]}
    with TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        file = Path(folder, "servers.json")
        file.write_text(json.dumps({"mcpServers": {"one": server}}))
        yield file


@pytest.mark.acceptance(60)
@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("setpriv"), reason="needs another user")
@pytest.mark.parametrize("limit", ["nofile", "nproc"])
@pytest_twisted.ensureDeferred
async def test_acceptance_60_nothing_to_spare_for_a_child(limit: str, config: Path) -> None:
    argv = ["setpriv", f"--reuid={NOBODY}", "--clear-groups", sys.executable, "-m", "gateway.tap"]
    argv += ["--listen", "tcp:0:interface=127.0.0.1", "--config", str(config)]
    process = start(argv, {"PYTHONDONTWRITEBYTECODE": "1"})
    found = await process.line(r"(http://127\.0\.0\.1:\d+)/servers/")
    gateway = Gateway(process, found[1])
    words = (
        "prlimit",
        f"--pid={process.transport.pid}",
        f"--{limit}",
        "-o",
        "SOFT",
        "--noheadings",
    )
    it = Starved(gateway, limit, asNobody(*words).strip())
    who = await opened(gateway, "streamable", "one")
    # With no descriptors left no connection is let in, either; this one is.
    client = await connected(gateway)
    began, refused = time.monotonic(), 0
    for _ in range(20):
        it.starve()
        for _ in range(3):
            error = (await it.initialized(client))["error"]
            assert error.get("data", {}).get("reason") == "overloaded", error
            refused += 1
        it.fed()
        await it.called(who)
        assert "result" in await it.initialized(client)
    took = time.monotonic() - began
    what = "descriptor" if limit == "nofile" else "process"
    print(
        f"\nno {what} to spare: {refused} handshakes refused, 20 of 20 made right after it, "
        f"{took:.1f} s"
    )
    client.close()
    await client.ended
    assert await gateway.stop() == 0
