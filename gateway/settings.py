"""
A configured server, as the configuration file names it.

What may hold a secret is not in a `repr`: arguments, variables, header fields, the URL.
"""

from __future__ import annotations

from typing import Literal

from attrs import field, frozen

__all__ = ["HTTPSettings", "ServerSettings", "StdioSettings", "ToolTimeout"]


@frozen
class ToolTimeout:
    """
    The times of some tools' calls, in place of their server's.

    pattern: a tool's name, in which `*`, `?` and `[...]` are as in a shell.
    timeout, max_timeout: as a server's; None where the server's holds.
    """

    pattern: str
    timeout: float | None = None
    max_timeout: float | None = None

    def times(self, timeout: float, max_timeout: float) -> tuple[float, float]:
        """Both, where these are the server's; one that is given moves the other if it must."""
        most = self.max_timeout
        if most is None:
            most = max(max_timeout, self.timeout or 0.0)
        return min(timeout if self.timeout is None else self.timeout, most), most


@frozen(kw_only=True)
class _Common:
    """
    What every server has.

    name: the last part of its path, `/servers/<name>/mcp`.
    default: whether `/mcp` is it, too.
    timeout: seconds a call may take without progress.
    max_timeout: seconds a call may take at all.
    tool_timeouts: both for some of its tools, by name or pattern: `{"report_*": 1800}`, or
        `{"sync": {"timeout": 60, "max_timeout": 7200}}`. An exact name wins, then the first
        pattern that fits; seconds above `max_timeout` raise it for the tool.
    handshake_timeout: seconds from its start to its answer to `initialize`.
    on_exit: what becomes of a session whose server went away: "replay" makes the handshake
        again for the next call, "lost" ends the session (404 -32001).
    replay: which calls are sent once more, to the next child or session, where they may have run
        and their answer was lost: "safe" those that change nothing (`ping`, lists,
        `resources/read`), "annotated" also calls of tools whose `readOnlyHint` or
        `idempotentHint` says so in a list that the client was given, "none" none. Every other
        call that may have run gets its one error.
    isolation: "session" gives each session a child, or an upstream session, of its own; with
        "shared" all sessions share one (docs/isolation.md).
    idle_stop: seconds without a session or call after which the child, or upstream session, that
        all share ends; the next one who needs it has it made again. None: it stays.
    era: which revisions the server speaks: "legacy" up to 2025-11-25, "modern" from 2026-07-28 on;
        "auto" finds out by asking it (docs/eras.md).
    callers: how the modern callers of a legacy server are told apart, for each has state of its
        own there: "principal", "header:NAME" (each value of that header is one caller of its
        principal), or "call" (nothing is kept from one call to the next).
    """

    name: str
    default: bool = False
    timeout: float = 600.0
    max_timeout: float = 3600.0
    tool_timeouts: tuple[ToolTimeout, ...] = field(factory=tuple)
    handshake_timeout: float = 60.0
    on_exit: Literal["replay", "lost"] = "replay"
    replay: Literal["none", "safe", "annotated"] = "safe"
    isolation: Literal["session", "shared"] = "session"
    idle_stop: float | None = None
    era: Literal["auto", "legacy", "modern"] = "auto"
    callers: str = "principal"


@frozen(kw_only=True)
class StdioSettings(_Common):
    """
    A server that is a child process.

    command: the program; looked up in the PATH the child gets.
    args: its arguments, passed as they are, without a shell.
    env: variables added to the allow-listed environment of the gateway.
    cwd: its working directory; the gateway's own without.
    warm: how many children are started ahead, so that a session need not wait for the program to
        start; each is one more process that waits for its handshake.
    """

    command: str
    args: tuple[str, ...] = field(default=(), repr=False)
    env: dict[str, str] = field(factory=dict, repr=False)
    cwd: str | None = None
    warm: int = 0


@frozen(kw_only=True)
class HTTPSettings(_Common):
    """
    A server that is reached over HTTP.

    url: its endpoint; host, path and query come from here alone.
    headers: fields sent with every request.
    transport: "streamable-http", or "sse" for HTTP+SSE; "auto" finds out by asking the server.
    proxy: which proxy `/servers/<name>/mcp` is where the server speaks Streamable HTTP:
        "transparent" passes its streams on, "streamable" has streams of the gateway's own.
    forward_authorization: whether the client's credentials go to it: `Authorization`, `Cookie`,
        `X-API-Key`, `X-Auth-*`, the assertions of an identity-aware proxy and the like.
        `X-Forwarded-*` never do.
    """

    url: str = field(repr=False)
    headers: dict[str, str] = field(factory=dict, repr=False)
    transport: Literal["auto", "streamable-http", "sse"] = "auto"
    proxy: Literal["transparent", "streamable"] = "transparent"
    forward_authorization: bool = False


ServerSettings = StdioSettings | HTTPSettings
