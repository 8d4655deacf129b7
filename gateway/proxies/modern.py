"""
One server's modern clients (MCP 2026-07-28; wire contract, "Modern era"): what came up the ladder
is judged and goes on to whatever answers for the server.

  1. notification   accepted and dropped: the core knows none here         202
  2. draining, load nothing new is taken, or no more; or it waits its turn  503 -32603
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
from gateway.observe.observer import BoundReached, CallFailed, MessageDropped
from gateway.proxies.admitted import Admitted, Then
from gateway.proxies.ladder import Ladder
from gateway.proxies.modern_reply import ModernReply
from gateway.proxies.modern_waiting import ModernWaiting
from gateway.proxies.opening import newPool
from gateway.proxies.passing import Passing, failure, fieldsUp
from gateway.proxies.shared import Shared
from gateway.proxies.tool_lists import ToolLists
from gateway.relay.modern_calls import ModernCalls
from gateway.relay.modern_relay import ModernRelay
from gateway.relay.pool import LegacyPool
from gateway.relay.replays import Replays
from gateway.relay.times import CallTimes
from gateway.servers.eras import EraServer
from gateway.servers.http import HTTPServer
from gateway.wire import refusals
from gateway.wire.context import Principal
from gateway.wire.envelope import NOTIFICATION, Message, text
from gateway.wire.modern import CLIENT_CAPABILITIES, LISTEN, LOG_LEVEL
from gateway.wire.refusals import Reason, Refusal
from gateway.wire.revisions import MODERN, VERSION_CLAIM

__all__ = ["ModernEndpoint"]

_LEVELS = frozenset(
    {"debug", "info", "notice", "warning", "error", "critical", "alert", "emergency"}
)
_UNAUTHORIZED = (401, 403)


@define(eq=False)
class ModernEndpoint:
    """
    Where the modern requests to one server are served. Life: as its Streamable HTTP endpoint's,
    which stops it.

    successor: where requests go whose era was found when the server was replaced or removed.
    stopped: whether nothing is left of it.
    """

    server: IServer
    shared: Shared
    ladder: Ladder
    _eras: EraServer | None = field(init=False)
    _relay: ModernCalls | None = field(default=None, init=False)
    _pool: LegacyPool | None = field(default=None, init=False)
    successor: Then | None = field(default=None, init=False)
    stopped: bool = field(default=False, init=False)
    _before: list[ModernEndpoint] = field(factory=list, init=False)
    """Those that this one replaced, as long as calls there may wait for their clients' input."""
    _open: dict[Passing | ModernReply, Principal] = field(factory=dict, init=False)
    _waiting: set[ModernWaiting] = field(factory=set, init=False)
    _finding: int = field(default=0, init=False)
    """How many wait for the server's era to be found."""
    _tools: ToolLists = field(init=False)
    _judges: bool = field(init=False)
    _times: CallTimes = field(init=False)
    _replays: Replays = field(init=False)

    def __attrs_post_init__(self) -> None:
        settings = self.server.settings
        self._times, self._replays = CallTimes.of(settings), Replays(settings.replay)
        self._eras = _erasOf(self.server)
        self._tools = ToolLists(self.shared.limits, partial(self._bound, "max_tool_headers"))
        self._judges = not isinstance(self.shared.policy, AllowAll)

    def running(self) -> bool:
        """Whether a call runs that its client waits for; listening is none."""
        running = any(not one.listens for one in self._open)
        return running or self._finding > 0 or bool(self._waiting)

    def shed(self, part: float) -> int:
        """Memory is short: end this part of the idle sessions with the server."""
        return 0 if self._pool is None else self._pool.shed(part)

    def parked(self) -> bool:
        """Whether calls wait for input of their clients, which may come yet."""
        return self._pool is not None and self._pool.parked

    def parks(self, admitted: Admitted) -> bool:
        """Whether a request brings the input that a call here waits for."""
        message, pool = admitted.message, self._pool
        if pool is None or not pool.parked or message is None or message.kind is NOTIFICATION:
            return False
        return pool.parks(message, admitted.context)

    def follows(self, other: ModernEndpoint) -> None:
        """
        Have calls that wait for their clients there be continued from here, too; also those that
        run there and will only ask.
        """
        before = (*other._before, *self._before, other)
        self._before = [one for one in before if not one.stopped]

    def _continued(self, admitted: Admitted) -> ModernEndpoint | None:
        """Where the call runs that a request continues, if that is one that was replaced."""
        self._before = [one for one in self._before if not one.stopped]
        return next((one for one in self._before if one.parks(admitted)), None)

    async def stop(self) -> None:
        """Answer what still runs, end what listens in order, and leave nothing upstream."""
        self.stopped = True
        # Else each would keep all before it.
        self._before.clear()
        for waiting in list(self._waiting):
            waiting.stop()
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
        elif admitted.hadRoom:
            # At the server that this one replaces.
            self._serve(admitted)
        elif not self.shared.accepting:
            self._fail(admitted, Reason.SHUTTING_DOWN, "the gateway is shutting down")
        elif message.method != LISTEN and not self.shared.load.has(context.principal):
            self._wait(admitted)
        else:
            self._serve(admitted)

    def _wait(self, admitted: Admitted) -> None:
        """There is no room for a call: it waits for its turn, or is turned away."""
        load, principal = self.shared.load, admitted.context.principal
        message = admitted.message
        assert message is not None
        if load.mayWait(load.accountOf(principal)):
            self._bound("max_calls_per_principal")
            timeout, _ = self._times.times(message)
            waiting = ModernWaiting(
                self.shared, admitted, timeout, self._serve, self._fail, self._waiting.discard
            )
            self._waiting.add(waiting)
            waiting.join()
        else:
            self._fail(admitted, *load.refused(principal, self.server.name))
            load.forget(principal)

    def _serve(self, admitted: Admitted) -> None:
        """From 3 on."""
        message, context = admitted.message, admitted.context
        assert message is not None
        if self._judges and not permits(self.shared.policy, Direction.TO_SERVER, message, context):
            self._fail(admitted, Reason.FORBIDDEN, "not permitted")
        elif self._before and (before := self._continued(admitted)) is not None:
            before._serve(admitted)
        elif self.parks(admitted):
            self._judged(admitted, self._callsOf(False))
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
            self._count(principal)

    def _ended(self, one: Passing | ModernReply) -> None:
        principal = self._open.pop(one, None)
        if principal is not None and not one.listens:
            self._countOut(principal)

    def _count(self, principal: Principal) -> None:
        """One more of its calls is let in."""
        load = self.shared.load
        load.total.calls += 1
        load.accountOf(principal).calls += 1

    def _countOut(self, principal: Principal) -> None:
        load = self.shared.load
        load.total.calls -= 1
        load.accountOf(principal).left()
        load.forget(principal)

    def _find(self, admitted: Admitted, eras: EraServer) -> None:
        """
        The server's era takes time to find: whoever leaves meanwhile climbs no further. What waits
        for it counts as what runs.
        """
        exchange, principal = admitted.exchange, admitted.context.principal
        message = admitted.message
        counts = message is not None and message.method != LISTEN
        finding = eras.findModern(admitted.context)
        gone: list[bool] = []

        self._finding += 1
        admitted.hadRoom = True
        if counts:
            self._count(principal)

        def over(_: object) -> None:
            # Last: by now it is counted as what it has become.
            self._finding -= 1
            if counts:
                self._countOut(principal)

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
        finding.addCallbacks(found, failed)
        finding.addErrback(self.ladder.broke, exchange)
        finding.addBoth(over)

    def _found(self, admitted: Admitted, modern: bool) -> None:
        server = self._eras.inner if self._eras is not None else None
        if self.successor is not None:
            self.successor(admitted)
        elif self.stopped:
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
                self._pool = newPool(shared, self.server)
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
            partial(self._learn, message, admitted.context.principal),
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
        differs = self._tools.disagreement(
            admitted.exchange.head, message, admitted.context.principal
        )
        if differs is not None:
            return refusals.headersDisagree(differs)
        if admitted.claim not in MODERN:
            return refusals.unsupportedModernVersion(admitted.claim or "", MODERN)
        if message.method == LISTEN and not admitted.events:
            return refusals.notAcceptable("text/event-stream")
        if message.method == "initialize":
            return refusals.methodNotFound()
        return None

    def _learn(self, request: Message, principal: Principal, answer: Message) -> None:
        """A list of tools says which of their parameters stand in the header."""
        result = answer.fields.get("result")
        if request.method == "tools/list" and result is not None:
            first = request.param("cursor") is None
            self._tools.learn(principal, bytes(result), first)

    def _fail(self, admitted: Admitted, reason: Reason, why: str) -> None:
        message = admitted.message
        assert message is not None
        self.shared.observer.observed(CallFailed(self.server.name, message.method, reason.value))
        refusal = failure(self.shared, reason, why)
        admitted.exchange.onGone = None
        admitted.exchange.answer(refusal.status, refusal.fields(), refusal.body(admitted.id))

    def _bound(self, name: str) -> None:
        self.shared.observer.observed(BoundReached(name, self.server.name))

    def _drop(self, why: str) -> None:
        self.shared.observer.observed(MessageDropped(self.server.name, why))


def _erasOf(server: object) -> EraServer | None:
    """What knows the era of a server, wherever it stands before the configured one."""
    while server is not None and not isinstance(server, EraServer):
        server = getattr(server, "inner", None)
    return server
