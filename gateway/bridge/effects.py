"""What the pure cores of a bridged link ask to be done; the link does it, in order."""

from __future__ import annotations

from attrs import define, field, frozen
from msgspec import Raw

from gateway.wire.context import CallContext
from gateway.wire.envelope import Message

__all__ = [
    "AskAgain",
    "AwaitAcknowledgement",
    "Dropped",
    "Effect",
    "End",
    "Errand",
    "Forget",
    "Linger",
    "Open",
    "Reached",
    "Rest",
    "Round",
    "Say",
    "Send",
    "Stream",
    "Tell",
]


@define(eq=False)
class Errand:
    """
    A call of the relay's, over all the requests it takes.

    call: the relay's own object. asked: its request as it came. request: the same as the modern
    server gets it. round: the request that runs; None while the client is asked, or before the
    next is sent. rounds: how many results asked for input. bare: how many of them in a row asked
    for none. cancelled: whether the client cancelled it. held: whether its reader wants no more.
    inputs: the server's keys in order; None where it asked for nothing.
    open: what the client is asked, by the ids of the requests to it: (key, method).
    gathered: what it answered, by the server's keys. state: the server's `requestState`.
    """

    call: object
    asked: Message
    request: Message
    context: CallContext
    round: Round | None = None
    rounds: int = 0
    bare: int = 0
    cancelled: bool = False
    held: bool = False
    inputs: list[str] | None = None
    open: dict[bytes, tuple[str, str]] = field(factory=dict)
    gathered: dict[str, Raw] = field(factory=dict)
    state: bytes | None = None


@frozen(eq=False)
class Round:
    """One request of an errand to the modern server; what its link knows the request by."""

    errand: Errand
    id: bytes


@define(eq=False)
class Stream:
    """
    One `subscriptions/listen`; what the link knows it by.

    kinds: the lists whose changes it tells. uris: the resources whose updates it tells.
    acknowledgedAt: when the server acknowledged it; None before.
    heard: what it told while the one before was open, too, by method and URI.
    """

    id: bytes
    kinds: tuple[str, ...]
    uris: tuple[str, ...]
    acknowledgedAt: float | None = None
    heard: set[tuple[str, str | None]] = field(factory=set)


@frozen
class Send:
    """Send a request of a call to the server."""

    message: Message
    round: Round


@frozen
class Open:
    """Send a `subscriptions/listen`."""

    message: Message
    stream: Stream


@frozen
class Say:
    """Say a notification to the server; only where its link takes any."""

    message: Message


@frozen
class Forget:
    """The link need not wait for this request any more."""

    round: Round


@frozen
class End:
    """End a stream: the server hears it, too."""

    stream: Stream


@frozen
class Tell:
    """Tell the relay something; call: the relay's own object it belongs to, or None."""

    message: Message
    call: object | None = None


@frozen
class AskAgain:
    """Call `Conversation.again` after a back-off for so many failures."""

    errand: Errand
    failures: int


@frozen
class Rest:
    """Call `Listening.rested` after a back-off for so many failures."""

    failures: int


@frozen
class AwaitAcknowledgement:
    """Call `Listening.overdue` if a stream is not acknowledged in time."""

    stream: Stream


@frozen
class Linger:
    """Call `Listening.lingered` in a while."""

    stream: Stream


@frozen
class Dropped:
    """A message went nowhere."""

    why: str


@frozen
class Reached:
    """A bound was reached, by its name."""

    limit: str


Effect = (
    Send
    | Open
    | Say
    | Forget
    | End
    | Tell
    | AskAgain
    | Rest
    | AwaitAcknowledgement
    | Linger
    | Dropped
    | Reached
)
