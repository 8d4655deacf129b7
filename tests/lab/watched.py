"""
A gateway as a process of its own that tells what it holds: at SIGUSR2 it prints one line of JSON.

    python -m tests.lab.watched [words of mcp-gateway]
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import signal
import sys
import threading
from typing import Any

from twisted.internet.defer import Deferred
from zope.interface import implementer

from gateway import tap
from gateway.guard.authentication import IAuthenticator, NotAuthenticated
from gateway.service import GatewayService
from gateway.wire.context import ANONYMOUS, Principal
from gateway.wire.exchange import RequestHead

try:
    _trim = ctypes.CDLL(None).malloc_trim
except AttributeError:  # another C library than glibc

    def _trim(pad: int) -> int:
        return 0


def held(service: GatewayService, reactor: Any) -> dict[str, int]:
    """What must not grow, whatever came and went; rss: in KiB."""
    gc.collect()
    # What was freed is not held, whether or not the allocator has given it back by itself.
    _trim(0)
    with open("/proc/self/status", encoding="ascii") as status:
        rss = int(status.read().partition("VmRSS:")[2].split()[0])
    return {
        "sessions": len(service.registry),
        "timers": sum(1 for call in reactor.getDelayedCalls() if call.active()),
        "fds": len(os.listdir("/proc/self/fd")),
        "threads": threading.active_count(),
        "rss": rss,
    }


@implementer(IAuthenticator)
class TokenAuthenticator:
    """
    Believes `Authorization: Bearer NAME` and `X-Who: NAME` of those it knows; who says nothing is
    the anonymous principal.

    Every other token is looked up for a turn of the reactor.
    """

    def __init__(self, reactor: Any) -> None:
        self._reactor = reactor
        self._known = {
            name.encode(): Principal("lab", name, "gateway") for name in ("alice", "bob")
        }
        self._asked = 0

    def authenticate(self, head: RequestHead) -> Principal | Deferred[Principal]:
        token = head.header(b"authorization") or head.header(b"x-who")
        if token is None:
            return ANONYMOUS
        known = self._known.get(token.removeprefix(b"Bearer "))
        if known is None:
            raise NotAuthenticated(b'Bearer realm="lab"')
        self._asked += 1
        if self._asked % 2:
            return known
        found: Deferred[Principal] = Deferred()
        self._reactor.callLater(0, found.callback, known)
        return found


def main() -> None:
    make = tap.makeService

    def makeWatched(options: tap.Options, **named: Any) -> GatewayService:
        from twisted.internet import reactor

        service = make(options, **named)
        # The command line has no way to name one: that is for those who embed the gateway.
        service._authenticator = TokenAuthenticator(reactor)

        def tell(*_: object) -> None:
            print("held " + json.dumps(held(service, reactor)), flush=True)

        def heard(*_: object) -> None:
            reactor.callFromThread(tell)  # type: ignore[attr-defined]

        signal.signal(signal.SIGUSR2, heard)
        return service

    tap.makeService = makeWatched
    tap.main(sys.argv[1:])


if __name__ == "__main__":
    main()
