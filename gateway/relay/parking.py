"""
The calls of a pool that wait for input of their clients, and the states that continue them.

A call is parked when its server asked something: its request is answered `input_required`, with a
sealed `requestState`; a later request that brings the state and the answers continues it
(MCP 2026-07-28, basic/patterns/mrtr). Pure but for the events of its bounds.

 1. At most `max_parked` of a server, and of them `max_parked_per_principal` of one principal.
 2. Each waits for `parked_for` seconds at most, and for `parked_beside` only where all sessions of
    its caller are taken by such calls and others of the caller wait for one.
 3. A state is good for one round of questions, of its own call, from whoever made that.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from attrs import define, field

from gateway.bridge.states import Named, States, bindingOf
from gateway.guard.limits import Limits
from gateway.relay.callers import Caller
from gateway.relay.identity import Identity
from gateway.relay.parked import ModernCall
from gateway.wire.context import CallContext, Principal
from gateway.wire.envelope import Message

__all__ = ["Parking"]

_NEVER = float("inf")


@define(eq=False)
class Parking:
    """
    The parked calls of one pool.

    bound: told the name of a bound that was reached. dropped: told why something reached nobody.
    """

    identity: Identity
    limits: Limits
    bound: Callable[[str], None]
    dropped: Callable[[str], None]
    _states: States = field(factory=States, init=False)
    _calls: dict[bytes, ModernCall] = field(factory=dict, init=False)

    def __len__(self) -> int:
        return len(self._calls)

    def __contains__(self, call: ModernCall) -> bool:
        return self._calls.get(call.name) is call

    def park(self, call: ModernCall, now: float) -> str:
        """Park a call that has asked its questions. Returns the state that continues it."""
        call.until = now + self.limits.parked_for
        state = self._states.seal(
            Named(call.name, call.round), self._bindingOf(call.request, call.context), call.until
        )
        self._calls[call.name] = call
        return state

    def hasRoom(self, principal: Principal) -> bool:
        """Whether one more call of a principal's may be parked; says so if not."""
        limits, full = self.limits, ""
        if len(self._calls) >= limits.max_parked:
            full = "max_parked"
        else:
            his = sum(call.context.principal == principal for call in self._calls.values())
            if his >= limits.max_parked_per_principal:
                full = "max_parked_per_principal"
        if full:
            self.bound(full)
        return not full

    def holds(self, message: Message, context: CallContext, now: float) -> bool:
        """Whether a request continues a call that is parked here, in its round or not."""
        return self._named(message, context, now) is not None

    def find(self, message: Message, context: CallContext, now: float) -> ModernCall | None:
        """The call that a request continues; None where its state is not valid."""
        found = self._named(message, context, now)
        return None if found is None or found[0].round != found[1].round else found[0]

    def leave(self, call: ModernCall) -> None:
        """Its client has come back."""
        del self._calls[call.name]

    def _named(
        self, message: Message, context: CallContext, now: float
    ) -> tuple[ModernCall, Named] | None:
        """The parked call that a request's state names, where it is that one's."""
        binding = self._bindingOf(message, context)
        named = self._states.open(message.paramText("requestState"), binding, now)
        call = None if named is None else self._calls.get(named.call)
        return None if call is None or named is None else (call, named)

    def _bindingOf(self, request: Message, context: CallContext) -> bytes:
        """What a state is bound to: the same for a request as the server gets it and its retry."""
        server = self.identity.server.name
        return bindingOf(context.principal, self.identity.nameOf(context), server, request)

    # Those who do not come back.

    def dueBeside(self, call: ModernCall) -> float:
        """When a call that was just parked is given up at the soonest, where others wait."""
        return call.until - self.limits.parked_for + self.limits.parked_beside

    def makeRoom(self, caller: Caller, now: float) -> float:
        """
        Where nobody answers what a caller's calls ask, the oldest must not hold up the rest.

        Returns: when to look again.
        """
        held = [call for pooled in caller.audience.sessions for call in pooled.calls]
        parked = [call for call in self._calls.values() if call in held]
        if not parked or len(parked) < len(held):
            return _NEVER
        due = self.dueBeside(parked[0])
        if due > now:
            return due
        self.bound("parked_beside")
        self._giveUp(parked[0], "The client asks for something else")
        return _NEVER

    def expire(self, now: float) -> None:
        """Give up those whose time is over."""
        for call in [call for call in self._calls.values() if call.until <= now]:
            self.bound("parked_for")
            self._giveUp(call, "The client did not answer in time")

    @property
    def dues(self) -> Iterable[float]:
        """When the time of each is over."""
        return (call.until for call in self._calls.values())

    def _giveUp(self, call: ModernCall, why: str) -> None:
        del self._calls[call.name]
        if call.outcome is not None:
            call.refuse(why)
            self.dropped("client_gone")
        else:
            call.cancel(why)

    def forget(self) -> None:
        """The pool is over: nobody can come back."""
        for _ in self._calls:
            self.dropped("client_gone")
        self._calls.clear()
