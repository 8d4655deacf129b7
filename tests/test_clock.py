"""The monotonic clock: deadlines that a step of the wall clock does not move."""

from __future__ import annotations

import pytest
from attrs import define, field
from twisted.internet.error import AlreadyCalled, AlreadyCancelled
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.internet.task import Clock
from zope.interface.verify import verifyObject

from gateway.clock import MonotonicClock


@define
class _Time:
    """A reactor whose wall clock can be stepped, and the monotonic time beside it."""

    wall: Clock = field(factory=Clock)
    monotonic: float = 1000.0
    fired: list[object] = field(factory=list)

    def clock(self) -> MonotonicClock:
        return MonotonicClock(self.wall, lambda: self.monotonic)

    def pass_(self, seconds: float) -> None:
        self.monotonic += seconds
        self.wall.advance(seconds)


def test_itProvidesItsInterfaces() -> None:
    clock = _Time().clock()
    assert verifyObject(IReactorTime, clock)
    assert verifyObject(IDelayedCall, clock.callLater(1, list))


def test_aCallIsMadeOnceWhenItsTimeHasPassed() -> None:
    time = _Time()
    clock = time.clock()
    assert clock.seconds() == 1000.0
    call = clock.callLater(5, lambda *args, **kwargs: time.fired.append((args, kwargs)), 1, b=2)
    assert call.active()
    assert call.getTime() == 1005.0
    assert len(clock.getDelayedCalls()) == 1
    time.pass_(4.5)
    assert time.fired == []
    time.pass_(0.5)
    assert time.fired == [((1,), {"b": 2})]
    assert not call.active()
    time.pass_(100)
    assert len(time.fired) == 1
    assert clock.getDelayedCalls() == []


def test_aStepOfTheWallClockForwardFiresNothingEarly() -> None:
    time = _Time()
    call = time.clock().callLater(60, time.fired.append, "x")
    time.wall.advance(3600)
    assert time.fired == []
    assert call.active()
    assert call.getTime() == 1060.0
    time.pass_(59)
    assert time.fired == []
    time.wall.advance(86400)
    assert time.fired == []
    time.pass_(1)
    assert time.fired == ["x"]


def test_nothingIsLateWhenMonotonicTimeRanAhead() -> None:
    time = _Time()
    time.clock().callLater(60, time.fired.append, "x")
    time.monotonic += 500
    time.wall.advance(60)
    assert time.fired == ["x"]


def test_aCancelledCallIsNeverMade() -> None:
    time = _Time()
    clock = time.clock()
    call = clock.callLater(5, time.fired.append, "x")
    call.cancel()
    assert not call.active()
    assert clock.getDelayedCalls() == []
    time.pass_(10)
    assert time.fired == []


def test_aCallArmedAgainCanBeCancelled() -> None:
    time = _Time()
    clock = time.clock()
    call = clock.callLater(5, time.fired.append, "x")
    time.wall.advance(50)
    call.cancel()
    assert clock.getDelayedCalls() == []
    time.pass_(50)
    assert time.fired == []


def test_resetCountsFromNow() -> None:
    time = _Time()
    clock = time.clock()
    call = clock.callLater(5, time.fired.append, "x")
    time.pass_(4)
    call.reset(3)
    assert call.active()
    assert call.getTime() == 1007.0
    assert len(clock.getDelayedCalls()) == 1
    time.pass_(2.5)
    assert time.fired == []
    time.pass_(0.5)
    assert time.fired == ["x"]
    assert clock.getDelayedCalls() == []


def test_resetMayBringACallForward() -> None:
    time = _Time()
    call = time.clock().callLater(500, time.fired.append, "x")
    call.reset(1)
    time.pass_(1)
    assert time.fired == ["x"]


def test_delayCountsFromItsTime() -> None:
    time = _Time()
    clock = time.clock()
    call = clock.callLater(5, time.fired.append, "x")
    time.pass_(4)
    call.delay(3)
    assert call.getTime() == 1008.0
    time.pass_(3.5)
    assert time.fired == []
    time.pass_(0.5)
    assert time.fired == ["x"]
    assert clock.getDelayedCalls() == []


def test_aCallDueInThePastIsMadeAtOnce() -> None:
    time = _Time()
    clock = time.clock()
    clock.callLater(0, time.fired.append, "now")
    time.wall.advance(0)
    assert time.fired == ["now"]


def test_withoutAnotherTimeItIsMonotonic() -> None:
    clock = MonotonicClock(Clock())
    assert clock.seconds() <= clock.seconds()


def test_aCallThatIsOverCannotBeMovedOrCancelled() -> None:
    time = _Time()
    clock = time.clock()
    called = clock.callLater(0, lambda: None)
    time.pass_(1)
    cancelled = clock.callLater(1, lambda: None)
    cancelled.cancel()
    for call, error in ((called, AlreadyCalled), (cancelled, AlreadyCancelled)):
        assert not call.active()
        with pytest.raises(error):
            call.cancel()
        with pytest.raises(error):
            call.reset(1)
        with pytest.raises(error):
            call.delay(1)
