"""
Raw bytes at our own listener, and at a host's Site behind our parser: what is refused and how,
what it may cost, and what becomes of the connection.
"""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from listening import HOST, MARK, Caller, Front, Heard, parse, request
from malformed import cases, hosts
from raw import Response, hello, rpc
from streams import cut
from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionDone
from twisted.internet.testing import StringTransport
from twisted.logger import LogLevel, globalLogPublisher
from twisted.python.failure import Failure
from twisted.web.server import NOT_DONE_YET, Request

from gateway.doors.llhttp import DISCARD, DRAIN, LINGER, SPARE, TURN
from gateway.guard.authentication import NotAuthenticated
from gateway.guard.limits import Limits
from gateway.observe.observer import RequestRefused

KINDS = ("own", "mounted", "plain")
CHUNKED = b"Transfer-Encoding: chunked"
CLOSE = b"Connection: close"
HEALTH = request(b"GET", b"/healthz")

Fronts = Callable[..., Front]


@pytest.fixture
def fronts() -> Iterator[Fronts]:
    """Makes listeners in memory, and stops them after the test."""
    made: list[Front] = []

    def make(kind: str = "own", **limits: Any) -> Front:
        made.append(Front(kind, Limits(**limits)))
        return made[-1]

    yield make
    for front in made:
        front.stop()


@pytest.fixture
def quiet() -> Iterator[None]:
    """The log stays empty."""
    events: list[dict[str, Any]] = []
    globalLogPublisher.addObserver(events.append)
    yield
    globalLogPublisher.removeObserver(events.append)
    loud = [event for event in events if event["log_level"] >= LogLevel.info]
    assert not loud, loud


def assertRefused(answer: Response, status: int, closes: bool | None = True) -> None:
    """One JSON-RPC error without an id; and whether it says that the connection ends."""
    assert answer.status == status, answer
    assert answer.header(b"content-type") == b"application/json"
    assert answer.header(b"server") is None
    assert set(answer.json) == {"jsonrpc", "error"}
    error = answer.json["error"]
    assert answer.json["jsonrpc"] == "2.0"
    assert (error["code"], set(error)) == (-32000, {"code", "message"})
    assert answer.body == json.dumps(answer.json, separators=(",", ":")).encode()
    assert closes is None or (answer.header(b"connection") == b"close") is closes


def refused(front: Front, caller: Caller, status: int) -> None:
    """The one answer of a connection is a refusal, and the connection ends."""
    (answer,) = caller.answers()
    assertRefused(answer, status)
    assert caller.closed
    assert front.observer.of(RequestRefused)[-1].status == status


def fine(front: Front) -> None:
    """Another connection is served."""
    target = {"own": b"/healthz", "mounted": b"/tools/healthz", "plain": b"/x"}[front.kind]
    (answer,) = front.ask(request(b"GET", target)).answers()
    assert answer.status == 200


# What is malformed.


@pytest.mark.acceptance(1, 3, 5, 6, 7)
@pytest.mark.parametrize("kind", KINDS)
def test_acceptance_1_what_is_malformed_is_refused_and_nobody_hears_of_it(
    fronts: Fronts, quiet: None, kind: str
) -> None:
    front = fronts(kind)
    count = 0
    for target in front.targets:
        for case in cases(target, HOST):
            before = len(front.bounds)
            caller = front.ask(case.data)
            try:
                refused(front, caller, case.status)
                assert front.bounds[before:] == ([case.limit] if case.limit else [])
                # What comes after it is thrown away.
                caller.send(request(b"GET", target))
                assert caller.received == b""
                caller.leave()
                assert front.heard == 0
                count += 1
            except AssertionError as error:
                raise AssertionError(f"{case.name}: {case.data!r}") from error
    fine(front)
    assert count >= 250 * len(front.targets)


@pytest.mark.acceptance(2)
@pytest.mark.parametrize("kind", ["own", "mounted"])
def test_acceptance_2_a_host_that_is_none(fronts: Fronts, quiet: None, kind: str) -> None:
    front = fronts(kind)
    for target in front.targets:
        for case in hosts(target, HOST):
            (answer,) = front.ask(case.data).answers()
            assert answer.status == 400, case.name
            assertRefused(answer, 400)
    assert front.heard == 0


@pytest.mark.acceptance(1)
def test_acceptance_1_however_it_comes(fronts: Fronts, quiet: None) -> None:
    """Byte by byte and behind a request that was good, it is the same."""
    front = fronts()
    for case in cases(front.targets[0], HOST):
        if len(case.data) > 1000:
            continue
        caller = front.ask(HEALTH)
        assert caller.answer().status == 200
        for piece in cut(case.data, range(len(case.data))):
            caller.send(piece)
        refused(front, caller, case.status)
        caller.leave()
    assert front.heard == 0
    fine(front)


@pytest.mark.acceptance(6, 7)
@pytest.mark.parametrize("kind", KINDS)
def test_acceptance_7_6_each_bound_has_its_refusal_and_its_event(fronts: Fronts, kind: str) -> None:
    """The settings count, and not the defaults."""
    limits = {
        "max_head_line": 200,
        "max_head": 600,
        "max_head_fields": 10,
        "max_chunk_extensions": 20,
        "max_trailers": 30,
    }
    front = fronts(kind, **limits)
    target = front.targets[0]

    def chunked(body: bytes) -> bytes:
        return request(b"POST", target, body, CHUNKED)

    for bound, status, under, over in (
        ("max_head_line", 414, target + b"?" + b"x" * 50, target + b"?" + b"x" * 200),
        ("max_head_line", 431, b"X: " + b"x" * 190, b"X: " + b"x" * 201),
        ("max_head", 431, b"X: " + b"x" * 190, b"X: %b\r\n" % (b"x" * 190) * 3 + b"X: y"),
        ("max_head_fields", 431, b"X: y\r\n" * 7 + b"X: y", b"X: y\r\n" * 10 + b"X: y"),
    ):
        made = []
        for text in (under, over):
            line = text if text.startswith(b"/") else target
            fields = () if text.startswith(b"/") else (text,)
            made.append(request(b"GET", line, b"", *fields))
        assert front.ask(made[0]).answer().status < 414
        refused(front, front.ask(made[1]), status)
        assert front.bounds[-1] == bound
    for bound, extension, trailer in (
        ("max_chunk_extensions", b";" + b"x" * 20, b""),
        ("max_trailers", b"", b"X: " + b"x" * 28 + b"\r\n"),
    ):
        body = b"5%b\r\nhello\r\n0\r\n%b\r\n"
        assert front.ask(chunked(body % (extension[:-1], trailer[4:]))).answer().status <= 400
        refused(front, front.ask(chunked(body % (extension, trailer))), 400)
        assert front.bounds[-1] == bound


@pytest.mark.acceptance(7)
def test_acceptance_7_heads_over_the_bounds_leave_nothing_behind(fronts: Fronts) -> None:
    front = fronts()
    over = [case for case in cases(b"/mcp", HOST) if case.limit]

    def tries(count: int) -> None:
        for n in range(count):
            caller = front.ask(over[n % len(over)].data)
            caller.leave()
            front._callers.remove(caller)
            front.observer.events.clear()

    tries(100)
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        tries(1000)
        grown = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert grown < 1024 * 1024


@pytest.mark.acceptance(18)
@pytest.mark.parametrize("kind", KINDS)
def test_acceptance_18_what_is_no_http_1_1(fronts: Fronts, quiet: None, kind: str) -> None:
    front = fronts(kind)
    for data, status in (
        (b"\x16\x03\x01\x00\xf4\x01\x00\x00\xf0\x03\x03" + bytes(range(200)), 400),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00", 505),
        (b"GET /mcp\r\n", 400),
        (b"GET /mcp\n", 400),
        (b"GET /mcp HTTP/1.2\r\n\r\n", 505),
        (b"SSH-2.0-OpenSSH_9.2\r\n", 400),
        (b"\x00" * 100, 400),
        (bytes(range(256)) * 40, 400),
        (b"*1\r\n$4\r\nPING\r\n", 400),
        (b"{}", 400),
        (b"\x80\x2e\x01\x00\x02", 400),
    ):
        refused(front, front.ask(data), status)
    assert front.heard == 0
    # Who says nothing and goes is no reason to say anything.
    caller = front.connect()
    caller.leave()
    assert caller.received == b""
    fine(front)


@pytest.mark.acceptance(18, 47)
@pytest.mark.parametrize("kind", KINDS)
def test_acceptance_18_a_client_may_vanish_at_any_byte(
    fronts: Fronts, quiet: None, kind: str
) -> None:
    front = fronts(kind)
    for target in front.targets:
        for data in (
            request(b"POST", target, b'{"jsonrpc"'),
            request(b"POST", target, b"5\r\nhello\r\n0\r\nX: y\r\n\r\n", CHUNKED),
        ):
            for size in range(len(data)):
                front.ask(data[:size]).leave()
    assert front.heard == 0
    fine(front)


@pytest.mark.acceptance(4)
def test_acceptance_4_an_underscore_is_no_dash(fronts: Fronts) -> None:
    front = fronts()
    opened = front.ask(request(b"POST", b"/servers/two/mcp", hello())).answer()
    id = opened.header(b"mcp-session-id") or b""
    body = rpc("tools/list", 7)
    spelled = b"Mcp_Session_Id: " + id
    (answer,) = front.ask(request(b"POST", b"/servers/two/mcp", body, spelled)).answers()
    assert (answer.status, answer.json["error"]["code"]) == (400, -32000)
    lines = [b"Mcp-Session-Id: " + id, b"Content_Length: 3", b"X_Y: z", b"X-Y: z"]
    front.ask(request(b"POST", b"/servers/two/mcp", body, *lines))
    sent = front.two.newest.last("tools/list")
    front.two.newest.reply(sent)
    names = {name for name, _ in sent.context.headers}
    assert b"x-y" in names
    assert not {name for name in names if b"_" in name}


# The order of things on one connection.


@pytest.mark.acceptance(14)
def test_acceptance_14_six_answers_in_order_and_then_the_refusal(fronts: Fronts) -> None:
    """Ten pipelined, the fourth slow, the seventh malformed."""
    front = fronts()
    opened = front.ask(request(b"POST", b"/mcp", hello())).answer()
    id = b"Mcp-Session-Id: " + (opened.header(b"mcp-session-id") or b"")
    calls = [request(b"POST", b"/mcp", rpc("tools/call", n), id) for n in range(10)]
    calls[6] = calls[6].replace(b"Host: ", b"Host : ")
    caller = front.connect()
    caller.send(b"".join(calls))
    link = front.one.newest
    assert caller.wire.producerState == "paused"
    for n in range(6):
        # One at a time: the next is not even looked at before this one is answered.
        assert [sent.message.param("x") for sent in link.requests] == [None] * (n + 1)
        if n == 3:
            front.pass_(9)
            assert caller.received == b""
        link.reply(link.requests[n], b'{"n":%d}' % n)
        answer = caller.answer()
        assert (answer.status, answer.json["id"]) == (200, n)
        assert answer.json["result"] == {"n": n}
    (refusal,) = caller.answers()
    assertRefused(refusal, 400)
    assert caller.closed
    assert len(link.requests) == 6


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_pipelined_is_answered_in_order(fronts: Fronts, kind: str) -> None:
    front = fronts(kind)
    prefix = b"/tools" if kind == "mounted" else b""
    get = request(b"GET", prefix + b"/healthz")
    head = request(b"HEAD", prefix + b"/healthz")
    missing = request(b"GET", prefix + b"/nowhere")
    caller = front.ask(get + head + missing + get)
    statuses = [a.status for a in caller.answers(b"GET", b"HEAD", b"GET", b"GET")]
    assert statuses == ([200] * 4 if kind == "plain" else [200, 200, 404, 200])
    assert not caller.closed


def test_who_pipelines_much_lets_others_have_their_turn(fronts: Fronts) -> None:
    front = fronts()
    caller = front.ask(HEALTH * 100)
    assert len(caller.answers(*[b"GET"] * 100)) == TURN + 1
    assert caller.wire.producerState == "paused"
    fine(front)
    for _ in range(100 // TURN):
        front.clock.advance(0)
    assert len(caller.answers(*[b"GET"] * 100)) == 100 - TURN - 1
    assert caller.wire.producerState == "producing"
    # It may also vanish meanwhile.
    caller.send(HEALTH * 100)
    caller.leave()
    front.clock.advance(0)


@pytest.mark.acceptance(15)
@pytest.mark.parametrize("kind", KINDS)
def test_acceptance_15_no_request_hides_in_a_body_that_is_not_read(
    fronts: Fronts, kind: str
) -> None:
    """A small rest is drained, and the connection lives; otherwise it ends."""
    front = fronts(kind)
    target = front.targets[0]
    hidden = request(b"POST", target, hello()) * 3
    wrong = b"Content-Type: text/plain"
    if kind == "plain":
        front.resource.serve = lambda _: b"heard"  # type: ignore[attr-defined]
        front.limits = Limits()
    for size, chunked in ((len(hidden), False), (DRAIN + 1, False), (len(hidden), True)):
        body = hidden.ljust(size, b" ")
        if chunked:
            framed = b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)
            data = request(b"POST", target, framed, wrong, CHUNKED)
        else:
            data = request(b"POST", target, body, wrong)
        for places in ([], [len(data) - size], range(0, len(data), 100)):
            caller = front.connect()
            for piece in cut(data, places):
                caller.send(piece)
            caller.send(request(b"GET", target))
            if kind == "plain":
                first, second = caller.answers()
                assert (first.status, second.status) == (200, 200)
                continue
            first, *others = caller.answers(b"POST", b"GET")
            if kind == "mounted":
                # A host's Site reads it all before anybody judges it.
                assert first.status == 415
                assert others[0].status in (400, 406, 405)
                continue
            lives = not chunked and size <= DRAIN
            assertRefused(first, 415, closes=not lives)
            assert caller.closed is not lives
            assert [answer.status for answer in others] == ([400] if lives else [])
    if kind == "plain":
        assert {body for _, _, body in front.resource.requests} >= {hidden}  # type: ignore[attr-defined]
        assert {method for method, _, _ in front.resource.requests} == {b"POST", b"GET"}  # type: ignore[attr-defined]
    else:
        assert front.heard == 0


@pytest.mark.acceptance(10)
@pytest.mark.parametrize("kind", KINDS)
def test_acceptance_10_a_body_over_the_limit(fronts: Fronts, quiet: None, kind: str) -> None:
    front = fronts(kind, max_body=1000)
    for target in front.targets:
        for data, early in (
            (request(b"POST", target, b"", b"Content-Length: 1001"), True),
            (request(b"POST", target, b"x" * 1001), True),
            (request(b"POST", target, b"3e9\r\n" + b"x" * 1001, CHUNKED), False),
            (request(b"POST", target, b"1\r\nx\r\n" * 1001, CHUNKED), False),
        ):
            caller = front.ask(data)
            (answer,) = caller.answers()
            # What is left of a small one is drained.
            assertRefused(answer, 413, closes=kind != "own" or not early)
            assert front.bounds[-1] == "max_body"
            caller.leave()
    assert front.heard == 0
    # At the limit it is none.
    (answer,) = front.ask(request(b"POST", front.targets[0], b" " * 1000)).answers()
    assert answer.status == (200 if kind == "plain" else 400)


@pytest.mark.acceptance(16)
def test_acceptance_16_100_comes_after_the_checks_of_the_head(fronts: Fronts) -> None:
    front = fronts(max_body=1000)
    expects = b"Expect: 100-continue"
    body = hello()
    length = b"Content-Length: %d" % len(body)
    target = b"/servers/one/mcp"
    for data, status in (
        (request(b"POST", target, b"", expects, length).replace(HOST, b"evil.example"), 403),
        (request(b"POST", target, b"", expects, length, b"Origin: http://evil.example"), 403),
        (request(b"POST", b"/nowhere", b"", expects, length), 404),
        (request(b"PUT", target, b"", expects, length), 405),
        (request(b"POST", target, b"", expects, b"Content-Length: 1001"), 413),
        (request(b"POST", target, b"", expects, length, b"Content-Type: text/plain"), 415),
        (request(b"POST", target, b"", expects, length, b"Accept: image/png"), 406),
    ):
        caller = front.ask(data)
        (answer,) = caller.answers()
        # Whether the client sends the body now, nobody knows: the connection ends.
        assertRefused(answer, status)
        assert caller.closed
    for framed, lines in (
        (body, [length]),
        (b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body), [CHUNKED]),
    ):
        caller = front.ask(request(b"POST", target, b"", expects, *lines))
        assert caller.received == b"HTTP/1.1 100 Continue\r\n\r\n"
        caller.send(framed)
        first, second = caller.answers()
        assert (first.status, second.status) == (100, 200)
        assert not caller.closed
        # Who does not wait for it need not be told.
        caller = front.ask(request(b"POST", target, framed, expects, *lines))
        assert [answer.status for answer in caller.answers()][-1] == 200
    assert front.one.handshakes == 4


@pytest.mark.parametrize("kind", ["mounted", "plain"])
def test_acceptance_16_under_a_hosts_site_100_comes_after_the_size(
    fronts: Fronts, kind: str
) -> None:
    front = fronts(kind, max_body=1000)
    expects = b"Expect: 100-continue"
    target = front.targets[0]
    refused(front, front.ask(request(b"POST", target, b"", expects, b"Content-Length: 1001")), 413)
    caller = front.ask(request(b"POST", target, b"", expects, b"Content-Length: 5"))
    assert caller.received == b"HTTP/1.1 100 Continue\r\n\r\n"
    caller.send(b"hello")
    assert [answer.status for answer in caller.answers()] == [100, 200 if kind == "plain" else 400]


@pytest.mark.acceptance(9)
@pytest.mark.parametrize("method", [b"CONNECT", b"TRACE", b"BREW", b"PRI", b"HEAD", b"PUT"])
def test_acceptance_9_methods_and_upgrades(fronts: Fronts, method: bytes) -> None:
    front = fronts()
    upgrade = (b"Connection: Upgrade", b"Upgrade: h2c")
    for lines in ((), upgrade):
        for target, allow in (
            (b"/servers/one/mcp", b"POST, GET, DELETE, OPTIONS"),
            (b"/servers/two/mcp", b"POST, GET, DELETE, OPTIONS"),
            (b"/servers/one/messages", b"POST, OPTIONS"),
            (b"/servers/one/sse", b"GET, OPTIONS"),
        ):
            data = request(method, target, b"hello", b"Content-Length: 5", *lines)
            caller = front.ask(data + request(b"GET", b"/healthz"))
            answer, other = caller.answers(method, b"GET")
            assert answer.status == 405
            assert answer.header(b"allow") == allow
            assert other.status == 200, "what came behind it was no tunnel's"
            assert not caller.closed
    assert front.heard == 0


@pytest.mark.acceptance(20)
def test_acceptance_20_head_and_preflight_of_a_foreign_origin(fronts: Fronts) -> None:
    front = fronts()
    foreign = b"Origin: http://evil.example"
    for method in (b"HEAD", b"OPTIONS", b"GET", b"POST", b"DELETE"):
        for target in (*front.targets, b"/healthz", b"/nowhere", b"*"):
            if target == b"*" and method != b"OPTIONS":
                continue
            caller = front.ask(request(method, target, b"", foreign))
            (answer,) = caller.answers(method)
            assert answer.status == 403
            assert not [n for n, _ in answer.headers if n.lower().startswith(b"access-control")]
            assert answer.header(b"mcp-session-id") is None
            assert (answer.body == b"") is (method == b"HEAD")
    assert front.heard == 0


@pytest.mark.acceptance(19)
def test_acceptance_19_content_types_and_accept_of_three_proxies(fronts: Fronts) -> None:
    front = fronts()
    for target in (b"/servers/one/mcp", b"/servers/two/mcp"):
        for kind, accept, status in (
            (b"text/plain", b"*/*", 415),
            (b"application/json; charset=utf-16", b"*/*", 415),
            (b"application/json", b"image/png", 406),
            (b"application/json", b"text/html, image/*", 406),
        ):
            lines = (b"Content-Type: " + kind, b"Accept: " + accept)
            (answer,) = front.ask(request(b"POST", target, hello(), *lines)).answers()
            assertRefused(answer, status, closes=False)
    assert front.heard == 0
    # Over HTTP+SSE it travels on the stream.
    stream = front.ask(request(b"GET", b"/servers/one/sse"))
    endpoint = stream.received.partition(b"data: ")[2].partition(b"\n")[0].strip()
    posted = front.ask(request(b"POST", endpoint, hello(), b"Content-Type: text/plain")).answer()
    assert posted.status == 202
    assert b'"code":-32000' in stream.received


# HTTP/1.0, HEAD, and who closes.


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("version", "lines", "says", "closes"),
    [
        (b"1.1", [], None, False),
        (b"1.1", [CLOSE], b"close", True),
        (b"1.0", [], b"close", True),
        (b"1.0", [b"Connection: keep-alive"], b"keep-alive", False),
    ],
)
@pytest.mark.parametrize("method", [b"GET", b"HEAD"])
def test_which_connections_are_kept(
    fronts: Fronts,
    kind: str,
    version: bytes,
    lines: list[bytes],
    says: bytes | None,
    closes: bool,
    method: bytes,
) -> None:
    front = fronts(kind)
    target = b"/tools/healthz" if kind == "mounted" else b"/healthz"
    data = request(method, target, b"", *lines).replace(b"HTTP/1.1", b"HTTP/" + version)
    caller = front.ask(data)
    answer = caller.answer(method)
    assert answer.status == 200
    assert (answer.header(b"connection") or b"").lower() == (says or b"")
    assert (answer.body == b"") is (method == b"HEAD")
    assert int(answer.header(b"content-length") or 0) > 0
    assert caller.closed is closes
    if not closes:
        caller.send(data)
        assert caller.answer(method).status == 200


@pytest.mark.parametrize("kind", ["own", "mounted"])
def test_a_stream_to_an_http_1_0_client_ends_with_its_connection(fronts: Fronts, kind: str) -> None:
    front = fronts(kind)
    prefix = b"/tools" if kind == "mounted" else b""
    data = request(b"GET", prefix + b"/servers/one/sse", b"", b"Connection: keep-alive")
    caller = front.ask(data.replace(b"HTTP/1.1", b"HTTP/1.0"))
    head, _, body = caller.received.partition(b"\r\n\r\n")
    assert b"connection: close" in head.lower()
    assert b"transfer-encoding" not in head.lower()
    assert body.startswith(b"event: endpoint\n")


def test_a_client_that_ends_its_side_is_gone_and_what_it_asked_goes_on(fronts: Fronts) -> None:
    front = fronts()
    opened = front.ask(request(b"POST", b"/mcp", hello())).answer()
    id = b"Mcp-Session-Id: " + (opened.header(b"mcp-session-id") or b"")
    caller = front.ask(request(b"POST", b"/mcp", rpc("tools/call", 1), id))
    caller.leave()
    link = front.one.newest
    assert link.cancelled == []
    link.reply(link.last("tools/call"))
    assert caller.received == b""


def test_of_a_head_answer_only_the_body_is_missing(fronts: Fronts) -> None:
    front = fronts()
    get = front.ask(request(b"GET", b"/nowhere")).answer(b"GET")
    head = front.ask(request(b"HEAD", b"/nowhere")).answer(b"HEAD")
    assert head.body == b""
    assert head.headers == get.headers


# Time.


@pytest.mark.acceptance(11)
@pytest.mark.parametrize("kind", KINDS)
def test_acceptance_11_a_head_has_ten_seconds_from_connecting(fronts: Fronts, kind: str) -> None:
    front = fronts(kind)
    data = request(b"GET", front.targets[0], b"", *[b"X: y"] * 20)
    drip, silent, line, empty = (front.connect() for _ in range(4))
    line.send(data[:20])
    empty.send(b"\r\n")
    for n in range(9):
        drip.send(data[n : n + 1])
        front.pass_(1)
    assert not any(caller.received for caller in (drip, silent, line, empty))
    front.pass_(2)
    for caller in (drip, silent, line, empty):
        refused(front, caller, 408)
    assert front.bounds == ["head_timeout"] * 4
    assert front.heard == 0
    front.pass_(LINGER + 1)
    assert drip.gone


def test_a_next_head_has_ten_seconds_from_its_first_byte(fronts: Fronts) -> None:
    front = fronts(head_timeout=10, keep_alive=75)
    caller = front.ask(HEALTH)
    front.pass_(60)
    caller.send(b"\r\n")
    front.pass_(60)
    caller.send(HEALTH[:1])
    front.pass_(9)
    caller.send(HEALTH[1:])
    assert [answer.status for answer in caller.answers()] == [200, 200]
    caller.send(HEALTH[:-1])
    front.pass_(11)
    refused(front, caller, 408)


@pytest.mark.parametrize("kind", KINDS)
def test_a_connection_without_a_request_is_closed_in_silence(fronts: Fronts, kind: str) -> None:
    front = fronts(kind, keep_alive=20)
    target = b"/tools/healthz" if kind == "mounted" else b"/healthz"
    caller = front.ask(request(b"GET", target))
    assert caller.answer().status == 200
    front.pass_(19)
    caller.send(request(b"GET", target))
    assert caller.answer().status == 200
    front.pass_(19)
    assert not caller.closed
    front.pass_(2)
    assert caller.gone
    assert caller.received == b""
    assert front.bounds == ["keep_alive"]


@pytest.mark.acceptance(12)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("chunked", [False, True])
def test_acceptance_12_a_body_that_drips(fronts: Fronts, kind: str, chunked: bool) -> None:
    front = fronts(kind, body_grace=5, min_body_rate=1024)
    target = front.targets[0]
    frame = b"1\r\nx\r\n" if chunked else b"x"
    lines = (CHUNKED,) if chunked else (b"Content-Length: 100000",)
    caller = front.ask(request(b"POST", target, b"", *lines))
    for _ in range(4):
        caller.send(frame * 500)
        front.pass_(1)
    assert caller.received == b""
    caller.send(frame)
    front.pass_(2)
    refused(front, caller, 408)
    assert front.bounds == ["min_body_rate"]
    assert front.heard == 0


@pytest.mark.acceptance(12)
@pytest.mark.parametrize("kind", KINDS)
def test_acceptance_12_a_body_that_falls_silent(fronts: Fronts, kind: str) -> None:
    """It was fast, so that on average it would still be."""
    front = fronts(kind)
    caller = front.ask(request(b"POST", front.targets[0], b"", b"Content-Length: 100000"))
    caller.send(b"x" * 99_999)
    front.pass_(29)
    assert caller.received == b""
    front.pass_(2)
    refused(front, caller, 408)
    assert front.bounds == ["body_silence"]


def test_a_body_at_the_rate_is_taken_however_long_it_lasts(fronts: Fronts) -> None:
    front = fronts()
    size = 1200 * 60
    caller = front.ask(request(b"POST", b"/mcp", b"", b"Content-Length: %d" % size))
    for _ in range(60):
        caller.send(b" " * 1200)
        front.pass_(1)
    assert caller.answer().status == 400
    assert front.bounds == []


def test_what_came_for_one_request_says_nothing_of_the_rate_of_the_next(fronts: Fronts) -> None:
    front = fronts()
    large = request(b"POST", b"/mcp", b" " * 1_000_000)
    caller = front.connect()
    caller.send(large + request(b"POST", b"/mcp", b"", b"Content-Length: 1000"))
    assert caller.answer().status == 400
    front.pass_(7)
    refused(front, caller, 408)
    assert front.bounds == ["min_body_rate"]


def test_a_refused_request_whose_body_drips_gets_no_second_answer(fronts: Fronts) -> None:
    front = fronts()
    lines = (b"Content-Type: text/plain", b"Content-Length: 1000")
    caller = front.ask(request(b"POST", b"/mcp", b"", *lines))
    (answer,) = caller.answers()
    assertRefused(answer, 415, closes=False)
    front.pass_(7)
    assert caller.received == b""
    assert caller.closed
    assert front.bounds == ["min_body_rate"]


@pytest.mark.parametrize("kind", KINDS)
def test_what_comes_after_a_refusal_is_thrown_away_within_bounds(fronts: Fronts, kind: str) -> None:
    """So that no reset takes the answer away from a client that is still sending."""
    front = fronts(kind)
    for much in (False, True):
        caller = front.ask(b"GET  / HTTP/1.1\r\n\r\n")
        assert caller.wire.finished and not caller.wire.disconnecting
        if much:
            for _ in range(DISCARD // 65_536):
                caller.send(b"x" * 65_536)
            assert not caller.wire.disconnected
            caller.send(b"x")
            assert caller.wire.disconnected
        else:
            front.pass_(LINGER)
            caller.send(b"x")
            front.pass_(1.25)
            assert caller.gone
        refused(front, caller, 400)


def test_a_transport_without_two_sides_is_closed_at_once(fronts: Fronts) -> None:
    """As in the tests of a host that has its connections in memory."""
    front = fronts("plain")
    transport = StringTransport()
    protocol = front.clock.tcpServers[-1][1].buildProtocol(transport.getPeer())
    protocol.makeConnection(transport)
    protocol.dataReceived(request(b"GET", b"/") + b"GET  /")
    first, rest = parse(transport.value())
    second, rest = parse(rest)
    assert (first.status, second.status, rest) == (200, 400, b"")
    assert transport.disconnecting
    protocol.connectionLost(Failure(ConnectionDone()))


# A reader that does not read.


def large(front: Front, id: bytes, size: int, *lines: bytes) -> Caller:
    """A call whose answer is large, by a client that reads nothing."""
    caller = front.connect(stuck=True)
    caller.send(request(b"POST", b"/mcp", rpc("tools/call", 1), id, *lines))
    link = front.one.newest
    link.reply(link.last("tools/call"), b'"%b"' % (b"x" * size))
    return caller


def session(front: Front) -> bytes:
    opened = front.ask(request(b"POST", b"/mcp", hello())).answer()
    return b"Mcp-Session-Id: " + (opened.header(b"mcp-session-id") or b"")


@pytest.mark.acceptance(13)
@pytest.mark.parametrize("lines", [(), (CLOSE,)], ids=["keeps", "closes"])
def test_acceptance_13_who_reads_nothing_is_cut_after_half_a_minute(
    fronts: Fronts, lines: tuple[bytes, ...]
) -> None:
    front = fronts()
    caller = large(front, session(front), 4_000_000, *lines)
    # To the transport go pieces, so that it is seen when they are taken.
    assert len(caller.wire.unsent) < 256 * 1024
    front.pass_(29)
    assert not caller.gone
    front.pass_(2)
    assert caller.gone
    assert front.bounds == ["reader_blocked"]


@pytest.mark.acceptance(13)
@pytest.mark.parametrize("lines", [(), (CLOSE,)], ids=["keeps", "closes"])
def test_acceptance_13_the_half_minute_counts_from_what_was_read_last(
    fronts: Fronts, lines: tuple[bytes, ...]
) -> None:
    """The system's own buffers take some, too, right after the answer was written."""
    front = fronts()
    caller = large(front, session(front), 4_000_000, *lines)
    front.pass_(2)
    caller.wire.take()
    front.pass_(29)
    assert not caller.gone
    front.pass_(3)
    assert caller.gone
    assert front.bounds == ["reader_blocked"]


@pytest.mark.parametrize("lines", [(), (CLOSE,)], ids=["keeps", "closes"])
def test_who_reads_slowly_gets_all_of_it(fronts: Fronts, lines: tuple[bytes, ...]) -> None:
    front = fronts()
    caller = large(front, session(front), 1_000_000, *lines)
    while caller.wire.unsent:
        front.pass_(25)
        assert not caller.gone
        caller.wire.take()
    (answer,) = caller.answers()
    assert len(answer.json["result"]) == 1_000_000
    assert "reader_blocked" not in front.bounds
    assert caller.closed is bool(lines)
    if not lines:
        caller.send(HEALTH)
        assert caller.wire.unsent.startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize("reads", [True, False])
def test_a_reader_of_a_large_event_is_cut_only_if_it_takes_nothing(
    fronts: Fronts, reads: bool
) -> None:
    front = fronts()
    caller = front.connect(stuck=True)
    caller.send(request(b"GET", b"/mcp", b"", session(front)))
    caller.drain()
    data = "x" * 1_000_000
    front.one.newest.push(rpc("notifications/message", level="info", data=data))
    taken = 0
    while caller.wire.unsent and taken < 20:
        front.pass_(25 if reads else 31)
        assert caller.gone is not reads
        if not reads:
            break
        caller.wire.take()
        taken += 1
    assert taken > 2 if reads else front.bounds == ["reader_blocked"]


@pytest.mark.acceptance(13)
def test_acceptance_13_of_what_is_pipelined_one_answer_is_held(fronts: Fronts) -> None:
    """And nothing more is read: a client that only asks makes no heap of answers."""
    front = fronts()
    caller = front.connect(stuck=True)
    turns = 0
    while caller.wire.producerState == "producing" and turns < 10_000:
        caller.send(HEALTH * 10)
        front.clock.advance(0)
        turns += 1
    assert turns < 10_000
    for _ in range(100):
        front.clock.advance(0)
    assert len(caller.wire.unsent) < 256 * 1024
    front.pass_(31)
    assert caller.gone
    assert front.bounds == ["reader_blocked"]


def test_a_hosts_stream_that_was_blocked_once_may_be_quiet_afterwards(fronts: Fronts) -> None:
    front = fronts("plain")
    requests: list[Request] = []
    front.resource.serve = lambda one: requests.append(one) or NOT_DONE_YET  # type: ignore[attr-defined,func-returns-value]
    caller = front.connect(stuck=True)
    caller.send(request(b"GET", b"/"))
    (one,) = requests
    one.write(b"x" * 200_000)
    front.pass_(20)
    caller.drain()
    front.pass_(200)
    assert not caller.gone
    one.write(b"x" * 200_000)
    front.pass_(31)
    assert caller.gone
    assert front.bounds == ["reader_blocked"]


# How many there may be.


@pytest.mark.acceptance(93)
@pytest.mark.parametrize("kind", KINDS)
def test_acceptance_93_too_many_connections(fronts: Fronts, quiet: None, kind: str) -> None:
    front = fronts(kind, max_connections=5, retry_after=7)
    held = [front.connect() for _ in range(5)]
    told = [front.connect() for _ in range(SPARE)]
    for caller in told:
        (answer,) = caller.answers()
        assertRefused(answer, 503)
        assert answer.header(b"retry-after") == b"7"
        assert caller.closed
    # What comes on top is cut: whoever floods holds no descriptors by it.
    cut_ = [front.connect() for _ in range(50)]
    assert all(caller.wire.disconnected and not caller.received for caller in cut_)
    front.clock.advance(0)
    assert front.bounds == ["max_connections"] * (SPARE + 50)
    assert front.heard == 0
    # A place that is given back is there at once.
    for caller in (*told, held[0]):
        caller.leave()
    fine(front)


# Answers that are there before the body, or after the client.


def test_a_body_waits_for_who_may_have_it(fronts: Fronts) -> None:
    """Authentication may take its time; the body is neither lost nor read on meanwhile."""
    front = fronts()
    assert front.service is not None
    asked: list[Deferred[Any]] = []
    shared = front.service._started().shared
    principal = shared.authenticator.authenticate(None)  # type: ignore[arg-type]
    body = hello()
    expects = b"Expect: 100-continue"
    length = b"Content-Length: %d" % len(body)

    class Slow:
        def authenticate(self, head: object) -> Deferred[Any]:
            asked.append(Deferred())
            return asked[-1]

    shared.authenticator = Slow()  # type: ignore[assignment]
    whole = front.ask(request(b"POST", b"/mcp", body))
    halves = front.ask(request(b"POST", b"/mcp", body)[:-50])
    expecting = front.ask(request(b"POST", b"/mcp", b"", expects, length))
    refused_ = front.ask(request(b"POST", b"/mcp", body)[:-50])
    late = front.ask(request(b"POST", b"/mcp", b"", length))
    # However long it takes, it is not the client that is slow.
    front.pass_(100)
    assert not any(c.received for c in (whole, halves, expecting, refused_, late))
    assert halves.wire.producerState == "paused"
    assert front.bounds == []
    for waiting in (asked[0], asked[1], asked[2]):
        waiting.callback(principal)
    assert whole.answer().status == 200
    halves.send(body[-50:])
    assert halves.answer().status == 200
    assert expecting.received == b"HTTP/1.1 100 Continue\r\n\r\n"
    expecting.send(body)
    assert [answer.status for answer in expecting.answers()] == [100, 200]
    asked[3].errback(NotAuthenticated(b"Bearer"))
    assert refused_.answer().status == 401
    shared.authenticator = AnonymousAgain(principal)  # type: ignore[assignment]
    refused_.send(body[-50:] + HEALTH)
    assert refused_.answer().status == 200
    asked[4].callback(principal)
    front.pass_(7)
    refused(front, late, 408)
    assert front.one.handshakes == 3


class AnonymousAgain:
    """Knows everybody at once."""

    def __init__(self, principal: object) -> None:
        self._principal = principal

    def authenticate(self, head: object) -> object:
        return self._principal


def test_a_body_in_many_small_pieces_costs_no_more_than_it_is(fronts: Fronts) -> None:
    front = fronts()
    caller = front.ask(request(b"POST", b"/mcp", b"", CHUNKED))
    pieces = 30_000
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        for _ in range(pieces):
            caller.send(b"2\r\n  \r\n")
        grown = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert grown < 2 * 2 * pieces + 100_000
    caller.send(b"0\r\n\r\n")
    assert caller.answer().status == 400


def test_a_request_that_breaks_while_it_is_answered_gets_no_second_head(fronts: Fronts) -> None:
    own = fronts()
    # At our own listener the Klein app is asked before the body has come.
    caller = own.ask(request(b"POST", b"/nowhere", b"5\r\nhello\r\nX", CHUNKED))
    (answer,) = caller.answers()
    assertRefused(answer, 404)
    # A stream that has begun is cut, not answered.
    stream = own.ask(request(b"GET", b"/sse", b"", CHUNKED))
    assert stream.received.startswith(b"HTTP/1.1 200 ")
    before = len(stream.received)
    stream.send(b"X\r\n")
    assert stream.wire.disconnected
    assert len(stream.received) == before


# Under a host's Site.


def plain(fronts: Fronts, serve: Callable[[Request], bytes | int], **limits: Any) -> Front:
    front = fronts("plain", **limits)
    assert isinstance(front.resource, Heard)
    front.resource.serve = serve
    return front


@pytest.mark.parametrize(
    ("data", "body"),
    [
        (request(b"POST", b"/", b"hello"), b"hello"),
        (request(b"PUT", b"/", b"hello", b"Content-Length: 5"), b"hello"),
        (request(b"GET", b"/", b"hello", b"Content-Length: 5"), b"hello"),
        (request(b"POST", b"/", b"2\r\nhe\r\n3\r\nllo\r\n0\r\nX: y\r\n\r\n", CHUNKED), b"hello"),
        (request(b"POST", b"/", b"x" * 300_000), b"x" * 300_000),
        (request(b"GET", b"/"), b""),
        (request(b"DELETE", b"/"), b""),
    ],
)
def test_host_bodies_reach_the_resource(fronts: Fronts, data: bytes, body: bytes) -> None:
    front = fronts("plain")
    for places in ([], range(0, len(data), 1000)):
        caller = front.connect()
        for piece in cut(data, places):
            caller.send(piece)
        assert caller.answer().body == b"heard"
    assert isinstance(front.resource, Heard)
    assert [one[2] for one in front.resource.requests] == [body, body]


def test_host_forms_are_parsed_and_malformed_ones_refused(fronts: Fronts) -> None:
    args: list[Any] = []
    front = plain(fronts, lambda one: args.append(one.args) or b"ok")  # type: ignore[func-returns-value]
    kind = b"Content-Type: application/x-www-form-urlencoded"
    assert front.ask(request(b"POST", b"/?q=1", b"a=b&c=%64", kind)).answer().body == b"ok"
    multipart = (
        b'--x\r\nContent-Disposition: form-data; name="a"\r\n\r\nb\r\n'
        b'--x\r\nContent-Disposition: form-data; name="f"; filename="f"\r\n\r\nfile\r\n--x--\r\n'
    )
    kind = b"Content-Type: multipart/form-data; boundary=x"
    assert front.ask(request(b"POST", b"/", multipart, kind)).answer().body == b"ok"
    assert args == [{b"q": [b"1"], b"a": [b"b"], b"c": [b"d"]}, {b"a": [b"b"], b"f": [b"file"]}]
    refused(front, front.ask(request(b"POST", b"/", b"--y", kind)), 400)
    fine(front)


def test_host_a_request_may_be_answered_later_and_hears_of_a_disconnect(fronts: Fronts) -> None:
    requests: list[Request] = []
    front = plain(fronts, lambda one: requests.append(one) or NOT_DONE_YET)  # type: ignore[func-returns-value]
    told: list[Any] = []
    caller = front.ask(request(b"POST", b"/", b"hello") * 2)
    assert len(requests) == 1
    requests[0].notifyFinish().addBoth(told.append)
    requests[0].write(b"late")
    requests[0].finish()
    assert len(requests) == 2
    assert told == [None]
    assert caller.answer().body == b"late"
    gone: list[Any] = []
    requests[1].notifyFinish().addErrback(gone.append)
    content = requests[1].content
    caller.leave()
    assert len(gone) == 1
    assert content.closed
    # It may write on: nobody hears it.
    requests[1].write(b"to nobody")


def test_host_a_body_nobody_got_leaves_no_file(fronts: Fronts) -> None:
    made: list[Any] = []
    front = fronts("plain", max_body=500_000)
    factory = front.clock.tcpServers[-1][1]
    make = factory.site.requestFactory

    def note(*arguments: Any, **options: Any) -> Request:
        made.append(make(*arguments, **options))
        return made[-1]  # type: ignore[no-any-return]

    factory.site.requestFactory = note
    front.ask(request(b"POST", b"/", b"x" * 100, b"Content-Length: 400000")).leave()
    refused(front, front.ask(request(b"POST", b"/", b"", b"Content-Length: 500001")), 413)
    refused(front, front.ask(request(b"POST", b"/", b"5\r\nhelloX", CHUNKED)), 400)
    assert [one.content.closed for one in made] == [True] * 3
    assert front.heard == 0


def test_host_a_chunked_answer_to_1_1_and_a_closed_one_to_1_0(fronts: Fronts) -> None:
    def serve(one: Request) -> int:
        one.write(b"a")
        one.write(b"b")
        one.finish()
        return NOT_DONE_YET

    front = plain(fronts, serve)
    get = request(b"GET", b"/")
    caller = front.ask(get * 2)
    answers = caller.answers()
    assert [(one.header(b"transfer-encoding"), one.body) for one in answers] == [
        (b"chunked", b"ab")
    ] * 2
    assert not caller.closed
    caller = front.ask(get.replace(b"HTTP/1.1", b"HTTP/1.0"))
    (answer,) = caller.answers()
    assert (answer.header(b"transfer-encoding"), answer.body) == (None, b"ab")
    assert caller.closed


class Pulled:
    """A pull producer of so many pieces."""

    def __init__(self, request: Request, pieces: int, size: int) -> None:
        self.request, self.left, self.size = request, pieces, size
        self.after = 0
        self.stopped = False

    def start(self) -> int:
        self.request.registerProducer(self, False)
        return NOT_DONE_YET

    def resumeProducing(self) -> None:
        if not self.left:
            self.after += 1
            return
        self.left -= 1
        self.request.write(b"x" * self.size)
        if not self.left:
            self.request.unregisterProducer()
            self.request.finish()

    def stopProducing(self) -> None:
        self.stopped = True


def test_host_pull_producers_are_pulled_while_there_is_room_and_no_more(fronts: Fronts) -> None:
    made: list[Pulled] = []

    def serve(one: Request) -> int:
        made.append(Pulled(one, 40, 10_000))
        return made[-1].start()

    front = plain(fronts, serve)
    caller = front.ask(request(b"GET", b"/") * 2)
    for _ in range(100):
        front.clock.advance(0)
    assert [len(answer.body) for answer in caller.answers()] == [400_000] * 2
    assert [(one.left, one.after) for one in made] == [(0, 0)] * 2
    # For a reader that does not read it is pulled no further. Where the reader takes it between
    # two pulls, there is still one pull a turn.
    caller = front.connect(stuck=True)
    caller.send(request(b"GET", b"/"))
    for _ in range(100):
        front.clock.advance(0)
    assert 30 <= made[-1].left < 40, made[-1].left
    while made[-1].left:
        left = made[-1].left
        front.turn()
        assert made[-1].left >= left - 1
        if len(caller.wire.unsent) > MARK or made[-1].left == left:
            caller.wire.take()
    assert made[-1].after == 0
    caller.leave()


def test_host_a_pull_producer_that_breaks_is_cut(
    fronts: Fronts, expectedFailures: list[dict[str, Any]]
) -> None:
    class Broken(Pulled):
        def resumeProducing(self) -> None:
            self.after += 1
            raise RuntimeError("broken")

    made: list[Broken] = []

    def serve(one: Request) -> int:
        made.append(Broken(one, 1, 1))
        return made[-1].start()

    front = plain(fronts, serve)
    caller = front.ask(request(b"GET", b"/"))
    for _ in range(5):
        front.clock.advance(0)
    assert made[0].after == 1
    assert caller.gone
    fine_ = front.ask(b"GET  /")
    refused(front, fine_, 400)


def test_host_push_producers_are_paused_and_resumed(fronts: Fronts) -> None:
    class Pushed:
        states: list[str]

        def __init__(self) -> None:
            self.states = []

        def pauseProducing(self) -> None:
            self.states.append("paused")

        def resumeProducing(self) -> None:
            self.states.append("resumed")

        def stopProducing(self) -> None:
            self.states.append("stopped")

    pushed = Pushed()
    requests: list[Request] = []

    def serve(one: Request) -> int:
        requests.append(one)
        one.registerProducer(pushed, True)
        return NOT_DONE_YET

    front = plain(fronts, serve)
    caller = front.connect(stuck=True)
    caller.send(request(b"GET", b"/"))
    requests[0].write(b"x" * 100_000)
    assert pushed.states == ["paused"]
    caller.drain()
    assert pushed.states == ["paused", "resumed"]
    requests[0].unregisterProducer()
    requests[0].finish()
    caller.drain()
    assert len(caller.answer().body) == 100_000
    assert not caller.closed


def test_host_the_sites_own_answers_keep_their_form(fronts: Fronts) -> None:
    """OPTIONS *, If-None-Match and HEAD are the Site's business."""

    def serve(one: Request) -> bytes:
        return b"" if one.setETag(b'"tag"') else b"body"

    front = plain(fronts, serve)
    caller = front.ask(
        request(b"OPTIONS", b"*") + request(b"GET", b"/", b"", b'If-None-Match: "tag"')
    )
    caller.send(request(b"HEAD", b"/") + request(b"GET", b"/"))
    star, unchanged, head, get = caller.answers(b"OPTIONS", b"GET", b"HEAD", b"GET")
    assert star.status == 200
    assert (unchanged.status, unchanged.body) == (304, b"")
    assert (head.status, head.body, get.body) == (200, b"", b"body")
    assert not caller.closed


@pytest.mark.parametrize("kind", KINDS)
def test_at_the_end_every_connection_is_closed(fronts: Fronts, kind: str) -> None:
    front = fronts(kind)
    factory = front.clock.tcpServers[-1][1]
    idle = front.ask(request(b"GET", b"/tools/healthz" if kind == "mounted" else b"/healthz"))
    half = front.ask(b"GET /")
    body = front.ask(request(b"POST", front.targets[0], b"", b"Content-Length: 5"))
    ended = factory.hangUp(5.0)
    front.pass_(LINGER + 1.25)
    assert all(caller.gone for caller in (idle, half, body))
    assert ended.called
