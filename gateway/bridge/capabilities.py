"""
The handshake that the modern era has not: what a legacy client said in `initialize` as the
`_meta` of its requests, and what `server/discover` gave as the result of that `initialize`.

Rules (MCP 2025-11-25, basic/lifecycle; MCP 2026-07-28, server/discover, basic/index, `_meta`):

 1. The session has the revision its client asked for, where that is one of LEGACY; else the newest.
 2. Of the server's capabilities the client gets what its revision has: `completions` from
    2025-03-26 on; `extensions` and `tasks` never. All else as spelled, members unknown to us too.
 3. Of the client's capabilities the server gets what the modern era has: no `tasks`, no
    `roots.listChanged`, and of its `extensions` not the one for tasks. Nor does it get what the
    client's revision could not be asked: before 2025-11-25 no `elicitation.url`, no
    `sampling.tools` and no `sampling.context`.
 4. `elicitation: {}` means form mode in both eras.
"""

from __future__ import annotations

from attrs import frozen
from msgspec import Raw

from gateway.bridge.spelling import spelled
from gateway.wire.envelope import RESPONSE, Message, members, text
from gateway.wire.modern import SERVER_INFO
from gateway.wire.revisions import LEGACY
from gateway.wire.strictjson import quote, withMember, withoutMember

__all__ = ["Greeting", "clientCapabilities", "greetingOf", "initialized", "serverCapabilities"]

_TASKS_EXTENSION = "io.modelcontextprotocol/tasks"


@frozen
class Greeting:
    """
    What a client said in `initialize`, as its requests say it in the modern era.

    revision: of its session. info: its `clientInfo` as spelled; None where it gave none.
    capabilities: those of the modern era.
    """

    revision: str
    info: bytes | None
    capabilities: bytes

    def knows(self, revision: str) -> bool:
        """Whether the session's revision is this legacy one, or a newer one."""
        return self.revision >= revision


def greetingOf(params: bytes) -> Greeting:
    """Read the `params` of an `initialize`; see rules 1, 3 and 4."""
    said = members(params)
    asked = text(bytes(said.get("protocolVersion", b""))) or ""
    revision = asked if asked in LEGACY else LEGACY[0]
    info = bytes(said.get("clientInfo", b""))
    declared = bytes(said.get("capabilities", b"{}"))
    capabilities = clientCapabilities(declared, revision)
    return Greeting(revision, info if _names(info) else None, capabilities)


def _names(info: bytes) -> bool:
    """Whether this is an `Implementation` that a modern server takes."""
    said = members(info)
    return all(text(bytes(said.get(name, b""))) is not None for name in ("name", "version"))


def clientCapabilities(declared: bytes, revision: str) -> bytes:
    """What a client of a legacy revision declared, as the modern era says it; rules 3 and 4."""
    if declared[:1] != b"{":
        return b"{}"
    held = members(declared)
    if "tasks" in held:
        declared = withoutMember(declared, "tasks")
    declared = _without(declared, "roots", "listChanged")
    declared = _without(declared, "extensions", _TASKS_EXTENSION)
    if revision < "2025-11-25":
        declared = _without(declared, "sampling", "tools", "context")
        modes = members(held.get("elicitation"))
        if "url" in modes:
            if "form" in modes:
                declared = _without(declared, "elicitation", "url")
            else:
                declared = withoutMember(declared, "elicitation")
    return declared


def serverCapabilities(declared: bytes, revision: str) -> bytes:
    """What a modern server declared, as a client of a legacy revision gets it; rule 2."""
    if declared[:1] != b"{":
        return b"{}"
    unknown = ["extensions", "tasks"]
    if revision < "2025-03-26":
        unknown.append("completions")
    held = members(declared)
    for name in unknown:
        if name in held:
            declared = withoutMember(declared, name)
    return declared


def _without(declared: bytes, name: str, *inner: str) -> bytes:
    """An object without some members of one of its members."""
    value = bytes(members(declared).get(name, b""))
    held = members(value)
    found = [one for one in inner if one in held]
    if not found:
        return declared
    for one in found:
        value = withoutMember(value, one)
    return withMember(declared, name, value)


def initialized(discovered: Message, revision: str, name: str) -> Message:
    """
    The response to `initialize` that a modern server would have given.

    discovered: its response to `server/discover`, a result. name: what it is called where it does
        not say (its configured name).
    """
    found = members(discovered.fields.get("result"))
    capabilities = bytes(found.get("capabilities", b"{}"))
    info = bytes(members(found.get("_meta")).get(SERVER_INFO, b""))
    result = {
        "protocolVersion": Raw(quote(revision)),
        "capabilities": Raw(serverCapabilities(capabilities, revision)),
        "serverInfo": Raw(info) if _names(info) else _unnamed(name),
    }
    instructions = found.get("instructions")
    if instructions is not None and text(bytes(instructions)) is not None:
        result["instructions"] = instructions
    fields = {
        "jsonrpc": Raw(b'"2.0"'),
        "id": Raw(b"0"),
        "result": Raw(spelled(result)),
    }
    return Message(RESPONSE, fields, b"0")


def _unnamed(name: str) -> Raw:
    return Raw(spelled({"name": name, "version": "unknown"}))
