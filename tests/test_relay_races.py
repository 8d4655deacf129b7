"""
Whatever happens to a session in whatever order: each call that was taken ends exactly once, with
its own id and by its deadline; nothing may have run twice unless that is allowed; nothing is left.

A relay with its router, keeper and sender, between a client and a scripted server that do what
hypothesis says: calls, answers, progress, questions, cancellations, lost links and lost sessions,
handshakes that fail or hang, a full queue, and the end of the session at any moment.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from attrs import define, field
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from relay_support import CONTEXT, Bench, MemoryTarget, notify, response
from twisted.internet.defer import Deferred
from twisted.logger import LogLevel, globalLogPublisher

from gateway.links.interfaces import EventMark, LinkFailed, Outcome, Reason
from gateway.relay.replays import SAFE
from gateway.relay.sender import SessionOver
from gateway.testing.scripted import ScriptedLink, ScriptedServer, Sent
from gateway.wire.envelope import Kind, Message

TIMEOUT, MOST = 30.0, 100.0
METHODS = ["tools/call", "tools/list", "logging/setLevel"]

picks = st.integers(0, 5)
"""Which of several; taken modulo their number."""
seldom = st.sampled_from([False] * 9 + [True])
"""For what would end most examples early."""


@define(eq=False)
class Stream(MemoryTarget):
    """then: done when something comes, from within."""

    then: Callable[[], None] | None = None

    def deliver(self, message: Message, mark: EventMark | None = None) -> bool:
        then, self.then = self.then, None
        if then is not None:
            then()
        return super().deliver(message, mark)


@define(eq=False)
class Asked(MemoryTarget):
    """
    A call of the client, and where its answer goes.

    then: done when it has ended, from within. ranOn: the requests it was sent as that may have run.
    refused: how often a server that had lost its session refused it.
    """

    number: int = 0
    refused: int = 0
    method: str = ""
    then: Callable[[], None] | None = None
    gone: bool = False
    ranOn: list[Sent] = field(factory=list)

    @property
    def ends(self) -> int:
        return len(self.answers) + len(self.losses)

    def answer(self, message: Message, mark: EventMark | None = None) -> None:
        super().answer(message, mark)
        self._ended()

    def lost(self, id: bytes) -> None:
        super().lost(id)
        self._ended()

    def _ended(self) -> None:
        then, self.then = self.then, None
        if then is not None:
            then()


class Races(RuleBasedStateMachine):
    """One session, from before its handshake to after its end."""

    def __init__(self) -> None:
        super().__init__()
        self.failures: list[Any] = []
        globalLogPublisher.addObserver(self._logged)

    def _logged(self, event: Any) -> None:
        if event["log_level"] is LogLevel.critical:
            self.failures.append(event)

    @initialize(
        http=st.booleans(),
        transparent=st.booleans(),
        on_exit=st.sampled_from(["recover", "lost"]),
        replay=st.sampled_from(["none", "safe"]),
        held=seldom,
    )
    def begin(self, http: bool, transparent: bool, on_exit: str, replay: str, held: bool) -> None:
        server = ScriptedServer(
            http=http, on_exit=on_exit, replay=replay, timeout=TIMEOUT, max_timeout=MOST
        )
        server.handshakeHeld = held
        self.replay = replay
        self.bench = Bench(server, transparent=transparent and http)
        self.server, self.clock = server, self.bench.clock
        self.calls: list[Asked] = []
        self.late = 0
        """How many were asked after the end."""
        self.told: list[list[bool]] = []
        self.streams: list[MemoryTarget] = []
        self.over: set[int] = set()
        """The ids (of Python) of what was sent and is answered, settled or accepted."""
        self.opened: list[object] = []
        self.waiters: list[Deferred[Any]] = []
        self.bench.opening().addCallbacks(self._opened, self._notOpened)

    def _opened(self, answer: object) -> None:
        self.opened.append(answer)
        self.bench.session.opened(self.clock.seconds())

    def _notOpened(self, failure: Any) -> None:
        assert failure.check(LinkFailed)
        self.opened.append(failure.value)
        self.bench.registry.end(self.bench.session, "failed")

    # What there is.

    @property
    def ended(self) -> bool:
        return bool(self.bench.session.ended)

    @property
    def isOpen(self) -> bool:
        return bool(self.opened) and isinstance(self.opened[0], Message)

    def pending(self, *, notes: bool = False) -> list[tuple[ScriptedLink, Sent]]:
        """What a server that lives has been sent and has not answered, settled or accepted."""
        return [
            (link, sent)
            for link in self.server.open
            for sent in link.sent
            if id(sent) not in self.over
            and (sent.call is not None if notes else sent.message.kind is Kind.REQUEST)
            and (sent.message.kind is not Kind.REQUEST or not notes)
            # Over HTTP its response is closed.
            and (link.multiplexed or sent.call not in link.cancelled)
        ]

    def running(self) -> list[Asked]:
        return [call for call in self.calls if not call.ends]

    def _done(self, sent: Sent, *, ran: bool = True) -> None:
        self.over.add(id(sent))
        if not ran:
            number = sent.message.param("n")
            if number is not None:
                self.calls[int(number)].ranOn.remove(sent)
                self.calls[int(number)].refused += 1

    # The client.

    @precondition(lambda self: self.isOpen and self.late < 3)
    @rule(
        method=st.sampled_from(METHODS),
        streams=st.booleans(),
        token=st.booleans(),
        then=st.sampled_from(["", "", "", "", "", "ask", "end"]),
        more=st.integers(0, 3),
    )
    def ask(self, method: str, streams: bool, token: bool, then: str, more: int) -> None:
        self._ask(method, streams, token, then)
        for _ in range(more):
            self._ask(method)

    def _ask(self, method: str, streams: bool = True, token: bool = False, then: str = "") -> None:
        self.late += self.ended
        number = len(self.calls)
        asked = Asked(number=number, method=method)
        if then == "ask":
            asked.then = lambda: self._ask(method)
        elif then == "end":
            asked.then = lambda: self._end("deleted")
        self.calls.append(asked)
        meta = ',"_meta":{"progressToken":"t"}' if token else ""
        params = f'{{"level":"info","n":{number}{meta}}}'
        self.bench.ask(number, method, params, asked, streams)

    @precondition(lambda self: self.isOpen and not self.bench.session.record.initialized)
    @rule()
    def initialized(self) -> None:
        self.told.append(self.bench.tell(notify("notifications/initialized")))

    @precondition(lambda self: self.isOpen and not self.ended and self.calls)
    @rule(which=picks)
    def cancel(self, which: int) -> None:
        number = self.calls[which % len(self.calls)].number
        said = notify("notifications/cancelled", f'{{"requestId":{number}}}')
        self.told.append(self.bench.tell(said))

    @precondition(lambda self: self.isOpen and not self.ended)
    @rule(id=st.integers(1, 3))
    def respond(self, id: int) -> None:
        self.told.append(self.bench.tell(response(b"%d" % id)))

    @precondition(lambda self: self.running())
    @rule(which=picks)
    def leave(self, which: int) -> None:
        running = self.running()
        call = running[which % len(running)]
        call.gone = True
        self.bench.relay.gone(call)

    @precondition(lambda self: self.isOpen and not self.ended)
    @rule(takes=st.booleans(), ends=seldom)
    def openStream(self, takes: bool, ends: bool) -> None:
        stream = Stream(takes)
        if ends:
            stream.then = lambda: self._end("deleted")
        self.streams.append(stream)
        self.bench.relay.attach(stream)
        self.bench.relay.readerOpened(stream, stream)

    @precondition(lambda self: self.streams)
    @rule()
    def closeStream(self) -> None:
        stream = self.streams.pop(0)
        self.bench.relay.detach(stream)
        self.bench.relay.readerClosed(stream)

    @precondition(lambda self: self.isOpen and not self.ended)
    @rule(cancels=st.booleans())
    def acquire(self, cancels: bool) -> None:
        waiter = self.bench.relay.acquire(CONTEXT)
        waiter.addErrback(lambda failure: failure.trap(LinkFailed, SessionOver))
        self.waiters.append(waiter)
        if cancels:
            waiter.addErrback(lambda _: None)
            waiter.cancel()

    # The server.

    @precondition(lambda self: self.pending())
    @rule(which=picks, error=st.booleans(), more=st.integers(0, 3))
    def answer(self, which: int, error: bool, more: int) -> None:
        for _ in range(1 + more):
            pending = self.pending()
            if not pending:
                return
            link, sent = pending[which % len(pending)]
            self._done(sent)
            if error:
                link.refuse(sent)
            else:
                link.reply(sent)

    @precondition(lambda self: self.pending())
    @rule(which=picks)
    def progress(self, which: int) -> None:
        pending = self.pending()
        link, sent = pending[which % len(pending)]
        data = b'{"jsonrpc":"2.0","method":"notifications/progress","params":{"progressToken":%b}}'
        link.push(data % sent.id, None if link.multiplexed else sent.call)

    @precondition(lambda self: self.server.open)
    @rule(which=picks, id=st.integers(1, 3), method=st.sampled_from(["ping", "roots/list"]))
    def question(self, which: int, id: int, method: str) -> None:
        link = self.server.open[which % len(self.server.open)]
        link.push(b'{"jsonrpc":"2.0","id":%d,"method":"%b"}' % (id, method.encode()))

    @precondition(lambda self: self.server.open)
    @rule(method=st.sampled_from(["tools/list_changed", "message"]))
    def news(self, method: str) -> None:
        self.server.open[-1].push(
            b'{"jsonrpc":"2.0","method":"notifications/%b","params":{}}' % method.encode()
        )

    @precondition(lambda self: self.pending())
    @rule(which=picks, how=st.sampled_from(["unknown", "not sent", "500", "404"]))
    def settle(self, which: int, how: str) -> None:
        pending = self.pending()
        link, sent = pending[which % len(pending)]
        if how in ("500", "404") and not self.server.http:
            return
        self._done(sent, ran=how in ("unknown", "500"))
        if how == "unknown":
            link.settle(sent)
        elif how == "not sent":
            link.settle(sent, Reason.OVERLOADED, outcome=Outcome.NOT_SENT)
        else:
            link.settle(sent, Reason.BAD_ANSWER, status=int(how))

    @precondition(lambda self: self.pending(notes=True))
    @rule(which=picks, status=st.sampled_from([0, 0, 404, 500]))
    def accept(self, which: int, status: int) -> None:
        pending = self.pending(notes=True)
        link, sent = pending[which % len(pending)]
        self._done(sent)
        if status:
            link.settle(sent, Reason.BAD_ANSWER, status=status)
        else:
            link.accept(sent)

    @precondition(lambda self: self.server.open)
    @rule(which=picks, method=st.sampled_from(["", *METHODS]))
    def loseLink(self, which: int, method: str) -> None:
        """method: of a call for which another is made at once."""
        self.server.open[which % len(self.server.open)].lose()
        if method and self.isOpen and not self.ended:
            self._ask(method)

    @precondition(lambda self: self.server.open)
    @rule(sure=seldom)
    def fill(self, sure: bool) -> None:
        link = self.server.open[-1]
        was, link.full = link.full, sure
        if was and not sure:
            link.listener.drained()

    @rule(held=st.booleans(), result=st.sampled_from(["same", "same", "less"]))
    def holdHandshakes(self, held: bool, result: str) -> None:
        self.server.handshakeHeld = held
        if result == "less":
            self.server.result = b'{"protocolVersion":"2025-06-18","capabilities":{}}'

    @precondition(lambda self: self.server._pending)
    @rule(fails=st.booleans())
    def finishHandshake(self, fails: bool) -> None:
        if fails:
            self.server.failNext()
        self.server.finishHandshake()

    @rule(status=st.sampled_from([0, 401]), sure=seldom)
    def failNext(self, status: int, sure: bool) -> None:
        if sure and len(self.server.failures) < 2:
            self.server.failNext(status=status)

    # Time, and the end.

    @rule(seconds=st.sampled_from([0.1, 0.1, 0.6, 1.0, 1.0, 6.0, TIMEOUT]))
    def wait(self, seconds: float) -> None:
        self._advance(seconds)

    def _advance(self, seconds: float) -> None:
        self.clock.advance(seconds)
        if self.bench.session.retired and not self.bench.session.busy:
            self._end("replaced")

    @precondition(lambda self: self.isOpen and not self.ended)
    @rule(sure=seldom)
    def retire(self, sure: bool) -> None:
        if not sure:
            return
        self.bench.session.retired = True
        if not self.bench.session.busy:
            self._end("replaced")

    @precondition(lambda self: not self.ended)
    @rule(reason=st.sampled_from(["deleted", "shutdown"]), sure=seldom)
    def end(self, reason: str, sure: bool) -> None:
        if sure:
            self._end(reason)

    def _end(self, reason: str) -> None:
        self.bench.registry.end(self.bench.session, reason)

    # What holds.

    def _count(self) -> None:
        """Which calls have been sent, and may have run."""
        for link in self.server.links:
            for sent in link.requests:
                number = sent.message.param("n")
                if number is not None and id(sent) not in self.over:
                    ran = self.calls[int(number)].ranOn
                    if sent not in ran:
                        ran.append(sent)

    @invariant()
    def holds(self) -> None:
        if not hasattr(self, "bench"):
            return
        self._count()
        running = {id(call.target) for call in self.bench.relay.router.calls.values()}
        for call in self.calls:
            assert call.ends <= 1
            assert all(json.loads(one.encode())["id"] == call.number for one in call.answers)
            assert all(int(one) == call.number for one in call.losses)
            if not (call.gone or call.ends):
                assert id(call) in running and not self.ended
            twice = self.replay == "safe" and call.method in SAFE
            assert len(call.ranOn) <= 1 + twice
            # What is refused twice is not sent a third time: the session is lost for good.
            assert call.refused < 2 or call.ends or call.gone
        assert not self.failures
        if self.ended:
            self._left()

    def _left(self) -> None:
        """Nothing of the session is left."""
        self.bench.left()
        assert not self.server._pending
        assert len(self.opened) == 1
        assert all(len(told) == 1 for told in self.told)
        assert all(waiter.called for waiter in self.waiters)
        assert self.bench.session.running == 0 and self.bench.relay.closing is not None
        assert self.bench.session.live is None

    def teardown(self) -> None:
        try:
            if hasattr(self, "bench"):
                # Whatever hangs, calls end by their time.
                for call in self.calls:
                    call.then = None
                self._advance(MOST)
                self.holds()
                assert not [call for call in self.calls if not (call.ends or call.gone)]
                self._end("deleted")
                self.holds()
                if self.isOpen:
                    self._ask("tools/call")
                    self.holds()
        finally:
            globalLogPublisher.removeObserver(self._logged)


TestRaces = Races.TestCase
TestRaces.settings = settings(
    max_examples=100,
    stateful_step_count=50,
    suppress_health_check=list(HealthCheck),
    deadline=None,
)
