"""Ports of servers that go away and come back in their place."""

from __future__ import annotations

import random
import socket
from pathlib import Path

__all__ = ["lastingPort"]

_LOWEST = 20_000
_RANGE = Path("/proc/sys/net/ipv4/ip_local_port_range")


def lastingPort() -> int:
    """
    A free port on loopback that the system gives no connection by itself.

    Who connects again and again to one of those, while nobody listens there, meets itself in the
    end (RFC 9293 section 3.5, simultaneous open), and the port is taken.
    """
    end = int(_RANGE.read_text().split()[0]) if _RANGE.exists() else 32_768
    while True:
        port = random.randrange(_LOWEST, end)
        with socket.socket() as tried:
            tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                tried.bind(("127.0.0.1", port))
            except OSError:
                continue
        return port
