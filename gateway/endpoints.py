"""
Where a gateway listens: the endpoints that are configured, and the connections of those that are
not any more.
"""

# Twisted is annotated in part only.
# mypy: allow-untyped-calls

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from attrs import define, field, frozen
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import serverFromString
from twisted.internet.error import CannotListenError
from twisted.internet.interfaces import IListeningPort
from twisted.logger import Logger
from twisted.python.failure import Failure

from gateway.config import Problem
from gateway.doors.listener import Listener

__all__ = ["Endpoint", "Endpoints"]

_log = Logger()


@frozen(eq=False)
class Endpoint:
    """An endpoint that listens; text: its description."""

    text: str
    listener: Listener
    port: IListeningPort


@define(eq=False)
class Endpoints:
    """
    The endpoints of one gateway. Life: made → `listen` → `open` and `close` → `closeAll`.

    make: makes what listens on one.
    """

    reactor: Any
    make: Callable[[], Listener]
    _open: list[Endpoint] = field(factory=list, init=False)
    _closed: list[Listener] = field(factory=list, init=False)
    """Of endpoints that do not listen any more; connections of theirs may be open."""
    _closing: list[Deferred[None]] = field(factory=list, init=False)

    @property
    def ports(self) -> list[IListeningPort]:
        """The ports that listen."""
        return [endpoint.port for endpoint in self._open]

    @property
    def texts(self) -> Counter[str]:
        """The descriptions of what listens."""
        return Counter(endpoint.text for endpoint in self._open)

    @property
    def listeners(self) -> list[Listener]:
        """The listeners of its endpoints, and those that still have connections of closed ones."""
        self._closed = [listener for listener in self._closed if len(listener)]
        return [*(endpoint.listener for endpoint in self._open), *self._closed]

    @property
    def closing(self) -> Sequence[Deferred[None]]:
        """The ports that have yet to be closed."""
        return self._closing

    def listen(self, listen: Sequence[str]) -> None:
        """
        Listen at the start: on all of these, or on none.

        Raises: what an endpoint fails with at once, most often CannotListenError.
        """
        endpoints = [serverFromString(self.reactor, text) for text in listen]
        try:
            for text, endpoint in zip(listen, endpoints, strict=True):
                listener = self.make()
                problems: list[Failure] = []
                made: list[IListeningPort] = []
                listener.listen(endpoint).addCallbacks(made.append, problems.append)
                for problem in problems:
                    problem.raiseException()
                self._open += [Endpoint(text, listener, port) for port in made]
        except BaseException:
            for one in self._open:
                one.port.stopListening()
            raise

    async def prepare(
        self, listen: Sequence[str], source: str, problems: list[Problem]
    ) -> list[Endpoint]:
        """
        Listen on further endpoints, of which the caller makes something: `add`, or closes them.

        source: the name of the configuration. problems: what cannot be is noted there.
        """
        opened: list[Endpoint] = []
        for text in listen:
            listener = self.make()
            try:
                endpoint = serverFromString(self.reactor, text)
                port = await listener.listen(endpoint)
            except Exception as error:
                problems.append(_cannotListen(source, text, error))
            else:
                opened.append(Endpoint(text, listener, port))
        return opened

    def add(self, opened: Sequence[Endpoint]) -> None:
        """Take what was prepared."""
        self._open += opened

    def close(self, surplus: Counter[str]) -> list[str]:
        """
        Close endpoints; what is asked on their connections is still answered, once each.

        surplus: how many of each description. Returns: the descriptions of what was closed.
        """
        left = Counter(surplus)
        self._closing = [closing for closing in self._closing if not closing.called]
        closed: list[str] = []
        for endpoint in list(self._open):
            if left[endpoint.text] <= 0:
                continue
            left[endpoint.text] -= 1
            self._open.remove(endpoint)
            endpoint.listener.closing = True
            self._closed.append(endpoint.listener)
            closed.append(endpoint.text)
            closing = endpoint.listener.stopListening()
            if closing is not None:
                closing.addErrback(lambda failure: _log.failure("a port did not close", failure))
                self._closing.append(closing)
        return closed

    def closeAll(self) -> list[Deferred[None] | None]:
        """The end: take no further connection. Returns what to wait for."""
        for listener in self.listeners:
            listener.closing = True
        return [endpoint.listener.stopListening() for endpoint in self._open]


def _cannotListen(source: str, text: str, error: Exception) -> Problem:
    why = str(error.socketError) if isinstance(error, CannotListenError) else type(error).__name__
    hint = "an address that overlaps one in use, its own included, needs a restart"
    return Problem(source, "gateway.listen", f"{text}: {why}", "an endpoint to listen on", hint)
