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

from gateway import tap
from gateway.service import GatewayService

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


def main() -> None:
    make = tap.makeService

    def makeWatched(options: tap.Options, **named: Any) -> GatewayService:
        from twisted.internet import reactor

        service = make(options, **named)

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
