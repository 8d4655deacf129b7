"""
How a session begins, behind a client's `initialize`, and a call in it: the same for every proxy.

`initialize` always starts a new session. A handshake that does not come about is answered 200
with a JSON-RPC error and without a session id; nothing of the session is left.
"""

from __future__ import annotations

from functools import partial

from twisted.logger import Logger

from gateway.guard.load import Account
from gateway.links.interfaces import IServer, LinkFailed
from gateway.observe.observer import BoundReached, CallFailed
from gateway.proxies.shared import Shared
from gateway.relay.pool import LegacyPool
from gateway.relay.relay import Relay
from gateway.relay.target import Target
from gateway.sessions.events import EventLog
from gateway.sessions.registry import AtCapacity, Session
from gateway.sessions.store import StoreRefused
from gateway.wire import refusals
from gateway.wire.context import CallContext
from gateway.wire.envelope import Message
from gateway.wire.refusals import Reason, Refusal, callFailed

__all__ = ["ask", "askOfAll", "handshake", "newPool", "newRelay", "newSession"]

_log = Logger()


async def newSession(
    shared: Shared, server: IServer, context: CallContext, transport: str
) -> Session | Refusal:
    """A new session in the registry, or why there is none."""
    if not shared.accepting:
        return refusals.shuttingDown(shared.limits.retry_after)
    try:
        return await shared.registry.create(
            server.name, server.generation, context.principal, transport, context.peer
        )
    except (AtCapacity, StoreRefused):
        return refusals.atCapacity(shared.limits.retry_after)


def newRelay(
    shared: Shared,
    server: IServer,
    session: Session,
    context: CallContext,
    *,
    transparent: bool = False,
) -> Relay:
    """The live part of a session; transparent: see Relay."""
    events = EventLog(shared.limits) if session.record.transport == "streamable" else None
    if events is not None:
        session.onSweep = events.expire
    return Relay(
        session,
        server,
        shared.registry,
        shared.policy,
        shared.limits,
        shared.clock,
        shared.observer,
        context,
        transparent,
        events,
    )


def newPool(shared: Shared, server: IServer) -> LegacyPool:
    """What answers the modern requests to a legacy server; whoever asked for it stops it."""
    return LegacyPool(
        server,
        shared.limits,
        shared.clock,
        shared.observer,
        lambda session, context: newRelay(shared, server, session, context),
    )


def ask(
    shared: Shared,
    relay: Relay,
    message: Message,
    target: Target,
    streams: bool,
    context: CallContext,
) -> None:
    """Relay a request, unless the gateway drains or is full: then it is answered at once."""
    load, account = shared.load, relay.session.account
    # `Load.has`, which is too dear to call here.
    if shared.accepting and load.total.calls < load.room and account.calls < load.each:
        relay.request(message, target, streams, context)
    else:
        _wait(shared, account, relay, message, target, streams, context)


def askOfAll(
    shared: Shared,
    relay: Relay,
    message: Message,
    target: Target,
    streams: bool,
    context: CallContext,
) -> None:
    """The same where all clients of a server share its relay, so that each has an account apart."""
    load = shared.load
    if shared.accepting and load.has(context.principal):
        relay.request(message, target, streams, context)
    else:
        account = load.accountOf(context.principal)
        _wait(shared, account, relay, message, target, streams, context)


def _wait(
    shared: Shared,
    account: Account,
    relay: Relay,
    message: Message,
    target: Target,
    streams: bool,
    context: CallContext,
) -> None:
    """There is no room for a call: it waits for its turn, or is turned away."""
    load = shared.load
    if shared.accepting and load.mayWait(account):
        shared.observer.observed(BoundReached("max_calls_per_principal", context.server))
        relay.request(message, target, streams, context, partial(load.wait, account))
    else:
        _turnAway(shared, message, target, context)
        load.forget(context.principal)


def _turnAway(shared: Shared, message: Message, target: Target, context: CallContext) -> None:
    load = shared.load
    reason, why, again = Reason.SHUTTING_DOWN, "the gateway is shutting down", 0
    if shared.accepting:
        reason, why = load.refused(context.principal, context.server)
        again = shared.limits.retry_after
    shared.observer.observed(CallFailed(context.server, message.method, reason.value))
    target.answer(callFailed(message.id, reason, why, again))


async def handshake(
    shared: Shared, relay: Relay, message: Message, context: CallContext
) -> tuple[Message, bool]:
    """
    Answer an `initialize`: the response under the client's id, and whether it succeeded.
    """
    assert message.id is not None
    params = bytes(message.fields.get("params", b"{}"))
    try:
        answer = await relay.open(params)
    except LinkFailed as error:
        shared.observer.observed(CallFailed(context.server, "initialize", error.reason.value))
        if error.answer is not None:
            return error.answer.withID(message.id), False
        return callFailed(message.id, error.reason, error.message, error.retryAfter), False
    except StoreRefused:
        why = "the session could not be stored"
        return callFailed(message.id, Reason.OVERLOADED, why), False
    except Exception:
        _log.failure("a handshake broke")
        why = "the handshake with the server broke"
        return callFailed(message.id, Reason.BAD_ANSWER, why), False
    return answer.withID(message.id), True
