"""What the links to HTTP servers of both eras share: their streams, and their end."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, Protocol

from attrs import define, field
from twisted.internet.defer import Deferred

from gateway.http1.client import HTTPClient, Outgoing
from gateway.links.http_answer import Stream, Surroundings
from gateway.links.http_handshake import Handshake
from gateway.links.interfaces import ILinkListener, Reason
from gateway.wire.context import HeaderPairs
from gateway.wire.envelope import Message

__all__ = ["ACCEPT", "JSON", "HTTPLink", "Open"]

ACCEPT = (b"accept", b"application/json, text/event-stream")
JSON = (b"content-type", b"application/json")


class Open(Protocol):
    """A call or stream that is not over; origin: what its messages belong to."""

    origin: object | None

    def hold(self) -> None:
        """Read and tell nothing until `release`."""

    def release(self) -> None:
        """Tell what waits, and read on."""

    def abort(self) -> None:
        """Say nothing more, and cut the connection."""


@define(eq=False, repr=False)
class HTTPLink:
    """
    A link whose every message is a request of its own.

    client: sends the requests; shared by the links of a server.
    configured: the header fields of the configuration, names in lower case.
    forwardAuthorization: whether the client's credentials go to the server.
    onClosed: called once when nothing of it is left.
    answer: the server's response to the handshake.
    sessionless: whether the server gave no session id.
    around: what its streams share.
    closing: whether it was closed.
    """

    client: HTTPClient
    listener: ILinkListener
    configured: HeaderPairs = ()
    forwardAuthorization: bool = False
    onClosed: Callable[[Any], None] | None = None
    answer: Message = field(init=False)
    sessionless: bool = field(default=True, init=False)
    multiplexed: ClassVar[bool] = False
    closing: bool = field(default=False, init=False)
    _told: dict[object, Open] = field(factory=dict, init=False)
    """What messages still come on, by call or origin."""
    _streams: set[Open] = field(factory=set, init=False)
    around: Surroundings = field(init=False)
    _holding: bool = field(default=False, init=False)
    _full: bool = field(default=False, init=False)
    _handshake: Handshake | None = field(default=None, init=False)
    _closed: bool = field(default=False, init=False)
    _waiters: list[Deferred[None]] = field(factory=list, init=False)

    @around.default
    def _surround(self) -> Surroundings:
        client = self.client
        return Surroundings(
            client.server,
            client.limits,
            client.clock,
            client.observer,
            self._streamTold,
            self._streams.discard,
            self._refused,
        )

    def cancel(self, call: object) -> None:
        """See ILink: cuts the connection of the call or stream. Nothing more is told of it."""
        stream = self._told.get(call)
        if stream is not None:
            stream.abort()

    def hold(self, origin: object | None) -> None:
        """See ILink."""
        if origin is None:
            self._holding = True
        for stream in self._of(origin):
            stream.hold()

    def release(self, origin: object | None) -> None:
        """See ILink."""
        if origin is None:
            self._holding = False
        for stream in self._of(origin):
            stream.release()

    def close(self) -> Deferred[None]:
        """Cut every stream; see ILink."""
        done: Deferred[None] = Deferred(lambda d: self._waiters.remove(d))
        if not self._closed:
            self._waiters.append(done)
        if not self.closing:
            self.closing = True
            if self._handshake is not None:
                self._handshake.lost(Reason.SHUTTING_DOWN, "the link was closed")
            for stream in list(self._streams):
                stream.abort()
            self._farewell()
        elif self._closed:
            done.callback(None)
        return done

    def roomAgain(self) -> None:
        """The client can take requests again; said by the server."""
        if self._full and not self.closing:
            self._full = False
            self.listener.drained()

    def losing(self, reason: Reason, message: str) -> None:
        """End it, and tell its user so."""
        if self.closing:
            return
        handshake = self._handshake
        if handshake is not None and not handshake.over:
            handshake.lost(reason, message)
        else:
            self.close()
            self.listener.lost(reason, message)

    # Inside.

    def _farewell(self) -> None:
        """Everything was cut: say to the server what it has to know, then `_hasClosed`."""
        self._hasClosed()

    def _refused(self, status: int) -> None:
        """The server refused a request."""

    def _opened(self, stream: Stream, outgoing: Outgoing | None) -> bool:
        if outgoing is None:
            return False
        stream.outgoing = outgoing
        self._streams.add(stream)
        if stream.origin is not None:
            self._told[stream.origin] = stream
        if self._holding:
            stream.hold()
        return True

    def _of(self, origin: object | None) -> list[Open]:
        if origin is None:
            return list(self._told.values())
        stream = self._told.get(origin)
        return [] if stream is None else [stream]

    def _streamTold(self, stream: Open) -> None:
        if stream.origin is not None and self._told.get(stream.origin) is stream:
            del self._told[stream.origin]

    def _hasClosed(self) -> None:
        self._closed = True
        if self.onClosed is not None:
            self.onClosed(self)
        waiters, self._waiters = self._waiters, []
        for done in waiters:
            done.callback(None)
