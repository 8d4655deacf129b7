"""
Framing, at length: `pytest -m soak -s tests/soak/test_framing_soak.py`.

GATEWAY_SOAK_STREAMS: mutated streams. GATEWAY_SOAK_SEED: replays a run. GATEWAY_SOAK_FUZZ: seconds
of coverage-guided fuzzing, where atheris is installed. Debian's nginx-light, haproxy, slowhttptest,
wrk and nghttp2-client (h2load) are used where they are installed; what is missing is skipped, and
named.
"""

from __future__ import annotations

import importlib.util
import os
import random
import re
import resource
import shutil
import socket
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from cycles import wait
from differential import TARGET, Differential, streamOf
from live import faulty, startLive
from processes import Gateway, Process, start, startGateway
from raw import RawClient, Recorder, hello, rpc
from twisted.internet import reactor
from twisted.internet.defer import Deferred, ensureDeferred, gatherResults
from twisted.internet.endpoints import TCP4ClientEndpoint, connectProtocol
from twisted.internet.error import ConnectError
from twisted.internet.task import LoopingCall

from gateway.config import Configuration, GatewaySettings
from gateway.doors.reception import Reception
from gateway.service import GatewayService
from gateway.testing.scripted import ScriptedHTTPLink, ScriptedServer
from gateway.wire.context import CallContext
from gateway.wire.envelope import Kind, Message

pytestmark = pytest.mark.soak

LANES = 32
"""Clients at once."""


def seeded() -> int:
    return int(os.environ.get("GATEWAY_SOAK_SEED", random.randrange(2**32)))


def streams(default: int) -> int:
    return int(os.environ.get("GATEWAY_SOAK_STREAMS", default))


def program(name: str) -> str:
    found = shutil.which(name, path=os.environ.get("PATH", "") + ":/usr/sbin")
    if found is None:
        pytest.skip(f"{name} is not installed")
    return found


def freePort() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
    return port


@pytest.mark.acceptance(17)
def test_acceptance_17_a_hundred_thousand_mutated_streams() -> None:
    """Gateway, h11, and what the server behind the transparent proxy received."""
    seed, count = seeded(), streams(100_000)
    print(f"\ndifferential: GATEWAY_SOAK_SEED={seed} GATEWAY_SOAK_STREAMS={count}")
    began = time.monotonic()
    run = Differential()
    for number in range(count):
        run.one(seed + number)
    run.stop()
    print(f"differential: {dict(run.counts)}, 0 differences; {time.monotonic() - began:.1f} s")
    for rule, times in run.rules.most_common():
        print(f"  stricter than h11, {times:6}: {rule}")
    assert run.counts["streams"] == count


# Behind other people's proxies.

NGINX = """
daemon off; pid {folder}/nginx.pid; worker_processes 1; error_log {folder}/error.log crit;
events {{ worker_connections 512; }}
http {{
  access_log off; client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/f; uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;
  upstream gateway {{ server 127.0.0.1:{behind}; keepalive 8; }}
  server {{
    listen 127.0.0.1:{port}; keepalive_requests 1000000;
    location / {{
      proxy_pass http://gateway; proxy_http_version 1.1; proxy_request_buffering {buffering};
      proxy_set_header Connection ""; proxy_set_header Host 127.0.0.1:{behind};
      proxy_set_header X-Serial $request_id;
    }}
  }}
}}
"""

HAPROXY = """
defaults
  mode http
  timeout connect 5s
  timeout client 20s
  timeout server 20s
  http-reuse always
frontend front
  bind 127.0.0.1:{port}
  unique-id-format %{{+X}}o%ci:%cp_%Ts_%rt
  http-request set-header X-Serial %[unique-id]
  http-request set-header Host 127.0.0.1:{behind}
  default_backend gateway
backend gateway
  server gateway 127.0.0.1:{behind} pool-max-conn 8
"""


class Answering(ScriptedHTTPLink):
    """Answers at once, with the params it was asked with."""

    def send(self, message: Message, call: object | None, context: CallContext) -> bool:
        super().send(message, call, context)
        sent = self.sent.pop()
        if message.method != "notifications/initialized":
            serials = [value for name, value in context.headers if name == b"x-serial"]
            self.server.serials.append(serials)  # type: ignore[attr-defined]
        reactor.callLater(0, self._answered, sent, bytes(message.fields.get("params", b"null")))  # type: ignore[attr-defined]
        return True

    def _answered(self, sent: Any, params: bytes) -> None:
        if self.alive:
            if sent.message.kind is Kind.REQUEST:
                self.reply(sent, params)
            else:
                self.accept(sent)


class AnsweringServer(ScriptedServer):
    kinds = (Answering, Answering)


async def connect(port: int) -> RawClient:
    client: RawClient = await connectProtocol(
        TCP4ClientEndpoint(reactor, "127.0.0.1", port), RawClient()
    )
    return client


def asking(port: int, body: bytes, *lines: bytes) -> bytes:
    head = [
        b"POST %b HTTP/1.1" % TARGET,
        b"Host: 127.0.0.1:%d" % port,
        b"Content-Type: application/json",
        b"Content-Length: %d" % len(body),
        *lines,
    ]
    return b"\r\n".join([*head, b"", b""]) + body


@pytest.mark.acceptance(17)
@pytest.mark.parametrize(
    ("front", "buffering"), [("nginx", "on"), ("nginx", "off"), ("haproxy", "")]
)
@pytest_twisted.ensureDeferred
async def test_acceptance_17_no_proxy_in_front_and_we_take_a_stream_for_two_things(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, front: str, buffering: str
) -> None:
    """
    What the proxy forwarded it marked; every request we see has one mark, and no two the same:
    otherwise the two of us found different ends. Meanwhile innocent clients that share the
    proxy's connections get their own answers.
    """
    argv = [program(front)]
    heads: list[list[bytes]] = []
    received = Reception.headReceived

    def noted(self: Any, line: Any, fields: Any) -> bool:
        heads.append([value for name, value in fields if name == b"x-serial"])
        return received(self, line, fields)

    server = AnsweringServer("two", http=True, default=True)
    server.serials = []  # type: ignore[attr-defined]
    service = GatewayService(
        Configuration(
            servers=(server.settings,),
            gateway=GatewaySettings(listen=("tcp:0:interface=127.0.0.1",)),
            source="soak",
        ),
        reactor,
        observer=Recorder(),
        servers=lambda _: server,
    )
    service.startService()
    behind, port = service.ports[0].getHost().port, freePort()
    template = NGINX if front == "nginx" else HAPROXY
    file = tmp_path / "proxy.conf"
    file.write_text(template.format(folder=tmp_path, port=port, behind=behind, buffering=buffering))
    argv += (
        ["-p", str(tmp_path), "-c", str(file), "-e", "stderr"]
        if front == "nginx"
        else ["-db", "-f", str(file)]
    )
    proxy = start(argv)
    try:
        opening = await _through(port, asking(port, hello()))
        session = opening.header(b"mcp-session-id")
        assert session is not None
        monkeypatch.setattr(Reception, "headReceived", noted)
        counts = await _desync(port, session)
    finally:
        monkeypatch.undo()
        proxy.kill()
        await proxy.ended
        await service.stopService()
    serials = [serial for head in heads for serial in head]
    assert all(len(head) == 1 for head in heads), "a request the proxy did not send"
    assert len(set(serials)) == len(serials), "a request twice"
    asked = server.serials  # type: ignore[attr-defined]
    assert all(len(one) == 1 for one in asked)
    assert {one[0] for one in asked} <= set(serials)
    print(
        f"\n{front} {buffering}: {dict(counts)}; {len(heads)} requests forwarded, "
        f"{len(asked)} reached the server; 0 desync"
    )
    assert len(asked) > counts["streams"] / 4


async def _through(port: int, data: bytes) -> Any:
    for attempt in range(100):
        try:
            client = await connect(port)
            break
        except ConnectError:
            assert attempt < 99
            await wait(0.05)
    client.send(data)
    answer = await client.response()
    client.reset()
    await client.ended
    return answer


async def _desync(port: int, session: bytes) -> Counter[str]:
    seed, count = seeded(), streams(20_000)
    print(f"\nin front: GATEWAY_SOAK_SEED={seed} GATEWAY_SOAK_STREAMS={count}")
    counts: Counter[str] = Counter()
    host = b"127.0.0.1:%d" % port
    over: list[bool] = []

    async def lane(first: int) -> None:
        for number in range(first, count, LANES):
            data = streamOf(random.Random(seed + number), session, number, host, False)[1]
            client = await connect(port)
            client.send(data)
            # Until it has answered something, or has closed; some streams are not complete.
            finished: Deferred[None] = Deferred()
            client.ended.addCallback(lambda _, d=finished: d.called or d.callback(None))
            timer = reactor.callLater(0.03, lambda d=finished: d.called or d.callback(None))  # type: ignore[attr-defined]
            await finished
            if timer.active():
                timer.cancel()
            counts["streams"] += 1
            counts["answers"] += client.unread.count(b"HTTP/1.1 200 ")
            if not client.ended.called:
                client.reset()
                await client.ended

    async def innocent(lane_: int) -> None:
        client = await connect(port)
        named = b"Mcp-Session-Id: " + session
        number = 0
        while not over:
            number += 1
            token = f"canary {lane_} {number}"
            client.send(asking(port, rpc("tools/call", token, token=token), named))
            answer = await client.response()
            assert answer.status == 200, answer
            assert answer.json == {"jsonrpc": "2.0", "id": token, "result": {"token": token}}
            counts["innocent"] += 1
            await wait(0.002)
        client.reset()
        await client.ended

    canaries = [ensureDeferred(innocent(n)) for n in range(4)]
    await gatherResults([ensureDeferred(lane(n)) for n in range(LANES)], consumeErrors=True)
    over.append(True)
    await gatherResults(canaries, consumeErrors=True)
    return counts


# Coverage-guided.

FUZZ = """
import sys
import atheris
with atheris.instrument_imports(include=["gateway.http1"]):
    from gateway.http1.request_head import BadRequest, RequestBounds
    from gateway.http1.requests import RequestReader
sys.path.insert(0, {tests!r})
from streams import cut, difference, judge, read, told

def one(data):
    if not data:
        return
    cuts, data = data[0], data[1:]
    whole = read([data])
    parts = read(cut(data, range(1 + cuts % 7, len(data), 1 + cuts)))
    assert told(whole.complete) == told(parts.complete), data
    assert bool(whole.refused) is bool(parts.refused), data
    theirs = judge(data)
    assert not difference(data, whole, theirs), data

atheris.Setup(sys.argv, one)
atheris.Fuzz()
"""


@pytest.mark.acceptance(6)
@pytest_twisted.ensureDeferred
async def test_acceptance_6_atheris_finds_nothing_in_the_reader(tmp_path: Path) -> None:
    if importlib.util.find_spec("atheris") is None:
        pytest.skip("atheris is not installed (pip install atheris)")
    from streams import mutated, stream

    seconds = int(os.environ.get("GATEWAY_SOAK_FUZZ", 60))
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    for number in range(200):
        dice = random.Random(number)
        data = stream(dice) if number % 2 else mutated(dice)
        (corpus / str(number)).write_bytes(bytes((number,)) + data)
    script = tmp_path / "fuzz.py"
    script.write_text(FUZZ.format(tests=str(Path(__file__).parents[1])))
    options = [f"-max_total_time={seconds}", "-max_len=2048", f"-artifact_prefix={tmp_path}/"]
    run = start([sys.executable, "-W", "ignore", str(script), *options, str(corpus)])
    code = await run.ended
    assert code == 0, run.out[-2000:] + run.err[-2000:]
    print(f"\natheris: {run.err.strip().splitlines()[-1]}")


# Many, and slow.


async def finished(process: Process) -> str:
    await process.ended
    return process.out + process.err


def more(files: int = 16_000) -> None:
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(files, hard), hard))


@pytest.mark.acceptance(93)
@pytest_twisted.ensureDeferred
async def test_acceptance_93_three_thousand_connections_at_once() -> None:
    more()
    running: Gateway = await startGateway()
    pid = running.process.transport.pid
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (16_000, 16_000))
    port = int(running.base.rpartition(":")[2])
    asked = b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1:%d\r\n\r\n" % port
    began = time.monotonic()
    clients = await gatherResults([ensureDeferred(connect(port)) for _ in range(3000)])
    connected = time.monotonic() - began
    for client in clients:
        client.send(asked)
    answers = await gatherResults([ensureDeferred(client.response()) for client in clients])
    took = time.monotonic() - began
    statuses = Counter(answer.status for answer in answers)
    print(f"\n3,000 at once: connected after {connected:.2f} s, answered after {took:.2f} s")
    assert statuses == {200: 3000}
    for client in clients:
        client.reset()
    await gatherResults([client.ended for client in clients])
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


class Gaps:
    """The longest stalls of this process's reactor, from a 10 ms LoopingCall."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self._last = time.monotonic()
        self._ticking = LoopingCall(self._tick)
        self._ticking.start(0.01)

    def _tick(self) -> None:
        now = time.monotonic()
        self.seconds.append(now - self._last)
        self._last = now

    def stop(self) -> str:
        self._ticking.stop()
        self.seconds.sort()
        p999 = self.seconds[int(len(self.seconds) * 0.999)]
        return f"p99.9 {p999 * 1000:.0f} ms, longest {self.seconds[-1] * 1000:.0f} ms"


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
