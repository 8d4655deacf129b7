"""What of a request's header goes on to an HTTP server."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.wire.context import CallContext
from gateway.wire.headers import configuredHeaders, forwardableHeaders, forwardingHeaders

KEPT = ((b"traceparent", b"00-a-b-01"), (b"user-agent", b"client/1"), (b"x-tenant", b"t"))


@pytest.mark.acceptance(73)
@pytest.mark.parametrize(
    "name",
    [
        b"Connection",
        b"Keep-Alive",
        b"Proxy-Connection",
        b"Proxy-Authorization",
        b"TE",
        b"Trailer",
        b"Transfer-Encoding",
        b"Upgrade",
        b"Host",
        b"Content-Length",
        b"Content-Type",
        b"Content-Encoding",
        b"Expect",
        b"Mcp-Session-Id",
        b"MCP-Protocol-Version",
        b"Last-Event-ID",
        b"Accept",
        b"Accept-Encoding",
        b"Origin",
        b"Forwarded",
        b"X-Forwarded-For",
        b"X-Forwarded-Host",
        b"X-Original-URL",
        b"mcp-init-host",
        b"Sec-Fetch-Site",
        b"If-None-Match",
    ],
)
def test_acceptance_73_a_field_that_is_not_end_to_end_stays_here(name: bytes) -> None:
    """Acceptance 73."""
    assert forwardableHeaders([*KEPT, (name, b"v")], True) == KEPT


@pytest.mark.acceptance(73)
def test_acceptance_73_what_connection_nominates_stays_here() -> None:
    """Acceptance 73."""
    pairs = [*KEPT, (b"X-A", b"1"), (b"Connection", b"x-a ,X-B"), (b"x-b", b"2"), (b"x-c", b"3")]
    assert forwardableHeaders(pairs, True) == (*KEPT, (b"x-c", b"3"))


@pytest.mark.acceptance(4)
@pytest.mark.parametrize("name", [b"Mcp_Session_Id", b"Content_Length", b"X_Tenant"])
def test_acceptance_4_underscores_never_pass(name: bytes) -> None:
    """Acceptance 4."""
    assert forwardableHeaders([(name, b"v")], True) == ()


@pytest.mark.acceptance(100)
@pytest.mark.parametrize(
    "name",
    [
        b"Authorization",
        b"Cookie",
        b"API-Key",
        b"CF-Access-Client-Secret",
        b"Cf-Access-Jwt-Assertion",
        b"Private-Token",
        b"Remote-User",
        b"X-API-Key",
        b"X-Access-Token",
        b"X-Amz-Security-Token",
        b"X-Amzn-Oidc-Data",
        b"X-Auth-Request-Email",
        b"X-Auth-Token",
        b"X-Goog-Authenticated-User-Email",
        b"X-Goog-IAP-JWT-Assertion",
        b"X-MS-Client-Principal",
        b"X-MS-Token-AAD-Access-Token",
    ],
)
def test_acceptance_100_credentials_pass_only_by_configuration(name: bytes) -> None:
    """Acceptance 100."""
    pairs = [*KEPT, (name, b"secret")]
    assert forwardableHeaders(pairs, False) == KEPT
    assert forwardableHeaders(pairs, True) == (*KEPT, (name.lower(), b"secret"))


@pytest.mark.acceptance(100)
@pytest.mark.parametrize(
    "name", [b"X-Forwarded-Access-Token", b"X-Forwarded-User", b"X-Forwarded-Email"]
)
def test_acceptance_100_what_a_proxy_says_of_its_user_never_passes(name: bytes) -> None:
    """Acceptance 100."""
    assert forwardableHeaders([(name, b"alice")], True) == ()


@pytest.mark.acceptance(66)
@pytest.mark.parametrize("value", [b"a\r\nHost: b", b"a\nb", b"a\rb", b"a\x00b", b"a\x7fb"])
def test_acceptance_66_control_characters_never_pass(value: bytes) -> None:
    """Acceptance 66."""
    assert forwardableHeaders([(b"x-tenant", value)], True) == ()
    context = CallContext("s", host=value, peer=value.decode("latin-1"))
    assert forwardingHeaders(context) == ((b"x-forwarded-proto", b"http"),)


@given(st.lists(st.tuples(st.binary(max_size=12), st.binary(max_size=12))), st.booleans())
def test_filtering_twice_is_filtering_once(pairs: list[tuple[bytes, bytes]], forward: bool) -> None:
    once = forwardableHeaders(pairs, forward)
    assert forwardableHeaders(once, forward) == once
    for name, value in once:
        assert name == name.lower()
        assert not set(value) & {0, 10, 13}


def test_forwarding_fields_say_what_we_saw() -> None:
    context = CallContext("s", peer="2001:db8::1", tls=True, host=b"mcp.example:8443")
    assert dict(forwardingHeaders(context)) == {
        b"x-forwarded-for": b"2001:db8::1",
        b"x-forwarded-proto": b"https",
        b"x-forwarded-host": b"mcp.example:8443",
    }


def test_configured_fields() -> None:
    assert configuredHeaders({"Authorization": " Bearer t", "X-A": "ü", "x-empty": ""}) == (
        (b"authorization", b"Bearer t"),
        (b"x-a", "ü".encode()),
        (b"x-empty", b""),
    )
    assert configuredHeaders({}) == ()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("Host", "evil"),
        ("Content-Length", "1"),
        ("content-LENGTH", "1"),
        ("Connection", "close"),
        ("Keep-Alive", "timeout=5"),
        ("TE", "trailers"),
        ("Trailer", "X-A"),
        ("Transfer-Encoding", "chunked"),
        ("Upgrade", "h2c"),
        ("HTTP2-Settings", "AAMAAABkAAQAoAAAAAIAAAAA"),
        ("Mcp-Session-Id", "1"),
        ("Accept", "*/*"),
        ("Content-Language", "en"),
        ("Forwarded", "for=1"),
        ("X-Real-IP", "192.0.2.1"),
        ("X-Forwarded-Prefix", "/a"),
        ("x-forwarded-for", "192.0.2.1"),
        ("X-Forwarded-Host", "a"),
        ("X-Forwarded-Proto", "https"),
        ("Mcp-Method", "ping"),
        ("Mcp-Name", "a"),
        ("Mcp-Param-City", "a"),
        ("Proxy-Authorization", "Basic a"),
        ("Proxy-Authenticate", "Basic"),
        ("Proxy-Connection", "close"),
        ("X A", "1"),
        ("X-Ä", "1"),
        ("X-A", "secret\r\nHost: b"),
    ],
)
def test_configured_fields_we_cannot_send_are_refused(name: str, value: str) -> None:
    with pytest.raises(ValueError, match="header") as raised:
        configuredHeaders({name: value})
    assert "secret" not in str(raised.value)
