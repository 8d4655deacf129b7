"""
How long a call may take: its server's times, or its tool's own (`tool_timeouts`). When the first
of these times is over. Pure.
"""

from __future__ import annotations

from fnmatch import fnmatchcase

from attrs import define, field

from gateway.settings import ServerSettings, ToolTimeout
from gateway.wire.envelope import Message

__all__ = ["NEVER", "CallTimes", "Due"]

NEVER = float("inf")


@define(eq=False)
class Due:
    """When something is to be done at the latest, for several who may each have something."""

    at: float = NEVER

    def by(self, when: float) -> None:
        """One of them has something to do then."""
        if when < self.at:
            self.at = when


@define(eq=False)
class CallTimes:
    """
    The times of one server's calls, in seconds.

    timeout, max_timeout: without progress, and at all. tools: what is set for tools; the exact
    name of one wins, then the first pattern that fits.
    """

    timeout: float
    max_timeout: float
    tools: tuple[ToolTimeout, ...] = ()
    _exact: dict[str, ToolTimeout] = field(init=False)

    def __attrs_post_init__(self) -> None:
        self._exact = {one.pattern: one for one in self.tools}

    @classmethod
    def of(cls, settings: ServerSettings) -> CallTimes:
        """Those of a configured server."""
        return cls(settings.timeout, settings.max_timeout, settings.tool_timeouts)

    def times(self, message: Message) -> tuple[float, float]:
        """Seconds this call may take without progress, and at all."""
        if self.tools and message.method == "tools/call":
            name = message.paramText("name")
            found = None if name is None else self._find(name)
            if found is not None:
                return found.times(self.timeout, self.max_timeout)
        return self.timeout, self.max_timeout

    def _find(self, name: str) -> ToolTimeout | None:
        exact = self._exact.get(name)
        if exact is not None:
            return exact
        return next((one for one in self.tools if fnmatchcase(name, one.pattern)), None)
