"""The servers of a laboratory run, and the configuration of the gateway before them."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path

__all__ = ["LIMITS", "SERVERS", "configuration"]

LIMITS = {
    "respawn_first": 0.01,
    "respawn_last": 0.05,
    "circuit_failures": 1_000_000,
    "eof_wait": 0.3,
    "term_wait": 0.3,
    "heartbeat": 2.0,
    "pooled_idle": 1.0,
    "session_unused": 10.0,
    "session_idle": 10.0,
    "max_pooled_sessions": 4,
}

SERVERS: dict[str, tuple[str, str, dict[str, object]]] = {
    # name: what is behind, which of it, and its settings.
    "own": ("stdio", "legacy", {"callers": "header:X-Caller"}),
    "both": ("stdio", "both", {}),
    "shared": ("stdio", "legacy", {"isolation": "shared"}),
    "stdio-modern": ("stdio", "modern", {}),
    "http": ("http", "legacy", {"era": "legacy"}),
    "http-own": ("http", "legacy", {"era": "legacy", "proxy": "streamable", "callers": "call"}),
    "http-shared": ("http", "legacy", {"era": "legacy", "isolation": "shared"}),
    "http-both-modern": ("http", "both", {"era": "modern"}),
    "http-modern": ("http", "modern", {"era": "modern"}),
    "sse": ("sse", "sse", {"era": "legacy", "type": "sse", "callers": "header:X-Caller"}),
    "wire": ("wire", "legacy", {"era": "legacy", "proxy": "streamable"}),
    "wire-modern": ("wire", "modern", {"era": "modern"}),
    # Nothing goes wrong here, whatever does beside it.
    "steady": ("steady", "both", {}),
}


def configuration(
    names: Iterable[str], ledger: Path, http: int, wire: int, timeout: float
) -> dict[str, object]:
    """
    What the gateway reads.

    names: of SERVERS. ledger: where children write what they execute. http, wire: the ports of the
    HTTP server and of the fault proxy before it. timeout: seconds of a call.
    """
    child = str(Path(__file__).with_name("stdio_server.py"))
    servers: dict[str, object] = {}
    for name in names:
        behind, which, settings = SERVERS[name]
        if behind in ("stdio", "steady"):
            args = ["-I", "-S", child, which, str(ledger)]
            server: dict[str, object] = {"command": sys.executable, "args": args}
        else:
            port = wire if behind == "wire" else http
            server = {"url": f"http://127.0.0.1:{port}/{which}"}
        slow = 60.0 if behind == "steady" else timeout
        times = {"timeout": slow, "max_timeout": 2 * slow}
        servers[name] = {**server, **times, **settings}
    return {"mcpServers": servers, "gateway": {"limits": LIMITS}}
