"""Our own listener in memory: what it lets a connection cost in time and in memory."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator

import pytest
from listening import Caller, Front, request
from raw import hello, rpc

from gateway.guard.limits import Limits

WHOLE = request(b"POST", b"/mcp", hello())
LIMITS = Limits()
"""The defaults: it is they that are looked at here."""


@pytest.fixture
def front() -> Iterator[Front]:
    front = Front()
    yield front
    front.stop()


@pytest.mark.parametrize(
    ("come", "patience", "bound"),
    [
        (b"", 10, "head_timeout"),
        (WHOLE[:30], 10, "head_timeout"),
        # Of the body something is there, but not enough for its time.
        (WHOLE[:-1], 5, "min_body_rate"),
    ],
    ids=["nothing", "head", "body"],
)
def test_who_sends_nothing_more_is_told_and_hung_up(
    front: Front, come: bytes, patience: float, bound: str
) -> None:
    assert (LIMITS.head_timeout, LIMITS.body_grace) == (10, 5)
    caller = front.ask(come)
    front.pass_(patience - 0.5)
    assert not caller.closed
    assert caller.received == b""
    front.pass_(2)
    (answer,) = caller.answers()
    assert answer.status == 408
    assert caller.closed
    front.pass_(4)
    assert caller.gone
    assert front.bounds == [bound]
    assert front.one.handshakes == 0


@pytest.mark.parametrize("at", [1, len(WHOLE) - 40])
def test_who_drips_is_hung_up_as_who_is_silent(front: Front, at: int) -> None:
    """Where twisted.web counts from the last byte."""
    caller = front.ask(WHOLE[:at])
    for byte in range(at, len(WHOLE)):
        if caller.closed:
            break
        caller.send(WHOLE[byte : byte + 1])
        front.pass_(1)
    (answer,) = caller.answers()
    assert answer.status == 408
    assert front.clock.seconds() <= 12
    assert front.one.handshakes == 0


def test_a_connection_that_is_kept_alive_is_hung_up_too(front: Front) -> None:
    assert LIMITS.keep_alive == 75
    caller = front.ask(request(b"GET", b"/healthz"))
    assert caller.answer().status == 200
    front.pass_(74)
    assert not caller.closed
    front.pass_(2)
    assert caller.gone
    assert caller.received == b""


def test_streams_and_running_calls_have_no_such_end() -> None:
    """Seven times as long, without a byte of the client's: a stream of each kind, and a call."""
    seconds = 7 * LIMITS.keep_alive
    front = Front(limits=Limits(head_wait=1000.0, heartbeat=15.0))
    opened = front.ask(WHOLE)
    session = b"Mcp-Session-Id: " + (opened.answer().header(b"mcp-session-id") or b"")
    get = front.ask(request(b"GET", b"/mcp", b"", session))
    sse = front.ask(request(b"GET", b"/sse"))
    calling = front.ask(request(b"POST", b"/mcp", rpc("tools/call", 7), session))
    front.pass_(seconds)
    for stream in (get, sse):
        assert stream.received.count(b":\n\n") == seconds // 15
        assert not stream.closed
    assert calling.received == b""
    (link,) = front.one.open
    link.reply(link.last("tools/call"), b'"late"')
    assert calling.answer().body == b'{"jsonrpc":"2.0","id":7,"result":"late"}'
    front.stop()


def test_of_a_body_over_the_limit_nothing_more_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    def opened(*_: object) -> None:
        raise AssertionError("bodies are kept in no file")

    monkeypatch.setattr("tempfile.TemporaryFile", opened)
    front = Front(limits=Limits(max_body=1000))
    caller = front.ask(request(b"POST", b"/mcp", b"", b"Transfer-Encoding: chunked"))
    chunk = b"10000\r\n" + b"x" * 0x10000 + b"\r\n"
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        for _ in range(256):
            caller.send(chunk)
        grown = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert grown < 256 * 1024, "of 16 MiB"
    (answer,) = caller.answers()
    assert (answer.status, answer.json["error"]["code"]) == (413, -32000)
    # It does not even listen so long.
    assert caller.gone or caller.wire.disconnected
    assert front.one.handshakes == 0
    front.stop()


def test_of_a_body_within_the_limit_it_is_all_that_is_kept(front: Front) -> None:
    """Acceptance 10: at most twice the limit, however it comes."""
    size = LIMITS.max_body
    peaks = []
    for pieces in (size // 65_536, 1):
        caller: Caller = front.ask(request(b"POST", b"/mcp", b"", b"Content-Length: %d" % size))
        piece = b" " * (size // pieces)
        tracemalloc.start()
        try:
            for _ in range(pieces):
                caller.send(piece)
            peaks.append(tracemalloc.get_traced_memory()[1])
        finally:
            tracemalloc.stop()
        assert caller.answer().status == 400
    assert max(peaks) < 2.3 * size, peaks
