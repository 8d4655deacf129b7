"""
When the configuration is read again: because somebody asks (SIGHUP), or because its file changed.

Both end in `Reloading.ask`. One reading goes on at a time; asked meanwhile, it reads once more when
that is done, however often it was asked: what is in force in the end is the newest file.
"""

# Twisted is annotated in part only.
# mypy: allow-untyped-calls

from __future__ import annotations

import os
from collections.abc import Callable

from attrs import define, field
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger

from gateway.config import Configuration, ConfigurationError

__all__ = ["FileWatch", "Reloading"]

_log = Logger()


@define(eq=False)
class Reloading:
    """
    Reads a configuration again and has it put in force.

    read: reads it; raises ConfigurationError. apply: puts it in force; see
    `GatewayService.reload`. refused: told why what could not even be read is not taken.
    """

    read: Callable[[], Configuration]
    apply: Callable[[Configuration], Deferred[None]]
    refused: Callable[[ConfigurationError], None]
    _asked: bool = field(default=False, init=False)
    _busy: bool = field(default=False, init=False)

    def ask(self) -> None:
        """Read the configuration now, or once more after the reading that goes on."""
        self._asked = True
        if not self._busy:
            self._busy = True
            reading = Deferred.fromCoroutine(self._read())
            reading.addErrback(lambda failure: _log.failure("while it reloaded", failure))

    async def _read(self) -> None:
        try:
            while self._asked:
                self._asked = False
                try:
                    configuration = self.read()
                except ConfigurationError as error:
                    self.refused(error)
                    continue
                try:
                    await self.apply(configuration)
                except (ConfigurationError, RuntimeError):
                    # Whoever refused it has said so.
                    continue
        finally:
            self._busy = False


_Stamp = tuple[int, int, int]


@define(eq=False)
class FileWatch:
    """
    Looks whether a file changed, by its time, number and size.

    Life: made → `start` → `stop`. A file that is gone, as between two steps of an editor, is waited
    for; one that changed is told of when it has been the same for two looks, so that half of it is
    not taken for all.

    changed: called when it has changed. interval: seconds between two looks.
    """

    path: str
    clock: IReactorTime
    changed: Callable[[], object]
    interval: float = 1.0
    _known: _Stamp | None = field(default=None, init=False)
    _seen: _Stamp | None = field(default=None, init=False)
    _timer: IDelayedCall | None = field(default=None, init=False)

    def start(self) -> None:
        """Look from now on; what the file is now is known."""
        self._known = self._seen = self._stamp()
        self._arm()

    def stop(self) -> None:
        """Look no more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _arm(self) -> None:
        self._timer = self.clock.callLater(self.interval, self._look)

    def _look(self) -> None:
        self._arm()
        stamp, before = self._stamp(), self._seen
        self._seen = stamp
        if stamp is not None and stamp == before and stamp != self._known:
            self._known = stamp
            self.changed()

    def _stamp(self) -> _Stamp | None:
        try:
            status = os.stat(self.path)
        except (OSError, ValueError):
            return None
        return status.st_mtime_ns, status.st_ino, status.st_size
