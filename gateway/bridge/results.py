"""
A modern answer as a legacy one (MCP 2026-07-28, changelog, server/utilities/caching, server/tools,
server/resources).

Rules for results:

 1. `resultType`, `_meta["io.modelcontextprotocol/serverInfo"]` and, of what may be cached, `ttlMs`
    and `cacheScope` are taken out. Everything else stays as spelled.
 2. `structuredContent` that is no object is taken out for revisions that want an object, which
    are all legacy ones; where `content` is empty it becomes the one text in it.
 3. An `outputSchema` that is not of type `object` is taken out, which no legacy revision takes. A
    property whose schema is `true` or `false` gets the schema in an object that says the same.
 4. A block of content that the revision does not have becomes a text: a `resource_link` (before
    2025-06-18) its own JSON, `audio` (before 2025-03-26) a note that it was left out.

Rules for errors:

 5. -32602 to `resources/read` is -32002 where it says that the resource is not there: it carries
    the `uri` that was asked for, or its message says so. Without data it gets `data.uri`.
 6. -32021, -32020 and -32022 are of the modern era; their numbers mean nothing before it. They
    become -32600 and -32603: the name of what is missing is in the message, `data` stays.
 7. Every other error stays as it is.
"""

from __future__ import annotations

from collections.abc import Callable

from msgspec import Raw

from gateway.bridge.spelling import items, spelled
from gateway.wire.envelope import Message, members, text
from gateway.wire.modern import CACHEABLE, SERVER_INFO, errorCode
from gateway.wire.refusals import Reason, errorMessage
from gateway.wire.strictjson import quote, withMember, withoutMember

__all__ = ["asLegacy", "errorAsLegacy", "notCarried", "resultType"]

_BOOLEANS = {b"true": Raw(b"{}"), b"false": Raw(b'{"not":{}}')}
"""Schemas of 2020-12 that are no objects, and those that say the same."""


def resultType(answer: Message) -> str:
    """What kind of result this is: "complete" where it does not say (basic/index, Responses)."""
    kind = members(answer.fields.get("result")).get("resultType")
    if kind is None:
        return "complete"
    return text(bytes(kind)) or bytes(kind).decode(errors="replace")


def notCarried(id: bytes | None, why: str) -> Message:
    """The answer to a call whose outcome cannot be said in the legacy era."""
    return errorMessage(id, -32603, why, {"reason": Reason.BAD_ANSWER.value})


def asLegacy(request: Message, answer: Message, revision: str) -> Message:
    """
    A complete result, or an error, as a server of a legacy revision would have answered.

    request: what it answers.
    """
    if answer.isError:
        return errorAsLegacy(request, answer)
    result, method = members(answer.fields["result"]), request.method
    out = _plain(method, result)
    if method == "tools/call":
        _structured(out)
    if method == "tools/list" and "tools" in out:
        out["tools"] = _each(out["tools"], _tool)
    if revision < "2025-06-18":
        if method == "tools/call" and "content" in out:
            out["content"] = _each(out["content"], lambda block: _block(block, revision))
        if method == "prompts/get" and "messages" in out:
            out["messages"] = _each(out["messages"], lambda said: _said(said, revision))
    if out == result:
        return answer
    fields = answer.fields.copy()
    fields["result"] = Raw(spelled(out))
    return Message(answer.kind, fields, answer.id)


def _plain(method: str, result: dict[str, Raw]) -> dict[str, Raw]:
    """Rule 1."""
    out = result.copy()
    out.pop("resultType", None)
    if method in CACHEABLE:
        out.pop("ttlMs", None)
        out.pop("cacheScope", None)
    meta = bytes(out.get("_meta", b""))
    if SERVER_INFO in members(meta):
        meta = withoutMember(meta, SERVER_INFO)
        if members(meta):
            out["_meta"] = Raw(meta)
        else:
            del out["_meta"]
    return out


def _structured(out: dict[str, Raw]) -> None:
    """Rule 2."""
    structured = bytes(out.get("structuredContent", b"{"))
    if structured[:1] == b"{":
        return
    del out["structuredContent"]
    if not items(out.get("content")):
        block = {"type": "text", "text": structured.decode(errors="replace")}
        out["content"] = Raw(spelled([block]))


def _each(value: Raw, change: Callable[[bytes], bytes]) -> Raw:
    """An array with each item changed; the array itself where none did."""
    before = items(value)
    after = [change(item) for item in before]
    return value if after == before else Raw(spelled([Raw(item) for item in after]))


def _tool(data: bytes) -> bytes:
    """Rule 3."""
    tool = members(data)
    output = tool.get("outputSchema")
    if output is not None and text(bytes(members(output).get("type", b""))) != "object":
        data = withoutMember(data, "outputSchema")
        del tool["outputSchema"]
    for name in ("inputSchema", "outputSchema"):
        schema = bytes(tool.get(name, b""))
        properties = members(members(schema).get("properties"))
        if any(bytes(one) in _BOOLEANS for one in properties.values()):
            plain = {key: _BOOLEANS.get(bytes(one), one) for key, one in properties.items()}
            schema = withMember(schema, "properties", spelled(plain))
            data = withMember(data, name, schema)
    return data


def _block(data: bytes, revision: str) -> bytes:
    """Rule 4."""
    kind = text(bytes(members(data).get("type", b"")))
    if kind == "resource_link":
        return spelled({"type": "text", "text": data.decode(errors="replace")})
    if kind == "audio" and revision < "2025-03-26":
        note = f"[audio left out: revision {revision} has none]"
        return spelled({"type": "text", "text": note})
    return data


def _said(data: bytes, revision: str) -> bytes:
    """A message of a prompt, by rule 4."""
    block = bytes(members(data).get("content", b""))
    changed = _block(block, revision)
    return data if changed == block else withMember(data, "content", changed)


def errorAsLegacy(request: Message, answer: Message) -> Message:
    """An error response as a server of the legacy era would have given; rules 5 to 7."""
    code = errorCode(answer)
    if code == -32602 and request.method == "resources/read":
        return _notFound(request, answer)
    if code == -32021:
        return _renamed(answer, -32600, "The server needs a capability the client has not declared")
    if code in (-32020, -32022):
        return _renamed(answer, -32603, "The server refused how the gateway asked it")
    return answer


def _notFound(request: Message, answer: Message) -> Message:
    """Rule 5."""
    asked = request.paramText("uri")
    error = members(answer.fields["error"])
    said = text(bytes(error.get("message", b""))) or ""
    named = text(bytes(members(error.get("data")).get("uri", b"")))
    missing = "not found" in said.lower() or "unknown resource" in said.lower()
    if asked is None or not (named == asked or missing):
        return answer
    data = withMember(bytes(answer.fields["error"]), "code", b"-32002")
    if "data" not in error:
        data = withMember(data, "data", b'{"uri":%b}' % quote(asked))
    return _withError(answer, data)


def _renamed(answer: Message, code: int, why: str) -> Message:
    """Rule 6."""
    data = bytes(answer.fields["error"])
    error = members(data)
    missing = ", ".join(_paths(members(error.get("data")).get("requiredCapabilities")))
    said = text(bytes(error.get("message", b""))) or ""
    if missing:
        why = f"{why}: {missing}"
    if said:
        why = f"{why} ({said})"
    data = withMember(data, "code", b"%d" % code)
    return _withError(answer, withMember(data, "message", quote(why)))


def _paths(capabilities: Raw | None) -> list[str]:
    """The names of capabilities: `elicitation.url`, `roots`."""
    names: list[str] = []
    for name, value in members(capabilities).items():
        inner = list(members(value))
        names += [f"{name}.{one}" for one in inner] if inner else [name]
    return names


def _withError(answer: Message, error: bytes) -> Message:
    fields = answer.fields.copy()
    fields["error"] = Raw(error)
    return Message(answer.kind, fields, answer.id)
