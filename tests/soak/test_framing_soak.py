"""
Framing, at length: `pytest -m soak -s tests/soak/test_framing_soak.py`.

GATEWAY_SOAK_STREAMS: mutated streams. GATEWAY_SOAK_SEED: replays a run. GATEWAY_SOAK_FUZZ: seconds
of coverage-guided fuzzing, where atheris is installed. Debian's nginx-light and haproxy
are used where they are installed; what is missing is skipped, and named.
"""

from __future__ import annotations

import importlib.util
import os
import random
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from cycles import wait
from differential import TARGET, Differential, streamOf
from processes import start
from raw import RawClient, Recorder, hello, rpc
from soaking import program
from twisted.internet import reactor
from twisted.internet.defer import Deferred, ensureDeferred, gatherResults
from twisted.internet.endpoints import TCP4ClientEndpoint, connectProtocol
from twisted.internet.error import ConnectError

from benchmarks.process import freePort
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
