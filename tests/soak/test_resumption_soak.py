"""
Streams cut a thousand times, a thousand children that come and go, and a quiet stream behind nginx.

GATEWAY_SOAK_CUTS: streams that are cut. GATEWAY_SOAK_CYCLES: children. GATEWAY_SOAK_SEED: replays
a run. GATEWAY_NGINX: the nginx to use, if it is not on the path.
"""

from __future__ import annotations

import os
import random
import shutil
import socket
import time
from pathlib import Path

import pytest
import pytest_twisted
from cycles import Cycles, settled, wait
from live import Live, faulty, startLive
from posting import connected, posted
from processes import start
from raw import RawClient
from resuming import Reading, opened
from twisted.internet.defer import ensureDeferred, gatherResults
from twisted.internet.error import ConnectError

pytestmark = pytest.mark.soak

PATH = "/servers/faulty/mcp"
REVISION = "2025-11-25"


async def session(gateway: Live) -> str:
    params = {"protocolVersion": REVISION, "capabilities": {}, "clientInfo": {"name": "r"}}
    message = {"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": params}
    opening = await gateway.post("faulty", message)
    (id,) = opening.headers["Mcp-Session-Id"]
    told = {"jsonrpc": "2.0", "method": "notifications/initialized"}
    assert (await gateway.post("faulty", told, id)).status == 202
    return id


@pytest.mark.acceptance(74)
@pytest_twisted.ensureDeferred
async def test_acceptance_74_aThousandStreamsOfRealChildrenCutAnywhere() -> None:
    seed = int(os.environ.get("GATEWAY_SOAK_SEED", random.randrange(10**9)))
    streams = int(os.environ.get("GATEWAY_SOAK_CUTS", 1000))
    dice = random.Random(seed)
    gateway = await startLive(faulty())
    port = int(gateway.base.rpartition(":")[2])
    cuts = 0

    async def lane(count: int) -> None:
        nonlocal cuts
        named = await session(gateway)

        async def resumed(last: bytes) -> RawClient:
            request = posted(gateway.base, PATH, named, None, "GET")
            return await opened(port, request[:-2] + b"Last-Event-ID: %b\r\n\r\n" % last)

        for id in range(count):
            events = dice.randint(1, 30)
            arguments = {"count": events}
            params = {"name": "progress", "arguments": arguments, "_meta": {"progressToken": id}}
            message = {"jsonrpc": "2.0", "id": id, "method": "tools/call", "params": params}
            request = posted(gateway.base, PATH, named, message)
            reading = Reading(resumed, await opened(port, request))
            await reading.head()
            await reading.one()
            for place in sorted(dice.randint(0, events) for _ in range(dice.randint(1, 4))):
                await reading.read(place)
                old = reading.client
                if dice.random() < 0.7:
                    await reading.drop()
                if dice.random() < 0.3:
                    (await resumed(reading.last)).reset()
                await reading.resume()
                old.reset()
                await old.ended
                cuts += 1
            *progress, answer = await reading.rest()
            assert answer["id"] == id and "result" in answer
            steps = [told["params"]["progress"] for told in progress]
            assert steps == sorted(steps) and len(set(steps)) == len(steps) == events
            reading.client.close()
            await reading.client.ended

    began = time.monotonic()
    await gatherResults([ensureDeferred(lane(streams // 4)) for _ in range(4)])
    took = time.monotonic() - began
    print(f"\nresumption: GATEWAY_SOAK_SEED={seed}: {streams} streams, {cuts} cuts, {took:.1f} s")
    await gateway.stop()


@pytest.mark.acceptance(59)
@pytest_twisted.ensureDeferred
async def test_acceptance_59_aThousandCyclesLeaveNothing() -> None:
    count = int(os.environ.get("GATEWAY_SOAK_CYCLES", 1000))
    cycles = await Cycles.started()
    gateway = cycles.gateway
    await cycles.run(20)
    before = await settled(gateway, lambda now: now["processes"] == 1 and not now["sessions"])
    began = time.monotonic()
    await cycles.run(count)

    def flat(now: dict[str, int]) -> bool:
        # A timer that was on its way out when the first count was made may be gone since.
        return all(now[kind] <= before[kind] for kind in before)

    now = await settled(gateway, flat)
    took = time.monotonic() - began
    print(f"\ncycles: {count} and {cycles.crashes} crashes in {took:.1f} s; {before} -> {now}")
    assert flat(now)
    await gateway.stop()


NGINX = """\
daemon off; worker_processes 1; pid {folder}/pid; error_log {folder}/errors;
events {{ }}
http {{
  access_log off;
  client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/f; uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;
  server {{
    listen 127.0.0.1:{port};
    location / {{
      proxy_pass {base}; proxy_http_version 1.1; proxy_read_timeout 3s;
    }}
  }}
}}
"""


def nginx() -> str:
    """The nginx there is; the test is skipped where there is none."""
    found = os.environ.get("GATEWAY_NGINX") or shutil.which("nginx", path="/usr/sbin:" + os.defpath)
    if not found:
        print("\nnginx: skipped, there is none; GATEWAY_NGINX names one")
        pytest.skip("no nginx")
    return found


@pytest.mark.acceptance(80)
@pytest_twisted.ensureDeferred
async def test_acceptance_80_quietStreamsLiveBehindNginx(tmp_path: Path) -> None:
    """At a tenth: a heartbeat each second, nginx cuts what is silent for three."""
    program = nginx()
    gateway = await startLive(faulty(), heartbeat=1.0)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    configuration = tmp_path / "nginx.conf"
    text = NGINX.format(folder=tmp_path, port=port, base=gateway.base)
    configuration.write_text(text)
    proxy = start([program, "-p", str(tmp_path), "-c", str(configuration), "-e", "stderr"])
    base = f"http://127.0.0.1:{port}"
    try:
        await _quiet(gateway, base, port)
    finally:
        proxy.kill()
        await proxy.ended
        await gateway.stop()


async def _quiet(gateway: Live, base: str, port: int) -> None:
    for _ in range(100):
        try:
            (await connected(Live(gateway.service, gateway.recorder, base))).close()
            break
        except ConnectError:
            await wait(0.05)
    named = await session(gateway)

    async def resumed(last: bytes) -> RawClient:
        request = posted(base, PATH, named, None, "GET")
        return await opened(port, request[:-2] + b"Last-Event-ID: %b\r\n\r\n" % last)

    def reading(client: RawClient) -> Reading:
        return Reading(resumed, client, proxied=True)

    async def call(id: int) -> Reading:
        params = {"name": "sleep", "arguments": {"seconds": 30}}
        message = {"jsonrpc": "2.0", "id": id, "method": "tools/call", "params": params}
        return reading(await opened(port, posted(base, PATH, named, message)))

    began = time.monotonic()
    get = reading(await opened(port, posted(base, PATH, named, None, "GET")))
    sse = reading(await opened(port, posted(base, "/servers/faulty/sse", "", None, "GET")))
    streams = {"GET": get, "POST": await call(8), "resumed": await call(9), "SSE": sse}
    for stream in streams.values():
        await stream.head()
        event = await stream.client.event()
        assert event is not None
        stream.ids.append(event.id or b"")
    await streams["resumed"].drop()
    await streams["resumed"].resume()
    beats = dict.fromkeys(streams, 0)
    while time.monotonic() - began < 28:
        for name, stream in streams.items():
            chunk = await stream.client.chunk()
            assert chunk is not None, f"{name} was cut"
            beats[name] += chunk.count(b":\n\n")
    for id, name in ((8, "POST"), (9, "resumed")):
        (answer,) = await streams[name].rest()
        assert answer["id"] == id and "result" in answer
    print(f"\nnginx: quiet for {time.monotonic() - began:.0f} s, heartbeats {beats}; answers came")
    assert min(beats.values()) > 15
    for stream in streams.values():
        stream.client.reset()
        await stream.client.ended
