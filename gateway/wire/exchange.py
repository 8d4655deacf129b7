"""
One HTTP request and its answer, as a proxy sees it: never a Request of some library.

A door makes an Exchange for each request; a proxy answers it exactly once, with `answer` (a
whole body) or `open` (an event stream).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from attrs import field, frozen

from gateway.wire.context import HeaderPairs

__all__ = ["EventSink", "Exchange", "RequestHead", "Serve"]


@frozen
class RequestHead:
    """
    The head of a request.

    method: as sent (RFC 9110 section 9: case-sensitive).
    path: the raw path of the target, not percent-decoded, from where we are mounted.
    query: the raw query without "?".
    headers: all fields in order, names in lower case.
    peer: the client's address, as text.
    port: the local port the connection came to; 0 where there is none.
    tls: whether the connection is encrypted.
    mounted: whether a host's Site mounts us somewhere; False at our own listener.
    """

    method: bytes
    path: bytes
    query: bytes
    headers: HeaderPairs
    peer: str = ""
    port: int = 0
    tls: bool = False
    mounted: bool = False
    _first: dict[bytes, bytes] = field(init=False, eq=False, repr=False)

    @_first.default
    def _index(self) -> dict[bytes, bytes]:
        return dict(reversed(self.headers))

    def header(self, name: bytes) -> bytes | None:
        """The first value of a field (lower-case name), or None."""
        return self._first.get(name)

    @property
    def distinct(self) -> bool:
        """Whether no field comes twice."""
        return len(self._first) == len(self.headers)

    def headerValues(self, name: bytes) -> list[bytes]:
        """Every value of a field (lower-case name), in order."""
        if name not in self._first:
            return []
        if self.distinct:
            return [self._first[name]]
        return [value for key, value in self.headers if key == name]


class EventSink(Protocol):
    """
    The open body of an event stream.

    onDrained: called each time the sink comes back below its mark; set by the proxy.
    blocked: whether the last write went above the mark and nothing drained since.
    moved: counts up when the peer took some of what is kept; a door that cannot tell says 0.
    """

    onDrained: Callable[[], None] | None
    blocked: bool

    @property
    def moved(self) -> int:
        """See the class."""

    def write(self, data: bytes) -> bool:
        """Write bytes of the body. False: above the mark; they are kept, write no more."""

    def close(self) -> None:
        """End the body in order."""

    def abort(self) -> None:
        """Cut the connection."""


class Exchange(Protocol):
    """
    One request and its one answer.

    head: the request's head.
    allowed: whether its Host and Origin were found to be allowed; set by the ladder.
    found: what the ladder found of its head; a door that gets the same head again, of the same
        connection, may give it again.
    onGone: called once when the client vanished before the answer was complete; set by the
        proxy. Never called after the answer ended.
    """

    head: RequestHead
    allowed: bool
    found: Any
    onGone: Callable[[], None] | None

    def collect(self, limit: int, then: Callable[[bytes | None], None]) -> None:
        """Read the whole body, at most `limit` bytes, and call `then` with it (None: over)."""

    def answer(self, status: int, headers: HeaderPairs, body: bytes = b"") -> None:
        """Answer whole. The door adds Content-Length."""

    def open(self, status: int, headers: HeaderPairs) -> EventSink:
        """Answer with a head now and a body that follows."""

    def abort(self) -> None:
        """Cut the connection without an answer."""


Serve = Callable[[Exchange], None]
"""Serves the exchange of a request whose path is a proxy's, from the foot of the ladder on."""
