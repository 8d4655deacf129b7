"""
What a recovered session owes both sides: the server hears again what it was told, the client
hears what may have changed. Pure.
"""

from __future__ import annotations

from collections.abc import Mapping

from msgspec import Raw

from gateway.sessions.record import SessionRecord
from gateway.wire.envelope import Message, members, notification, quote, request, text

__all__ = ["learn", "narrowed", "repetitions"]


def learn(record: SessionRecord, request: Message) -> bool:
    """
    Write to the record what has to be said again after a recovery.

    request: one that the server granted. Returns whether the record changed.
    """
    if request.method == "logging/setLevel":
        record.log_level = request.param("level") or b""
        return True
    uri = request.paramText("uri") if request.method.startswith("resources/") else None
    if uri is None:
        return False
    known = uri in record.subscriptions
    if request.method == "resources/subscribe" and not known:
        record.subscriptions.append(uri)
        return True
    if request.method == "resources/unsubscribe" and known:
        record.subscriptions.remove(uri)
        return True
    return False


def narrowed(record: SessionRecord, result: Mapping[str, Raw]) -> bool:
    """
    Whether a server came back with another revision or fewer capabilities than the session
    was promised; then the session cannot go on.

    result: the members of its new `initialize` result.
    """
    version = result.get("protocolVersion")
    if version is None or text(bytes(version)) != record.revision:
        return True
    return _fewer(record.capabilities, bytes(result.get("capabilities", b"{}")))


def _fewer(before: bytes, after: bytes) -> bool:
    kept = members(after)
    for name, value in members(before).items():
        had = bytes(value)
        if had in (b"false", b"null"):
            continue
        has = kept.get(name)
        if has is None or bytes(has) in (b"false", b"null"):
            return True
        if had[:1] == b"{" and _fewer(had, bytes(has)):
            return True
    return False


def repetitions(
    record: SessionRecord, result: Mapping[str, Raw]
) -> tuple[list[Message], list[Message]]:
    """
    What is said to a server that came back, and what is told to the client.

    Said: `notifications/initialized`, the log level and the subscriptions, where the client had
    sent them. Told: `list_changed` for every list the server declared it for, since what it
    lists now may differ.
    """
    said: list[Message] = []
    if record.initialized:
        said.append(notification("notifications/initialized"))
    if record.log_level:
        said.append(request("logging/setLevel", level=record.log_level))
    said += [request("resources/subscribe", uri=quote(uri)) for uri in record.subscriptions]
    declared = members(result.get("capabilities"))
    told = [
        notification(f"notifications/{name}/list_changed")
        for name in ("tools", "resources", "prompts")
        if bytes(members(declared.get(name)).get("listChanged", b"")) == b"true"
    ]
    return said, told
