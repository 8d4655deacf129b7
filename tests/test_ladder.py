"""Every rung of the ladder: the first that fails answers, and nothing reaches the server."""

from __future__ import annotations

import json
from typing import Any

import pytest
import pytest_twisted
from attrs import define
from raw import AnsweringServer, Headers, NamedInHeader, Response, Stack, Start, hello, rpc
from raw import start as start
from twisted.internet.defer import Deferred
from zope.interface import implementer

from gateway.guard.authentication import IAuthenticator, NotAuthenticated
from gateway.guard.limits import Limits
from gateway.guard.policy import Direction, IPolicy
from gateway.links.interfaces import IServer
from gateway.observe.observer import RequestRefused
from gateway.proxies.negotiation import accepts, isJSON
from gateway.wire.context import ANONYMOUS, CallContext, Principal
from gateway.wire.exchange import RequestHead
from gateway.wire.revisions import LEGACY

ALICE = (b"X-Who", b"alice")
CLAIM = "io.modelcontextprotocol/protocolVersion"
JSON = (b"Content-Type", b"application/json")


@implementer(IPolicy)
class NotForEve:
    """Eve may not use any server."""

    def admits(self, context: CallContext) -> bool:
        return context.principal.subject != "eve"

    def allows(self, direction: Direction, method: str, name: str, context: CallContext) -> bool:
        return True


def modern(method: str, id: object = 7, version: object = "2026-07-28") -> bytes:
    return rpc(method, id, _meta={CLAIM: version})


def assertRefused(
    answer: Response, status: int, code: int, id: bytes | None = None, **headers: bytes
) -> dict[str, Any]:
    """One JSON-RPC error, compact, under the id as spelled or without one. Returns the error."""
    assert answer.status == status, answer
    assert answer.header(b"content-type") == b"application/json"
    assert answer.header(b"mcp-session-id") is None
    assert answer.header(b"server") is None
    for name, value in headers.items():
        assert answer.header(name.replace("_", "-").encode()) == value, (name, answer)
    body = answer.body
    assert body.startswith(b'{"jsonrpc":"2.0",'), body
    assert json.dumps(answer.json, separators=(",", ":"), ensure_ascii=False).encode() == body or id
    if id is None:
        assert set(answer.json) == {"jsonrpc", "error"}
    else:
        assert set(answer.json) == {"jsonrpc", "id", "error"}
        assert body.startswith(b'{"jsonrpc":"2.0","id":' + id + b',"error":{'), body
    error: dict[str, Any] = answer.json["error"]
    assert error["code"] == code, answer
    assert isinstance(error["message"], str) and error["message"]
    assert set(error) <= {"code", "message", "data"}
    return error


async def started(start: Start, **options: Any) -> tuple[Stack, AnsweringServer]:
    server = AnsweringServer("one")
    stack = await start({"one": server}, **options)
    return stack, server


# The order.


@define
class Fault:
    """What is wrong with a request, and the refusal that tells it."""

    name: str
    rung: str
    status: int
    code: int


FAULTS = [
    Fault("no host", "framing", 400, -32000),
    Fault("foreign host", "host, origin", 403, -32000),
    Fault("foreign origin", "host, origin", 403, -32000),
    Fault("path", "route", 404, -32000),
    Fault("method", "method", 405, -32000),
    Fault("nobody", "authentication", 401, -32000),
    Fault("eve", "authorization", 403, -32000),
    Fault("declared size", "content", 413, -32000),
    Fault("content type", "content", 415, -32000),
    Fault("accept", "content", 406, -32000),
    Fault("session", "session", 404, -32001),
    Fault("JSON", "JSON", 400, -32700),
    Fault("version", "version", 400, -32000),
]
"""In the order of the rungs; a request may have several at once."""


def faulty(stack: Stack, faults: set[str], session: bytes) -> bytes:
    """The bytes of a request with these faults."""
    body = b"{" if "JSON" in faults else rpc("tools/list", 7)
    host = b"evil.example" if "foreign host" in faults else b"127.0.0.1:%d" % stack.port
    fields = [] if "no host" in faults else [(b"Host", host)]
    if "foreign origin" in faults:
        fields.append((b"Origin", b"http://evil.example"))
    if "nobody" not in faults:
        fields.append((b"X-Who", b"eve" if "eve" in faults else b"alice"))
    kind = b"text/plain" if "content type" in faults else b"application/json"
    fields.append((b"Content-Type", kind))
    if "accept" in faults:
        fields.append((b"Accept", b"image/png"))
    if "version" in faults:
        fields.append((b"MCP-Protocol-Version", b"1999-01-01"))
    fields.append((b"Mcp-Session-Id", b"A" * 43 if "session" in faults else session))
    if "declared size" in faults:
        body += b" " * (1024 - len(body))
    fields.append((b"Content-Length", b"%d" % len(body)))
    method = b"PUT" if "method" in faults else b"POST"
    target = b"/nowhere" if "path" in faults else b"/mcp"
    head = b"".join(b"%b: %b\r\n" % pair for pair in fields)
    return b"%b %b HTTP/1.1\r\n%b\r\n%b" % (method, target, head, body)


@pytest_twisted.ensureDeferred
async def test_theEarlierFaultAnswers(start: Start) -> None:
    stack, server = await started(
        start,
        authenticator=NamedInHeader(),
        policy=NotForEve(),
        limits=Limits(max_body=1000),
    )
    session = await stack.open(headers=[ALICE])
    heard = server.heard
    excluding = {("no host", "foreign host"), ("nobody", "eve"), ("path", "method")}
    for index, first in enumerate(FAULTS):
        # Alone, with each later one, and with all of them.
        later = [
            fault.name for fault in FAULTS[index + 1 :] if (first.name, fault.name) not in excluding
        ]
        for others in [[], *([name] for name in later), later]:
            stack.observer.events.clear()
            answer = await stack.exact(faulty(stack, {first.name, *others}, session))
            echoed = b"7" if first.rung in ("session", "version") and "JSON" not in others else None
            assertRefused(answer, first.status, first.code, echoed)
            (refused,) = stack.observer.of(RequestRefused)
            expected = (first.rung, first.status, first.code)
            assert (refused.rung, refused.status, refused.code) == expected
    assert server.heard == heard
    fine = await stack.exact(faulty(stack, set(), session))
    assert fine.status == 200
    assert server.heard == heard + 1


# What each refusal looks like.


@pytest.mark.acceptance(9)
@pytest.mark.parametrize(
    ("path", "allow"),
    [
        (b"/mcp", b"POST, GET, DELETE, OPTIONS"),
        (b"/servers/one/mcp", b"POST, GET, DELETE, OPTIONS"),
        (b"/mcp/", b"POST, GET, DELETE, OPTIONS"),
        (b"/sse", b"GET, OPTIONS"),
        (b"/messages", b"POST, OPTIONS"),
        (b"/messages?session_id=x", b"POST, OPTIONS"),
        (b"/servers/one/messages", b"POST, OPTIONS"),
    ],
)
@pytest_twisted.ensureDeferred
async def test_acceptance_9_aMethodThatIsNotServedIs405(
    start: Start, path: bytes, allow: bytes
) -> None:
    stack, server = await started(start)
    for method in (b"PUT", b"PATCH", b"TRACE", b"CONNECT", b"FROB", b"post", b"PROPFIND", b"POSTS"):
        answer = await stack.ask(method, path, rpc("ping", 7))
        assertRefused(answer, 405, -32000, allow=allow)
    if b"POST" not in allow:
        assertRefused(await stack.ask(b"POST", path, rpc("ping", 7)), 405, -32000, allow=allow)
    if b"GET" not in allow:
        assertRefused(await stack.ask(b"GET", path), 405, -32000, allow=allow)
    if b"DELETE" not in allow:
        assertRefused(await stack.ask(b"DELETE", path), 405, -32000, allow=allow)
    head = await stack.ask(b"HEAD", path)
    assert (head.status, head.body, head.header(b"allow")) == (405, b"", allow)
    assert server.heard == 0


@pytest.mark.acceptance(9)
@pytest_twisted.ensureDeferred
async def test_acceptance_9_anUpgradeNeverTunnels(start: Start) -> None:
    stack, server = await started(start)
    session = await stack.open()
    heard = server.heard
    for upgrade in (b"websocket", b"h2c", b"TLS/1.0", b"connect-udp"):
        fields = [
            (b"Connection", b"Upgrade"),
            (b"Upgrade", upgrade),
            (b"Sec-WebSocket-Key", b"dGhlIHNhbXBsZSBub25jZQ=="),
            (b"Sec-WebSocket-Version", b"13"),
            (b"Mcp-Session-Id", session),
        ]
        client = await stack.connect()
        client.send(stack.request(b"POST", b"/mcp", rpc("ping", 7), fields))
        answer = await client.response()
        # The offer is ignored; what follows is the next request, or nothing at all.
        assert answer.status == 200
        assert answer.header(b"upgrade") is None
        client.send(b"\x00\xff" + rpc("tools/call", 8) + b"\r\n\r\n")
        rest = await client.rest()
        assert b" 101 " not in rest
    assert server.heard == heard + 4


@pytest.mark.acceptance(9)
@pytest_twisted.ensureDeferred
async def test_acceptance_9_connectToElsewhereIsNoRoute(start: Start) -> None:
    stack, server = await started(start)
    client = await stack.connect()
    client.send(stack.request(b"CONNECT", b"evil.example:443", None))
    answer = await client.response()
    assertRefused(answer, 404, -32000)
    client.send(b"GET / HTTP/1.1\r\nHost: evil.example\r\n\r\n")
    assertRefused(await client.response(), 403, -32000)
    assert server.heard == 0


@pytest.mark.acceptance(8)
@pytest.mark.parametrize(
    "target",
    [
        b"//mcp",
        b"///mcp",
        b"/mcp//",
        b"/./mcp",
        b"/mcp/.",
        b"/mcp/../mcp",
        b"/mcp/../healthz",
        b"/x/../mcp",
        b"/mcp/x",
        b"/mcp/%2e%2e",
        b"/%2e%2e/mcp",
        b"/%6dcp",
        b"/mcp%2f",
        b"%2fmcp",
        b"/servers%2fone/mcp",
        b"/servers/one%2fmcp",
        b"/servers//mcp",
        b"/servers//one/mcp",
        b"//servers/one/mcp",
        b"/servers/one//mcp",
        b"/servers/one/mcp//",
        b"/servers/%6fne/mcp",
        b"/servers/one/../one/mcp",
        b"/servers/./mcp",
        b"/mcp%00",
        b"/mcp%00.json",
        b"/mcp%0d%0aX-Evil:%201",
        b"/mcp\\",
        b"\\mcp",
        b"/x\\..\\mcp",
        b"/mcp;x=1",
        b"/MCP",
        b"/Servers/one/mcp",
        b"mcp",
        b"*",
        b"http://127.0.0.1:{port}/mcp",
        b"http://evil.example/mcp",
        b"HTTP://127.0.0.1/mcp",
        b"/healthz//",
        b"//healthz",
        b"/healthz/x",
        b"/mcp\x80",
    ],
)
@pytest_twisted.ensureDeferred
async def test_acceptance_8_onlyTheExactPathRoutes(start: Start, target: bytes) -> None:
    stack, server = await started(start)
    target = target.replace(b"{port}", b"%d" % stack.port)
    if stack.door == "site" and target == b"*":
        pytest.skip("a host's Site answers * itself")
    for method in (b"POST", b"GET", b"OPTIONS"):
        body = hello() if method == b"POST" else None
        answer = await stack.ask(method, target, body)
        assert answer.status in (400, 404), (method, answer)
        assertRefused(answer, answer.status, -32000)
        assert answer.header(b"location") is None
        assert answer.header(b"x-evil") is None
    assert server.heard == 0
    assert len(stack.shared.registry) == 0


@pytest_twisted.ensureDeferred
async def test_unknownServer(start: Start) -> None:
    stack, server = await started(start)
    for path in (b"/servers/nobody/mcp", b"/servers/One/sse", b"/servers/o/messages?session_id=x"):
        for method in (b"POST", b"GET", b"DELETE", b"OPTIONS", b"FROB"):
            answer = await stack.ask(method, path, rpc("ping", 7) if method == b"POST" else None)
            error = assertRefused(answer, 404, -32000)
            assert error["message"] == "Unknown server"
    assert server.heard == 0


@pytest.mark.parametrize("http", [False, True])
@pytest_twisted.ensureDeferred
async def test_whatTheGatewayDoesNotServeIsAJSON404(start: Start, http: bool) -> None:
    """No metadata of an authorization server, no metrics; none of it is asked of the server."""
    server = AnsweringServer("one", http=http)
    stack = await start({"one": server})
    for path in (
        b"/.well-known/oauth-protected-resource",
        b"/.well-known/oauth-protected-resource/mcp",
        b"/.well-known/oauth-protected-resource/servers/one/mcp",
        b"/.well-known/oauth-authorization-server",
        b"/.well-known/openid-configuration",
        b"/servers/one/.well-known/oauth-protected-resource",
        b"/servers/one/mcp/.well-known/oauth-protected-resource",
        b"/oauth/token",
        b"/register",
        b"/metrics",
        b"/servers/one/metrics",
        b"/servers/one",
        b"/servers",
        b"/health",
    ):
        for method, body in ((b"GET", None), (b"POST", rpc("ping", 7)), (b"OPTIONS", None)):
            error = assertRefused(await stack.ask(method, path, body), 404, -32000)
            assert error == {"code": -32000, "message": "Not found"}, "no port, no other place"
    assert server.heard == 0


@pytest_twisted.ensureDeferred
async def test_withoutADefaultTheShortPathsAreUnknown(start: Start) -> None:
    stack, _ = await started(start, default="nobody")
    for path in (b"/mcp", b"/sse", b"/messages"):
        error = assertRefused(await stack.ask(b"GET", path), 404, -32000)
        assert error["message"] == "Unknown server"


@pytest.mark.parametrize("path", [b"/mcp", b"/mcp/", b"/servers/one/mcp", b"/servers/one/mcp/"])
@pytest_twisted.ensureDeferred
async def test_aTrailingSlashIsServedLikeNone(start: Start, path: bytes) -> None:
    stack, _ = await started(start)
    session = await stack.open(path)
    headers = [(b"Mcp-Session-Id", session)]
    assert (await stack.ask(b"POST", path, rpc("ping", 7), headers)).status == 200
    assert (await stack.ask(b"DELETE", path, None, headers)).status == 204


@pytest_twisted.ensureDeferred
async def test_health(start: Start) -> None:
    ready = [True]
    stack, server = await started(start, ready=lambda: ready[0], authenticator=NamedInHeader())
    for path in (b"/healthz", b"/readyz", b"/healthz/", b"/readyz/"):
        answer = await stack.ask(b"GET", path)
        told = {} if b"healthz" in path else {"ready": True, "servers": {"one": "unknown"}}
        assert (answer.status, answer.json) == (200, {"status": "ok", **told})
        assert answer.header(b"content-type") == b"application/json"
        head = await stack.ask(b"HEAD", path)
        assert (head.status, head.body) == (200, b"")
        assertRefused(await stack.ask(b"POST", path, b"{}"), 405, -32000, allow=b"GET, HEAD")
    ready[0] = False
    assert (await stack.ask(b"GET", b"/healthz")).status == 200
    answer = await stack.ask(b"GET", b"/readyz")
    told = {"ready": False, "servers": {"one": "unknown"}}
    assert (answer.status, answer.json) == (503, {"status": "unavailable", **told})
    assert server.heard == 0
    await stack.open(headers=[(b"X-Who", b"alice")])
    assert (await stack.ask(b"GET", b"/readyz")).json["servers"] == {"one": "up"}


@pytest_twisted.ensureDeferred
async def test_notPermitted(start: Start) -> None:
    stack, server = await started(start, authenticator=NamedInHeader(), policy=NotForEve())
    for method, path in ((b"POST", b"/mcp"), (b"GET", b"/mcp"), (b"GET", b"/sse")):
        body = hello() if method == b"POST" else None
        answer = await stack.ask(method, path, body, [(b"X-Who", b"eve")])
        assertRefused(answer, 403, -32000)
    assert server.heard == 0


# Content.

CONTENT_TYPES = {
    b"application/json": True,
    b"Application/JSON": True,
    b"application/json; charset=utf-8": True,
    b"application/json;charset=UTF-8": True,
    b'application/json; charset="utf-8"': True,
    b"application/json; charset=utf8": True,
    b"application/json; profile=x": True,
    b"application/json;": True,
    b"application/json; charset=latin1": False,
    b"application/json; charset=utf-16": False,
    b"application/json; charset=utf-8; charset=latin1": False,
    b"application/json; x=y; charset=us-ascii": False,
    b"application/jsonp": False,
    b"application/json-rpc": False,
    b"application/problem+json": False,
    b"text/json": False,
    b"text/plain": False,
    b"multipart/form-data; boundary=x": False,
    b"application/x-www-form-urlencoded": False,
    b"": False,
}


@pytest.mark.acceptance(19)
@pytest.mark.parametrize(("value", "good"), CONTENT_TYPES.items())
def test_acceptance_19_contentTypes(value: bytes, good: bool) -> None:
    assert isJSON(value) is good


ACCEPTS = {
    b"": (True, True),
    b"*/*": (True, True),
    b"application/json, text/event-stream": (True, True),
    b"application/json": (True, False),
    b"APPLICATION/JSON": (True, False),
    b"application/*": (True, False),
    b"text/event-stream": (False, True),
    b"text/*;q=0.1": (False, True),
    b"text/html, application/json;q=0.9": (True, False),
    b"application/json;q=0, text/event-stream": (False, True),
    b"application/json;q=0.0, */*": (False, True),
    b"*/*;q=0": (False, False),
    b"*/*;q=0, application/json": (True, False),
    b"application/json;q=0": (False, False),
    b"text/html": (False, False),
    b"image/*": (False, False),
    b"application/jsonx": (False, False),
    b"application/json; charset=utf-8": (True, False),
    b", application/json ,": (True, False),
}


@pytest.mark.acceptance(19)
@pytest.mark.parametrize(("value", "allowed"), ACCEPTS.items())
def test_acceptance_19_accepts(value: bytes, allowed: tuple[bool, bool]) -> None:
    assert accepts(value) == allowed


@pytest.mark.acceptance(19)
@pytest.mark.parametrize("kind", ["stdio", "http"])
@pytest_twisted.ensureDeferred
async def test_acceptance_19_415And406(start: Start, kind: str) -> None:
    server = AnsweringServer("one", http=kind == "http")
    stack = await start({"one": server})
    session = await stack.open()
    heard = server.heard
    named = (b"Mcp-Session-Id", session)
    for value, good in CONTENT_TYPES.items():
        answer = await stack.ask(
            b"POST", b"/mcp", rpc("ping", 7), [named, (b"Content-Type", value)]
        )
        if good:
            assert answer.status == 200, value
            heard += 1
        else:
            assertRefused(answer, 415, -32000)
    length = (b"Content-Length", b"2")
    none = b"POST /mcp HTTP/1.1\r\nHost: 127.0.0.1:%d\r\n%b: %b\r\n\r\n{}" % (stack.port, *length)
    assertRefused(await stack.exact(none), 415, -32000)
    twice = [JSON, JSON, named]
    assertRefused(await stack.ask(b"POST", b"/mcp", rpc("ping", 7), twice), 415, -32000)
    for value, (json_, events) in ACCEPTS.items():
        fields = [named, (b"Accept", value)]
        answer = await stack.ask(b"POST", b"/mcp", rpc("ping", 7), fields)
        if json_ or events:
            kind_ = b"application/json" if json_ else b"text/event-stream"
            assert (answer.status, answer.header(b"content-type")) == (200, kind_), value
            heard += 1
        else:
            assertRefused(answer, 406, -32000)
    split = [named, (b"Accept", b"text/html"), (b"Accept", b"application/json")]
    assert (await stack.ask(b"POST", b"/mcp", rpc("ping", 7), split)).status == 200
    assert server.heard == heard + 1


@pytest_twisted.ensureDeferred
async def test_aGETNeedsEvents(start: Start) -> None:
    stack, _ = await started(start)
    session = await stack.open()
    for path in (b"/mcp", b"/sse"):
        for value in (b"application/json", b"text/html", b"text/event-stream;q=0"):
            fields = [(b"Mcp-Session-Id", session), (b"Accept", value)]
            assertRefused(await stack.ask(b"GET", path, None, fields), 406, -32000)
    assert len(stack.shared.registry) == 1


@pytest.mark.acceptance(10)
@pytest.mark.parametrize("http", [False, True])
@pytest_twisted.ensureDeferred
async def test_acceptance_10_aBodyOverTheLimit(start: Start, http: bool) -> None:
    server = AnsweringServer("one", http=http)
    stack = await start({"one": server}, limits=Limits(max_body=100))
    fit = hello("2025-06-18")[:99] + b" " * 10
    for size, status in ((100, 400), (101, 413), (1000, 413)):
        body = (b"[" + b" " * 2000)[:size]
        declared = await stack.ask(b"POST", b"/mcp", body)
        chunked = await stack.ask(
            b"POST",
            b"/mcp",
            b"%x\r\n%b\r\n0\r\n\r\n" % (size, body),
            [(b"Transfer-Encoding", b"chunked")],
        )
        for answer in (declared, chunked):
            assertRefused(answer, status, -32700 if status == 400 else -32000)
    assert fit and server.heard == 0
    assert stack.observer.bounds == ["max_body"] * 4


# JSON and the message.

NOT_JSON = {
    "empty": b"",
    "truncated": b'{"jsonrpc":"2.0","id":7,"method":"pi',
    "not UTF-8": b'{"jsonrpc":"2.0","id":7,"method":"\xff"}',
    "BOM": b"\xef\xbb\xbf" + rpc("ping", 7),
    "UTF-16": rpc("ping", 7).decode().encode("utf-16"),
    "NaN": b'{"jsonrpc":"2.0","id":NaN,"method":"ping"}',
    "Infinity": b'{"jsonrpc":"2.0","id":7,"method":"ping","params":{"x":Infinity}}',
    "deep": b'{"jsonrpc":"2.0","id":7,"method":"ping","params":' + b"[" * 100_000,
    "deep and closed": b'{"jsonrpc":"2.0","id":7,"params":' + b"[" * 600 + b"]" * 600 + b"}",
    "twice": b'{"jsonrpc":"2.0","id":7,"id":8,"method":"ping"}',
    "twice escaped": b'{"jsonrpc":"2.0","id":7,"\\u0069d":8,"method":"ping"}',
    "two": rpc("ping", 7) + rpc("ping", 8),
    "a comment": rpc("ping", 7) + b"//",
    "NUL": rpc("ping", 7) + b"\x00",
}


@pytest.mark.acceptance(21)
@pytest.mark.parametrize("name", NOT_JSON)
@pytest_twisted.ensureDeferred
async def test_acceptance_21_whatIsNoJSON(start: Start, name: str) -> None:
    stack, server = await started(start)
    session = await stack.open()
    heard = server.heard
    for headers in ([(b"Mcp-Session-Id", session)], []):
        answer = await stack.ask(b"POST", b"/mcp", NOT_JSON[name], headers)
        assertRefused(answer, 400, -32700)
    assert server.heard == heard


ENVELOPES: dict[bytes, bytes | None] = {
    b'{"jsonrpc":"2.0","id":7,"Method":"ping"}': b"7",
    b'{"id":7,"method":"ping"}': b"7",
    b'{"jsonrpc":"1.0","id":7,"method":"ping"}': b"7",
    b'{"jsonrpc":2.0,"id":7,"method":"ping"}': b"7",
    b'{"jsonrpc":"2.0","id":"x","method":7}': b'"x"',
    b'{"jsonrpc":"2.0","id":1.50,"method":null}': b"1.50",
    b'{"jsonrpc":"2.0","id":1e2,"method":"ping","params":7}': b"1e2",
    b'{"jsonrpc":"2.0","id":"\\u0041","method":"ping","params":"x"}': b'"\\u0041"',
    b'{"jsonrpc":"2.0","id":7,"method":"ping","params":null}': b"7",
    b'{"jsonrpc":"2.0","id":7,"result":{},"error":{"code":1,"message":""}}': b"7",
    b'{"jsonrpc":"2.0","id":7,"method":"ping","result":{}}': b"7",
    b'{"jsonrpc":"2.0","id":7}': b"7",
    b'{"jsonrpc":"2.0","result":{}}': None,
    b'{"jsonrpc":"2.0","id":null,"method":"ping"}': None,
    b'{"jsonrpc":"2.0","id":true,"method":"ping"}': None,
    b'{"jsonrpc":"2.0","id":{},"method":"ping"}': None,
    b'{"jsonrpc":"2.0","id":[1],"method":"ping"}': None,
    b'{"jsonrpc":"2.0","id":"%b","method":"ping"}' % (b"x" * 8192): None,
    b'"ping"': None,
    b"7": None,
    b"null": None,
    b"[]": None,
    b"[" + rpc("ping", 7) + b"]": None,
}


@pytest.mark.acceptance(22, 23)
@pytest.mark.parametrize("body", ENVELOPES)
@pytest_twisted.ensureDeferred
async def test_acceptance_22_23_whatIsNoMessage(start: Start, body: bytes) -> None:
    stack, server = await started(start)
    session = await stack.open()
    heard = server.heard
    answer = await stack.ask(b"POST", b"/mcp", body, [(b"Mcp-Session-Id", session)])
    assertRefused(answer, 400, -32600, ENVELOPES[body])
    assert server.heard == heard


@pytest.mark.acceptance(31)
@pytest.mark.parametrize("id", [b"7", b'"7"', b"0", b'""', b"9007199254740993"])
@pytest_twisted.ensureDeferred
async def test_acceptance_31_aCallWithoutASession(start: Start, id: bytes) -> None:
    stack, server = await started(start)
    body = b'{"jsonrpc":"2.0","id":' + id + b',"method":"tools/list"}'
    assertRefused(await stack.ask(b"POST", b"/mcp", body), 400, -32000, id)
    assertRefused(await stack.ask(b"POST", b"/messages", body), 400, -32000, id)
    assertRefused(await stack.ask(b"GET", b"/mcp"), 400, -32000)
    assertRefused(await stack.ask(b"DELETE", b"/mcp"), 400, -32000)
    assert server.heard == 0


# Versions.


@pytest.mark.acceptance(31)
@pytest_twisted.ensureDeferred
async def test_acceptance_31_theVersionHeader(start: Start) -> None:
    stack, server = await started(start)
    session = await stack.open(revision="2025-06-18")
    heard = server.heard
    named = (b"Mcp-Session-Id", session)

    async def ask(version: bytes, body: bytes = b"", method: bytes = b"POST") -> Response:
        fields: Headers = [named, (b"MCP-Protocol-Version", version)]
        return await stack.ask(method, b"/mcp", body or rpc("ping", 7), fields)

    for known in LEGACY:
        assert (await ask(known.encode())).status == 200
    heard += len(LEGACY)
    for unknown in (b"1999-01-01", b"", b"x", b"2025-06-18, 2025-03-26", b"2025-11-26", b"DRAFT"):
        error = assertRefused(await ask(unknown), 400, -32000, b"7")
        for known in LEGACY:
            assert known in error["message"]
        told = await ask(unknown, rpc("notifications/initialized"))
        assertRefused(told, 400, -32000)
        opened = await ask(unknown, hello())
        assert opened.status == 200
        heard += 1
    assert server.heard == heard
    assert (await ask(b"1999-01-01", b"", b"DELETE")).status == 400
    assert (await ask(b"2024-11-05", b"", b"DELETE")).status == 204


@pytest_twisted.ensureDeferred
async def test_theVersionASessionNegotiatedIsKnownWhateverItIs(start: Start) -> None:
    stack, server = await started(start)
    server.revision = "2030-01-01"
    session = await stack.open()
    for version, status in ((b"2030-01-01", 200), (b"2030-01-02", 400)):
        fields = [(b"Mcp-Session-Id", session), (b"MCP-Protocol-Version", version)]
        assert (await stack.ask(b"POST", b"/mcp", rpc("ping", 7), fields)).status == status


# The modern era.


@pytest.mark.parametrize("http", [False, True])
@pytest_twisted.ensureDeferred
async def test_modernMessagesNeedNoSessionAndTouchNone(start: Start, http: bool) -> None:
    server = AnsweringServer("one", http=http)
    stack = await start({"one": server})
    header = (b"MCP-Protocol-Version", b"2026-07-28")
    session = await stack.open()
    heard = server.heard
    named = (b"Mcp-Session-Id", session)
    for headers in ([], [header], [header, named], [named], [(b"Mcp-Session-Id", b"x")]):
        # Which of them is served is judged behind the ladder: here none says all it must.
        for version in ("2026-07-28", "2099-01-01", "2025-06-18", 7):
            answer = await stack.ask(b"POST", b"/mcp", modern("tools/list", "x", version), headers)
            assertRefused(answer, 400, -32602, b'"x"')
        told = await stack.ask(b"POST", b"/mcp", modern("notifications/x", None), headers)
        assert (told.status, told.body) == (202, b"")
    # A modern header without the claim in the body.
    for headers in ([header], [header, named]):
        answer = await stack.ask(b"POST", b"/mcp", rpc("tools/list", 7), headers)
        assertRefused(answer, 400, -32602, b"7")
        told = await stack.ask(b"POST", b"/mcp", rpc("notifications/x"), headers)
        assert (told.status, told.body) == (202, b"")
        for method in (b"GET", b"DELETE"):
            answer = await stack.ask(method, b"/mcp", None, headers)
            assertRefused(answer, 405, -32000, allow=b"POST, OPTIONS")
    # `initialize` says by itself what it is.
    assert (await stack.ask(b"POST", b"/mcp", hello(), [header])).status == 200
    assert server.heard == heard + 1
    # Nothing of it touched the session, and nothing of it is left.
    assert (await stack.ask(b"POST", b"/mcp", rpc("ping", 7), [named])).status == 200
    assert len(stack.shared.registry) == 2
    assert len(server.open) == 2


@pytest.mark.parametrize("http", [False, True])
@pytest_twisted.ensureDeferred
async def test_aModernVersionIsNoWayAroundTheSession(start: Start, http: bool) -> None:
    """What names a session is judged by it, whatever its header or its body claims to be."""
    server = AnsweringServer("one", http=http)
    stack = await start({"one": server})
    named = (b"Mcp-Session-Id", await stack.open())
    heard = server.heard
    forged = [(b"Mcp-Session-Id", b"A" * 43), (b"MCP-Protocol-Version", b"2026-07-28")]
    answer = await stack.ask(b"POST", b"/mcp", rpc("tools/call", "x"), forged)
    assertRefused(answer, 404, -32001, b'"x"')
    assert server.heard == heard
    # A DELETE is by its head alone; what it brings is not read.
    ended = await stack.ask(b"DELETE", b"/mcp", modern("tools/call"), [named])
    assert (ended.status, ended.body) == (204, b"")
    assert server.newest.closed and len(stack.shared.registry) == 0
    again = await stack.ask(b"DELETE", b"/mcp", modern("tools/call"), [named])
    assertRefused(again, 404, -32001)


@pytest_twisted.ensureDeferred
async def test_aModernRequestOverSSEIsRefusedOnTheStream(start: Start) -> None:
    stack, server = await started(start)
    client, endpoint = await stack.openSSE()
    for body, code in (
        (modern("server/discover"), -32000),
        (modern("tools/list"), -32022),
        (b"{", -32700),
        (b'{"jsonrpc":"2.0","id":7}', -32600),
    ):
        assert (await stack.ask(b"POST", endpoint, body)).status == 202
        told = await client.message()
        assert told["error"]["code"] == code
        assert code != -32022 or "/mcp" in told["error"]["message"]
        assert told.get("id") == (None if body == b"{" else 7)
    assert server.heard == 0


@pytest_twisted.ensureDeferred
async def test_whatBreaksIsCutAndSaysNothing(
    expectedFailures: list[dict[str, Any]], start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    stack, _ = await started(start)

    def breaks(*_: object) -> None:
        raise ZeroDivisionError("/secret/path")

    monkeypatch.setattr(type(stack.shared.registry), "find", breaks)
    client = await stack.connect()
    headers = [(b"Mcp-Session-Id", b"x")]
    client.send(stack.request(b"POST", b"/mcp", rpc("ping", 7), headers))
    assert await client.rest() == b""
    monkeypatch.undo()
    assert (await stack.ask(b"POST", b"/mcp", hello())).status == 200


def test_theAnsweringServerIsAServer() -> None:
    assert IServer.providedBy(AnsweringServer("one"))


@implementer(IAuthenticator)
class TakesItsTime:
    """Says who it is when the test lets it."""

    def __init__(self) -> None:
        self.asked: list[Deferred[Principal]] = []

    def authenticate(self, head: RequestHead) -> Deferred[Principal]:
        self.asked.append(Deferred())
        return self.asked[-1]


@pytest_twisted.ensureDeferred
async def test_whoLeavesWhileHeIsAuthenticatedClimbsNoFurther(start: Start) -> None:
    slow = TakesItsTime()
    stack, _ = await started(start, authenticator=slow)
    stays = await stack.send(b"GET", b"/sse", None)
    leaves = await stack.send(b"GET", b"/sse", None)
    await stack.until(lambda: len(slow.asked) == 2)
    leaves.reset()
    await leaves.ended
    await stack.turns()
    for asked in slow.asked:
        asked.callback(ANONYMOUS)
    assert (await stays.head()).status == 200
    await stack.turns()
    assert len(stack.shared.registry) == 1
    refused = await stack.send(b"GET", b"/sse", None)
    await stack.until(lambda: len(slow.asked) == 3)
    slow.asked[2].errback(NotAuthenticated(b"Bearer"))
    answer = await refused.response()
    assert (answer.status, answer.header(b"www-authenticate")) == (401, b"Bearer")
