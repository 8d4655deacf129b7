"""The modern calls to one child: its making, its loss, cancellations, bounds and its end."""

from __future__ import annotations

import json
from typing import Any

import pytest
from attrs import define, field
from link_support import Observed
from modern_support import SUBSCRIPTION, ModernServer, enveloped
from relay_support import MemoryTarget
from twisted.internet.task import Clock
from zope.interface import implementer

from gateway.guard.limits import Limits
from gateway.guard.policy import AllowAll, Direction, IPolicy
from gateway.links.interfaces import NotModern, Outcome, Reason
from gateway.observe.observer import BoundReached, CallAnswered, CallFailed, CallStarted
from gateway.relay.modern_relay import ModernRelay
from gateway.testing.scripted import ScriptedLink, Sent, message
from gateway.wire.context import CallContext

CONTEXT = CallContext("one")
LOG = "io.modelcontextprotocol/logLevel"


@define(eq=False)
class Bench:
    """A relay on a scripted child."""

    server: ModernServer = field(factory=ModernServer)
    limits: Limits = field(factory=Limits)
    policy: IPolicy = field(factory=AllowAll)
    clock: Clock = field(factory=Clock)
    observed: Observed = field(factory=Observed)
    relay: ModernRelay = field(init=False)

    def __attrs_post_init__(self) -> None:
        self.relay = ModernRelay(
            self.server,
            self.policy,
            self.limits,
            self.clock,
            self.observed,
        )

    def ask(
        self,
        id: object = 7,
        method: str = "tools/call",
        target: MemoryTarget | None = None,
        context: CallContext = CONTEXT,
        **params: Any,
    ) -> MemoryTarget:
        """Send a request. Returns where its answer goes."""
        target = target or MemoryTarget()
        self.relay.request(message(enveloped(method, id, **params)), target, context)
        return target

    def listen(self, id: object = 7, target: MemoryTarget | None = None) -> MemoryTarget:
        return self.ask(id, "subscriptions/listen", target, notifications={})

    @property
    def link(self) -> ScriptedLink:
        return self.server.newest

    def last(self, method: str = "tools/call") -> Sent:
        return self.link.last(method)

    def says(self, sent: Sent, method: str = "notifications/tools/list_changed") -> None:
        """The child says something to who listens."""
        params = b'{"_meta":{"%b":%b}}' % (SUBSCRIPTION.encode(), sent.id)
        self.link.push(b'{"jsonrpc":"2.0","method":"%b","params":%b}' % (method.encode(), params))

    def of(self, kind: type[Any]) -> list[Any]:
        return [event for event in self.observed.events if isinstance(event, kind)]


def test_oneChildForAllMadeForTheFirstAndAgainAfterALoss() -> None:
    bench = Bench()
    assert bench.server.handshakes == 0
    first = bench.ask("a")
    second = bench.ask("a", x=1)
    assert bench.server.handshakes == 1
    one, two = bench.link.of("tools/call")
    assert one.id != two.id
    bench.link.reply(two, b'{"n":2.0}')
    bench.link.reply(one, b'{"n":1.0}')
    assert first.answers[0].encode() == b'{"jsonrpc":"2.0","id":"a","result":{"n":1.0}}'
    assert second.answers[0].encode() == b'{"jsonrpc":"2.0","id":"a","result":{"n":2.0}}'
    assert not bench.relay.running
    bench.link.lose()
    third = bench.ask("b")
    assert bench.server.handshakes == 2
    bench.link.reply(bench.last())
    assert third.json["result"] == {}
    assert [type(event) for event in bench.of(CallStarted)] == [CallStarted] * 3
    assert len(bench.of(CallAnswered)) == 3


def test_whileTheChildIsMadeCallsWaitInOrderAndMayLeave() -> None:
    bench = Bench()
    bench.server.handshakeHeld = True
    targets = [bench.ask(n) for n in range(3)]
    assert bench.server.handshakes == 1 and bench.relay.running
    bench.relay.gone(targets[1])
    bench.server.finishHandshake()
    assert [json.loads(sent.message.encode())["id"] for sent in bench.link.sent] == [1, 3]
    assert bench.link.of("notifications/cancelled") == []


def test_aChildThatCannotBeMadeFailsWhoWaits() -> None:
    bench = Bench()
    bench.server.handshakeHeld = True
    targets = [bench.ask(n) for n in range(2)]
    bench.server.failNext(Reason.UPSTREAM_UNREACHABLE)
    bench.server.finishHandshake()
    assert [target.reason for target in targets] == ["upstream_unreachable"] * 2
    assert len(bench.of(CallFailed)) == 2
    # The next is made for the next call: at once, then with a back-off.
    bench.server.handshakeHeld = False
    bench.server.failures.append(NotModern(Reason.BAD_ANSWER, "it is of the legacy era"))
    third = bench.ask(3)
    bench.clock.advance(60.0)
    assert third.reason == "bad_answer"


@pytest.mark.acceptance(30)
def test_acceptance_30_whoLeavesHasCancelledAndHearsNothingMore() -> None:
    bench = Bench()
    for make, method in ((bench.ask, "tools/call"), (bench.listen, "subscriptions/listen")):
        target = make("a")
        sent = bench.last(method)
        bench.relay.gone(target)
        cancelled = bench.last("notifications/cancelled")
        assert cancelled.message.param("requestId") == sent.id
        assert sent.call in bench.link.cancelled
        bench.link.reply(sent)
        bench.says(sent)
        bench.relay.gone(target)
        assert target.answers == [] and target.delivered == []
        assert bench.observed.dropped == ["late_answer", "no_subscription"]
        bench.observed.events.clear()
    assert len(bench.link.of("notifications/cancelled")) == 2
    assert not bench.relay.running


def test_messagesReachTheirOwnCall() -> None:
    bench = Bench()
    first = bench.ask(1, meta={"progressToken": "t", LOG: "info"})
    second = bench.ask(2)
    one, _ = bench.link.of("tools/call")
    bench.link.push(
        b'{"jsonrpc":"2.0","method":"notifications/progress","params":'
        b'{"progressToken":%b,"progress":1.0}}' % one.id
    )
    bench.link.push(
        b'{"jsonrpc":"2.0","method":"notifications/message","params":{"level":"info","data":1}}'
    )
    progress, log = first.delivered
    assert progress.encode() == (
        b'{"jsonrpc":"2.0","method":"notifications/progress","params":'
        b'{"progressToken":"t","progress":1.0}}'
    )
    assert log.method == "notifications/message"
    assert second.delivered == []


def test_whatATargetDoesNotTakeIsCounted() -> None:
    bench = Bench()
    target = bench.listen("a", MemoryTarget(takes=False))
    bench.says(bench.last("subscriptions/listen"))
    assert target.delivered == [] and bench.observed.dropped == ["undeliverable"]


def test_streamsOfWhoListensEndWithTheChildOrByIt() -> None:
    bench = Bench()
    call = bench.ask(1)
    streams = [bench.listen(n) for n in range(2)]
    one, _ = bench.link.of("subscriptions/listen")
    bench.says(one, "notifications/subscriptions/acknowledged")
    assert streams[0].delivered[0].meta(SUBSCRIPTION) == b"0"
    told = b'{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":%b}}'
    bench.link.push(told % one.id)
    assert streams[0].closed and not streams[1].closed
    bench.link.lose()
    assert call.reason == "server_exited"
    assert streams[1].closed and streams[1].answers == []


def test_aCallThatTakesTooLongIsCancelled() -> None:
    bench = Bench(ModernServer(timeout=10.0, max_timeout=25.0))
    target, stream = bench.ask(1), bench.listen(2)
    bench.clock.advance(9.9)
    assert target.answers == []
    bench.clock.advance(0.1)
    assert target.reason == "timeout"
    sent = bench.last()
    assert bench.last("notifications/cancelled").message.param("requestId") == sent.id
    bench.clock.advance(10_000.0)
    assert stream.answers == [] and not stream.closed
    assert not bench.clock.getDelayedCalls()


def test_callsAndStreamsAreBounded() -> None:
    bench = Bench(limits=Limits(max_modern_calls=1, max_listens=1))
    bench.ask(1)
    bench.listen(2)
    for make, bound in ((bench.ask, "max_modern_calls"), (bench.listen, "max_listens")):
        bench.observed.events.clear()
        target = make("z")
        assert target.answers == [], "answered from within request"
        bench.clock.advance(0)
        assert target.reason == "overloaded" and target.json["id"] == "z"
        assert bench.of(BoundReached) == [BoundReached(bound, "one")]
    assert len(bench.link.sent) == 2


def test_aChildThatDoesNotReadIsOverloaded() -> None:
    bench = Bench()
    bench.ask(1)
    bench.link.full = True
    target = bench.ask(2)
    assert target.answers == []
    bench.clock.advance(0)
    assert target.reason == "overloaded"


def test_aCancellationWaitsForRoomInTheChildsQueue() -> None:
    bench = Bench()
    targets = [bench.ask(n) for n in range(3)]
    bench.link.full = True
    for target in targets[:2]:
        bench.relay.gone(target)
    bench.link.full = False
    bench.link.listener.drained()
    told = bench.link.of("notifications/cancelled")
    assert [sent.message.param("requestId") for sent in told] == [b"1", b"2"]
    bench.link.listener.drained()
    assert len(bench.link.of("notifications/cancelled")) == 2
    # Of a child that is gone nothing is left to cancel.
    bench.link.full = True
    bench.relay.gone(targets[2])
    bench.link.lose()
    bench.ask(4)
    bench.link.listener.drained()
    assert bench.link.of("notifications/cancelled") == []


def test_anAnswerThatIsMalformedFailsItsCallAlone() -> None:
    bench = Bench()
    first, second = bench.ask(1), bench.ask(2)
    sent = bench.link.of("tools/call")[0]
    bench.link.settle(sent, Reason.BAD_ANSWER, "malformed", Outcome.MAYBE_RAN)
    assert first.reason == "bad_answer" and second.answers == []


def test_atTheEndWhoListensIsAnsweredAndTheChildClosed() -> None:
    bench = Bench()
    call, stream = bench.ask(1), bench.listen("a")
    link = bench.link
    link.slowClose = True
    stopped: list[None] = []
    bench.relay.stop().addCallback(stopped.append)
    assert call.reason == "shutting_down"
    assert stream.json == {
        "jsonrpc": "2.0",
        "id": "a",
        "result": {"resultType": "complete", "_meta": {SUBSCRIPTION: "a"}},
    }
    assert link.closed and not stopped
    link.finishClose()
    assert stopped == [None]
    late = bench.ask(2)
    assert late.answers == []
    bench.clock.advance(0)
    assert late.reason == "shutting_down"
    assert bench.server.handshakes == 1 and not bench.clock.getDelayedCalls()


def test_theEndWhileTheChildIsMade() -> None:
    bench = Bench()
    bench.server.handshakeHeld = True
    target = bench.ask(1)
    bench.relay.stop()
    assert target.reason == "shutting_down"
    assert bench.server.givenUp == 1 and len(target.answers) == 1


@implementer(IPolicy)
@define
class Silences:
    """Lets one principal's log messages pass alone."""

    asked: list[tuple[str, CallContext]] = field(factory=list)

    def admits(self, context: CallContext) -> bool:
        return True

    def allows(self, direction: Direction, method: str, name: str, context: CallContext) -> bool:
        assert direction is Direction.TO_CLIENT
        self.asked.append((method, context))
        return method != "notifications/tools/list_changed"


def test_thePolicyIsAskedOfWhatGoesToAClient() -> None:
    policy = Silences()
    bench = Bench(policy=policy)
    context = CallContext("one", host=b"h")
    target = MemoryTarget()
    bench.ask("a", "subscriptions/listen", target, context, notifications={})
    bench.says(bench.last("subscriptions/listen"))
    bench.says(bench.last("subscriptions/listen"), "notifications/resources/updated")
    assert [told.method for told in target.delivered] == ["notifications/resources/updated"]
    assert bench.observed.dropped == ["forbidden"]
    assert all(asked is context for _, asked in policy.asked)
