"""A lost session has one answer: every proxy, every method, every way to be lost."""

from __future__ import annotations

import ast
import time
from pathlib import Path
from statistics import median

import pytest
import pytest_twisted
from attrs import define
from raw import AnsweringServer, Headers, NamedInHeader, Response, Stack, Start, hello, rpc
from raw import start as start

from gateway.guard.limits import Limits
from gateway.observe.observer import RequestRefused

GATEWAY = Path(__file__).resolve().parent.parent / "gateway"

ALICE = [(b"X-Who", b"alice")]
MALLORY = [(b"X-Who", b"mallory")]

IDS = [None, b"0", b'""', b"7", b'"7"', b"9007199254740993"]
"""Ids as a client spells them; None: the key is absent."""

KINDS = ["unknown", "deleted", "expired", "malformed", "over-long", "server", "principal"]

PROXIES = {"streamable": b"stdio", "transparent": b"http", "sse": b"stdio"}
"""The proxies, and the server each is in front of."""


def lost(id: bytes | None) -> bytes:
    """The one body."""
    key = b"" if id is None else b'"id":' + id + b","
    return b'{"jsonrpc":"2.0",' + key + b'"error":{"code":-32001,"message":"Session not found"}}'


def message(id: bytes | None) -> bytes:
    key = b"" if id is None else b'"id":' + id + b","
    return b'{"jsonrpc":"2.0",' + key + b'"method":"tools/list"}'


@define
class Case:
    """How requests of one proxy name a session."""

    proxy: str
    server: bytes

    def target(self, id: bytes) -> bytes:
        if self.proxy == "sse":
            return b"/servers/%b/messages?session_id=%b" % (self.server, id)
        return b"/servers/%b/mcp" % self.server

    def headers(self, id: bytes) -> Headers:
        return [] if self.proxy == "sse" else [(b"Mcp-Session-Id", id)]

    @property
    def methods(self) -> list[bytes]:
        return [b"POST"] if self.proxy == "sse" else [b"POST", b"GET", b"DELETE"]

    async def open(self, stack: Stack, server: bytes, who: Headers) -> bytes:
        """A live session with a server."""
        if self.proxy != "sse":
            return await stack.open(b"/servers/%b/mcp" % server, headers=who)
        _, endpoint = await stack.openSSE(b"/servers/%b/sse" % server, headers=who)
        return endpoint.rpartition(b"=")[2]

    async def lose(self, stack: Stack, kind: str) -> bytes:
        """An id that names no session of alice's at this server; why is the kind."""
        if kind == "unknown":
            return b"A" * 43
        if kind == "malformed":
            return b"no such\x7fid!".replace(b"\x7f", b"~").replace(b" ", b"/")
        if kind == "over-long":
            return b"A" * 4096
        if kind == "server":
            return await self.open(stack, b"other", ALICE)
        id = await self.open(stack, self.server, MALLORY if kind == "principal" else ALICE)
        if kind == "principal":
            return id
        (session,) = [s for s in stack.shared.registry if s.record.id == id.decode()]
        if kind == "deleted" and self.proxy != "sse":
            gone = await stack.ask(b"DELETE", self.target(id), None, [*ALICE, *self.headers(id)])
            assert gone.status == 204
        elif kind == "deleted":
            # An HTTP+SSE session ends with its stream.
            for client in stack._clients:
                client.reset()
            await stack.until(lambda: session.ended)
        else:
            # Overdue, whether or not anybody has swept it; an open stream only has an end
            # by its connection.
            await stack.shared.registry.end(session, "idle") if self.proxy == "sse" else (
                stack.clock.rightNow
            )
            stack.clock.rightNow += stack.shared.limits.session_absolute
        return id


async def started(start: Start) -> Stack:
    return await start(
        {
            "stdio": AnsweringServer("stdio"),
            "http": AnsweringServer("http", http=True),
            "other": AnsweringServer("other"),
        },
        authenticator=NamedInHeader(),
    )


async def asked(stack: Stack, case: Case, method: bytes, id: bytes, body: bytes | None) -> Response:
    return await stack.ask(method, case.target(id), body, [*ALICE, *case.headers(id)])


@pytest.mark.acceptance(35, 36)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("proxy", PROXIES)
@pytest_twisted.ensureDeferred
async def test_acceptance_35_36_theNotFoundMatrix(start: Start, proxy: str, kind: str) -> None:
    stack = await started(start)
    case = Case(proxy, PROXIES[proxy])
    reference = await asked(stack, case, b"POST", b"B" * 43, message(None))
    id = await case.lose(stack, kind)
    servers = [mount.http.server for mount in stack.mounts.values()]
    heard = [server.heard for server in servers]  # type: ignore[attr-defined]
    stack.observer.events.clear()
    for method in case.methods:
        for spelled in IDS if method == b"POST" else [None]:
            body = message(spelled) if method == b"POST" else None
            answer = await asked(stack, case, method, id, body)
            assert answer.status == 404, (method, spelled, answer)
            assert answer.body == lost(spelled), (method, spelled, answer)
            assert answer.fixed == reference.fixed, (method, spelled)
    rungs = {(event.rung, event.code) for event in stack.observer.of(RequestRefused)}
    assert rungs == {("session", -32001)}
    assert [server.heard for server in servers] == heard  # type: ignore[attr-defined]


@pytest.mark.acceptance(35)
@pytest_twisted.ensureDeferred
async def test_acceptance_35_theAnswerIsTheSameByteForByteAtAllProxies(start: Start) -> None:
    stack = await started(start)
    answers = [
        (await asked(stack, Case(proxy, server), method, b"C" * 43, body))
        for proxy, server in PROXIES.items()
        for method in Case(proxy, server).methods
        for body in [message(None) if method == b"POST" else None]
    ]
    assert {answer.body for answer in answers} == {lost(None)}
    assert len({tuple(answer.fixed) for answer in answers}) == 1
    assert b'"code":-32001' in answers[0].body


@pytest.mark.parametrize("body", [b"", b"{", b"\xff", b"[]", b"7", b'{"jsonrpc":"2.0","id":null}'])
@pytest.mark.parametrize("proxy", PROXIES)
@pytest_twisted.ensureDeferred
async def test_theSessionIsJudgedBeforeTheBody(start: Start, proxy: str, body: bytes) -> None:
    stack = await started(start)
    case = Case(proxy, PROXIES[proxy])
    answer = await asked(stack, case, b"POST", b"D" * 43, body)
    assert (answer.status, answer.body) == (404, lost(None))


@pytest.mark.parametrize("proxy", PROXIES)
@pytest_twisted.ensureDeferred
async def test_notificationsResponsesAndBatchesTooAreNotFound(start: Start, proxy: str) -> None:
    stack = await started(start)
    case = Case(proxy, PROXIES[proxy])
    for body in (
        rpc("notifications/initialized"),
        b'{"jsonrpc":"2.0","id":7,"result":{}}',
        b"[" + message(b"7") + b"]",
    ):
        answer = await asked(stack, case, b"POST", b"E" * 43, body)
        assert (answer.status, answer.body) == (404, lost(None))


@pytest.mark.parametrize("proxy", ["streamable", "transparent"])
@pytest_twisted.ensureDeferred
async def test_anIdGivenTwiceOrEmptyIsNoId(start: Start, proxy: str) -> None:
    stack = await started(start)
    case = Case(proxy, PROXIES[proxy])
    id = await case.open(stack, case.server, ALICE)
    for fields in (
        [(b"Mcp-Session-Id", id), (b"Mcp-Session-Id", id)],
        [(b"Mcp-Session-Id", b"")],
        [(b"Mcp-Session-Id", id + b", " + id)],
        [(b"Mcp-Session-Id", id[:-1])],
        [(b"Mcp-Session-Id", id.swapcase())],
    ):
        answer = await stack.ask(b"POST", case.target(id), message(b"7"), [*ALICE, *fields])
        assert (answer.status, answer.body) == (404, lost(b"7")), fields
    alive = await asked(stack, case, b"POST", id, message(b"7"))
    assert alive.status == 200


@pytest.mark.acceptance(4)
@pytest_twisted.ensureDeferred
async def test_acceptance_4_anUnderscoreIsNoDash(start: Start) -> None:
    stack = await started(start)
    id = await stack.open(b"/servers/stdio/mcp", headers=ALICE)
    headers = [*ALICE, (b"Mcp_Session_Id", id)]
    answer = await stack.ask(b"POST", b"/servers/stdio/mcp", message(b"7"), headers)
    assert answer.status == 400
    assert answer.json["error"]["code"] == -32000


@pytest_twisted.ensureDeferred
async def test_aSessionOfOneTransportIsNotFoundByAnother(start: Start) -> None:
    stack = await started(start)
    streamable = await stack.open(b"/servers/stdio/mcp", headers=ALICE)
    client, endpoint = await stack.openSSE(b"/servers/stdio/sse", headers=ALICE)
    sse = endpoint.rpartition(b"=")[2]
    for method in (b"POST", b"GET", b"DELETE"):
        body = message(b"7") if method == b"POST" else None
        headers = [*ALICE, (b"Mcp-Session-Id", sse)]
        answer = await stack.ask(method, b"/servers/stdio/mcp", body, headers)
        assert (answer.status, answer.body) == (404, lost(b"7" if body else None))
    target = b"/servers/stdio/messages?session_id=" + streamable
    answer = await stack.ask(b"POST", target, message(b"7"), ALICE)
    assert (answer.status, answer.body) == (404, lost(b"7"))
    # Both live on.
    assert (await stack.ask(b"POST", endpoint, message(b"7"), ALICE)).status == 202
    assert (await client.message())["id"] == 7
    headers = [*ALICE, (b"Mcp-Session-Id", streamable)]
    assert (await stack.ask(b"DELETE", b"/servers/stdio/mcp", None, headers)).status == 204


@pytest.mark.acceptance(36)
@pytest.mark.parametrize("proxy", PROXIES)
@pytest_twisted.ensureDeferred
async def test_acceptance_36_401ComesFirst(start: Start, proxy: str) -> None:
    stack = await started(start)
    case = Case(proxy, PROXIES[proxy])
    id = await case.open(stack, case.server, ALICE)
    for method in case.methods:
        body = message(b"7") if method == b"POST" else None
        for session in (id, b"F" * 43):
            answer = await stack.ask(method, case.target(session), body, case.headers(session))
            assert answer.status == 401
            assert answer.header(b"www-authenticate") == b'Bearer realm="test"'
            assert answer.json["error"]["code"] == -32000
            assert "id" not in answer.json


@pytest.mark.parametrize("proxy", ["streamable", "transparent"])
@pytest_twisted.ensureDeferred
async def test_anIdBeyondTheHeaderLimitIsTheListenersToRefuse(start: Start, proxy: str) -> None:
    stack = await started(start)
    case = Case(proxy, PROXIES[proxy])
    client = await stack.connect()
    headers = [*ALICE, *case.headers(b"A" * 20_000)]
    client.send(stack.request(b"POST", case.target(b""), None, headers))
    answered = await client.rest()
    # What has no end is cut off without a word.
    assert answered == b"" or answered.startswith((b"HTTP/1.1 400 ", b"HTTP/1.1 431 "))
    assert b"-32001" not in answered


@pytest.mark.acceptance(37)
@pytest.mark.parametrize("proxy", ["streamable", "transparent"])
@pytest_twisted.ensureDeferred
async def test_acceptance_37_aClientCannotChooseItsId(start: Start, proxy: str) -> None:
    stack = await started(start)
    case = Case(proxy, PROXIES[proxy])
    chosen = b"G" * 43
    answer = await asked(stack, case, b"POST", chosen, hello())
    assert answer.status == 200
    fresh = answer.header(b"mcp-session-id")
    assert fresh is not None and fresh != chosen and len(fresh) == 43
    assert (await asked(stack, case, b"POST", chosen, message(b"7"))).body == lost(b"7")
    # Nor does a live session's id change anything: it lives on beside the new one.
    again = await asked(stack, case, b"POST", fresh, hello())
    assert again.header(b"mcp-session-id") not in (None, fresh, chosen)
    assert (await asked(stack, case, b"POST", fresh, message(b"7"))).status == 200


def test_acceptance_35_oneFunctionBuildsIt() -> None:
    """A second place that says -32001, or "Session not found", fails."""
    found = []
    for path in GATEWAY.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant) and (
                node.value == 32001 or node.value == "Session not found"
            ):
                found.append(path.relative_to(GATEWAY).as_posix())
    assert found == ["wire/refusals.py", "wire/refusals.py"]


@pytest.mark.soak
@pytest.mark.acceptance(36)
@pytest_twisted.ensureDeferred
async def test_acceptance_36_theTimeTellsNothing(start: Start) -> None:
    stack = await started(start)
    case = Case("streamable", b"stdio")
    ids = {kind: await case.lose(stack, kind) for kind in ("unknown", "deleted", "principal")}
    ids["malformed"] = b"malformed"
    client = await stack.connect()
    times: dict[str, list[float]] = {kind: [] for kind in ids}
    for _ in range(5_000):
        for kind, id in ids.items():
            headers = [*ALICE, *case.headers(id)]
            client.send(stack.request(b"POST", case.target(id), message(b"7"), headers))
            before = time.perf_counter()
            await client.response()
            times[kind].append(time.perf_counter() - before)
    medians = {kind: median(measured) for kind, measured in times.items()}
    assert max(medians.values()) < 1.05 * min(medians.values()), medians


@pytest_twisted.ensureDeferred
async def test_sessionsOfOneSubjectAreTheirs(start: Start) -> None:
    stack = await start(
        {"stdio": AnsweringServer("stdio")},
        authenticator=NamedInHeader(),
        limits=Limits(max_sessions_per_principal=1),
    )
    await stack.open(b"/mcp", headers=ALICE)
    full = await stack.ask(b"POST", b"/mcp", hello(id="x"), ALICE)
    assert (full.status, full.json["id"]) == (503, "x")
    await stack.open(b"/mcp", headers=MALLORY)
