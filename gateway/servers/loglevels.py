"""
The log levels of all sessions on one shared link. Pure.

The server is asked for the most verbose level that any session asked for, and only when that
changes; one question after the other, each when the one before has its outcome. What the server
refuses leaves no trace.
"""

from __future__ import annotations

from collections import deque

from attrs import define, field

from gateway.servers.entries import Asked, Entry, Granted, Member, Step
from gateway.wire.envelope import quote

__all__ = ["SET_LEVEL", "LogLevels"]

SET_LEVEL = "logging/setLevel"

_RANKS = {
    name: rank
    for rank, name in enumerate(
        ("debug", "info", "notice", "warning", "error", "critical", "alert", "emergency")
    )
}
"""The levels of RFC 5424, the most verbose first."""


@define(eq=False)
class LogLevels:
    """
    The log levels of one link.

    stale: whether the server may have to be asked for another, since who asked for it left.
    """

    _granted: dict[str, int] = field(factory=lambda: dict.fromkeys(_RANKS, 0), init=False)
    """How many sessions have each level."""
    _level: str = field(default="", init=False)
    """What the server granted last."""
    _asking: str = field(default="", init=False)
    _busy: Entry | None = field(default=None, init=False)
    _waiting: deque[Entry] = field(factory=deque, init=False)
    stale: bool = field(default=False, init=False)

    @staticmethod
    def isLevel(level: str | None) -> bool:
        """Whether this is a log level."""
        return level in _RANKS

    @staticmethod
    def admits(member: Member, level: str | None) -> bool:
        """Whether a session asked for messages of this level, or said nothing about it."""
        if not member.level or level not in _RANKS:
            return True
        return _RANKS[level] >= _RANKS[member.level]

    def ask(self, entry: Entry) -> list[Step]:
        """A session asks for a level."""
        self._waiting.append(entry)
        return self._turn()

    def over(self, entry: Entry, granted: bool) -> list[Step]:
        """What the server had has its outcome."""
        if self._busy is not entry:
            return []
        self._busy = None
        if granted:
            self._level = self._asking
            if entry.member is not None:
                self._grant(entry.member, entry.level)
            elif not entry.own:
                self.stale = True
        return self._turn()

    def gaveUp(self, entry: Entry) -> bool:
        """Nobody waits for this any more. Returns whether the server has it."""
        if entry in self._waiting:
            self._waiting.remove(entry)
        return self._busy is entry

    def left(self, member: Member) -> None:
        """A session is over."""
        if member.level:
            self._grant(member, "")
            self.stale = True

    # What the gateway asks for itself.

    def nextStale(self) -> str | None:
        """The level to ask for with `renew`, since who asked for another one left."""
        if not self.stale or self._busy is not None:
            return None
        self.stale = False
        wanted = self._wanted("")
        return wanted if wanted and wanted != self._level else None

    def renew(self, entry: Entry) -> None:
        """The gateway's own request is about to be sent."""
        self._busy, self._asking = entry, entry.level

    def notRenewed(self, entry: Entry) -> list[Step]:
        """It could not be sent."""
        self.stale = True
        return self.over(entry, granted=False)

    # Inside.

    def _turn(self) -> list[Step]:
        steps: list[Step] = []
        while self._waiting and self._busy is None:
            entry = self._waiting.popleft()
            member = entry.member
            assert member is not None, "who gave up waits no more"
            wanted = self._wanted(entry.level, member)
            if wanted == self._level:
                self._grant(member, entry.level)
                steps.append(Granted(entry))
                continue
            self._busy, self._asking = entry, wanted
            message = entry.request
            if wanted != entry.level:
                message = message.withParam("level", quote(wanted))
            steps.append(Asked(entry, message))
        return steps

    def _grant(self, member: Member, level: str) -> None:
        if member.level:
            self._granted[member.level] -= 1
        if level:
            self._granted[level] += 1
        member.level = level

    def _wanted(self, asked: str, of: Member | None = None) -> str:
        """The most verbose of all levels, were this asked for by that session."""
        for level, count in self._granted.items():
            others = count - (of is not None and of.level == level)
            if others or level == asked:
                return level
        return ""
