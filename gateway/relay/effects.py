"""What the pure layers of a relay ask to be done; the relay does it, in order."""

from __future__ import annotations

import msgspec

from gateway.links.interfaces import ILink
from gateway.observe.observer import Event
from gateway.wire.context import CallContext
from gateway.wire.envelope import Message
from gateway.wire.refusals import Reason

__all__ = [
    "Answer",
    "Call",
    "Changed",
    "Deliver",
    "Effect",
    "Forget",
    "Forward",
    "OwnEnded",
]


# Structs, and no attrs classes: each call makes some (see `gateway.wire.envelope`).
class Call(msgspec.Struct, eq=False):
    """
    A request of the client that runs.

    id: the client's id as spelled. upstream: the gateway's own id towards the server.
    token: the client's progress token as spelled, or None.
    target: where its answer goes, and what belongs to it; opaque here. None for a request of
        the gateway's own, whose answer nobody waits for.
    streams: whether its target can carry messages before the answer.
    present: whether the client still waits for it.
    deadline, cap: when it times out: without progress, and at all. cancelling: when a cancelled
        call is given up; None while nobody cancelled it.
    numbered: whether its client was sent an event id of the server's, and can resume from it.
    held: whether it waits for its principal's turn, and nothing was sent of it.
    timeout: seconds that progress gives it. ran: why it was sent once more after it may have run.
    """

    id: bytes
    upstream: bytes
    request: Message
    token: bytes | None
    target: object
    streams: bool
    context: CallContext
    started: float
    deadline: float
    cap: float
    present: bool = True
    cancelling: float | None = None
    via: ILink | None = None
    replayed: bool = False
    numbered: bool = False
    held: bool = False
    timeout: float = 0.0
    ran: Reason | None = None


class Forward(msgspec.Struct, frozen=True):
    """Send a message to the server; call: the request it is, None for anything else."""

    message: Message
    call: Call | None
    context: CallContext | None = None


class Deliver(msgspec.Struct, frozen=True):
    """Send a message to the client on a stream: a target of a call, or an attached stream."""

    message: Message
    target: object


class Answer(msgspec.Struct, frozen=True):
    """Give a call its answer; failed: `data.reason` where the gateway made the answer."""

    call: Call
    message: Message
    failed: str = ""


class Forget(msgspec.Struct, frozen=True):
    """The link need not wait for this call any more."""

    call: Call


class OwnEnded(msgspec.Struct, frozen=True):
    """A request of the gateway's own is over; granted: the server answered with a result."""

    call: Call
    granted: bool


class Changed(msgspec.Struct, frozen=True):
    """The session's record changed."""


Effect = Forward | Deliver | Answer | Forget | OwnEnded | Changed | Event
"""An event is to be told to the observer."""
