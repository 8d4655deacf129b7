"""A disk that is full where the gateway logs: acceptance 110. It goes on serving."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import pytest_twisted
from posting import connected, posted
from processes import ROOT, Gateway, start
from soaking import wait
from twisted.internet.error import ConnectError

from benchmarks.process import freePort

pytestmark = pytest.mark.soak

PATH = "/servers/faulty/mcp"
TWISTD = str(Path(sys.executable).with_name("twistd"))


@pytest.fixture
def full(tmp_path: Path) -> Iterator[Path]:
    """A file system with not a byte to spare. Making one takes root."""
    place = tmp_path / "full"
    place.mkdir()
    mount = ["/bin/mount", "-t", "tmpfs", "-o", "size=64k", "none", str(place)]
    if os.geteuid() or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("no file system could be mounted")
    try:
        yield place
    finally:
        subprocess.run(["/bin/umount", "-l", str(place)], check=True)


def fill(place: Path) -> int:
    size = 0
    with open(place / "filler", "ab", buffering=0) as filler:
        try:
            while True:
                size += filler.write(b"x" * 256)
        except OSError:
            return size


@pytest.mark.acceptance(110)
@pytest.mark.parametrize("how", ["stderr", "stdout too", "twistd", "twistd, a daemon"])
@pytest_twisted.ensureDeferred
async def test_acceptance_110_a_full_disk_stops_no_service(
    tmp_path: Path, full: Path, how: str
) -> None:
    """Every call has the server write to its stderr, which the gateway logs."""
    port = freePort()
    server = [sys.executable, str(ROOT / "tests" / "faulty_server.py")]
    words = ["--listen", f"tcp:{port}:interface=127.0.0.1", "--config", str(tmp_path / "c.toml")]
    (tmp_path / "c.toml").write_text(
        f'[mcpServers.faulty]\ncommand = "{server[0]}"\nargs = ["{server[1]}"]\n'
    )
    log, pid = full / "log", tmp_path / "pid"
    shell = ["/bin/sh", "-c"]
    argv = {
        "stderr": [*shell, f'exec "$@" 2>>{log}', "sh", sys.executable, "-m", "gateway.tap"],
        "stdout too": [
            *shell,
            f'exec "$@" >>{log} 2>&1',
            "sh",
            sys.executable,
            "-m",
            "gateway.tap",
        ],
        "twistd": [TWISTD, "-n", f"--pidfile={pid}", f"--logfile={log}", "mcp-gateway"],
        "twistd, a daemon": [TWISTD, f"--pidfile={pid}", f"--logfile={log}", "mcp-gateway"],
    }[how]
    log.touch()
    filled = fill(full)
    process = start([*argv, *words], cwd=str(ROOT))
    gateway = Gateway(process, f"http://127.0.0.1:{port}")
    for attempt in range(100):
        try:
            client = await connected(gateway)
            break
        except ConnectError:
            assert attempt < 99
        await wait(0.1)
    session, answered = "", 0
    for id in range(200):
        if id % 50 == 0:
            # A session and a child of its own, now and then.
            client.send(posted(gateway.base, PATH, "", hello()))
            session = ((await client.response()).header(b"mcp-session-id") or b"").decode()
        call = {"name": "stderr", "arguments": {"bytes": 500}}
        message = {"jsonrpc": "2.0", "id": id, "method": "tools/call", "params": call}
        client.send(posted(gateway.base, PATH, session, message))
        answer = await client.response()
        assert answer.status == 200 and answer.json["id"] == id and "result" in answer.json
        answered += 1
    client.send(posted(gateway.base, PATH, session, None, "DELETE"))
    assert (await client.response()).status == 204
    # There is room again: it is written again.
    (full / "filler").unlink()
    client.send(posted(gateway.base, PATH, "", hello()))
    session = ((await client.response()).header(b"mcp-session-id") or b"").decode()
    message = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": call}
    client.send(posted(gateway.base, PATH, session, message))
    await client.response()
    await wait(0.5)
    written = log.read_text(errors="replace")
    client.close()
    await client.ended
    if how == "twistd, a daemon":
        os.kill(int(pid.read_text()), 15)
        await process.ended
        while pid.exists():
            await wait(0.1)
    else:
        process.kill()
        code = await process.ended
        assert code == (-15 if how == "twistd" else 0), (code, process.err)
    print(
        f"\nfull disk ({how}): filled after {filled} bytes; {answered} calls answered; with room "
        f"again {len(written)} bytes of log"
    )
    assert "warning" in written, "what comes once there is room is written"


def hello() -> dict[str, object]:
    info = {"name": "full", "version": "1"}
    params = {"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": info}
    return {"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": params}
