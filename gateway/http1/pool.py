"""
The connections to the origin of one URL: being made, busy, and idle.

 1. A connection counts as made when its TLS handshake is done, so that a failed handshake is a
    failed connect: nothing was sent.
 2. `connect_timeout` covers name resolution, every address, TLS and the second try.
 3. A connect that was refused, or whose name was not found, is tried once more, as long as the
    budget has it (`RetryBudget`). Nothing else is ever tried again.
 4. The connection that was used last is used first; the others age, and are closed.
 5. One timer looks after all of them, and runs only as long as there are some.
"""

# Twisted is annotated in part only.
# mypy: allow-untyped-calls

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from attrs import define, field
from twisted.internet.abstract import isIPAddress, isIPv6Address
from twisted.internet.defer import Deferred, succeed
from twisted.internet.endpoints import (
    HostnameEndpoint,
    TCP4ClientEndpoint,
    TCP6ClientEndpoint,
    wrapClientTLS,
)
from twisted.internet.error import ConnectError, DNSLookupError, TimeoutError
from twisted.internet.interfaces import (
    IDelayedCall,
    IOpenSSLClientConnectionCreator,
    IProtocol,
    IReactorTime,
    IStreamClientEndpoint,
)
from twisted.internet.protocol import Factory
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web.client import URI
from twisted.web.iweb import IPolicyForHTTPS
from zope.interface import implementer

from gateway.guard.limits import Limits
from gateway.http1.budget import RetryBudget
from gateway.http1.connection import Connection

__all__ = ["Attempt", "Connecting", "Pool", "SystemTrust"]

ADDRESS_DELAY = 0.1
"""Seconds after which the next address of a name is tried beside (RFC 8305 section 5)."""

BEAT = 0.5
"""Seconds between two looks at the connections."""

_log = Logger(namespace="gateway.http1")


@implementer(IPolicyForHTTPS)
class SystemTrust:
    """Servers that the system's certificate authorities vouch for, speaking HTTP/1.1 (ALPN)."""

    def creatorForNetloc(self, hostname: bytes, port: int) -> IOpenSSLClientConnectionCreator:
        """See IPolicyForHTTPS."""
        # A process that was told of no https server may have none of it: see gateway.tap.
        from twisted.internet.ssl import optionsForClientTLS

        name = hostname.decode("ascii")
        made: IOpenSSLClientConnectionCreator = optionsForClientTLS(
            name, acceptableProtocols=[b"http/1.1"]
        )
        return made


class Connecting(Protocol):
    """Who waits for a connection."""

    def connected(self, connection: Connection) -> None:
        """Here it is."""

    def notConnected(self, error: BaseException | None) -> None:
        """There is none. Never called from within `Pool.connect`."""


class _Factory(Factory[Connection]):
    """Makes one connection."""

    noisy = False

    def __init__(self, make: Callable[[], Connection]) -> None:
        self._make = make

    def buildProtocol(self, addr: Any) -> Connection:
        return self._make()


@define(eq=False, repr=False)
class Attempt:
    """One connection being made. `Pool.connect` starts it; it ends by itself or by `cancel`."""

    _pool: Pool
    _asker: Connecting
    _connecting: Deferred[IProtocol] | None = field(default=None, init=False)
    _connection: Connection | None = field(default=None, init=False)
    _timer: IDelayedCall | None = field(default=None, init=False)
    _starting: bool = field(default=False, init=False)
    _again: bool = field(default=False, init=False)
    _over: bool = field(default=False, init=False)

    def start(self) -> None:
        """Connect."""
        pool = self._pool
        self._timer = pool.clock.callLater(pool.limits.connect_timeout, self._expired)
        pool.budget.attempted()
        self._starting = True
        self._connect()
        self._starting = False

    def _connect(self) -> None:
        self._connecting = self._pool.endpoint.connect(_Factory(self._make))
        self._connecting.addErrback(self._refused)
        self._connecting.addErrback(lambda failure: _log.failure("while connecting", failure))

    def _make(self) -> Connection:
        pool = self._pool
        self._connection = Connection(pool, pool.encrypted, self._ready, self._refused)
        return self._connection

    def _ready(self, connection: Connection) -> None:
        self._end()
        self._asker.connected(connection)

    def _refused(self, failure: Failure) -> None:
        if self._over:
            return
        error = failure.value
        transient = failure.check(ConnectError, DNSLookupError) and not failure.check(TimeoutError)
        if transient and not self._again and self._pool.budget.spend():
            self._again = True
            self._connect()
        elif self._starting:
            self._stopTimer()
            self._timer = self._pool.clock.callLater(0, self._fail, error)
        else:
            self._fail(error)

    def _expired(self) -> None:
        self._timer = None
        self._pool.bounded("connect_timeout")
        self._fail(TimeoutError())

    def _fail(self, error: BaseException | None) -> None:
        self.cancel()
        self._asker.notConnected(error)

    def cancel(self) -> None:
        """Give it up; nothing is told."""
        self._end()
        if self._connecting is not None:
            self._connecting.cancel()
        if self._connection is not None:
            self._connection.abort()

    def _end(self) -> None:
        self._over = True
        self._stopTimer()
        self._pool.attempts.discard(self)

    def _stopTimer(self) -> None:
        timer, self._timer = self._timer, None
        if timer is not None and timer.active():
            timer.cancel()


@define(eq=False, repr=False)
class Pool:
    """
    The connections to one origin. They are made as requests need them; `close` ends them all.

    uri: a URL of the origin. reactor: connects. clock: measures every time.
    policy: whom to trust over TLS.
    bounded: told the name of each limit that is reached.
    attempts: what is being connected.
    """

    uri: URI
    limits: Limits
    reactor: Any
    clock: IReactorTime
    bounded: Callable[[str], None]
    policy: IPolicyForHTTPS = field(factory=SystemTrust)
    encrypted: bool = field(init=False)
    endpoint: IStreamClientEndpoint = field(init=False)
    budget: RetryBudget = field(init=False)
    attempts: set[Attempt] = field(factory=set, init=False)
    _open: set[Connection] = field(factory=set, init=False)
    _idle: dict[Connection, None] = field(factory=dict, init=False)
    _timer: IDelayedCall | None = field(default=None, init=False)
    _closing: list[Deferred[None]] = field(factory=list, init=False)

    def __attrs_post_init__(self) -> None:
        uri = self.uri
        self.encrypted = uri.scheme == b"https"
        self.budget = RetryBudget(self.clock)
        host, timeout = uri.host.decode("ascii"), self.limits.connect_timeout
        # HostnameEndpoint learns of a refusal no sooner than when it would try the next address.
        if isIPAddress(host):
            self.endpoint = TCP4ClientEndpoint(self.reactor, host, uri.port, timeout)
        elif isIPv6Address(host):
            self.endpoint = TCP6ClientEndpoint(self.reactor, host, uri.port, timeout)
        else:
            self.endpoint = HostnameEndpoint(
                self.reactor, host, uri.port, timeout, attemptDelay=ADDRESS_DELAY
            )
        if self.encrypted:
            creator = self.policy.creatorForNetloc(uri.host, uri.port)
            self.endpoint = wrapClientTLS(creator, self.endpoint)

    def take(self) -> Connection | None:
        """An idle connection, if there is one."""
        return self._idle.popitem()[0] if self._idle else None

    def connect(self, asker: Connecting) -> Attempt:
        """Make a connection."""
        attempt = Attempt(self, asker)
        self.attempts.add(attempt)
        attempt.start()
        return attempt

    def close(self) -> Deferred[None]:
        """Cut every connection. Fires when none is left; then new ones may be made."""
        for attempt in list(self.attempts):
            attempt.cancel()
        self._idle.clear()
        if not self._open:
            return succeed(None)
        done: Deferred[None] = Deferred(self._closing.remove)
        self._closing.append(done)
        for connection in list(self._open):
            connection.abort()
        return done

    # What connections say.

    def opened(self, connection: Connection) -> None:
        """A connection is up."""
        self._open.add(connection)
        if self._timer is None:
            self._timer = self.clock.callLater(BEAT, self._beat)

    def released(self, connection: Connection) -> None:
        """A connection is free."""
        if len(self._idle) < self.limits.max_upstream_connections and not self._closing:
            self._idle[connection] = None
        else:
            connection.close()

    def closed(self, connection: Connection) -> None:
        """A connection is gone."""
        self._open.discard(connection)
        self._idle.pop(connection, None)
        if self._open:
            return
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        closing, self._closing = self._closing, []
        for done in closing:
            done.callback(None)

    def _beat(self) -> None:
        now = self.clock.seconds()
        self._timer = self.clock.callLater(BEAT, self._beat)
        for connection in list(self._open):
            connection.beat(now)
