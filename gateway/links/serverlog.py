"""
What a server says beside the protocol, in our log: its stderr, and noise on its stdout.

It goes to the logger `gateway.server` under the server's name, escaped, cut and bounded in rate;
a child never waits for it.
"""

from __future__ import annotations

from attrs import define, field
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from gateway.guard.limits import Limits
from gateway.observe.observer import BoundReached, IObserver, NoiseSkipped

__all__ = ["ServerLog", "StderrLines"]

_MINUTE = 60.0
_MAX_SHOWN = 2048
_HEAD = 48
"""About the bytes that a log writes before each line: the time, and whose it is."""
_log = Logger(namespace="gateway.server")


def _shown(line: bytes) -> str:
    """Bytes as one line of printable text, cut."""
    text = line[:_MAX_SHOWN].decode("utf-8", "backslashreplace")
    if not text.isprintable():
        text = "".join(
            char if char.isprintable() else char.encode("unicode_escape").decode("ascii")
            for char in text
        )
    return text if len(line) <= _MAX_SHOWN else text + "..."


@define(eq=False)
class ServerLog:
    """
    The log of one server, shared by its children.

    name: the server's configured name.
    """

    name: str
    _limits: Limits
    _clock: IReactorTime
    _observer: IObserver
    _windowEnds: float = field(default=float("-inf"), init=False)
    _room: int = field(default=0, init=False)
    _unlogged: int = field(default=0, init=False)
    _noiseShown: float = field(default=float("-inf"), init=False)
    _noiseUnshown: int = field(default=0, init=False)

    def stderr(self) -> StderrLines:
        """The lines of one more child."""
        return StderrLines(self)

    def admit(self, size: int) -> bool:
        """Whether so many bytes of stderr may be logged now; counts them either way."""
        now = self._clock.seconds()
        if now >= self._windowEnds:
            self._windowEnds = now + _MINUTE
            self._room = self._limits.max_stderr_rate
            if self._unlogged:
                _log.warn(
                    "{server}: {size} bytes of stderr were not logged",
                    server=self.name,
                    size=self._unlogged,
                )
                self._unlogged = 0
        if size <= self._room:
            self._room -= size
            return True
        if not self._unlogged:
            self._room = 0
            self._observer.observed(BoundReached("max_stderr_rate", self.name))
        self._unlogged += size
        return False

    def said(self, line: bytes) -> None:
        """A line of stderr, already admitted; what the log makes of it counts, too."""
        shown = _shown(line)
        self._room -= max(0, len(shown) - len(line)) + len(self.name) + _HEAD
        _log.info("{server}: {line}", server=self.name, line=shown)

    def noise(self, line: bytes, why: str) -> None:
        """A line of stdout that is no message. One warning a minute; every one is observed."""
        self._observer.observed(NoiseSkipped(self.name, len(line)))
        now = self._clock.seconds()
        if now < self._noiseShown + _MINUTE:
            self._noiseUnshown += 1
            return
        self._noiseShown = now
        more, self._noiseUnshown = self._noiseUnshown, 0
        _log.warn(
            "{server}: skipped {size} bytes on stdout, {why}: {line} ({more} more since the last)",
            server=self.name,
            size=len(line),
            why=why,
            line=_shown(line[:200]),
            more=more,
        )


@define(eq=False)
class StderrLines:
    """The stderr of one child, cut into lines and logged; memory is bounded by what is shown."""

    _log: ServerLog
    _begun: bytes = field(default=b"", init=False)

    def feed(self, data: bytes) -> None:
        """Bytes came."""
        if not self._log.admit(len(data)):
            self._begun = b""
            return
        *lines, rest = data.split(b"\n")
        for line in lines:
            # One byte more than is shown says that it was cut.
            line = (self._begun + line)[: _MAX_SHOWN + 1].rstrip()
            self._begun = b""
            if line:
                self._log.said(line)
        self._begun = (self._begun + rest)[: _MAX_SHOWN + 1]

    def close(self) -> None:
        """No more bytes come."""
        self.feed(b"\n")
