"""What a principal may do: asked for every message that has a method, both ways."""

from __future__ import annotations

from enum import Enum

from zope.interface import Interface, implementer

from gateway.wire.context import CallContext

__all__ = ["AllowAll", "Direction", "IPolicy"]


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

        name: `params.name` or `params.uri`, "" without either.
        A refused call fails with `forbidden`, a refused notification is dropped and counted.
        """


@implementer(IPolicy)
class AllowAll:
    """Lets everything pass."""

    def admits(self, context: CallContext) -> bool:
        return True

    def allows(self, direction: Direction, method: str, name: str, context: CallContext) -> bool:
        return True
