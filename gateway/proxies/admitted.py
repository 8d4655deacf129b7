"""
A request that came up the ladder, and what is wrong with a message where it is not the JSON
(rungs 11 to 13).

Pure.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from gateway.guard.limits import Limits
from gateway.observe.observer import BoundReached, IObserver
from gateway.sessions.registry import Session
from gateway.wire import refusals
from gateway.wire.context import CallContext
from gateway.wire.envelope import NOTIFICATION, REQUEST, RESPONSE, Message, NotAMessage
from gateway.wire.exchange import Exchange
from gateway.wire.refusals import Refusal
from gateway.wire.revisions import MODERN, allowsBatches, versionIsTolerable

__all__ = ["Admitted", "Then", "eraRefusal", "unfit"]


# A Struct, as each request makes one (see `gateway.wire.envelope`).
class Admitted(msgspec.Struct, eq=False):
    """
    A request that came up the ladder.

    message: what its body holds; None for GET, DELETE and a batch. batch: its members, the bad
    ones as exceptions. session: the one it names; None where it needs none. json, events: what
    its client accepts. refusal: over HTTP+SSE, what its session's stream must be told instead.
    claim: the revision a modern message claims; None for a legacy one. body: its bytes as they
    came; of modern messages only. hadRoom: whether it was let in, perhaps after it waited
    for its turn, and is not asked to wait again, whoever serves it then.
    """

    exchange: Exchange
    context: CallContext
    json: bool
    events: bool
    version: str | None
    message: Message | None = None
    batch: list[Message | NotAMessage] | None = None
    session: Session | None = None
    refusal: Refusal | None = None
    id: bytes | None = None
    claim: str | None = None
    body: bytes = b""
    hadRoom: bool = False


Then = Callable[[Admitted], None]
"""What answers a request that came up."""


def unfit(admitted: Admitted, limits: Limits, observer: IObserver) -> tuple[str, Refusal] | None:
    """The first of rungs 11 to 13 that a message or batch fails, and what that answers."""
    refusal = _batch(admitted, limits, observer)
    if refusal is not None:
        return "message", refusal
    refusal = eraRefusal(admitted)
    if refusal is not None:
        return "era", refusal
    refusal = _version(admitted)
    return None if refusal is None else ("version", refusal)


def _batch(admitted: Admitted, limits: Limits, observer: IObserver) -> Refusal | None:
    """Rung 11, for what is a message or a batch."""
    batch = admitted.batch
    if batch is None:
        return None
    session = admitted.session
    if session is None or not allowsBatches(session.record.revision) or admitted.version in MODERN:
        return refusals.notAMessage("a batch is not allowed here")
    limit = limits.max_batch
    if len(batch) > limit:
        observer.observed(BoundReached("max_batch", session.record.server))
        return refusals.notAMessage(f"a batch has at most {limit} messages")
    if not batch:
        return refusals.notAMessage("a batch is not empty")
    if any(isinstance(item, Message) and item.method == "initialize" for item in batch):
        return refusals.notAMessage("initialize cannot be part of a batch")
    return None


def eraRefusal(admitted: Admitted) -> Refusal | None:
    """Rung 12."""
    message, claim = admitted.message, admitted.claim
    if message is None:
        return None
    if claim is not None:
        # Only over HTTP+SSE do modern messages come here.
        if message.kind is NOTIFICATION:
            return None
        if message.method == "server/discover":
            return refusals.discoverNotServed()
        return refusals.notServedOverSSE(claim)
    if admitted.version in MODERN:
        if message.kind is RESPONSE:
            return refusals.notAMessage("a response is nothing to send in this revision")
        if message.kind is REQUEST and message.method != "initialize":
            return refusals.invalidParams("params._meta has no protocolVersion")
    return None


def _version(admitted: Admitted) -> Refusal | None:
    """Rung 13."""
    message = admitted.message
    if message is not None and (message.method == "initialize" or admitted.claim is not None):
        return None
    session = admitted.session
    revision = session.record.revision if session is not None else ""
    return None if versionIsTolerable(admitted.version, revision) else refusals.unsupportedVersion()
