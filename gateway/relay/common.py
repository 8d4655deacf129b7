"""The relay of a server without sessions: all its clients share it, and each is counted apart."""

from __future__ import annotations

from attrs import define, field

from gateway.guard.load import Load
from gateway.links.interfaces import EventMark
from gateway.relay.effects import Answer, Call, Effect, Forward
from gateway.relay.relay import Relay
from gateway.wire.context import Principal

__all__ = ["CommonRelay"]


@define(eq=False)
class CommonRelay(Relay):
    """
    A Relay whose calls are counted in the accounts of whoever makes them, beside the total.

    load: has the accounts.
    """

    load: Load = field(kw_only=True)
    _counted: dict[Call, Principal] = field(factory=dict, init=False)

    def do(self, effects: list[Effect], mark: EventMark | None = None) -> None:
        for effect in effects:
            if isinstance(effect, Forward):
                self._runs(effect.call)
            elif isinstance(effect, Answer):
                self._left(effect.call)
        super().do(effects, mark)

    def _withdraw(self, call: Call, reason: str) -> None:
        self._left(call)
        super()._withdraw(call, reason)

    def _waits(self, call: Call) -> None:
        self._runs(call)

    def _runs(self, call: Call | None) -> None:
        # The gateway's own are nobody's, and what is sent once more is counted already.
        if call is not None and call.target is not None and call not in self._counted:
            self._counted[call] = call.context.principal
            self.load.accountOf(call.context.principal).calls += 1

    def _left(self, call: Call) -> None:
        principal = self._counted.pop(call, None)
        if principal is not None:
            self.load.accountOf(principal).left()
            self.load.forget(principal)
