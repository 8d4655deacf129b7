"""What a principal may do: asked for every message that has a method, both ways."""

from __future__ import annotations

from enum import Enum

from zope.interface import Interface, implementer

from gateway.wire.context import CallContext
from gateway.wire.envelope import Message, NotJSON
from gateway.wire.strictjson import fieldsOf

__all__ = ["AllowAll", "Direction", "IPolicy", "permits"]


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
            without.
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

    What names its tool or resource twice does not: its receiver may read the other one.
    """
    params = message.fields.get("params")
    if params is not None and bytes(params)[:1] == b"{":
        try:
            fieldsOf(bytes(params))
        except NotJSON:
            return False
    names = ("uri", "name") if "resources/" in message.method else ("name", "uri")
    name = message.paramText(names[0]) or message.paramText(names[1]) or ""
    return policy.allows(direction, message.method, name, context)
