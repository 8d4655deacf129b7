"""
What a modern server asks for in an `input_required` result, as the requests a legacy server
would have sent (MCP 2026-07-28, basic/patterns/mrtr; MCP 2025-11-25, client/*).

Rules:

 1. `elicitation/create`, `sampling/createMessage` and `roots/list` are the same requests; the key
    stays with the gateway. Any other method fails the call.
 2. URL mode: 2025-11-25 wants an `elicitationId`, which the gateway makes; older revisions have no
    URL mode, and the call fails.
 3. Form mode before 2025-11-25: no `mode`; an enumeration with titles becomes `enum` and
    `enumNames`; one of several choices fails the call.
 4. Sampling before 2025-11-25 has one block of content a message: an array of one becomes that
    block. Tools, and blocks of other kinds, fail the call; so does audio before 2025-03-26.
 5. The client's results go back as they are. Where it answers with an error, the call fails with
    that error in the message and in `data`: nobody waits for an error upstream (client/sampling,
    Error Handling).
"""

from __future__ import annotations

from collections.abc import Callable

from msgspec import Raw

from gateway.bridge.spelling import items, spelled
from gateway.wire.envelope import Message, members, request, text
from gateway.wire.refusals import Reason, errorMessage
from gateway.wire.strictjson import quote, withMember, withoutMember

__all__ = ["ASKED", "NotAskable", "askedOf", "inputRefused"]

ASKED = frozenset({"elicitation/create", "sampling/createMessage", "roots/list"})
"""The methods of the requests that a result may carry."""

_BLOCKS = ("text", "image", "audio")


class NotAskable(Exception):
    """An input that a client of this revision cannot be asked for. The argument says why."""


def askedOf(inputs: bytes, revision: str, newID: Callable[[], str]) -> list[tuple[str, Message]]:
    """
    The requests of an `inputRequests`, by their keys; their ids are set when they are sent.

    newID: makes an `elicitationId`.
    Raises: NotAskable.
    """
    if inputs[:1] != b"{":
        raise NotAskable("the server asks for input in a way that no revision has")
    return [(key, _asked(bytes(data), revision, newID)) for key, data in members(inputs).items()]


def _asked(data: bytes, revision: str, newID: Callable[[], str]) -> Message:
    asked = members(data)
    method = text(bytes(asked.get("method", b""))) or ""
    if method not in ASKED:
        raise NotAskable(f"the server asks for {method[:64] or 'nothing'}, which no client has")
    message = request(method)
    params = bytes(asked.get("params", b""))
    if not params:
        return message
    if params[:1] != b"{":
        raise NotAskable(f"the server asks for {method} with malformed parameters")
    if method == "elicitation/create":
        params = _elicitation(params, revision, newID)
    elif method == "sampling/createMessage":
        params = _sampling(params, revision)
    message.fields["params"] = Raw(params)
    return Message(message.kind, message.fields, message.id, method)


def _tooNew(what: str, revision: str) -> NotAskable:
    return NotAskable(
        f"the server asks for {what}, which revision {revision} of this session does not have "
        "(2025-11-25 does)"
    )


def _elicitation(params: bytes, revision: str, newID: Callable[[], str]) -> bytes:
    said = members(params)
    if text(bytes(said.get("mode", b""))) == "url":
        if revision < "2025-11-25":
            raise _tooNew("an elicitation in URL mode", revision)
        if "elicitationId" not in said:
            params = withMember(params, "elicitationId", quote(newID()))
        return params
    if revision >= "2025-11-25":
        return params
    if "mode" in said:
        params = withoutMember(params, "mode")
    schema = bytes(said.get("requestedSchema", b""))
    properties = members(members(schema).get("properties"))
    plain = {name: _property(one, revision) for name, one in properties.items()}
    if plain != properties:
        schema = withMember(schema, "properties", spelled(plain))
        params = withMember(params, "requestedSchema", schema)
    return params


def _property(data: Raw, revision: str) -> Raw:
    """One field of a form; rule 3."""
    schema = members(data)
    if text(bytes(schema.get("type", b""))) == "array":
        raise _tooNew("a choice of several in a form", revision)
    choices = schema.get("oneOf")
    if choices is None:
        return data
    options = [members(item) for item in items(choices)]
    try:
        values, titles = ([option[name] for option in options] for name in ("const", "title"))
    except KeyError:
        raise NotAskable("the server asks for a form with a malformed schema") from None
    plain = withoutMember(bytes(data), "oneOf")
    plain = withMember(plain, "enum", spelled(values))
    return Raw(withMember(plain, "enumNames", spelled(titles)))


def _sampling(params: bytes, revision: str) -> bytes:
    if revision >= "2025-11-25":
        return params
    said = members(params)
    if "tools" in said or "toolChoice" in said:
        raise _tooNew("sampling with tools", revision)
    messages = items(said.get("messages"))
    plain = [_message(message, revision) for message in messages]
    if plain == messages:
        return params
    return withMember(params, "messages", spelled([Raw(message) for message in plain]))


def _message(data: bytes, revision: str) -> bytes:
    """One message of a sampling request; rule 4."""
    content = bytes(members(data).get("content", b""))
    block = content
    if content[:1] == b"[":
        blocks = items(content)
        if len(blocks) != 1:
            raise _tooNew("sampling with several blocks in one message", revision)
        block = blocks[0]
    kind = text(bytes(members(block).get("type", b"")))
    if kind not in _BLOCKS:
        raise _tooNew(f"sampling with a block of type {kind}", revision)
    if kind == "audio" and revision < "2025-03-26":
        raise NotAskable(
            f"the server asks for sampling with audio, which revision {revision} of this session "
            "does not have (2025-03-26 does)"
        )
    return data if block == content else withMember(data, "content", block)


def inputRefused(id: bytes | None, method: str, error: bytes) -> Message:
    """
    The answer to a call whose server needs something that the client refused; rule 5.

    error: of the client's response, as spelled.
    """
    said = text(bytes(members(error).get("message", b""))) or "no reason given"
    data: dict[str, object] = {
        "reason": Reason.BAD_ANSWER.value,
        "refused": method,
        "error": Raw(error),
    }
    why = f"The server needs {method} for this call, which the client refused: {said}"
    return errorMessage(id, -32603, why, data)
