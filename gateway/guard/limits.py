"""
Every bound of the gateway, in one table.

Each field has a name, a unit, a default, what a caller gets at the bound, and an event:
`BoundReached(limit=<name>)`. The configuration reference is made from this class.
"""

from __future__ import annotations

from typing import Any

import attrs
from attrs import frozen

__all__ = ["Limits"]


def _positive(_: object, attribute: attrs.Attribute[Any], value: float) -> None:
    if value <= 0:
        raise ValueError(f"{attribute.name} must be above 0, not {value}")


def _notNegative(_: object, attribute: attrs.Attribute[Any], value: float) -> None:
    if value < 0:
        raise ValueError(f"{attribute.name} must not be below 0, but is {value}")


def _bound(default: Any, unit: str, gets: str, *, mayBeNone: bool = False) -> Any:
    return attrs.field(
        default=default,
        converter=type(default),
        validator=_notNegative if mayBeNone else _positive,
        metadata={"unit": unit, "gets": gets, "mayBeNone": mayBeNone},
    )


@frozen(kw_only=True)
class Limits:
    """The bounds of one gateway. Times in seconds, sizes in bytes."""

    def adopt(self, other: Limits) -> None:
        """
        Take over another table's values: everybody who holds this one sees them from now on.

        Frozen for all but whoever made it: a service, which keeps a table of its own for reloads.
        """
        for name in self.__attrs_attrs__:
            object.__setattr__(self, name.name, getattr(other, name.name))

    max_body: int = _bound(4 * 1024 * 1024, "bytes", "413 -32000 for the request")
    max_head: int = _bound(16 * 1024, "bytes of a request's head", "431 -32000, and the end")
    max_head_line: int = _bound(
        8 * 1024, "bytes of a line of it", "414 or 431 -32000, and the end of the connection"
    )
    max_head_fields: int = _bound(100, "header fields of a request", "431 -32000, and the end")
    max_chunk_extensions: int = _bound(
        4 * 1024, "bytes of a body's chunk extensions", "400 -32000, and the end of the connection"
    )
    max_trailers: int = _bound(
        16 * 1024, "bytes of a body's trailers", "400 -32000, and the end of the connection"
    )
    max_connections: int = _bound(
        20_000,
        "connections of a listener; at most 64 fewer than the process may have files open",
        "503 -32000 with Retry-After, and the end of the connection",
    )
    head_timeout: float = _bound(
        10.0, "seconds for a request's head, the first one's from connecting", "408 -32000"
    )
    body_grace: float = _bound(
        5.0, "seconds after which a body that still comes must keep `min_body_rate`", "408 -32000"
    )
    min_body_rate: int = _bound(1024, "bytes a second of a request's body", "408 -32000")
    body_silence: float = _bound(30.0, "seconds without a byte of a body", "408 -32000")
    keep_alive: float = _bound(75.0, "seconds without a request", "the connection is closed")
    max_batch: int = _bound(100, "messages", "400 -32600 for the batch")
    max_answer: int = _bound(
        16 * 1024 * 1024, "bytes", "`bad_answer` for a call whose answer is larger"
    )
    max_json_answer_stream: int = _bound(
        1024 * 1024, "bytes", "a larger answer not yet on a stream is sent as JSON"
    )

    max_sessions: int = _bound(10_000, "sessions", "503 -32000 with Retry-After")
    max_sessions_per_principal: int = _bound(10_000, "sessions", "503 -32000 with Retry-After")
    max_sessions_per_address: int = _bound(
        10_000,
        "sessions of one client address; what comes through a proxy has the proxy's",
        "503 -32000 with Retry-After",
    )
    session_idle: float = _bound(1800.0, "seconds", "404 -32001 afterwards")
    session_absolute: float = _bound(86_400.0, "seconds", "404 -32001 afterwards")
    session_unused: float = _bound(60.0, "seconds", "404 -32001 afterwards")
    retry_after: int = _bound(5, "seconds", "the value of Retry-After")

    max_calls: int = _bound(
        256,
        "calls per session",
        "`overloaded` for the call; not for servers without sessions",
    )
    max_calls_total: int = _bound(
        10_000, "running calls of the gateway", "`overloaded` for the call, with when to come again"
    )
    max_calls_per_principal: int = _bound(
        10_000,
        "running calls of one principal; without authentication all clients are one",
        "the call waits for its turn",
    )
    max_waiting_per_principal: int = _bound(
        64,
        "further calls of one principal, which wait; may be 0",
        "`rate_limited` for the call, with when to come again",
        mayBeNone=True,
    )
    max_modern_calls: int = _bound(
        1024,
        "running calls of modern clients per stdio server",
        "`overloaded` for the call",
    )
    max_input_rounds: int = _bound(
        16,
        "times that a server of revision 2026-07-28 asks for input in one call of a legacy client",
        "-32603 for the call",
    )
    max_server_requests: int = _bound(
        64, "unanswered server requests per session", "-32603 to the server"
    )
    max_subscriptions: int = _bound(
        1024,
        "per session",
        "the oldest is not repeated to a server that came back; `overloaded` on a shared server",
    )
    max_pooled_sessions: int = _bound(
        32,
        "sessions of one modern caller with one legacy server",
        "the call waits for its turn",
    )
    max_pooled_total: int = _bound(
        256,
        "such sessions per server",
        "the longest idle one ends; where none is idle, the call waits for its turn",
    )
    pooled_idle: float = _bound(300.0, "seconds without a call", "such a session ends")
    max_modern_waiting: int = _bound(
        1024, "modern calls per server that wait for such a session", "`overloaded` for the call"
    )
    max_modern_waiting_per_principal: int = _bound(
        256, "of them, those of one principal", "`rate_limited` for the call"
    )
    max_parked: int = _bound(
        1024,
        "modern calls per server that wait for input of their clients",
        "-32603 to the server's question",
    )
    max_parked_per_principal: int = _bound(
        128, "of them, those of one principal", "-32603 to the server's question"
    )
    parked_beside: float = _bound(
        30.0,
        "seconds a call waits for its client while all sessions of its caller do and others wait",
        "the longest waiting is cancelled, and its retry refused -32602",
    )
    ask_wait: float = _bound(
        0.05,
        "seconds in which what a legacy server asks beside its first question goes with it",
        "it is asked in the next round",
    )
    parked_for: float = _bound(
        600.0,
        "seconds that a modern call waits for input of its client",
        "-32603 to the server's question, the call is cancelled",
    )
    max_listens: int = _bound(
        4096, "streams of `subscriptions/listen` per server", "`overloaded` for the call"
    )
    max_listens_per_principal: int = _bound(
        1024, "of them, those of one principal", "`rate_limited` for the call"
    )
    max_get_streams: int = _bound(4, "streams per session", "the oldest stream ends")
    max_queued_messages: int = _bound(
        256, "messages per session", "the oldest is dropped, a request answered -32603"
    )
    max_queued_bytes: int = _bound(
        1024 * 1024, "bytes per session", "the oldest is dropped, a request answered -32603"
    )
    queued_for: float = _bound(
        30.0, "seconds", "dropped and counted, a request answered -32603 to the server"
    )
    max_logged_events: int = _bound(
        256, "events per session", "older ones cannot be resumed; a comment announces the gap"
    )
    max_logged_bytes: int = _bound(
        1024 * 1024, "bytes per session", "older events cannot be resumed"
    )
    logged_for: float = _bound(300.0, "seconds", "older events cannot be resumed")
    max_stream_bytes: int = _bound(
        256 * 1024, "bytes per stream", "notifications are dropped, the reader is cut"
    )
    reader_blocked: float = _bound(30.0, "seconds", "the stream of a blocked reader is cut")

    head_wait: float = _bound(10.0, "seconds", "the answer becomes an event stream")
    heartbeat: float = _bound(15.0, "seconds", "a comment on every open stream")
    cancel_wait: float = _bound(1.0, "seconds", "`cancelled` for the call")
    queue_wait: float = _bound(1.0, "seconds", "202 for a notification or response on its way")
    hang_up_wait: float = _bound(
        5.0, "seconds", "at the end, the connection of who does not read is cut"
    )
    drain_grace: float = _bound(30.0, "seconds", "`shutting_down` for what still runs")

    max_line: int = _bound(
        16 * 1024 * 1024, "bytes per stdout line", "the child ends, its calls get `bad_answer`"
    )
    max_stdin_messages: int = _bound(256, "messages per child", "`overloaded`, or 503")
    max_stdin_bytes: int = _bound(1024 * 1024, "bytes per child", "`overloaded`, or 503")
    max_stderr_rate: int = _bound(
        1024 * 1024, "bytes a minute per server", "the rest is counted, not logged"
    )
    max_upstream_head: int = _bound(64 * 1024, "bytes", "`bad_answer`, the connection is dropped")
    max_upstream_connections: int = _bound(
        256,
        "requests at once per HTTP server, beside a quarter as many notifications and its streams",
        "the request waits for its turn",
    )
    max_upstream_queue: int = _bound(
        256, "waiting requests per HTTP server", "`overloaded` for the call, or 503"
    )
    max_upstream_queue_bytes: int = _bound(
        8 * 1024 * 1024, "bytes of waiting requests", "`overloaded` for the call, or 503"
    )
    max_upstream_streams: int = _bound(
        10_000, "GET streams per HTTP server", "405 for the GET stream"
    )
    max_resumptions: int = _bound(
        5,
        "times in a row that a call's stream is resumed and nothing new comes",
        "`outcome_unknown` for the call",
    )
    connect_timeout: float = _bound(10.0, "seconds", "`upstream_unreachable` for the call")
    upstream_first_byte: float = _bound(
        60.0,
        "seconds",
        "a GET stream whose head does not come is given up; calls have their own deadline",
    )
    upstream_idle: float = _bound(
        300.0,
        "seconds without a byte",
        "the GET stream ends; `timeout` for a call whose answer is no event stream: "
        "an event stream has the call's deadline",
    )
    upstream_half_open: float = _bound(
        60.0, "seconds", "a peer that acknowledges nothing is gone: `outcome_unknown`"
    )
    upstream_keep_alive: float = _bound(2.5, "seconds", "an idle connection is closed")
    era_probe: float = _bound(
        15.0,
        "seconds a server not known to be modern has to answer `server/discover`",
        "a child is taken for one of the legacy era; `timeout` of an HTTP server, asked anew",
    )
    era_verdict: float = _bound(
        86_400.0, "seconds for which it is remembered which era a server speaks", "it is asked anew"
    )
    max_eras: int = _bound(
        1024, "servers whose era is remembered", "the one found first is asked anew"
    )
    max_tool_headers: int = _bound(
        1024 * 1024,
        "bytes of a server's `x-mcp-header` annotations",
        "`Mcp-Param-*` of further tools is neither sent nor judged",
    )
    max_tool_hints: int = _bound(
        4096,
        "tools whose annotations are remembered, per session or modern stdio server",
        'calls of further tools are not sent once more where `replay` is "annotated"',
    )
    max_tool_pages: int = _bound(
        32,
        "pages of `tools/list` that are read for a call's header fields",
        "the server's refusal for the call",
    )
    eof_wait: float = _bound(2.0, "seconds", "SIGTERM to the child's process group")
    term_wait: float = _bound(5.0, "seconds", "SIGKILL to the child's process group")
    respawn_first: float = _bound(
        0.5, "seconds", "the first back-off before a respawn, or before a stream is opened again"
    )
    respawn_last: float = _bound(30.0, "seconds", "the longest back-off before either")
    circuit_failures: int = _bound(
        5,
        "failures of a child server in `circuit_window`",
        "no child is started for a while: `upstream_unreachable` at once",
    )
    circuit_window: float = _bound(60.0, "seconds", "older failures of a child count no more")
    circuit_young: float = _bound(
        5.0, "seconds", "a child that exits sooner, with no call running, is a failure"
    )
    circuit_first: float = _bound(
        10.0, "seconds", "the first time for which a child that keeps failing is left alone"
    )
    circuit_last: float = _bound(
        120.0, "seconds", "the longest time for which a child that keeps failing is left alone"
    )
