"""
Back-pressure from a client's streams to a link.

A reader that blocks holds only what feeds it alone: over HTTP its own response, over stdio the
child's output where no other stream is open and no other call runs. Otherwise nobody is held;
the stream's own bound does the rest.
"""

from __future__ import annotations

from attrs import define, field

from gateway.links.interfaces import ILink
from gateway.relay.effects import Call

__all__ = ["Readers"]


@define(eq=False)
class Readers:
    """
    The open streams of one session.

    calls: the session's running calls, as the router has them. perOrigin: whether the last link
    has a stream of its own for each request. slow: those that do not keep up.
    """

    calls: dict[bytes, Call]
    perOrigin: bool = False
    link: ILink | None = None
    _targets: dict[object, object] = field(factory=dict)
    slow: dict[object, None] = field(factory=dict)
    _holding: bool = False

    @property
    def targets(self) -> list[object]:
        """What the router knows the open streams by."""
        return list(self._targets.values())

    def linked(self, link: ILink | None) -> None:
        """The session has another link, or none."""
        self.link = link
        self._holding = False
        if link is not None:
            self.perOrigin = not link.multiplexed
        self.weigh()

    def opened(self, reader: object, target: object) -> None:
        """A stream is open."""
        self._targets[reader] = target
        if self.perOrigin and reader in self.slow:
            # It blocked at its first bytes, before it was known what feeds it.
            self._each(reader, hold=True)
        self.weigh()

    def closed(self, reader: object) -> None:
        """It ended."""
        self.drained(reader)
        self._targets.pop(reader, None)
        self.weigh()

    def blocked(self, reader: object) -> None:
        """Its client does not read."""
        self.slow[reader] = None
        if self.perOrigin:
            self._each(reader, hold=True)
        else:
            self.weigh()

    def drained(self, reader: object) -> None:
        """It reads again."""
        if reader not in self.slow:
            return
        self.slow.pop(reader, None)
        if self.perOrigin:
            self._each(reader, hold=False)
        else:
            self.weigh()

    def _each(self, reader: object, *, hold: bool) -> None:
        target = self._targets.get(reader)
        if target is None:
            return
        origins = [call for call in self.calls.values() if call.target is target]
        for call in origins:
            if call.via is not None:
                (call.via.hold if hold else call.via.release)(call)
        if not origins and self.link is not None:
            (self.link.hold if hold else self.link.release)(target)

    def weigh(self) -> None:
        """Look again whether the link feeds nobody but a blocked reader."""
        if self.perOrigin:
            return
        hold = False
        if len(self.slow) == 1 and len(self._targets) == 1:
            (target,) = self._targets.values()
            hold = all(call.target is target for call in self.calls.values())
        if hold != self._holding and self.link is not None:
            self._holding = hold
            (self.link.hold if hold else self.link.release)(None)
