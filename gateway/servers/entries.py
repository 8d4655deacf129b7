"""What the pure layers of a shared link keep, and what they ask to be done."""

from __future__ import annotations

import msgspec

from gateway.wire.context import CallContext
from gateway.wire.envelope import Message

__all__ = [
    "Asked",
    "Deliver",
    "Dropped",
    "Effect",
    "Entry",
    "Forgotten",
    "Granted",
    "Member",
    "Reached",
    "Send",
    "Step",
]


# Structs, and no attrs classes: each call makes some (see `gateway.wire.envelope`).
class Member(msgspec.Struct, eq=False):
    """
    A session's part in a shared link.

    host: what the driver knows it by; None once it left. level: the log level the server granted
    it, or "". calls: what it waits for, by its own call objects. running: how many of them the
    server has. topics: the URIs it is subscribed to.
    """

    host: object
    level: str = ""
    calls: dict[object, Entry] = msgspec.field(default_factory=dict)
    running: int = 0
    topics: dict[str, None] = msgspec.field(default_factory=dict)


class Entry(msgspec.Struct, eq=False):
    """
    A request to the server.

    member: who waits for it; None for one of the gateway's own, and once its asker gave it up.
    call, id, token: the asker's object, id and progress token for it. ours: the id, and the
    progress token, that the server knows.
    uri, level: what it subscribes to, or what log level it asks for; "" in any other.
    own: whether the gateway asks for itself. cancelled: whether the server was told to stop.
    """

    member: Member | None
    call: object
    id: bytes
    token: bytes | None
    ours: bytes
    request: Message
    context: CallContext
    uri: str = ""
    level: str = ""
    own: bool = False
    cancelled: bool = False

    @property
    def standing(self) -> bool:
        """Whether its outcome lasts, and so must be known even if nobody waits for it."""
        return bool(self.uri or self.level)


class Granted(msgspec.Struct, frozen=True):
    """A request that the server need not hear: its answer is an empty result."""

    entry: Entry


class Asked(msgspec.Struct, frozen=True):
    """A request for the server, in these words."""

    entry: Entry
    message: Message


Step = Granted | Asked
"""What becomes of a request whose outcome lasts."""


class Send(msgspec.Struct, frozen=True):
    """
    Send a message to the server.

    entry: the request it is. stops: the request it cancels.
    """

    message: Message
    entry: Entry | None
    context: CallContext
    stops: Entry | None = None


class Deliver(msgspec.Struct, frozen=True):
    """Tell a member; call: what it belongs to, where it belongs to one."""

    member: Member
    message: Message
    call: object | None = None


class Forgotten(msgspec.Struct, frozen=True):
    """The link need not wait for this request any more."""

    entry: Entry


class Dropped(msgspec.Struct, frozen=True):
    """A message went nowhere, and why."""

    why: str


class Reached(msgspec.Struct, frozen=True):
    """A bound was reached: the name of the field in Limits."""

    limit: str


Effect = Send | Deliver | Forgotten | Dropped | Reached
