"""
Every kind of fault, in one table: what is done, where, and how often.

A verb travels in the arguments of a call, so the server behind, the proxy on the wire and the
client itself each know what to do at that call, and a seed replays all of it.
"""

from __future__ import annotations

from random import Random

from attrs import frozen

__all__ = ["FAULTS", "HARMLESS", "Fault", "faultsOf", "pick"]

EVERYWHERE = ("stdio", "http", "sse", "wire")
"""What is behind the gateway: a child; Streamable HTTP; HTTP+SSE; HTTP behind the fault proxy."""


@frozen
class Fault:
    """
    One kind.

    verb: its name. behind: the kinds of server it is for. callers: the kinds of client.
    weight: how often, beside others. waits: whether its call ends by the deadline alone.
    runs: whether its server executes the call at all.
    does: what the server itself does, where the fault is somebody else's.
    """

    verb: str
    behind: tuple[str, ...]
    callers: tuple[str, ...] = ("streamable", "modern", "sse")
    weight: float = 4.0
    waits: bool = False
    runs: bool = True
    does: str = "answer"

    @property
    def breaks(self) -> bool:
        """Whether its server itself says what it should not."""
        return self not in HARMLESS and not self.verb.startswith("client-")


HARMLESS = (
    Fault("answer", EVERYWHERE, weight=70),
    Fault("slow", EVERYWHERE, weight=20),
    Fault("progress", EVERYWHERE, weight=10),
)
"""What a server without faults does."""

_STDIO, _HTTP, _UP, _WIRE = ("stdio",), ("http",), ("http", "sse"), ("wire",)
_POSTS = ("streamable", "modern")
_SLOW = 0.5
"""The weight of what takes seconds, or a process."""

FAULTS = (
    # Servers of any kind.
    Fault("error", ("stdio", "http", "sse")),
    Fault("tool-error", ("stdio", "http", "sse")),
    Fault("double", ("stdio", "http", "sse")),
    Fault("wrong-id", ("stdio", "http", "sse")),
    Fault("garbage", ("stdio", "http", "sse")),
    Fault("bad-answer", ("stdio", "http", "sse")),
    Fault("bad-utf8", ("stdio", "http", "sse")),
    Fault("both", ("stdio", "http", "sse")),
    Fault("flood", ("stdio", "http", "sse"), weight=2),
    Fault("big", ("stdio", "http", "sse"), weight=2),
    Fault("hang", ("stdio", "http", "sse"), weight=_SLOW, waits=True),
    Fault("late", ("stdio", "sse"), weight=_SLOW, waits=True),
    # Children.
    Fault("truncated", _STDIO),
    Fault("noise", _STDIO),
    Fault("crlf", _STDIO),
    Fault("pieces", _STDIO),
    Fault("stderr", _STDIO, weight=2),
    Fault("deaf", _STDIO, weight=_SLOW),
    Fault("exit-before", _STDIO, weight=1, runs=False),
    Fault("exit-after", _STDIO, weight=1),
    Fault("exit-mid", _STDIO, weight=1),
    Fault("last-words", _STDIO, weight=1),
    Fault("kill", _STDIO, weight=1),
    Fault("orphan", _STDIO, weight=_SLOW),
    Fault("close-stdout", _STDIO, weight=_SLOW),
    # Streamable HTTP and HTTP+SSE.
    Fault("lost", _UP, runs=True),
    Fault("lost-again", _UP, weight=2, runs=False),
    Fault("status-500", _UP, runs=False),
    Fault("status-502", _UP, runs=False),
    Fault("status-401", _UP, runs=False),
    Fault("redirect", _HTTP),
    Fault("redirect-away", _UP, runs=False),
    Fault("reset-before", _UP),
    Fault("restart", _UP, weight=_SLOW, runs=False),
    Fault("accepted", _HTTP, weight=2),
    Fault("nothing", _HTTP),
    Fault("wrong-type", _HTTP),
    Fault("bad-framing", _HTTP),
    Fault("truncated-body", _HTTP),
    Fault("reset-after-head", _HTTP),
    Fault("stall-before-head", _HTTP, weight=_SLOW, waits=True),
    Fault("stall-mid", _HTTP, weight=_SLOW, waits=True),
    Fault("cut-event", _HTTP),
    Fault("resumed", _HTTP),
    Fault("gzip", _HTTP),
    Fault("trickle", _HTTP, weight=2),
    Fault("extra", _HTTP),
    Fault("stale", _HTTP),
    Fault("stream-cut", ("sse",), weight=2),
    Fault("events", _HTTP),
    # The wire between the gateway and a server: the place comes from the seed.
    Fault("wire-cut-request", _WIRE, runs=False),
    Fault("wire-cut-answer", _WIRE),
    Fault("wire-reset-answer", _WIRE),
    Fault("wire-trickle", _WIRE),
    Fault("wire-pause", _WIRE),
    Fault("wire-stall", _WIRE, weight=_SLOW, waits=True),
    # Clients.
    Fault("client-reset", EVERYWHERE, does="slow"),
    Fault("client-half-close", EVERYWHERE, _POSTS, does="slow"),
    Fault("client-slow-reader", EVERYWHERE, _POSTS, weight=1, does="big"),
    Fault("client-cancel", EVERYWHERE, ("streamable", "sse"), weight=2, does="hang"),
    Fault("client-delete", EVERYWHERE, ("streamable",), weight=1, does="slow"),
    Fault("client-duplicate-ids", EVERYWHERE, _POSTS, does="slow"),
    Fault("client-wrong-session", EVERYWHERE, ("streamable", "sse"), runs=False),
    Fault("client-half-body", EVERYWHERE, runs=False),
    Fault("client-other-principal", EVERYWHERE, ("streamable", "sse"), runs=False),
    Fault("client-bad-token", EVERYWHERE, runs=False),
    Fault("client-asked", EVERYWHERE, does="asks"),
    Fault("client-drip", EVERYWHERE, _POSTS),
    Fault("client-pipelines", EVERYWHERE, _POSTS),
    Fault("client-resumes", EVERYWHERE, ("streamable",), does="progress"),
)


def faultsOf(behind: str, caller: str) -> tuple[Fault, ...]:
    """The faults that a kind of client can have at a kind of server."""
    return tuple(one for one in FAULTS if behind in one.behind and caller in one.callers)


def pick(dice: Random, behind: str, caller: str, faults: float) -> Fault:
    """What the next call is. faults: how many of a hundred go wrong."""
    kinds = faultsOf(behind, caller) if dice.random() < faults / 100 else ()
    kinds = kinds or HARMLESS
    return dice.choices(kinds, [one.weight for one in kinds])[0]
