"""Peers that are gone without a word: the operating system is asked to notice."""

from __future__ import annotations

import socket
from contextlib import suppress

__all__ = ["watchPeer"]

_MOST_SECONDS = 32_767
_MOST_MILLISECONDS = 2**31 - 1
"""What Linux takes for these options (tcp(7))."""


def watchPeer(sock: socket.socket, seconds: float) -> None:
    """
    Have the operating system notice a peer that is gone without a word, within some seconds.

    What was sent is not acknowledged for so long (RFC 5482), or nothing was sent and probes are
    not. What a listening socket accepts inherits this. Keep-alive itself (SO_KEEPALIVE) is the
    caller's to switch on.
    """
    options = {
        "TCP_KEEPIDLE": min(seconds / 2, _MOST_SECONDS),
        "TCP_KEEPINTVL": min(seconds / 6, _MOST_SECONDS),
        "TCP_KEEPCNT": 3,
        "TCP_USER_TIMEOUT": min(seconds * 1000, _MOST_MILLISECONDS),
    }
    for name, value in options.items():
        # Not every system has each of them.
        with suppress(AttributeError, OSError):
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), max(1, round(value)))
