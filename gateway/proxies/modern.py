"""
One server's modern clients (MCP 2026-07-28; wire contract, "Modern era"): what came up the ladder
is judged and goes on to whatever answers for the server.

  1. notification   accepted and dropped: the core knows none here         202
  2. draining, load nothing new is taken, or no more                       503 -32603
  3. policy         the principal may not call it                          403 -32603
  4. era            how the server is reached is found out, once           502, 504 -32603
 A modern HTTP server judges for itself (`gateway.proxies.passing`). For any other:
  5. `_meta`        the request says of itself what it must                400 -32602
  6. headers        they are those of the body                             400 -32020
  7. version        it is one of MODERN                                    400 -32022
  8. Accept         the stream of `subscriptions/listen` is acceptable     406 -32000
  9. method         `initialize` is of the other era: on a child that
                    all share it would decide its era                      404 -32601
 Then a modern stdio server has a ModernRelay, a legacy one over any transport a LegacyPool.

The order of 5 to 7 is that of the reference SDKs: clients tell servers apart by it.
"""

from __future__ import annotations

from functools import partial

from attrs import define, field
from twisted.python.failure import Failure

from gateway.guard.policy import AllowAll, Direction, permits
from gateway.http1.client import Outgoing
from gateway.links.interfaces import IServer, LinkFailed
from gateway.observe.observer import CallFailed, MessageDropped
from gateway.proxies.ladder import Admitted, Ladder, Then
from gateway.proxies.modern_reply import ModernReply
from gateway.proxies.passing import Passing, failure, fieldsUp
from gateway.proxies.shared import Shared
from gateway.relay.modern_calls import ModernCalls
from gateway.relay.modern_relay import ModernRelay
from gateway.relay.pool import LegacyPool
from gateway.relay.relay import Relay
from gateway.relay.replays import Replays
from gateway.relay.times import CallTimes
from gateway.servers.eras import EraServer
from gateway.servers.http import HTTPServer
from gateway.sessions.registry import Session
from gateway.wire import refusals
from gateway.wire.context import CallContext, Principal
from gateway.wire.envelope import NOTIFICATION, Message, text
from gateway.wire.mcp_headers import ToolHeaders
from gateway.wire.modern import CLIENT_CAPABILITIES, LISTEN, LOG_LEVEL
from gateway.wire.refusals import Reason, Refusal
from gateway.wire.revisions import MODERN, VERSION_CLAIM

__all__ = ["ModernEndpoint"]

_LEVELS = frozenset(
    {"debug", "info", "notice", "warning", "error", "critical", "alert", "emergency"}
)
_UNAUTHORIZED = (401, 403)


def legacyCalls(server: IServer, shared: Shared) -> ModernCalls:
    """What answers modern requests for a legacy server."""

    def makeRelay(session: Session, context: CallContext) -> Relay:
        return Relay(
            session,
            server,
            shared.registry,
            shared.policy,
            shared.limits,
            shared.clock,
            shared.observer,
            context,
        )

    return LegacyPool(server, shared.limits, shared.clock, shared.observer, makeRelay)


@define(eq=False)
class ModernEndpoint:
    """
    Where the modern requests to one server are served. Life: as its Streamable HTTP endpoint's,
    which stops it.

    successor: where requests go whose era was found when the server was replaced or removed.
    """

    server: IServer
    shared: Shared
    ladder: Ladder
    _eras: EraServer | None = field(init=False)
    _relay: ModernCalls | None = field(default=None, init=False)
    _pool: ModernCalls | None = field(default=None, init=False)
    successor: Then | None = field(default=None, init=False)
    _open: dict[Passing | ModernReply, Principal] = field(factory=dict, init=False)
    _finding: int = field(default=0, init=False)
    """How many wait for the server's era to be found."""
    _tools: ToolHeaders = field(init=False)
    _judges: bool = field(init=False)
    _times: CallTimes = field(init=False)
    _replays: Replays = field(init=False)

    def __attrs_post_init__(self) -> None:
        settings = self.server.settings
        self._times, self._replays = CallTimes.of(settings), Replays(settings.replay)
        self._eras = _erasOf(self.server)
        self._tools = ToolHeaders(self.shared.limits.max_tool_headers)
        self._judges = not isinstance(self.shared.policy, AllowAll)

    def running(self) -> bool:
        """Whether a call runs that its client waits for; listening is none."""
        return self._finding > 0 or any(not one.listens for one in self._open)

    async def stop(self) -> None:
        """Answer what still runs, end what listens in order, and leave nothing upstream."""
        for one in list(self._open):
            if isinstance(one, Passing):
                one.stop()
        for calls in (self._relay, self._pool):
            if calls is not None:
                await calls.stop()

    def serve(self, admitted: Admitted) -> None:
        """Answer a modern request or notification."""
        message, context = admitted.message, admitted.context
        assert message is not None
        if message.kind is NOTIFICATION:
            self._drop("modern_notification")
            admitted.exchange.answer(202, ())
        elif not self.shared.accepting:
            self._fail(admitted, Reason.SHUTTING_DOWN, "the gateway is shutting down")
        elif message.method != LISTEN and not self.shared.load.has(context.principal):
            load = self.shared.load
            self._fail(admitted, *load.refused(context.principal, self.server.name))
        elif self._judges and not permits(
            self.shared.policy, Direction.TO_SERVER, message, context
        ):
            self._fail(admitted, Reason.FORBIDDEN, "not permitted")
        elif self._eras is None:
            self._found(admitted, False)
        elif self._eras.verdict.modern is None:
            self._find(admitted, self._eras)
        else:
            self._found(admitted, self._eras.verdict.modern)

    def _opened(self, one: Passing | ModernReply, principal: Principal) -> None:
        """It is under way: count it, unless it only listens."""
        self._open[one] = principal
        if not one.listens:
            load = self.shared.load
            load.total.calls += 1
            load.accountOf(principal).calls += 1

    def _ended(self, one: Passing | ModernReply) -> None:
        principal = self._open.pop(one, None)
        if principal is not None and not one.listens:
            load = self.shared.load
            load.total.calls -= 1
            load.accountOf(principal).calls -= 1
            load.forget(principal)

    def _find(self, admitted: Admitted, eras: EraServer) -> None:
        """The server's era takes time to find: whoever leaves meanwhile climbs no further."""
        exchange = admitted.exchange
        finding = eras.findModern(admitted.context)
        gone: list[bool] = []

        self._finding += 1

        def over(result: object) -> object:
            self._finding -= 1
            return result

        def left() -> None:
            gone.append(True)
            finding.cancel()

        def found(modern: bool) -> None:
            exchange.onGone = None
            if not gone:
                self._found(admitted, modern)

        def failed(failure: Failure) -> None:
            exchange.onGone = None
            if gone:
                return
            error = failure.value
            if not isinstance(error, LinkFailed):
                failure.raiseException()
            elif error.status in _UNAUTHORIZED and isinstance(eras.inner, HTTPServer):
                # Who asks is refused, not what: the server says by itself how to ask.
                self._pass(admitted, eras.inner)
            else:
                self._fail(admitted, error.reason, error.message)

        exchange.onGone = left
        finding.addBoth(over)
        finding.addCallbacks(found, failed)
        finding.addErrback(self.ladder.broke, exchange)

    def _found(self, admitted: Admitted, modern: bool) -> None:
        server = self._eras.inner if self._eras is not None else None
        if self.successor is not None:
            self.successor(admitted)
        elif not self.shared.accepting:
            self._fail(admitted, Reason.SHUTTING_DOWN, "the gateway is shutting down")
        elif modern and isinstance(server, HTTPServer):
            self._pass(admitted, server)
        else:
            self._judged(admitted, self._callsOf(modern))

    def _callsOf(self, modern: bool) -> ModernCalls:
        """What answers for the server; made for the first who asks."""
        shared = self.shared
        if not modern or self._eras is None:
            if self._pool is None:
                self._pool = legacyCalls(self.server, shared)
            return self._pool
        if self._relay is None:
            self._relay = ModernRelay(
                self._eras, shared.policy, shared.limits, shared.clock, shared.observer
            )
        return self._relay

    # A modern HTTP server.

    def _pass(self, admitted: Admitted, server: HTTPServer) -> None:
        message = admitted.message
        assert message is not None and self._eras is not None

        def send(passing: Passing) -> Outgoing | None:
            return server.passOn(
                fieldsUp(admitted.exchange.head),
                admitted.body,
                admitted.context,
                passing,
                staysOpen=passing.listens,
            )

        timeout, most = self._times.times(message)
        passing = Passing(
            admitted.exchange,
            self.shared,
            self.server.name,
            message,
            timeout,
            most,
            self._ended,
            self._eras.doubt,
            send if self._replays.allows(message) else None,
        )
        outgoing = send(passing)
        if outgoing is None:
            self._fail(admitted, Reason.OVERLOADED, "the server does not keep up")
        else:
            self._opened(passing, admitted.context.principal)
            passing.sent(outgoing)

    # Any other.

    def _judged(self, admitted: Admitted, calls: ModernCalls) -> None:
        refusal = self._judge(admitted)
        if refusal is not None:
            self.ladder.refuse(admitted.exchange, refusal, "modern", admitted.id)
            return
        message = admitted.message
        assert message is not None and message.id is not None
        reply = ModernReply(
            admitted.exchange,
            self.shared,
            self.server.name,
            message.id,
            admitted.json,
            admitted.events,
            message.method == LISTEN,
            calls.gone,
            self._ended,
            partial(self._learn, message),
            calls.slow,
        )
        self._opened(reply, admitted.context.principal)
        reply.start()
        calls.request(message, reply, admitted.context)

    def _judge(self, admitted: Admitted) -> Refusal | None:
        """Rungs 5 to 9."""
        message = admitted.message
        assert message is not None
        capabilities, level = message.meta(CLIENT_CAPABILITIES), message.meta(LOG_LEVEL)
        if message.meta(VERSION_CLAIM) is None or capabilities is None or capabilities[:1] != b"{":
            why = f"params._meta needs {VERSION_CLAIM} and {CLIENT_CAPABILITIES}"
            return refusals.invalidParams(why)
        if level is not None and text(level) not in _LEVELS:
            return refusals.invalidParams(f"{LOG_LEVEL} is none of the eight levels")
        differs = self._tools.disagreement(admitted.exchange.head, message)
        if differs is not None:
            return refusals.headersDisagree(differs)
        if admitted.claim not in MODERN:
            return refusals.unsupportedModernVersion(admitted.claim or "", MODERN)
        if message.method == LISTEN and not admitted.events:
            return refusals.notAcceptable("text/event-stream")
        if message.method == "initialize":
            return refusals.methodNotFound()
        return None

    def _learn(self, request: Message, answer: Message) -> None:
        """A list of tools says which of their parameters stand in the header."""
        result = answer.fields.get("result")
        if request.method == "tools/list" and result is not None:
            self._tools.learn(bytes(result), first=request.param("cursor") is None)

    def _fail(self, admitted: Admitted, reason: Reason, why: str) -> None:
        message = admitted.message
        assert message is not None
        self.shared.observer.observed(CallFailed(self.server.name, message.method, reason.value))
        refusal = failure(self.shared, reason, why)
        admitted.exchange.onGone = None
        admitted.exchange.answer(refusal.status, refusal.fields(), refusal.body(admitted.id))

    def _drop(self, why: str) -> None:
        self.shared.observer.observed(MessageDropped(self.server.name, why))


def _erasOf(server: object) -> EraServer | None:
    """What knows the era of a server, wherever it stands before the configured one."""
    while server is not None and not isinstance(server, EraServer):
        server = getattr(server, "inner", None)
    return server
