"""
What a legacy server asks its client while a call runs, as a modern `input_required` result carries
it (MCP 2026-07-28, basic/patterns/mrtr), and the answers on their way back. Pure.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec
from attrs import frozen
from msgspec import Raw

from gateway.bridge.spelling import items
from gateway.wire.envelope import RESPONSE, Message, members, quote, text
from gateway.wire.modern import CLIENT_CAPABILITIES
from gateway.wire.strictjson import withMember, withoutMember

__all__ = [
    "Declared",
    "Malformed",
    "Refused",
    "accepted",
    "answerTo",
    "declaredBy",
    "inputRequest",
    "inputRequired",
    "responsesOf",
    "urlRequests",
]

_encode = msgspec.json.encode

_PARTS = {"elicitation": ("form", "url"), "sampling": ("context", "tools")}
"""What of a capability changes what a server may ask."""

_NEEDS = {
    "elicitation/create": "elicitation",
    "sampling/createMessage": "sampling",
    "roots/list": "roots",
}
"""The requests that an `input_required` result may carry, and the capability each needs."""

_LEGACY_ONLY = ("task", "elicitationId")
"""Members of a question's params that the modern revision does not have."""


class Malformed(Exception):
    """`inputResponses` is no object of objects."""


@frozen
class Refused:
    """Why a question is not asked: the JSON-RPC error for the server."""

    code: int
    message: str


@frozen
class Declared:
    """
    What a client declared that a server may ask it for; equal where servers may ask the same.

    Each is None where it was not declared, else the parts of it that were, in order.
    """

    elicitation: tuple[str, ...] | None = None
    sampling: tuple[str, ...] | None = None
    roots: tuple[str, ...] | None = None

    @property
    def asks(self) -> bool:
        """Whether a server may ask anything."""
        return not (self.elicitation is None and self.sampling is None and self.roots is None)

    def legacy(self) -> dict[str, object]:
        """The `capabilities` of `initialize` that say the same (MCP 2025-11-25)."""
        declared: dict[str, object] = {}
        for name in ("elicitation", "sampling"):
            parts = getattr(self, name)
            if parts is not None:
                declared[name] = {part: {} for part in parts}
        if self.roots is not None:
            # Nobody would tell: the modern revision has no `notifications/roots/list_changed`.
            declared["roots"] = {"listChanged": False}
        return declared

    def refusal(self, question: Message) -> Refused | None:
        """Why this question must not reach the client; None where it may."""
        name = _NEEDS.get(question.method)
        if name is None:
            return Refused(-32601, "Method not found")
        parts: tuple[str, ...] | None = getattr(self, name)
        if parts is None:
            return Refused(-32601, f"The client does not offer {name}")
        if name == "elicitation":
            mode = question.paramText("mode") or "form"
            if mode not in parts:
                # MCP 2025-11-25, client/elicitation, Error Handling.
                return Refused(-32602, "The client does not offer this mode of elicitation")
        elif name == "sampling" and "tools" not in parts and _usesTools(question):
            # MCP 2025-11-25, `CreateMessageRequestParams.tools`: "MUST return an error".
            return Refused(-32602, "The client does not offer tools in sampling")
        return None


def _usesTools(question: Message) -> bool:
    return question.param("tools") is not None or question.param("toolChoice") is not None


def declaredBy(request: Message) -> Declared:
    """What the capabilities in a modern request's `_meta` let a server ask."""
    declared = members(request.meta(CLIENT_CAPABILITIES))

    def parts(name: str) -> tuple[str, ...] | None:
        value = declared.get(name)
        if value is None or bytes(value)[:1] != b"{":
            return None
        held = members(value)
        return tuple(part for part in _PARTS.get(name, ()) if _isOn(held.get(part)))

    elicitation = parts("elicitation")
    if elicitation == ():
        # An empty object stands for forms alone (client/elicitation, Capabilities).
        elicitation = ("form",)
    return Declared(elicitation, parts("sampling"), parts("roots"))


def _isOn(value: Raw | None) -> bool:
    return value is not None and bytes(value)[:1] == b"{"


def inputRequest(question: Message) -> bytes:
    """
    A server's request as a value of `inputRequests`: its method and params, byte for byte but for
    what only the legacy era has: `elicitationId`, `task`, and the progress token, since no client
    could send progress.
    """
    asked = {"method": question.fields["method"]}
    params = question.fields.get("params")
    if params is not None:
        asked["params"] = Raw(_asked(bytes(params)))
    return _encode(asked)


def _asked(params: bytes) -> bytes:
    held = members(params)
    for name in _LEGACY_ONLY:
        if name in held:
            params = withoutMember(params, name)
    meta = held.get("_meta")
    if meta is not None and "progressToken" in members(meta):
        left = withoutMember(bytes(meta), "progressToken")
        params = (
            withMember(params, "_meta", left) if members(left) else withoutMember(params, "_meta")
        )
    return params


def urlRequests(error: Raw | None) -> list[tuple[str, bytes]]:
    """
    The values of `inputRequests`, each with its key, for the error -32042 of MCP 2025-11-25: the
    elicitations in its `data`.
    """
    found: list[tuple[str, bytes]] = []
    for params in items(members(members(error).get("data")).get("elicitations")):
        if params[:1] == b"{" and text(bytes(members(params).get("mode", b"null"))) == "url":
            asked = {"method": "elicitation/create", "params": Raw(_asked(params))}
            found.append((f"url-{len(found) + 1}", _encode(asked)))
    return found


def inputRequired(
    id: bytes,
    requests: Iterable[tuple[str, bytes]],
    state: str | None,
    meta: bytes | None = None,
) -> Message:
    """
    The answer `input_required`.

    id: as the client spelled it. requests: keys and values of `inputRequests`. state: the
    `requestState`; None for an answer whose retry is a request like any other. meta: its `_meta`.
    """
    result: dict[str, object] = {
        "resultType": "input_required",
        "inputRequests": {key: Raw(value) for key, value in requests},
    }
    if state is not None:
        result["requestState"] = state
    if meta is not None:
        result["_meta"] = Raw(meta)
    fields = {"jsonrpc": Raw(b'"2.0"'), "id": Raw(id), "result": Raw(_encode(result))}
    return Message(RESPONSE, fields, id)


def responsesOf(request: Message) -> dict[str, bytes] | None:
    """
    What a retry answers, as spelled, by the keys of the questions; None without `inputResponses`.

    Raises: Malformed.
    """
    spelled = request.param("inputResponses")
    if spelled is None:
        return None
    if spelled[:1] != b"{":
        raise Malformed
    responses = {key: bytes(value) for key, value in members(spelled).items()}
    if any(value[:1] != b"{" for value in responses.values()):
        raise Malformed
    return responses


def answerTo(question: Message, response: bytes) -> Message:
    """The JSON-RPC response to a server's request; response: its result, as spelled."""
    assert question.id is not None
    fields = {"jsonrpc": Raw(b'"2.0"'), "id": Raw(question.id), "result": Raw(response)}
    return Message(RESPONSE, fields, question.id)


def accepted(response: bytes) -> bool:
    """Whether an answer to an elicitation lets the call go on."""
    return text(bytes(members(response).get("action", quote("accept")))) == "accept"
