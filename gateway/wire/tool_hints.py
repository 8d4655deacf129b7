"""
Which tools of a server may be called once more, as their annotations say (MCP 2025-06-18 and later,
server/tools, ToolAnnotations): `readOnlyHint` or `idempotentHint`. Pure.
"""

from __future__ import annotations

import msgspec
from attrs import define, field
from msgspec import Raw

from gateway.wire.envelope import members, text

__all__ = ["ToolHints"]

_decodeList = msgspec.json.Decoder(list[Raw]).decode
_HINTS = ("readOnlyHint", "idempotentHint")


@define(eq=False)
class ToolHints:
    """
    The names of the tools that change nothing, or change nothing more when called again.

    most: how many names are remembered. What a server says later wins: a tool that is listed
    without a hint is forgotten.
    """

    most: int
    _names: set[str] = field(factory=set, init=False)

    def learn(self, result: bytes, *, first: bool) -> bool:
        """
        Read the `result` of a `tools/list`; first: whether it is the list's first page, which
        begins anew.

        Returns: whether there was room for every name.
        """
        if first:
            self._names.clear()
        try:
            tools = _decodeList(bytes(members(result).get("tools", b"[]")))
        except msgspec.DecodeError:
            return True
        room = True
        for one in tools:
            tool = members(one)
            name = text(bytes(tool.get("name", b"")))
            if name is None:
                continue
            said = members(tool.get("annotations"))
            if not any(bytes(said.get(hint, b"")) == b"true" for hint in _HINTS):
                self._names.discard(name)
            elif len(self._names) < self.most:
                self._names.add(name)
            else:
                room = False
        return room

    def allows(self, name: str | None) -> bool:
        """Whether this tool may be called once more."""
        return name in self._names
