"""
A proxy that harms connections: between gateway and HTTP server, or between client and gateway.

    python -m tests.lab.wire PORT [--seed N]

It listens on a port of its own, prints `ready PORT`, and passes bytes on to the given one. A
request whose body names a verb `wire-*` arms that fault for its connection; the `place` in it says
at which byte. With `--seed` connections are also cut, reset, trickled and paused at random, after
any byte of either direction or at any time; with `--blind` they are so alone.
"""

from __future__ import annotations

import argparse
import random
import re
from collections.abc import Callable
from math import exp, log
from typing import Any

from twisted.internet import reactor
from twisted.internet.protocol import ClientFactory, Factory, Protocol

__all__ = ["FaultProxy"]

_VERB = re.compile(rb'"wire-([a-z]+)(?:-([a-z]+))?"')
_PLACE = re.compile(rb'"place": ?(\d+)')
_ANSWER = 400
"""Where an answer is cut is below that, in it or in the next."""
_HEAD = 100
"""What goes on only later does so from here on at most, which is in this answer."""
_TRICKLE = 23
_PIECES = 200
"""Of so many bytes a piece of a trickle is, and of what waits at least such a part."""
_PAUSED = 0.05
_RANDOM = ("cut", "reset", "trickle", "pause")
_HARMED = 0.7
"""Of the connections of a proxy with a seed so many are harmed once."""
_BYTES = (1, 60_000)
_SECONDS = 5.0
"""At which byte, or after how long, at most; most of it is early."""


def later(seconds: float, act: Callable[..., object], *args: object) -> None:
    reactor.callLater(seconds, act, *args)  # type: ignore[attr-defined]


class _Way:
    """One direction of a connection. Bytes go on in order, whatever they wait for."""

    def __init__(self, end: Callable[[bool], object]) -> None:
        self.transport: Any = None
        self.waiting = b""
        self.fault = ""
        self.left = 0
        self._held = b""
        self.holding = False
        self._end = end
        self._over = False

    def joined(self, transport: Any) -> None:
        """Where the bytes go is there."""
        self.transport = transport
        data, self.waiting = self.waiting, b""
        if data:
            transport.write(data)

    def arm(self, fault: str, left: int) -> None:
        """Do that after so many more bytes."""
        self.fault, self.left = fault, left

    def passOn(self, data: bytes) -> None:
        if self.holding:
            self._held += data
            return
        if not self.fault or len(data) <= self.left:
            self.left -= len(data)
            self._write(data)
            return
        fault, self.fault = self.fault, ""
        self._write(data[: self.left])
        if fault in ("cut", "reset"):
            self._end(fault == "reset")
            return
        self._held, self.holding = data[self.left :], True
        if fault == "trickle":
            self._drip(_TRICKLE, 0.001)
        elif fault == "pause":
            later(_PAUSED, self._drip, 1 << 20, 0.0)

    def _write(self, data: bytes) -> None:
        if self.transport is None:
            self.waiting += data
        elif data:
            self.transport.write(data)

    def _drip(self, size: int, seconds: float) -> None:
        # What comes meanwhile is held, too, and may be much more than what there was.
        part = max(size, len(self._held) // _PIECES)
        piece, self._held = self._held[:part], self._held[part:]
        self._write(piece)
        if self._held:
            later(seconds, self._drip, size, seconds)
            return
        self.holding = False
        if self._over:
            self._end(False)

    def over(self) -> None:
        """No more comes; what came still goes on."""
        self._over = True
        if not self.holding:
            self._end(False)


class _Far(Protocol):
    """The side of the server."""

    def __init__(self, near: _Near) -> None:
        self.near = near

    def connectionMade(self) -> None:
        self.near.joined(self)

    def dataReceived(self, data: bytes) -> None:
        self.near.answers.passOn(data)

    def connectionLost(self, reason: Any = None) -> None:
        self.near.answers.over()


class _FarFactory(ClientFactory):
    noisy = False

    def __init__(self, near: _Near) -> None:
        self.near = near

    def buildProtocol(self, addr: object) -> _Far:
        return _Far(self.near)

    def clientConnectionFailed(self, connector: object, reason: object) -> None:
        self.near.transport.abortConnection()


class _Near(Protocol):
    """The side of the client."""

    def __init__(self, proxy: FaultProxy) -> None:
        self.proxy = proxy
        self.far: _Far | None = None
        self.requests, self.answers = _Way(self.end), _Way(self.end)
        self.gone = False

    def connectionMade(self) -> None:
        self.answers.joined(self.transport)
        dice = self.proxy.dice
        if dice is not None and dice.random() < _HARMED:
            self.proxy.faults += 1
            fault = dice.choice(_RANDOM)
            if dice.random() < 0.3:
                later(dice.random() ** 2 * _SECONDS, self._now, fault)
            else:
                low, high = _BYTES
                place = int(low * exp(dice.random() * log(high / low)))
                dice.choice((self.requests, self.answers)).arm(fault, place)
        reactor.connectTCP("127.0.0.1", self.proxy.port, _FarFactory(self))  # type: ignore[attr-defined]

    def _now(self, fault: str) -> None:
        if self.gone:
            return
        if fault in ("cut", "reset"):
            self.end(fault == "reset")
        else:
            self.answers.arm(fault, 0)

    def joined(self, far: _Far) -> None:
        self.far = far
        if self.gone:
            far.transport.abortConnection()
        else:
            self.requests.joined(far.transport)

    def dataReceived(self, data: bytes) -> None:
        found = None if self.proxy.blind else _VERB.search(data)
        if found:
            self.proxy.faults += 1
            told = _PLACE.search(data)
            place = int(told[1]) if told else 0
            fault = found[1].decode()
            if found[2] == b"request":
                # Of the request so much goes on, never all of it.
                self.requests.arm(fault, place % len(data))
                if self.requests.holding:
                    self.end()
            else:
                self.answers.arm(fault, place % (_ANSWER if fault in ("cut", "reset") else _HEAD))
        self.requests.passOn(data)

    def end(self, reset: bool = False) -> None:
        if self.gone:
            return
        self.gone = True
        if self.far is not None:
            # Half of a request is no request: the server sees the end of it in order.
            self.far.transport.loseConnection()
        if reset:
            self.transport.abortConnection()
        else:
            self.transport.loseConnection()

    def connectionLost(self, reason: Any = None) -> None:
        self.gone = True
        if self.far is not None:
            self.far.transport.abortConnection()


class FaultProxy(Factory):
    """
    The proxy.

    port: of the server. dice: None harms only what names a fault. blind: whether it reads none of
    that.

    faults: how many connections were harmed so far.
    """

    noisy = False

    def __init__(self, port: int, dice: random.Random | None = None, blind: bool = False) -> None:
        self.port = port
        self.dice = dice
        self.blind = blind
        self.faults = 0

    def buildProtocol(self, addr: object) -> _Near:
        return _Near(self)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("port", type=int)
    parser.add_argument("--seed", type=int)
    parser.add_argument("--blind", action="store_true")
    options = parser.parse_args()
    dice = None if options.seed is None else random.Random(options.seed)
    proxy = FaultProxy(options.port, dice, options.blind)
    port = reactor.listenTCP(0, proxy, interface="127.0.0.1")  # type: ignore[attr-defined]
    print(f"ready {port.getHost().port}", flush=True)
    reactor.run()  # type: ignore[attr-defined]


if __name__ == "__main__":
    main()
