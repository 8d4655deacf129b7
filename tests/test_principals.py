"""Whose a session is: the principal's (issuer, subject, audience), and not the token's."""

from __future__ import annotations

import pytest
import pytest_twisted
from attrs import define
from raw import AnsweringServer, Stack, Start, hello, rpc
from raw import start as start
from zope.interface import implementer

from gateway.guard.authentication import IAuthenticator, NotAuthenticated
from gateway.wire.context import Principal
from gateway.wire.exchange import RequestHead

ADA = Principal("https://login.example", "ada", "https://mcp.example/mcp")
TOKENS = {
    b"first": ADA,
    b"refreshed": Principal(ADA.issuer, ADA.subject, ADA.audience),
    b"another issuer": Principal("https://other.example", ADA.subject, ADA.audience),
    b"another audience": Principal(ADA.issuer, ADA.subject, "https://mcp.example/other"),
    b"another subject": Principal(ADA.issuer, "eve", ADA.audience),
}
FOREIGN = [token for token in TOKENS if token.startswith(b"another")]


@implementer(IAuthenticator)
@define
class Tokens:
    """Bearer tokens, and whose they are."""

    def authenticate(self, head: RequestHead) -> Principal:
        scheme, _, token = (head.header(b"authorization") or b"").partition(b" ")
        if scheme != b"Bearer" or token not in TOKENS:
            raise NotAuthenticated(b'Bearer realm="test"')
        return TOKENS[token]


def bearing(token: bytes, session: bytes | None = None) -> list[tuple[bytes, bytes]]:
    pairs = [(b"Authorization", b"Bearer " + token)]
    return pairs if session is None else [*pairs, (b"Mcp-Session-Id", session)]


async def stacked(start: Start) -> Stack:
    servers = {"one": AnsweringServer("one"), "far": AnsweringServer("far", http=True)}
    stack: Stack = await start(servers, authenticator=Tokens())
    return stack


@pytest.mark.acceptance(45)
@pytest.mark.parametrize("path", [b"/servers/one/mcp", b"/servers/far/mcp"])
@pytest_twisted.ensureDeferred
async def test_acceptance_45_a_session_outlives_its_first_token(start: Start, path: bytes) -> None:
    """The streamable and the transparent proxy."""
    stack = await stacked(start)
    session = await stack.open(path, headers=bearing(b"first"))
    for token in (b"first", b"refreshed"):
        answer = await stack.ask(b"POST", path, rpc("tools/call", 5, a=1), bearing(token, session))
        assert (answer.status, answer.json["result"]) == (200, {"a": 1})
    never = await stack.ask(b"POST", path, rpc("ping", 6), bearing(b"first", b"never-was"))
    assert never.status == 404
    for token in FOREIGN:
        headers = bearing(token, session)
        answer = await stack.ask(b"POST", path, rpc("ping", 6), headers)
        assert (answer.status, answer.body) == (404, never.body), token
        for method in (b"GET", b"DELETE"):
            assert (await stack.ask(method, path, None, headers)).status == 404, (method, token)
    # It is there as before, and a refreshed token may end it.
    assert (await stack.ask(b"DELETE", path, None, bearing(b"refreshed", session))).status == 204
    assert (await stack.ask(b"DELETE", path, None, bearing(b"first", session))).status == 404


@pytest.mark.acceptance(45)
@pytest_twisted.ensureDeferred
async def test_acceptance_45_nor_does_an_sse_session_go_with_it(start: Start) -> None:
    stack = await stacked(start)
    stream, endpoint = await stack.openSSE(b"/servers/one/sse", bearing(b"first"))
    assert (await stack.ask(b"POST", endpoint, hello(), bearing(b"first"))).status == 202
    assert "result" in await stream.message()
    told = rpc("notifications/initialized")
    assert (await stack.ask(b"POST", endpoint, told, bearing(b"refreshed"))).status == 202
    for token in FOREIGN:
        answer = await stack.ask(b"POST", endpoint, rpc("tools/call", 4), bearing(token))
        assert (answer.status, answer.json["error"]["code"]) == (404, -32001), token
    asked = await stack.ask(b"POST", endpoint, rpc("tools/call", 5, a=1), bearing(b"refreshed"))
    assert asked.status == 202
    assert await stream.message() == {"jsonrpc": "2.0", "id": 5, "result": {"a": 1}}


@pytest.mark.acceptance(45)
@pytest_twisted.ensureDeferred
async def test_acceptance_45_a_token_that_is_nobodys_comes_before_the_session(start: Start) -> None:
    stack = await stacked(start)
    path = b"/servers/one/mcp"
    session = await stack.open(path, headers=bearing(b"first"))
    for token in (b"expired", b""):
        answer = await stack.ask(b"POST", path, rpc("ping", 6), bearing(token, session))
        assert answer.status == 401 and answer.header(b"www-authenticate")
