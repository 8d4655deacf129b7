"""
What becomes of a gateway's children when it dies: a small process that outlives it ends them.

`reaper` is what that process runs; here is the gateway's end of its pipe.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

from attrs import define, field
from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IReactorProcess
from twisted.internet.protocol import ProcessProtocol
from twisted.logger import Logger
from twisted.python.failure import Failure

__all__ = ["Reaper", "isolatedPython"]

_log = Logger()

_REAPER = str(Path(__file__).with_name("reaper.py"))
_REPLACED = 3
"""How often a reaper that keeps dying is replaced before another child starts."""


def isolatedPython(script: str) -> list[str]:
    """
    The command that runs one of our scripts.

    Isolated and without `site`: nothing of the environment or the work directory is imported.
    """
    return [sys.executable, "-I", "-S", script]


class _Watcher(ProcessProtocol):
    """The reaper's process."""

    transport: Any = None

    def __init__(self, reaper: Reaper) -> None:
        self._reaper = reaper
        self._buffered = False

    def tell(self, line: bytes) -> None:
        # At once, not in the reactor's next turn: the gateway may be killed before that.
        if not self._buffered:
            try:
                os.write(self.transport.pipes[0].fileno(), line)
                return
            except BlockingIOError:
                self._buffered = True
            except (OSError, KeyError):
                return  # It died, and will be replaced.
        self.transport.write(line)

    def errReceived(self, data: bytes) -> None:
        _log.warn("the reaper says: {data!r}", data=data[:2048])

    def processEnded(self, reason: Failure) -> None:
        self._reaper.ended(self, reason)


@define(eq=False)
class Reaper:
    """
    Ends what is left of a gateway's children when the gateway is gone, also by SIGKILL.

    One small process, started with the first child and shared by all servers of a gateway,
    which also closes it, after its servers.
    """

    _reactor: IReactorProcess
    _groups: set[int] = field(factory=set, init=False)
    _watcher: _Watcher | None = field(default=None, init=False)
    _replaced: int = field(default=0, init=False)
    _closed: bool = field(default=False, init=False)
    _closers: list[Deferred[None]] = field(factory=list, init=False)

    def start(self) -> None:
        """
        See to it that the process runs.

        Raises: OSError where the machine has none to spare.
        """
        if self._watcher is not None or self._closed:
            return
        watcher = _Watcher(self)
        self._reactor.spawnProcess(watcher, sys.executable, isolatedPython(_REAPER), env={})
        self._watcher = watcher
        for group in self._groups:
            watcher.tell(b"+%d\n" % group)

    def add(self, group: int) -> None:
        """A process group began."""
        self._groups.add(group)
        self._replaced = 0
        if self._watcher is not None:
            self._watcher.tell(b"+%d\n" % group)

    def remove(self, group: int) -> None:
        """A process group is gone."""
        self._groups.discard(group)
        if self._watcher is not None:
            self._watcher.tell(b"-%d\n" % group)

    def close(self) -> Deferred[None]:
        """End the process; groups it still knows end with it. Fires when it is gone."""
        self._closed = True
        if self._watcher is None:
            return succeed(None)
        self._watcher.transport.loseConnection()
        closer: Deferred[None] = Deferred(self._closers.remove)
        self._closers.append(closer)
        return closer

    def ended(self, watcher: _Watcher, reason: Failure) -> None:
        """Its process is gone."""
        self._watcher = None
        closers, self._closers = self._closers, []
        for closer in closers:
            closer.callback(None)
        if self._closed:
            return
        _log.warn("the reaper ended: {reason}", reason=reason.getErrorMessage())
        if self._groups and self._replaced < _REPLACED:
            self._replaced += 1
            try:
                self.start()
            except OSError as error:
                _log.warn(
                    "the reaper could not be replaced, the next child tries again: {error}",
                    error=error,
                )
