"""The queue of one principal's calls, pure: whatever begins, ends and is given up."""

from __future__ import annotations

from attrs import define, field
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from stdio_support import Observed

from gateway.guard.limits import Limits
from gateway.guard.load import Account, Load
from gateway.wire.context import ANONYMOUS


@define(eq=False)
class Call:
    """One that waits, and ends at once when it begins if it is `short`."""

    number: int
    machine: Turns
    short: bool
    over: bool = field(default=False, init=False)

    def waits(self) -> bool:
        return not self.over and self not in self.machine.running

    def comes(self) -> None:
        self.machine.begun(self)


class Turns(RuleBasedStateMachine):
    """At most so many run, in the order they came, and nobody waits where there is room."""

    def __init__(self) -> None:
        super().__init__()
        limits = Limits(max_calls_per_principal=2, max_waiting_per_principal=4)
        self.load = Load(limits, Observed())
        self.account: Account = self.load.accountOf(ANONYMOUS)
        self.running: list[Call] = []
        self.waiting: list[Call] = []
        self.count = 0

    def begun(self, call: Call) -> None:
        self.running.append(call)
        if call in self.waiting:
            assert call is self.waiting[0], "first come, first served"
            self.waiting.remove(call)
        assert len(self.running) <= self.load.each
        if call.short:
            self.end(call)

    def end(self, call: Call) -> None:
        call.over = True
        for calls in (self.running, self.waiting):
            if call in calls:
                calls.remove(call)
        self.load.total.calls -= 1
        self.account.left()

    @rule(short=st.booleans())
    def ask(self, short: bool) -> None:
        self.count += 1
        call = Call(self.count, self, short)
        room, waits = self.load.has(ANONYMOUS), self.load.mayWait(self.account)
        assert not (room and waits)
        assert (room or waits) is (len(self.running) + len(self.waiting) < 6)
        if not (room or waits):
            return
        self.load.total.calls += 1
        self.account.calls += 1
        if room:
            self.begun(call)
        else:
            self.waiting.append(call)
            self.load.wait(self.account, call)

    @rule(data=st.data())
    def ends(self, data: st.DataObject) -> None:
        if self.running:
            self.end(data.draw(st.sampled_from(self.running)))

    @rule(data=st.data())
    def givenUp(self, data: st.DataObject) -> None:
        if self.waiting:
            self.end(data.draw(st.sampled_from(self.waiting)))

    @invariant()
    def nobodyWaitsForNothing(self) -> None:
        assert self.account.calls == len(self.running) + len(self.waiting)
        assert not self.waiting or len(self.running) == self.load.each
        assert len(self.account.queue or ()) == len(self.waiting)


TestTurns = Turns.TestCase


def test_whoWaitsBeginsWhereALimitIsRaised() -> None:
    machine = Turns()
    for _ in range(4):
        machine.ask(False)
    assert (len(machine.running), len(machine.waiting)) == (2, 2)
    machine.load.limits.adopt(Limits(max_calls_per_principal=9))
    machine.load.adopted()
    assert (len(machine.running), len(machine.waiting)) == (4, 0)
