"""What a principal may do: asked for every message that has a method, both ways."""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum

import msgspec
from msgspec import Raw
from twisted.logger import Logger
from zope.interface import Interface, implementer

from gateway.wire.context import CallContext
from gateway.wire.envelope import Message, NotJSON, text
from gateway.wire.strictjson import fieldsOf

__all__ = ["AllowAll", "Direction", "IPolicy", "permits"]

_log = Logger()


class Direction(Enum):
    """Which way a message goes."""

    TO_SERVER = "to the server"
    TO_CLIENT = "to the client"


class IPolicy(Interface):
    """Decides, synchronously, over requests and notifications."""

    def admits(context: CallContext) -> bool:
        """Whether the principal may use the server at all (403 otherwise)."""

    def allows(direction: Direction, method: str, name: str, context: CallContext) -> bool:
        """
        Whether a message may pass.

        name: `params.uri` of what is about a resource; else `params.name`, or `params.uri`; ""
            without. It is asked again for each name deeper within: what `params.ref` of
            `completion/complete` names, and the resources of a `subscriptions/listen`.
        A refused call fails with `forbidden`, a refused notification is dropped and counted.
        """


@implementer(IPolicy)
class AllowAll:
    """Lets everything pass."""

    def admits(self, context: CallContext) -> bool:
        return True

    def allows(self, direction: Direction, method: str, name: str, context: CallContext) -> bool:
        return True


def permits(policy: IPolicy, direction: Direction, message: Message, context: CallContext) -> bool:
    """
    Whether a policy lets a message pass.

    What names its tool or resource twice does not: its receiver may read the other one. Nor does
    what the policy fails to judge.
    """
    params, fields = message.fields.get("params"), {}
    if params is not None and bytes(params)[:1] == b"{":
        try:
            fields = fieldsOf(bytes(params))
        except NotJSON:
            return False
    names = ("uri", "name") if "resources/" in message.method else ("name", "uri")
    named = [message.paramText(names[0]) or message.paramText(names[1]) or ""]
    within = _NAMED_WITHIN.get(message.method)
    if within is not None:
        more = within(fields)
        if more is None:
            return False
        named += more
    try:
        return all(policy.allows(direction, message.method, name, context) for name in named)
    except Exception:
        _log.failure("a policy failed to judge a message")
        return False


def _completed(params: dict[str, Raw]) -> list[str] | None:
    """What `completion/complete` is about; None where that cannot be told for sure."""
    ref = _object(params.get("ref"))
    if ref is None:
        return None
    named = [text(bytes(ref[name])) for name in ("name", "uri") if name in ref]
    return None if None in named else [name for name in named if name is not None]


def _listenedTo(params: dict[str, Raw]) -> list[str] | None:
    """The resources that `subscriptions/listen` subscribes to; None where they cannot be told."""
    wanted = _object(params.get("notifications"))
    if wanted is None:
        return None
    said = wanted.get("resourceSubscriptions")
    if said is None:
        return []
    try:
        return msgspec.json.decode(said, type=list[str])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


def _object(value: Raw | None) -> dict[str, Raw] | None:
    """The members of an object, {} of nothing; None of what is none, or has one twice."""
    if value is None:
        return {}
    try:
        return fieldsOf(bytes(value))
    except NotJSON:
        return None


_NAMED_WITHIN: dict[str, Callable[[dict[str, Raw]], list[str] | None]] = {
    "completion/complete": _completed,
    "subscriptions/listen": _listenedTo,
}
"""What names its prompts or resources deeper within, and how they are found."""
