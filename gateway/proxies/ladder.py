"""
Every check of a request, in one numbered order, for all three proxies.

 From the head; the body is unread, the refusal carries no id:
  1. framing        the Host is there once and well-formed            400 -32000
  2. host, origin   both are allowed                                  403 -32000
  3. route          the raw path is a route's own spelling            404 -32000
  4. method         the route serves it; OPTIONS is answered here     405 -32000
  5. authentication who asks                                          401 -32000
  6. authorization  may they use this server at all                   403 -32000
  7. content        declared size, Content-Type, Accept               413, 415, 406 -32000
 With the body, and its id where it has one:
  8. body           at most `max_body` bytes                          413 -32000
  9. session        the session is there, this server's, theirs       404 -32001, 400 -32000
 10. JSON           UTF-8, JSON, depth, no member twice               400 -32700
 11. message        JSON-RPC 2.0; a batch only where it may be        400 -32600
 12. era            what is of no one era, or at a door of another    400 -32602, -32600, -32022
 13. version        MCP-Protocol-Version is one we know               400 -32000
 14. link           the proxy's own: the server is reached            200 -32000

The first rung that fails answers. `initialize` and modern messages need no session: their bodies
are read to know them before rung 9 judges. Rungs 1 and 2 are climbed by the door for every path,
so that a path tells a foreign Host nothing.

What claims a version in its body is modern, and so is a notification with a modern
MCP-Protocol-Version (wire contract, "Modern era"). At a Streamable HTTP route it leaves the ladder
behind rung 11 and a look at its claim: session ids and Last-Event-ID say nothing to it, and whether
its version is served is the server's to say (`gateway.proxies.modern`). Over HTTP+SSE it is refused
on the stream. A modern MCP-Protocol-Version alone makes nothing else modern: a request without the
claim is -32602, a response or a batch -32600, GET and DELETE 405.
"""

from __future__ import annotations

from functools import partial

from attrs import define, field
from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from gateway.guard.authentication import NotAuthenticated
from gateway.observe.observer import BoundReached, RequestRefused
from gateway.proxies import crossorigin
from gateway.proxies.admitted import Admitted, Then, eraRefusal, unfit
from gateway.proxies.entrance import Entrance, Found, Naming, find
from gateway.proxies.shared import Shared
from gateway.sessions.store import Gone, Local, Remote
from gateway.wire import refusals
from gateway.wire.context import Principal
from gateway.wire.envelope import REQUEST, RESPONSE, Message, NotAMessage, NotJSON, decode, text
from gateway.wire.exchange import Exchange
from gateway.wire.refusals import Refusal
from gateway.wire.revisions import MODERN, VERSION_CLAIM, claimedVersion

__all__ = ["Ladder"]

_HEADER, _QUERY = Naming


@define(eq=False)
class Ladder:
    """Judges requests; what comes up is handed to a proxy, everything else is answered here."""

    shared: Shared
    _log: Logger = field(factory=Logger, init=False)

    def foot(self, exchange: Exchange) -> bool:
        """Rungs 1 and 2. Returns whether the request goes on; otherwise it is answered."""
        if exchange.found is not None:
            exchange.allowed = True
            return True
        refusal = self.shared.guard.judge(exchange.head)
        if refusal is None:
            exchange.allowed = True
            return True
        self.refuse(exchange, refusal, "framing" if refusal.status == 400 else "host, origin")
        return False

    def climb(self, exchange: Exchange, entrance: Entrance, then: Then) -> None:
        """Rungs 3 to 13."""
        head = exchange.head
        found = exchange.found
        if found is None or found.entrance is not entrance:
            if head.path.removesuffix(b"/") != entrance.path:
                return self.refuse(exchange, refusals.notFound(), "route")
            if head.method == b"OPTIONS":
                preflight = crossorigin.preflight(head, entrance.allow)
                return exchange.answer(204, preflight)
            if head.method not in entrance.methods:
                refusal = refusals.methodNotAllowed(entrance.allow)
                return self.refuse(exchange, refusal, "method")
        try:
            principal = self.shared.authenticator.authenticate(head)
        except NotAuthenticated as error:
            return self._notAuthenticated(exchange, error)
        # Not the other way round: whether something is a Deferred is dear to ask.
        if not isinstance(principal, Principal):
            return self._awaited(principal, exchange, entrance, then)
        return self._authenticated(exchange, entrance, principal, then)

    def _awaited(
        self, principal: Deferred[Principal], exchange: Exchange, entrance: Entrance, then: Then
    ) -> None:
        """Rung 5, where it takes time: whoever left meanwhile climbs no further."""
        gone: list[bool] = []
        exchange.onGone = lambda: gone.append(True)

        def known(who: Principal) -> None:
            exchange.onGone = None
            if not gone:
                self._authenticated(exchange, entrance, who, then)

        principal.addCallbacks(
            known, lambda failure: self._notAuthenticated(exchange, failure.value)
        )
        principal.addErrback(self.broke, exchange)

    def _notAuthenticated(self, exchange: Exchange, error: BaseException | None) -> None:
        if isinstance(error, NotAuthenticated):
            refusal = refusals.notAuthenticated(error.challenge)
            self.refuse(exchange, refusal, "authentication")
        else:
            self.broke(Failure(error), exchange)

    def broke(self, failure: Failure, exchange: Exchange) -> None:
        """A flow failed as none should: the client is cut, the log knows why."""
        self._log.failure("a request broke the gateway", failure)
        exchange.abort()

    def _authenticated(
        self, exchange: Exchange, entrance: Entrance, principal: Principal, then: Then
    ) -> None:
        head = exchange.head
        found: Found | None = exchange.found
        if (
            found is None
            or found.entrance is not entrance
            or found.context.principal is not principal
        ):
            found = find(head, entrance, principal, self.shared.limits.max_body)
        context, late = found.context, found.refusal
        if not self.shared.policy.admits(context):
            return self.refuse(exchange, refusals.notPermitted(), "authorization")
        if late is None:
            exchange.found = found
        elif late.status == 413 or entrance.naming is _HEADER or head.method != b"POST":
            if late.status == 413:
                self.shared.observer.observed(BoundReached("max_body", context.server))
            return self.refuse(exchange, late, "content")
        admitted = Admitted(exchange, context, found.json, found.events, found.version)
        if head.method != b"POST":
            return self._named(admitted, found, None, then)
        return exchange.collect(
            self.shared.limits.max_body,
            partial(self._collected, admitted, found, then),
        )

    def judgeAnew(self, admitted: Admitted, entrance: Entrance) -> None:
        """Have a request that came up by another entrance stand as if it had come by this one."""
        head, principal = admitted.exchange.head, admitted.context.principal
        found = find(head, entrance, principal, self.shared.limits.max_body)
        admitted.context = found.context

    def _collected(self, admitted: Admitted, found: Found, then: Then, body: bytes | None) -> None:
        """Rung 8, and as much of 10 and 11 as rung 9 needs to know."""
        late = found.refusal
        if body is None:
            self.shared.observer.observed(BoundReached("max_body", found.context.server))
            refusal = refusals.tooLarge(self.shared.limits.max_body)
            return self.refuse(admitted.exchange, refusal, "body")
        admitted.refusal = late
        try:
            decoded = decode(body)
        except NotJSON as error:
            admitted.refusal = late or refusals.notJSON(str(error))
        except NotAMessage as error:
            admitted.id = error.id
            admitted.refusal = late or refusals.notAMessage(str(error))
        else:
            if isinstance(decoded, Message):
                admitted.message = decoded
                admitted.id = decoded.id if decoded.kind is not RESPONSE else None
                claim = claimedVersion(decoded, admitted.version)
                if claim is not None:
                    admitted.claim, admitted.body = claim, body
            else:
                admitted.batch = decoded
        return self._named(admitted, found, admitted.message, then)

    # Rung 9.

    def _named(self, admitted: Admitted, found: Found, message: Message | None, then: Then) -> None:
        entrance, method = found.entrance, admitted.exchange.head.method
        if entrance.naming is _QUERY:
            if method == b"GET":
                return then(admitted)
        elif message is None:
            if method != b"POST" and admitted.version in MODERN:
                return self._postOnly(admitted)
        elif admitted.claim is not None:
            return self._modern(admitted, message, then)
        elif message.method == "initialize" and message.kind is REQUEST:
            return self._judged(admitted, entrance, then)
        names = found.sessions
        if not names:
            return self._unnamed(admitted, entrance, then)
        name = names[0].decode("latin-1") if len(names) == 1 else ""
        server, principal = found.context.server, found.context.principal
        starts = method != b"DELETE" and (message is None or message.kind is REQUEST)
        session = self.shared.registry.find(name, server, principal, starts=starts)
        # What is another transport's session does not exist for this one.
        if session is not None and session.record.transport == entrance.transport:
            admitted.session = session
            session.use(self.shared.clock.seconds())
            plain = found.tolerated and admitted.claim is None
            if plain and message is not None and admitted.refusal is None:
                # Nothing is left to judge of a legacy message.
                return then(admitted)
            return self._judged(admitted, entrance, then)
        located = self.shared.registry.locate(name, server, principal)
        located.addCallback(self._located, admitted)
        located.addErrback(self.broke, admitted.exchange)
        return None

    def _modern(self, admitted: Admitted, message: Message, then: Then) -> None:
        """What is left to judge of a modern message at a Streamable HTTP route."""
        claim = message.meta(VERSION_CLAIM)
        if claim is not None and text(claim) is None and message.kind is REQUEST:
            refusal = refusals.invalidParams(f"{VERSION_CLAIM} is a string")
            return self.refuse(admitted.exchange, refusal, "era", admitted.id)
        return then(admitted)

    def _located(self, where: Local | Remote | Gone, admitted: Admitted) -> None:
        """A session of another process is served there; here it is as good as gone."""
        self.refuse(admitted.exchange, refusals.sessionNotFound(), "session", admitted.id)

    def _unnamed(self, admitted: Admitted, entrance: Entrance, then: Then) -> None:
        if entrance.naming is _QUERY:
            refusal = refusals.sessionRequired("the session_id that GET /sse names")
            return self.refuse(admitted.exchange, refusal, "session", admitted.id)
        if entrance.sessionless() is not False:
            if admitted.exchange.head.method != b"POST":
                return self._postOnly(admitted)
            return self._judged(admitted, entrance, then)
        if admitted.refusal is not None:
            return self._refuseLate(admitted)
        if admitted.batch is not None:
            refusal = refusals.notAMessage("a batch is not allowed here")
            return self.refuse(admitted.exchange, refusal, "message")
        misfit = eraRefusal(admitted)
        if misfit is not None:
            return self.refuse(admitted.exchange, misfit, "era", admitted.id)
        refusal = refusals.sessionRequired("Mcp-Session-Id; start with initialize")
        return self.refuse(admitted.exchange, refusal, "session", admitted.id)

    def _postOnly(self, admitted: Admitted) -> None:
        refusal = refusals.methodNotAllowed(b"POST, OPTIONS")
        self.refuse(admitted.exchange, refusal, "method")

    # Rungs 10 to 13.

    def _judged(self, admitted: Admitted, entrance: Entrance, then: Then) -> None:
        late = entrance.naming is _QUERY
        if admitted.refusal is not None:
            return then(admitted) if late else self._refuseLate(admitted)
        found = unfit(admitted, self.shared.limits, self.shared.observer)
        if found is None:
            return then(admitted)
        rung, admitted.refusal = found
        return then(admitted) if late else self._refuseLate(admitted, rung)

    def _refuseLate(self, admitted: Admitted, rung: str = "") -> None:
        assert admitted.refusal is not None
        rung = rung or ("JSON" if admitted.refusal.code == -32700 else "message")
        self.refuse(admitted.exchange, admitted.refusal, rung, admitted.id)

    def refuse(
        self, exchange: Exchange, refusal: Refusal, rung: str, id: bytes | None = None
    ) -> None:
        """Answer with a refusal."""
        self.shared.observer.observed(RequestRefused(rung, refusal.status, refusal.code))
        exchange.onGone = None
        exchange.answer(refusal.status, refusal.fields(), refusal.body(id))
