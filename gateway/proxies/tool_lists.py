"""
The lists of tools that the clients of one server were given, each principal's apart, and what their
requests' fields are by that.

A server may show tools to one that it does not show to another, or the same with other parameters
in the header; so nobody's request is judged by another's list. Together they take
`max_tool_headers` bytes: the lists of who listed longest ago go first, and what is not held is not
judged.
"""

from __future__ import annotations

from collections.abc import Callable

from attrs import define, field

from gateway.guard.limits import Limits
from gateway.wire.context import Principal
from gateway.wire.envelope import Message
from gateway.wire.exchange import RequestHead
from gateway.wire.mcp_headers import ToolHeaders

__all__ = ["ToolLists"]

_EACH = 200
"""Bytes that one principal's entry takes, at least."""


@define(eq=False)
class ToolLists:
    """
    What is held of them.

    full: told when something found no room.
    """

    limits: Limits
    full: Callable[[], None]
    _held: dict[Principal, ToolHeaders] = field(factory=dict, init=False)
    """Who listed last stands last."""

    def disagreement(self, head: RequestHead, message: Message, principal: Principal) -> str | None:
        """Why the fields of a modern request are not those of its body; None where they are."""
        return (self._held.get(principal) or _NOTHING).disagreement(head, message)

    def learn(self, principal: Principal, result: bytes, first: bool) -> None:
        """A principal was given a list of tools, or a page of it; see `ToolHeaders.learn`."""
        held = self._held.pop(principal, None) or ToolHeaders(self.limits.max_tool_headers)
        held.learn(result, first)
        self._held[principal] = held
        if held.full:
            self.full()
        while self._size > self.limits.max_tool_headers and len(self._held) > 1:
            self.full()
            del self._held[next(iter(self._held))]

    @property
    def _size(self) -> int:
        return sum(one.size + _EACH for one in self._held.values())


_NOTHING = ToolHeaders(1)
