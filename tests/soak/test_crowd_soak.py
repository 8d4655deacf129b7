"""
Many clients at once, and slow ones: acceptance 11, 12, 13, 93, 97. Prints what they cost.

Debian's slowhttptest, wrk and nghttp2-client (h2load) are used where they are installed; what is
missing is skipped, and named.
"""

from __future__ import annotations

import os
import re
import resource
import time
from collections import Counter
from pathlib import Path

import pytest
import pytest_twisted
from cycles import wait
from live import faulty, startLive
from processes import Gateway, Process, start, startGateway
from soaking import Gaps, loaded, more, program

pytestmark = pytest.mark.soak


def cpu(pid: int) -> float:
    """Seconds of CPU a process has had."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def finished(process: Process) -> str:
    await process.ended
    return process.out + process.err


@pytest.mark.acceptance(93)
@pytest_twisted.ensureDeferred
async def test_acceptance_93_three_thousand_connections_at_once() -> None:
    more()
    running: Gateway = await startGateway()
    pid = running.process.transport.pid
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (16_000, 16_000))
    port = int(running.base.rpartition(":")[2])
    before = cpu(pid)
    ran = await loaded(port, "rush", path="/healthz", count=3000)
    print(
        f"\n3,000 at once: connected after {ran['connected']:.2f} s, "
        f"answered after {ran['answered']:.2f} s; {cpu(pid) - before:.2f} s of CPU"
    )
    assert ran["statuses"] == {"200": 3000}
    assert await running.stop() == 0


@pytest.mark.acceptance(11, 12, 13)
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("11: heads that drip", ["-H", "-i", "1"]),
        ("12: bodies that drip", ["-B", "-i", "1", "-s", "100000"]),
        (
            "13: readers that do not read",
            ["-X", "-w", "1", "-y", "2", "-n", "5", "-z", "1", "-k", "3"],
        ),
    ],
)
@pytest_twisted.ensureDeferred
async def test_acceptance_11_12_13_slowhttptest(name: str, options: list[str]) -> None:
    """500 slow clients; a good one beside them is served all the while."""
    slow = program("slowhttptest")
    more()
    gateway = await startLive(faulty())
    url, verb = f"{gateway.base}/healthz", []
    if "-B" in options:
        url = f"{gateway.base}/servers/faulty/mcp"
        verb = ["-t", "POST", "-f", "application/json", "-m", "application/json"]
    argv = [slow, "-c", "500", "-r", "250", "-l", "45", "-p", "3", "-u", url, *verb, *options]
    process = start(argv)
    times: list[float] = []
    gaps = Gaps()
    while not process.ended.called:
        began = time.monotonic()
        answer = await gateway.request("GET", "/healthz")
        assert answer.status == 200
        times.append(time.monotonic() - began)
        await wait(0.05)
    await process.ended
    times.sort()
    p99 = times[int(len(times) * 0.99)] * 1000
    print(
        f"\nslowhttptest {name}: a good client's p99 {p99:.1f} ms of {len(times)} requests, "
        f"stalls {gaps.stop()}; {dict(Counter(gateway.recorder.bounds))}"
    )
    lines = re.sub(r"\x1b\[[0-9;]*m", "", process.out).splitlines()
    print("; ".join(" ".join(line.split()) for line in lines[-10:] if line.strip()))
    expected = {"-H": {"head_timeout": 500}, "-B": {"min_body_rate": 500}, "-X": {}}[options[0]]
    assert dict(Counter(gateway.recorder.bounds)) == expected
    await gateway.stop()


@pytest.mark.acceptance(97)
@pytest_twisted.ensureDeferred
async def test_acceptance_97_large_bodies_from_wrk(tmp_path: Path) -> None:
    """As fast as they go, which is faster than the acceptance's rates: every one is answered."""
    wrk = program("wrk")
    gateway = await startLive(faulty())
    script = tmp_path / "post.lua"
    for size, connections in ((64 * 1024, 8), (4 * 1024 * 1024 - 1024, 2)):
        script.write_text(
            'wrk.method = "POST"\nwrk.headers["Content-Type"] = "application/json"\n'
            """wrk.body = '{"jsonrpc":"2.0","id":1,"method":"x","params":{"x":"' """
            f""".. string.rep("x", {size}) .. '"}}}}'\n"""
        )
        gaps = Gaps()
        options = ["-t1", f"-c{connections}", "-d10s", "-s", str(script), "--latency"]
        out = await finished(start([wrk, *options, f"{gateway.base}/mcp"]))
        total = re.search(r"(\d+) requests in", out)
        latency = re.search(r"99%\s+(\S+)", out)
        assert total and latency, out
        print(
            f"\nwrk, bodies of {size} bytes: {int(total[1]) // 10} a second, p99 {latency[1]}, "
            f"stalls {gaps.stop()}"
        )
        # How many there are is the machine's business; that each is answered is ours.
        assert int(total[1]), out
        # A call without a session: 400, each time.
        assert re.search(rf"Non-2xx or 3xx responses: {total[1]}\b", out), out
        assert "Socket errors" not in out
    await gateway.stop()


@pytest_twisted.ensureDeferred
async def test_many_requests_from_h2load() -> None:
    """In HTTP/1.1, kept alive: none is lost."""
    h2load = program("h2load")
    running = await startGateway()
    out = await finished(
        start([h2load, "--h1", "-n", "20000", "-c", "50", f"{running.base}/healthz"])
    )
    done = re.search(r"requests: .*", out)
    assert done and "20000 succeeded, 0 failed, 0 errored" in done[0], out
    print(f"\nh2load: {re.search(r'finished in .*', out)[0]}")  # type: ignore[index]
    assert await running.stop() == 0
    assert "Traceback" not in running.process.err
