"""
The requests of one connection, each handed to who serves it.

Where the path is a proxy's, an Exchange is made and goes straight to the proxy, while the body
still comes; every other path goes through a twisted.web Request to the Site's resources
(`gateway.doors.channel`). What a proxy found of a head is kept with it, for the next with the same.
"""

# Twisted is annotated in part only.
# mypy: allow-untyped-calls

from __future__ import annotations

from collections.abc import Mapping
from operator import methodcaller
from typing import Any, Protocol

from twisted.logger import Logger
from twisted.web.server import Site

from gateway.doors.channel import RequestCarrier, RequestChannel
from gateway.doors.exchange import LLExchange
from gateway.http1.request_head import RequestLine
from gateway.wire.context import HeaderPairs
from gateway.wire.exchange import RequestHead, Serve

__all__ = ["Receiving", "Reception", "Serving"]

_NO_HEAD = RequestHead(b"", b"", b"", ())
_unserved: Serve = methodcaller("abort")
_log = Logger()


class Serving(Protocol):
    """
    Who serves what comes at a listener.

    routes: who serves a path of the proxies. site: serves every other path. maxBody: bytes of a
    body that a Request is given; None where nobody reads it. now: the time, at most a second old.
    """

    routes: Mapping[bytes, Serve]
    site: Site
    maxBody: int | None
    now: float


class Receiving(RequestCarrier, Protocol):
    """
    The connection, as its reception sees it.

    serving: the present request, until it is answered. greeted: whether a request has come. seen:
    bytes that came of its body. heard: when the last of them came.
    """

    serving: LLExchange | RequestChannel | None
    greeted: bool
    seen: int
    heard: float

    def proceed(self) -> None:
        """The request is complete and answered."""


class Reception:
    """The RequestOwner of a connection's reader. It lives, and is dropped, with its connection."""

    __slots__ = (
        "_connection",
        "_found",
        "_head",
        "_line",
        "_listener",
        "_memo",
        "_peer",
        "_port",
        "_serve",
    )

    def __init__(self, connection: Receiving, listener: Serving) -> None:
        self._connection = connection
        self._listener = listener
        transport = connection.transport
        self._peer: str = getattr(transport.getPeer(), "host", "") or ""
        self._port: int = getattr(transport.getHost(), "port", 0) or 0
        self._line: RequestLine | None = None
        self._serve = _unserved
        self._head = _NO_HEAD
        self._found: Any = None
        self._memo: object | None = None

    def forget(self) -> None:
        """Take no head for known that came before: who serves it may be another now."""
        self._line = self._found = self._memo = None

    # RequestOwner.

    def headReceived(self, line: RequestLine, fields: HeaderPairs) -> bool:
        """See RequestOwner."""
        return self._headed(line, fields, None)

    def alikeReceived(self, line: RequestLine, fields: HeaderPairs, memo: Any) -> bool:
        """See RequestOwner."""
        return self._headed(line, fields, memo)

    def memo(self) -> object | None:
        """See RequestOwner."""
        return self._memo

    def _headed(self, line: RequestLine, fields: HeaderPairs, memo: Any) -> bool:
        connection, listener = self._connection, self._listener
        connection.greeted, connection.seen, self._memo = True, 0, None
        path, _, query = line.target.partition(b"?")
        serve = listener.routes.get(path)
        if serve is None:
            connection.serving = channel = RequestChannel(
                connection, listener.site, line, fields, listener.maxBody
            )
            channel.start()
            return False
        head = RequestHead(line.method, path, query, fields, self._peer, self._port, connection.tls)
        exchange = LLExchange(connection, line, head)
        if memo is not None:
            exchange.found = memo.of(head)
        self._enter(exchange, serve)
        self._memo = exchange.found
        if line.method != b"POST":
            return False
        self._line, self._head, self._serve = line, head, serve
        self._found = exchange.found
        return True

    def requestReceived(self, line: RequestLine, fields: HeaderPairs, body: bytes) -> None:
        """See RequestOwner."""
        # By its line: what heads have in common but for their session may be one and the same.
        if line is not self._line:
            self.headReceived(line, fields)
            self.bodyReceived(body)
            self.requestEnded()
            return
        # The same head as the last: what was found of it holds for this one, too.
        connection = self._connection
        connection.requestComplete = True
        exchange = LLExchange(connection, line, self._head, body)
        exchange.found = self._found
        self._enter(exchange, self._serve)

    def _enter(self, exchange: LLExchange, serve: Serve) -> None:
        self._connection.serving = exchange
        try:
            serve(exchange)
        except Exception:
            _log.failure("a request broke the gateway")
            exchange.abort()

    def bodyReceived(self, data: bytes) -> None:
        """See RequestOwner."""
        connection = self._connection
        connection.seen += len(data)
        connection.heard = self._listener.now
        if connection.serving is not None:
            connection.serving.bodyReceived(data)

    def requestEnded(self) -> None:
        """See RequestOwner."""
        connection = self._connection
        connection.requestComplete = True
        if connection.serving is not None:
            connection.serving.bodyEnded()
        else:
            # It was answered before, and is drained now.
            connection.proceed()
