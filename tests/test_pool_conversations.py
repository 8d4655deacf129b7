"""
Random conversations of modern clients with a legacy server through the pool: each client hears
what a modern server that does the same would have said, and nothing of another's.
"""

from __future__ import annotations

import json
from typing import Any

from attrs import define, field
from hypothesis import given, settings
from hypothesis import strategies as st
from pool_support import ALICE, ALL, BOB, RESULT, Asked, PoolBench
from test_pool import LOG, answers

from gateway.bridge.asmodern import LEVELS
from gateway.guard.limits import Limits
from gateway.testing.scripted import ScriptedLink, ScriptedServer, Sent

LEVEL = st.sampled_from(["debug", "info", "error"])

STEPS = st.one_of(
    st.tuples(st.just("progress"), st.integers(0, 9)),
    st.tuples(st.just("log"), LEVEL),
    st.tuples(st.just("ask"), st.integers(1, 3)),
)
ENDS = st.one_of(
    st.tuples(st.just("result"), st.integers(0, 9)),
    st.tuples(st.just("error"), st.sampled_from([-32002, -32603, -32050, 7])),
    st.tuples(st.just("gone"), st.just(0)),
)


@define(eq=False)
class Talk:
    """
    One call, as a modern server would serve it: what its client must hear.

    newest: the request that waits now. expected: what it must have heard before its answer.
    """

    number: int
    bench: PoolBench
    who: Any
    caps: dict[str, Any]
    level: str | None
    token: str | None
    script: list[tuple[str, Any]]
    newest: Asked = field(init=False)
    link: ScriptedLink = field(init=False)
    sent: Sent = field(init=False)
    expected: list[tuple[str, Any]] = field(factory=list, init=False)
    asked: list[tuple[str, str]] = field(factory=list, init=False)
    """The open questions: their keys, and the server's ids."""
    questions: int = field(default=0, init=False)
    over: bool = field(default=False, init=False)

    def begin(self) -> None:
        self.newest = self.bench.ask(
            self.number,
            params={"name": "t", "arguments": {"n": self.number}},
            who=self.who,
            caps=self.caps,
            level=self.level,
            token=self.token,
        )
        for link in self.bench.links:
            for sent in link.of("logging/setLevel"):
                if link.listener is not None and sent not in ANSWERED:
                    ANSWERED.append(sent)
                    link.reply(sent)
        (self.link, self.sent) = next(
            (link, sent)
            for link in self.bench.links
            for sent in link.of("tools/call")
            if f'"n":{self.number}}}'.encode() in sent.message.encode().replace(b" ", b"")
        )
        assert self.link.context.principal is self.who

    def step(self, draw: Any) -> None:
        """The server does what comes next, and the client what follows from it."""
        kind, value = self.script.pop(0)
        getattr(self, "_" + kind)(value, draw)

    def _progress(self, value: int, draw: Any) -> None:
        self.link.push(
            b'{"jsonrpc":"2.0","method":"notifications/progress","params":'
            b'{"progressToken":%b,"progress":%d}}' % (self.sent.id, value)
        )
        if self.token is not None:
            self.expected.append(("progress", value))

    def _log(self, value: str, draw: Any) -> None:
        self.link.push(LOG % value.encode())
        if self.level is not None and LEVELS[value] >= LEVELS[self.level]:
            self.expected.append(("log", value))

    def _ask(self, count: int, draw: Any) -> None:
        before = len(answers(self.link))
        refused = 0
        for _ in range(count):
            self.questions += 1
            id = f"{self.number}/{self.questions}"
            roots = draw(st.booleans())
            method = "roots/list" if roots else "elicitation/create"
            params = (
                "{}"
                if roots
                else '{"message":"m","requestedSchema":{"type":"object","properties":{}}}'
            )
            self.link.push(
                f'{{"jsonrpc":"2.0","id":"{id}","method":"{method}","params":{params}}}'.encode()
            )
            if self.caps:
                key = f"q{self.questions}"
                self.asked.append((key, id))
            else:
                refused += 1
        self.bench.turn()
        assert len(answers(self.link)) == before + refused
        while self.asked:
            self._answerSome(draw)

    def _answerSome(self, draw: Any) -> None:
        result = self.newest.result
        assert result["resultType"] == "input_required"
        assert list(result["inputRequests"]) == [key for key, _ in self.asked]
        self.heard()
        keys = draw(st.lists(st.sampled_from(self.asked), min_size=1, unique=True))
        given: dict[str, Any] = {}
        for key, _ in keys:
            roots = result["inputRequests"][key]["method"] == "roots/list"
            given[key] = {"roots": []} if roots else {"action": "accept", "content": {"n": key}}
        if self.token is not None:
            self.token = f"{self.number}-{draw(st.integers(0, 99))}"
        before = len(answers(self.link))
        self.newest = self.bench.retry(
            self.newest, given, id=f"{self.number}r{before}", token=self.token
        )
        got = {one["id"]: one["result"] for one in answers(self.link)[before:]}
        assert got == {id: given[key] for key, id in self.asked if key in given}
        self.asked = [(key, id) for key, id in self.asked if key not in given]

    def _result(self, value: int, draw: Any) -> None:
        self.link.reply(self.sent, b'{"content":[],"value":%d}' % value)
        self.over = True
        assert self.newest.result["value"] == value
        assert self.newest.result["resultType"] == "complete"
        self.heard()

    def _error(self, code: int, draw: Any) -> None:
        self.link.refuse(self.sent, code)
        self.over = True
        meant = {-32002: -32602, -32050: -32603}.get(code, code)
        assert self.newest.error["code"] == meant
        self.heard()

    def _gone(self, _: int, draw: Any) -> None:
        self.bench.pool.gone(self.newest.target)
        self.over = True
        said = self.link.last("notifications/cancelled").message
        assert said.param("requestId") == self.sent.id
        self.heard()
        self.link.push(LOG % b"error")
        self.bench.turn(1)
        assert self.newest.waits

    def heard(self) -> None:
        """The newest request heard what it must have, and under its own names."""
        got: list[tuple[str, Any]] = []
        for one in self.newest.heard:
            if one["method"] == "notifications/progress":
                assert one["params"]["progressToken"] == self.token
                got.append(("progress", one["params"]["progress"]))
            else:
                got.append(("log", one["params"]["level"]))
        assert got == self.expected
        self.expected = []


ANSWERED: list[Sent] = []


@settings(max_examples=150)
@given(st.data())
def test_eachClientHearsWhatAModernServerWouldHaveSaid(data: st.DataObject) -> None:
    ANSWERED.clear()
    bench = PoolBench(limits=Limits(max_pooled_sessions=8))
    talks: list[Talk] = []
    for number in range(data.draw(st.integers(1, 4))):
        caps = data.draw(st.sampled_from([{}, ALL]))
        # What a shared session logs belongs to no call for certain.
        level = data.draw(st.none() | LEVEL) if caps else None
        script = [*data.draw(st.lists(STEPS, max_size=4)), data.draw(ENDS)]
        who = data.draw(st.sampled_from([ALICE, BOB]))
        token = data.draw(st.sampled_from([None, f"t{number}"]))
        talks.append(Talk(number, bench, who, caps, level, token, script))
    waiting = list(talks)
    while waiting:
        talk = data.draw(st.sampled_from(waiting))
        if not hasattr(talk, "newest"):
            talk.begin()
        else:
            talk.step(data.draw)
        if talk.over:
            waiting.remove(talk)
    bench.stop()


def test_whatTheStatesSayIsOpaque() -> None:
    bench = PoolBench()
    call = bench.ask(caps=ALL)
    bench.link.push(b'{"jsonrpc":"2.0","id":1,"method":"roots/list"}')
    bench.turn()
    state = call.result["requestState"]
    assert len(state) < 128 and json.dumps(state).isascii()
    bench.stop()


WHO = st.sampled_from([ALICE, BOB])
SMALL = Limits(
    max_pooled_sessions=2,
    max_pooled_total=3,
    max_modern_waiting=3,
    max_parked=2,
    max_listens=3,
    max_subscriptions=3,
    parked_for=50.0,
    pooled_idle=100.0,
)
NARROW = RESULT.replace(b'"subscribe":true,', b"")


@define(eq=False)
class Storm:
    """Clients and a server that do anything at any time."""

    draw: Any
    bench: PoolBench
    gone: list[Asked] = field(factory=list)
    replied: list[Sent] = field(factory=list)

    def ask(self) -> None:
        self.bench.ask(
            len(self.bench.all),
            self.draw(st.sampled_from(["tools/call", "tools/list", "server/discover", "ping"])),
            who=self.draw(WHO),
            caps=self.draw(st.sampled_from([{}, ALL, {"roots": {}}])),
            level=self.draw(st.sampled_from([None, "info", "error"])),
            token=self.draw(st.sampled_from([None, "t"])),
        )

    def listen(self) -> None:
        uris = self.draw(st.lists(st.sampled_from(["a:1", "a:2", "a:3", "a:4"])))
        wanted = {"toolsListChanged": self.draw(st.booleans()), "resourceSubscriptions": uris}
        self.bench.ask(
            len(self.bench.all),
            "subscriptions/listen",
            {"notifications": wanted},
            who=self.draw(WHO),
        )

    def retry(self) -> None:
        asks = [
            one
            for one in self.bench.all
            if not one.waits and "inputRequests" in one.json.get("result", {})
        ]
        if asks:
            one = self.draw(st.sampled_from(asks))
            keys = self.draw(st.lists(st.sampled_from([*one.result["inputRequests"], "none"])))
            self.bench.retry(
                one, {key: {"action": "accept"} for key in keys}, id=len(self.bench.all)
            )

    def leave(self) -> None:
        waiting = [one for one in self.bench.all if one.waits and one not in self.gone]
        if waiting:
            one = self.draw(st.sampled_from(waiting))
            self.gone.append(one)
            one.target.takes = False
            self.bench.pool.gone(one.target)

    def reply(self) -> None:
        open_ = [
            (link, sent)
            for link in self.bench.links
            for sent in link.requests
            if sent not in self.replied
        ]
        if open_:
            link, sent = self.draw(st.sampled_from(open_))
            self.replied.append(sent)
            if self.draw(st.integers(0, 4)) == 0:
                link.refuse(sent, self.draw(st.sampled_from([-32002, -32050, 1])))
            else:
                link.reply(
                    sent, {"tools/list": b'{"tools":[]}'}.get(sent.method, b'{"content":[]}')
                )

    def say(self) -> None:
        if self.bench.links:
            link = self.draw(st.sampled_from(self.bench.links))
            said = self.draw(st.sampled_from(SAID))
            if b"%b" in said:
                calls = link.of("tools/call")
                said %= calls[-1].id if calls else b"99"
            link.push(said)

    def lose(self) -> None:
        if self.bench.links:
            self.draw(st.sampled_from(self.bench.links)).lose()

    def fail(self) -> None:
        self.bench.server.failNext()

    def change(self) -> None:
        self.bench.server.result = self.draw(st.sampled_from([RESULT, NARROW]))

    def wait(self) -> None:
        self.bench.turn(self.draw(st.sampled_from([0.0, 0.5, 1.0, 30.0, 60.0, 400.0])))

    def hold(self) -> None:
        self.bench.server.handshakeHeld = True

    def release(self) -> None:
        server = self.bench.server
        server.handshakeHeld = False
        while server._pending:
            server.finishHandshake()


SAID = [
    LOG % b"error",
    b'{"jsonrpc":"2.0","method":"notifications/tools/list_changed"}',
    b'{"jsonrpc":"2.0","method":"notifications/resources/updated","params":{"uri":"a:1"}}',
    b'{"jsonrpc":"2.0","method":"notifications/progress","params":{"progressToken":%b,"progress":1}}',
    b'{"jsonrpc":"2.0","id":"r","method":"roots/list"}',
    b'{"jsonrpc":"2.0","id":"e","method":"elicitation/create","params":{"message":"m",'
    b'"requestedSchema":{"type":"object","properties":{}}}}',
    b'{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":"e"}}',
    b'{"jsonrpc":"2.0","id":"p","method":"ping"}',
    b'{"jsonrpc":"2.0","method":"vendor/said"}',
]
DEEDS = ["ask", "ask", "listen", "retry", "leave", "reply", "reply", "say", "say", "lose", "fail"]
DEEDS += ["change", "wait", "hold", "release"]


@settings(max_examples=200)
@given(st.data(), st.sampled_from(["principal", "call"]), st.sampled_from(["replay", "lost"]))
def test_whateverHappensEachRequestIsAnsweredOnceAndNothingIsLeft(
    data: st.DataObject, callers: str, onExit: str
) -> None:
    server = ScriptedServer(result=RESULT, callers=callers, on_exit=onExit, timeout=200.0)
    bench = PoolBench(server, limits=SMALL)
    storm = Storm(data.draw, bench)
    for deed in data.draw(st.lists(st.sampled_from(DEEDS), max_size=40)):
        getattr(storm, deed)()
        assert len(bench.links) <= SMALL.max_pooled_total
        for link in bench.server.links:
            assert all(sent.context.principal is link.context.principal for sent in link.sent)
    storm.release()
    bench.turn()
    bench.stop()
    for one in bench.all:
        assert len(one.target.answers) == (0 if one in storm.gone else 1)
    pool = bench.pool
    assert not (pool._calls or list(pool._openings) or pool._parked or pool._callers._callers)
    assert not (pool._callers._sessions or pool._callers.waiting or pool._callers.closing)
    assert not (pool._listening._audiences or pool._listening._replies)
