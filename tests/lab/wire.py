"""
A proxy between a gateway and an HTTP server that harms connections.

    python -m tests.lab.wire PORT [--seed N]

It listens on a port of its own, prints `ready PORT`, and passes bytes on to the given one. A
request whose body names a verb `wire-*` arms that fault for its connection; the `place` in it says
at which byte. With `--seed` any other connection is cut, reset or trickled at random, too.
"""

from __future__ import annotations

import argparse
import random
import re
from collections.abc import Callable
from typing import Any

from twisted.internet import reactor
from twisted.internet.protocol import ClientFactory, Factory, Protocol

__all__ = ["FaultProxy"]

_VERB = re.compile(rb'"wire-([a-z-]+)"')
_PLACE = re.compile(rb'"place": ?(\d+)')
_TRICKLE = 23
_RANDOM = ("cut-answer", "reset-answer", "trickle", "pause")


class _Far(Protocol):
    """The side of the server."""

    def __init__(self, near: _Near) -> None:
        self.near = near

    def connectionMade(self) -> None:
        self.near.joined(self)

    def dataReceived(self, data: bytes) -> None:
        self.near.answer(data)

    def connectionLost(self, reason: Any = None) -> None:
        self.near.leave()


class _FarFactory(ClientFactory):
    noisy = False

    def __init__(self, near: _Near) -> None:
        self.near = near

    def buildProtocol(self, addr: object) -> _Far:
        return _Far(self.near)

    def clientConnectionFailed(self, connector: object, reason: object) -> None:
        self.near.transport.abortConnection()


class _Near(Protocol):
    """The side of the gateway. Bytes go on in order, whatever they wait for."""

    def __init__(self, proxy: FaultProxy) -> None:
        self.proxy = proxy
        self.far: _Far | None = None
        self.waiting = b""
        self.fault = ""
        self.place = 0
        self.passed = 0
        self.held = b""
        self.holding = False
        self.gone = self.left = False

    def connectionMade(self) -> None:
        if self.proxy.dice is not None and self.proxy.dice.random() < 0.02:
            self.arm(self.proxy.dice.choice(_RANDOM), self.proxy.dice.randrange(400))
        reactor.connectTCP("127.0.0.1", self.proxy.port, _FarFactory(self))  # type: ignore[attr-defined]

    def joined(self, far: _Far) -> None:
        self.far = far
        if self.gone:
            far.transport.abortConnection()
            return
        data, self.waiting = self.waiting, b""
        if data:
            far.transport.write(data)

    def arm(self, fault: str, place: int) -> None:
        self.fault, self.place, self.passed = fault, place, 0
        self.proxy.faults += 1

    def dataReceived(self, data: bytes) -> None:
        found = _VERB.search(data)
        if found:
            place = _PLACE.search(data)
            self.arm(found[1].decode(), int(place[1]) if place else 0)
            if self.fault == "cut-request":
                # Of the request so much goes on, never all of it.
                self.send(data[: self.place % len(data)])
                self.end()
                return
        self.send(data)

    def send(self, data: bytes) -> None:
        if self.far is None:
            self.waiting += data
        else:
            self.far.transport.write(data)

    def answer(self, data: bytes) -> None:
        if self.holding:
            self.held += data
        elif self.fault in ("cut-answer", "reset-answer"):
            left = max(0, self.place % 400 - self.passed)
            self.passed += len(data)
            self.transport.write(data[:left])
            if len(data) > left:
                self.end(reset=self.fault == "reset-answer")
        elif self.fault == "trickle":
            self.held, self.holding = data, True
            self.drip(_TRICKLE, 0.001)
        elif self.fault in ("pause", "stall"):
            left = self.place % max(1, len(data))
            self.transport.write(data[:left])
            self.held, self.holding = data[left:], True
            if self.fault == "pause":
                self.later(0.05, self.drip, 1 << 20, 0.0)
        else:
            self.transport.write(data)

    def later(self, seconds: float, act: Callable[..., object], *args: object) -> None:
        reactor.callLater(seconds, act, *args)  # type: ignore[attr-defined]

    def drip(self, size: int, seconds: float) -> None:
        if self.gone:
            return
        piece, self.held = self.held[:size], self.held[size:]
        self.transport.write(piece)
        if self.held:
            self.later(seconds, self.drip, size, seconds)
        else:
            self.holding, self.fault = False, ""
            if self.left:
                self.end()

    def end(self, reset: bool = False) -> None:
        self.gone = True
        if self.far is not None:
            # Half of a request is no request: the server sees the end of it in order.
            self.far.transport.loseConnection()
        if reset:
            self.transport.abortConnection()
        else:
            self.transport.loseConnection()

    def leave(self) -> None:
        """The server has closed; what it said before still goes on."""
        self.left = True
        if not self.gone and not self.holding:
            self.end()

    def connectionLost(self, reason: Any = None) -> None:
        self.gone = True
        if self.far is not None:
            self.far.transport.abortConnection()


class FaultProxy(Factory):
    """
    The proxy. port: of the server. dice: None harms only what names a fault.

    faults: how many connections were harmed so far.
    """

    noisy = False

    def __init__(self, port: int, dice: random.Random | None = None) -> None:
        self.port = port
        self.dice = dice
        self.faults = 0

    def buildProtocol(self, addr: object) -> _Near:
        return _Near(self)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("port", type=int)
    parser.add_argument("--seed", type=int)
    options = parser.parse_args()
    dice = None if options.seed is None else random.Random(options.seed)
    proxy = FaultProxy(options.port, dice)
    port = reactor.listenTCP(0, proxy, interface="127.0.0.1")  # type: ignore[attr-defined]
    print(f"ready {port.getHost().port}", flush=True)
    reactor.run()  # type: ignore[attr-defined]


if __name__ == "__main__":
    main()
