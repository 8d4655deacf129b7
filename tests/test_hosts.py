"""Host and Origin: what may come in, at every route and with every method."""

from __future__ import annotations

import pytest
import pytest_twisted
from hypothesis import given
from hypothesis import strategies as st
from raw import AnsweringServer, Stack, Start, hello, rpc
from raw import start as start

from gateway.guard.hosts import HostGuard
from gateway.observe.observer import RequestRefused, SessionMissed
from gateway.wire.exchange import RequestHead

PORT = 8080


def judged(
    host: bytes | list[bytes],
    origin: bytes | list[bytes] | None = None,
    *,
    hosts: tuple[str, ...] = (),
    origins: tuple[str, ...] = (),
    port: int = PORT,
    tls: bool = False,
) -> int:
    """The status by which a guard refuses; 200 if it does not."""
    fields = [(b"host", value) for value in ([host] if isinstance(host, bytes) else host)]
    if origin is not None:
        values = [origin] if isinstance(origin, bytes) else origin
        fields += [(b"origin", value) for value in values]
    head = RequestHead(b"POST", b"/mcp", b"", tuple(fields), port=port, tls=tls)
    refusal = HostGuard(hosts, origins).judge(head)
    return 200 if refusal is None else refusal.status


@pytest.mark.parametrize(
    "host", [b"localhost:8080", b"127.0.0.1:8080", b"[::1]:8080", b"LOCALHOST:8080"]
)
def test_loopbackNamesAtOurPortPass(host: bytes) -> None:
    assert judged(host) == 200
    assert judged(host, b"http://" + host) == 200


MALFORMED = [
    [],
    [b""],
    [b"localhost:8080", b"localhost:8080"],
    [b"localhost:8080", b"evil.example"],
    [b"localhost:8080/path"],
    [b"localhost/"],
    [b"user@localhost:8080"],
    [b"user:password@localhost:8080"],
    [b"localhost:8080,evil.example"],
    [b"localhost:8080, localhost:8080"],
    [b"local host:8080"],
    [b"localhost:8080 evil.example"],
    [b"localhost:"],
    [b"localhost:0"],
    [b"localhost:65536"],
    [b"localhost:808080"],
    [b"localhost:-1"],
    [b"localhost:+80"],
    [b"localhost:80a"],
    [b"localhost:0x50"],
    [b"localhost:8080:8080"],
    [b":8080"],
    [b"::1"],
    [b"[::1"],
    [b"[::1]8080"],
    [b"[]:8080"],
    [b"[::1%25lo]:8080"],
    [b"[v1.x]:8080"],
    [b"local%68ost:8080"],
    [b"localhost?:8080"],
    [b"localhost#:8080"],
    [b"localhost\\:8080"],
    [b"loc\xc3\xa4lhost:8080"],
    [b"http://localhost:8080"],
]


@pytest.mark.acceptance(2)
@pytest.mark.parametrize("hosts", MALFORMED, ids=repr)
def test_acceptance_2_aHostThatIsNoneIs400(hosts: list[bytes]) -> None:
    assert judged(hosts) == 400
    # Whatever is allowed, and whatever Origin comes with it.
    assert judged(hosts, b"null", hosts=("evil.example",)) == 400


FOREIGN_HOSTS = [
    b"evil.example",
    b"evil.example:8080",
    b"EVIL.EXAMPLE:8080",
    b"localhost",
    b"localhost:80",
    b"localhost:8081",
    b"localhost.:8080",
    b"LOCALHOST.:8080",
    b"127.0.0.1.:8080",
    b"127.0.0.2:8080",
    b"127.1:8080",
    b"2130706433:8080",
    b"0x7f000001:8080",
    b"0.0.0.0:8080",
    b"localhost.evil.example:8080",
    b"evil-localhost:8080",
    b"[::2]:8080",
    b"[::]:8080",
    b"[::ffff:127.0.0.1]:8080",
    b"[0:0:0:0:0:0:0:1]:8080",
    b"[::1]:8081",
]


@pytest.mark.acceptance(98)
@pytest.mark.parametrize("host", FOREIGN_HOSTS)
def test_acceptance_98_aForeignHostIs403(host: bytes) -> None:
    assert judged(host) == 403


FOREIGN_ORIGINS = [
    b"http://evil.example",
    b"HTTP://EVIL.EXAMPLE",
    b"http://evil.example:8080",
    b"https://evil.example",
    b"null",
    b"NULL",
    b"",
    b"*",
    b"localhost:8080",
    b"http://localhost",
    b"http://localhost:8081",
    b"http://localhost.:8080",
    b"http://localhost:8080.evil.example",
    b"http://localhost.evil.example:8080",
    b"http://localhost:8080/",
    b"http://localhost:8080/path",
    b"http://localhost:8080?x",
    b"http://localhost:8080#x",
    b"http://user@localhost:8080",
    b"http://evil.example@localhost:8080",
    b"http://localhost:8080@evil.example",
    b"http://[::2]:8080",
    b"http://[::ffff:127.0.0.1]:8080",
    b"ftp://localhost:8080",
    b"file://",
    b"chrome-extension://localhost:8080",
    b"http://localhost:8080 http://evil.example",
    b"http://localhost:8080, http://evil.example",
    b"//localhost:8080",
]


@pytest.mark.acceptance(98)
@pytest.mark.parametrize("origin", FOREIGN_ORIGINS)
def test_acceptance_98_aForeignOriginIs403(origin: bytes) -> None:
    assert judged(b"localhost:8080", origin) == 403


def test_twoOriginsAreOneTooMany() -> None:
    good = b"http://localhost:8080"
    assert judged(b"localhost:8080", [good, good]) == 403
    assert judged(b"localhost:8080", [good, b"http://evil.example"]) == 403


@pytest.mark.acceptance(98)
def test_acceptance_98_theAllowListPasses() -> None:
    hosts = ("mcp.example", "other.example:9000", "any.example:*", "[2001:db8::1]:9000")
    for good in (
        b"mcp.example",
        b"mcp.example:80",
        b"MCP.Example",
        b"other.example:9000",
        b"any.example",
        b"any.example:1",
        b"any.example:65535",
        b"[2001:db8::1]:9000",
        b"[2001:DB8::1]:9000",
        b"localhost:8080",
    ):
        assert judged(good, hosts=hosts) == 200, good
    for bad in (
        b"mcp.example:8080",
        b"other.example",
        b"other.example:9001",
        b"x.any.example",
        b"[2001:db8::1]",
        b"[2001:db8::2]:9000",
        b"mcp.example.",
    ):
        assert judged(bad, hosts=hosts) == 403, bad


def test_aPortlessNameIsAtTheSchemesOwnPort() -> None:
    hosts = ("mcp.example",)
    assert judged(b"mcp.example:443", hosts=hosts, tls=True) == 200
    assert judged(b"mcp.example:80", hosts=hosts, tls=True) == 403
    assert judged(b"mcp.example:443", hosts=hosts) == 403


def test_allowedOriginsPass() -> None:
    origins = ("https://app.example", "http://App.example:3000", "vscode-webview://abc")
    for good in (b"https://app.example", b"http://app.example:3000", b"vscode-webview://abc"):
        assert judged(b"localhost:8080", good, origins=origins) == 200, good
    for bad in (b"http://app.example", b"https://app.example:3000", b"https://x.app.example"):
        assert judged(b"localhost:8080", bad, origins=origins) == 403, bad
    # An allowed Origin allows no Host.
    assert judged(b"app.example", b"https://app.example", origins=origins) == 403


def test_anAllowedHostIsAnAllowedOrigin() -> None:
    hosts = ("mcp.example", "other.example:9000")
    assert judged(b"mcp.example", b"https://mcp.example", hosts=hosts) == 200
    assert judged(b"mcp.example", b"http://other.example:9000", hosts=hosts) == 200
    assert judged(b"mcp.example", b"http://mcp.example:8443", hosts=hosts) == 403


def test_withoutAPortOfOurOwnTheSchemesCounts() -> None:
    assert judged(b"localhost", port=0) == 200
    assert judged(b"localhost:80", port=0) == 200
    assert judged(b"localhost:8080", port=0) == 403


@given(st.binary(max_size=40), st.one_of(st.none(), st.binary(max_size=40)))
def test_whateverComesIsJudged(host: bytes, origin: bytes | None) -> None:
    assert judged(host, origin) in (200, 400, 403)


@given(st.from_regex(rb"[a-z0-9.-]{1,30}(:[0-9]{1,5})?", fullmatch=True))
def test_onlyTheLoopbackNamesPassByDefault(host: bytes) -> None:
    if judged(host) == 200:
        assert host in (b"localhost:8080", b"127.0.0.1:8080")


# On the wire.

ROUTES = [
    b"/mcp",
    b"/mcp/",
    b"/sse",
    b"/messages",
    b"/messages?session_id=x",
    b"/servers/one/mcp",
    b"/servers/one/sse",
    b"/servers/one/messages",
    b"/servers/nobody/mcp",
    b"/healthz",
    b"/readyz",
    b"/nowhere",
    b"/",
]
METHODS = [b"POST", b"GET", b"DELETE", b"OPTIONS", b"HEAD", b"PUT", b"TRACE", b"FROB"]


async def _refusedEverywhere(
    stack: Stack, server: AnsweringServer, host: bytes, origin: bytes | None, status: int
) -> None:
    """At every route, with every method, before anything is looked up."""
    session = await stack.open()
    stack.observer.events.clear()
    heard = server.heard
    headers = [(b"Mcp-Session-Id", session)]
    if origin is not None:
        headers.append((b"Origin", origin))
    client = await stack.connect()
    for route in ROUTES:
        for method in METHODS:
            body = hello() if method in (b"POST", b"PUT") else None
            client.send(stack.request(method, route, body, headers, host))
            answer = await client.response(bodiless=method == b"HEAD")
            assert answer.status == status, (method, route, answer)
            assert answer.header(b"content-type") == b"application/json"
            assert not [name for name, _ in answer.headers if name.lower().startswith(b"access-")]
            assert answer.header(b"mcp-session-id") is None
            if method != b"HEAD":
                assert answer.json["error"]["code"] == -32000
                assert "id" not in answer.json
            if answer.header(b"connection") == b"close":
                # What else comes on such a connection is not heard.
                assert await client.rest() == b""
                client = await stack.connect()
    refused = stack.observer.of(RequestRefused)
    rung = "framing" if status == 400 else "host, origin"
    assert [event.rung for event in refused] == [rung] * len(ROUTES) * len(METHODS)
    assert not stack.observer.of(SessionMissed)
    assert len(stack.shared.registry) == 1
    assert server.heard == heard


@pytest.mark.acceptance(2)
@pytest.mark.parametrize("host", [b"127.0.0.1:{port}/x", b"u@127.0.0.1:{port}", b"a b"])
@pytest_twisted.ensureDeferred
async def test_acceptance_2_beforeRouting(start: Start, host: bytes) -> None:
    server = AnsweringServer("one")
    stack = await start({"one": server})
    host = host.replace(b"{port}", b"%d" % stack.port)
    await _refusedEverywhere(stack, server, host, None, 400)


@pytest.mark.acceptance(2)
@pytest_twisted.ensureDeferred
async def test_acceptance_2_hostMissingEmptyOrDoubled(start: Start) -> None:
    server = AnsweringServer("one")
    stack = await start({"one": server})
    own = b"127.0.0.1:%d" % stack.port
    for fields in (
        [],
        [b""],
        [own, own],
        [own, b"evil.example"],
        [b"evil.example", own],
        [own + b"," + own],
    ):
        lines = b"".join(b"Host: %b\r\n" % value for value in fields)
        for version in (b"1.1", b"1.0"):
            client = await stack.connect()
            body = hello()
            client.send(
                b"POST /mcp HTTP/%b\r\n%bContent-Type: application/json\r\n"
                b"Content-Length: %d\r\n\r\n%b" % (version, lines, len(body), body)
            )
            answer = await client.response()
            client.close()
            assert answer.status == 400, (fields, version)
            assert answer.json["error"]["code"] == -32000
    assert server.heard == 0
    assert len(stack.shared.registry) == 0


@pytest.mark.acceptance(98)
@pytest.mark.parametrize(
    ("host", "origin"),
    [
        (b"evil.example", None),
        (b"EVIL.EXAMPLE:{port}", None),
        (b"localhost.:{port}", None),
        (b"127.0.0.1:1", None),
        (b"[::2]:{port}", None),
        (None, b"http://evil.example"),
        (None, b"null"),
        (None, b"http://localhost.:{port}"),
        (None, b"http://127.0.0.1:1"),
        (None, b"http://[::2]:{port}"),
    ],
)
@pytest_twisted.ensureDeferred
async def test_acceptance_98_403BeforeTheSessionIsLookedUp(
    start: Start, host: bytes | None, origin: bytes | None
) -> None:
    server = AnsweringServer("one")
    stack = await start({"one": server})
    port = b"%d" % stack.port
    host = (host or b"127.0.0.1:{port}").replace(b"{port}", port)
    origin = origin and origin.replace(b"{port}", port)
    await _refusedEverywhere(stack, server, host, origin, 403)


@pytest.mark.acceptance(20)
@pytest_twisted.ensureDeferred
async def test_acceptance_20_aForeignPreflightLearnsNothing(start: Start) -> None:
    stack = await start({"one": AnsweringServer("one")})
    headers = [
        (b"Origin", b"http://evil.example"),
        (b"Access-Control-Request-Method", b"POST"),
        (b"Access-Control-Request-Headers", b"content-type"),
    ]
    for path in (b"/mcp", b"/sse", b"/messages"):
        answer = await stack.ask(b"OPTIONS", path, None, headers)
        assert answer.status == 403
        assert not [name for name, _ in answer.headers if name.lower().startswith(b"access-")]
    assert len(stack.shared.registry) == 0


@pytest_twisted.ensureDeferred
async def test_anAllowedOriginMayReadTheAnswer(start: Start) -> None:
    stack = await start({"one": AnsweringServer("one")}, origins=("https://app.example",))
    origin = (b"Origin", b"https://app.example")
    for path, methods in (
        (b"/mcp", b"POST, GET, DELETE, OPTIONS"),
        (b"/sse", b"GET, OPTIONS"),
        (b"/messages", b"POST, OPTIONS"),
    ):
        answer = await stack.ask(b"OPTIONS", path, None, [origin])
        assert answer.status == 204
        assert answer.header(b"access-control-allow-origin") == b"https://app.example"
        assert answer.header(b"access-control-allow-methods") == methods
        assert b"Mcp-Session-Id" in (answer.header(b"access-control-allow-headers") or b"")
        exposed = answer.header(b"access-control-expose-headers")
        assert exposed == b"Mcp-Session-Id, WWW-Authenticate"
        assert answer.header(b"vary") == b"Origin"
    asked = b"content-type, mcp-param-region ,mcp-param-N,x-other,mcp-param-,mcp-param-a b"
    answer = await stack.ask(
        b"OPTIONS", b"/mcp", None, [origin, (b"Access-Control-Request-Headers", asked)]
    )
    allowed = answer.header(b"access-control-allow-headers") or b""
    assert allowed.endswith(b", Mcp-Name, mcp-param-region, mcp-param-N"), "and no other"
    opened = await stack.ask(b"POST", b"/mcp", hello(), [origin])
    assert opened.header(b"access-control-allow-origin") == b"https://app.example"
    refused = await stack.ask(b"POST", b"/mcp", rpc("ping", 1), [origin])
    assert refused.status == 400
    assert refused.header(b"access-control-allow-origin") == b"https://app.example"
    plain = await stack.ask(b"OPTIONS", b"/mcp")
    assert plain.status == 204
    assert plain.header(b"access-control-allow-origin") is None
