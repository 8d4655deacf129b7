"""
Ends the servers of a gateway that died, however it died.

Run as a script, one per gateway. Its stdin is a pipe that only the gateway holds open; on it
come `+PGID` and `-PGID` lines, a process group that began and one that is gone. At the end of
the pipe the gateway is gone (closing it in order, it has first taken every group away): each
group left gets SIGTERM, and SIGKILL if it is there two seconds later.

It runs in a session of its own and ignores the polite signals, so that what ends the gateway's
group or its terminal does not end it first.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from contextlib import suppress

__all__ = ["main"]

_PATIENCE = 2.0
_STEP = 0.05


def _signalled(group: int, number: int) -> bool:
    try:
        os.killpg(group, number)
    except OSError:
        return False
    return True


def _end(groups: set[int]) -> None:
    left = {group for group in groups if _signalled(group, signal.SIGTERM)}
    until = time.monotonic() + _PATIENCE
    while left and time.monotonic() < until:
        time.sleep(_STEP)
        left = {group for group in left if _signalled(group, 0)}
    for group in left:
        _signalled(group, signal.SIGKILL)


def _registered() -> set[int]:
    """Read until the gateway is gone. Returns the groups it left."""
    groups: set[int] = set()
    rest = b""
    while data := os.read(0, 65536):
        *lines, rest = (rest + data).split(b"\n")
        for line in lines:
            if line[:1] == b"+":
                groups.add(int(line[1:]))
            elif line[:1] == b"-":
                groups.discard(int(line[1:]))
    return groups


def main() -> int:
    """Watch until the gateway is gone, then end what it left. Returns the exit status."""
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    with suppress(PermissionError):  # already the leader of a group
        os.setsid()
    _end(_registered())
    return 0


if __name__ == "__main__":
    sys.exit(main())
