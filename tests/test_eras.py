"""EraServer: which era a server is asked for, and what is remembered of it."""

from __future__ import annotations

import json
from typing import Any

import pytest
from attrs import define, evolve, field
from link_support import Observed, Session, hello, message
from twisted.internet.defer import CancelledError, Deferred, fail, succeed
from twisted.internet.task import Clock
from zope.interface import implementer
from zope.interface.verify import verifyObject

from gateway.guard.limits import Limits
from gateway.links.bridged import BridgedLink
from gateway.links.interfaces import (
    Hello,
    IHTTPLink,
    ILink,
    ILinkListener,
    ITwoEraServer,
    LinkFailed,
    NotModern,
    Reason,
)
from gateway.observe.observer import BoundReached, EraFound, MessageDropped
from gateway.servers.eras import EraServer
from gateway.servers.finding import DOUBT_WAIT, SPARE_WAIT
from gateway.servers.verdicts import Verdicts
from gateway.settings import HTTPSettings, StdioSettings
from gateway.testing.scripted import ScriptedLink, ScriptedServer
from gateway.wire.context import CallContext

CONTEXT = CallContext("scripted")
OTHER = CallContext("scripted", headers=((b"authorization", b"other"),))


def discovered(version: str = "1") -> bytes:
    info = {"name": "m", "version": version}
    return json.dumps(
        {
            "resultType": "complete",
            "supportedVersions": ["2026-07-28"],
            "capabilities": {"tools": {}},
            "_meta": {"io.modelcontextprotocol/serverInfo": info},
        }
    ).encode()


def initialized(version: str = "1") -> bytes:
    info = {"name": "m", "version": version}
    result = {"protocolVersion": "2025-06-18", "capabilities": {}, "serverInfo": info}
    return json.dumps(result).encode()


def refused(code: int) -> LinkFailed:
    answer = message(b'{"jsonrpc":"2.0","id":0,"error":{"code":%d,"message":"no"}}' % code)
    return LinkFailed(Reason.BAD_ANSWER, "the server refused the handshake", answer)


def notModern(reason: Reason = Reason.BAD_ANSWER) -> NotModern:
    return NotModern(reason, "the server does not know server/discover")


class Scripted(ScriptedServer):
    """
    A server of both eras, as far as it is told not to be.

    legacyFails, modernFails: what every handshake of an era fails with.
    """

    def __init__(self, **keywords: Any) -> None:
        super().__init__(**keywords)
        self.legacyFails: LinkFailed | None = None
        self.modernFails: LinkFailed | None = None
        self.modernHeld = False
        self.losesAtOnce = False
        self.probes = 0
        self.contexts: list[CallContext] = []
        self.modernLinks: list[ScriptedLink] = []
        self.discovered = discovered()
        self.result = initialized()
        self.waiting: list[Deferred[None]] = []

    def link(self, *arguments: Any, **keywords: Any) -> Deferred[ILink]:
        if self.legacyFails is not None:
            self.handshakes += 1
            return fail(self.legacyFails)
        return super().link(*arguments, **keywords)

    def modernLink(self, listener: ILinkListener, context: CallContext) -> Deferred[ILink]:
        self.probes += 1
        self.contexts.append(context)
        if not self.modernHeld:
            return self._modern(listener, context)
        waiting: Deferred[None] = Deferred()
        self.waiting.append(waiting)
        return waiting.addCallback(lambda _: self._modern(listener, context))

    def _modern(self, listener: ILinkListener, context: CallContext) -> Deferred[ILink]:
        if self.modernFails is not None:
            return fail(self.modernFails)
        answer = message(b'{"jsonrpc":"2.0","id":0,"result":%b}' % self.discovered)
        link = ScriptedLink(self, listener, hello(), context, answer)
        link.sessionless, link.multiplexed = True, not self.http
        self.modernLinks.append(link)
        if self.losesAtOnce:
            link.lose()
        return succeed(link)


implementer(ITwoEraServer)(Scripted)


@define(eq=False)
class Bench:
    server: Scripted = field(factory=Scripted)
    clock: Clock = field(factory=Clock)
    observed: Observed = field(factory=Observed)
    limits: Limits = field(factory=Limits)
    verdicts: Verdicts = field(init=False)
    eras: EraServer = field(init=False)

    def __attrs_post_init__(self) -> None:
        self.verdicts = Verdicts(self.limits, self.clock, self.observed)
        self.again()

    def again(self) -> None:
        """As after a restart of the service: everything is new but what was found."""
        self.eras = EraServer(self.server, self.limits, self.clock, self.observed, self.verdicts)

    def link(self, context: CallContext = CONTEXT, **keywords: Any) -> Deferred[ILink]:
        return self.eras.link(hello(), Session(), context, **keywords)

    @property
    def known(self) -> tuple[bool | None, bool | None]:
        return self.eras.verdict.modern, self.eras.verdict.legacy

    @property
    def found(self) -> list[tuple[bool | None, bool | None]]:
        return [
            (event.modern, event.legacy)
            for event in self.observed.events
            if isinstance(event, EraFound)
        ]


def got(deferred: Deferred[Any]) -> Any:
    results: list[Any] = []
    deferred.addCallback(results.append)
    assert results, "it has not fired"
    return results[0]


def failed(deferred: Deferred[Any]) -> LinkFailed:
    failures: list[Any] = []
    deferred.addErrback(failures.append)
    assert failures, "it has not failed"
    assert isinstance(failures[0].value, LinkFailed)
    return failures[0].value


def modernOnly(code: int = -32601, **settings: Any) -> Bench:
    bench = Bench(Scripted(**settings))
    bench.server.legacyFails = refused(code)
    return bench


def legacyOnly(reason: Reason = Reason.BAD_ANSWER, **settings: Any) -> Bench:
    bench = Bench(Scripted(**settings))
    bench.server.modernFails = notModern(reason)
    return bench


# legacy clients


def test_it_is_a_server() -> None:
    bench = Bench()
    assert verifyObject(ITwoEraServer, bench.eras)
    assert (bench.eras.name, bench.eras.generation) == ("scripted", 1)
    assert bench.eras.health() is bench.server.health()


def test_a_legacy_server_is_asked_as_before() -> None:
    bench = legacyOnly(http=True)
    link = got(bench.link(ownStreams=True))
    assert IHTTPLink.providedBy(link) and link is bench.server.newest
    assert bench.server.probes == 0
    assert bench.known == (None, True) and bench.found == [(None, True)]


def test_a_modern_server_gets_a_bridge() -> None:
    bench = modernOnly()
    link = got(bench.link())
    assert isinstance(link, BridgedLink)
    answer = json.loads(link.answer.encode())["result"]
    assert answer["protocolVersion"] == "2025-06-18"
    assert bench.known == (True, False) and bench.found == [(True, None), (True, False)]
    # The link that told was used; a handshake of our own was refused, too.
    assert (bench.server.probes, bench.server.handshakes) == (1, 2)
    assert isinstance(got(bench.link()), BridgedLink)
    assert (bench.server.probes, bench.server.handshakes) == (2, 2)
    bench.again()
    assert isinstance(got(bench.link()), BridgedLink)
    assert (bench.server.probes, bench.server.handshakes) == (3, 2)


@pytest.mark.parametrize("http", [False, True])
@pytest.mark.parametrize(
    "failure",
    [
        refused(-32601),
        refused(-32602),
        refused(-32020),
        refused(-32022),
        LinkFailed(Reason.BAD_ANSWER, "", status=400),
        LinkFailed(Reason.BAD_ANSWER, "", status=404),
        LinkFailed(Reason.BAD_ANSWER, "", status=405),
        LinkFailed(Reason.BAD_ANSWER, ""),
    ],
)
def test_failures_of_modern_servers(http: bool, failure: LinkFailed) -> None:
    bench = Bench(Scripted(http=http))
    bench.server.legacyFails = failure
    assert isinstance(got(bench.link()), BridgedLink)
    assert bench.known == (True, False)
    assert bench.server.probes == 1


@pytest.mark.parametrize("reason", [Reason.SERVER_EXITED, Reason.TIMEOUT])
def test_a_child_that_gives_no_answer_is_asked(reason: Reason) -> None:
    bench = Bench()
    bench.server.legacyFails = LinkFailed(reason, "")
    assert isinstance(got(bench.link()), BridgedLink)


@pytest.mark.parametrize(
    ("http", "failure"),
    [
        (False, LinkFailed(Reason.UPSTREAM_UNREACHABLE, "")),
        (False, LinkFailed(Reason.OVERLOADED, "")),
        (False, LinkFailed(Reason.SHUTTING_DOWN, "")),
        (False, LinkFailed(Reason.SERVER_EXITED, "", retryAfter=5.0)),
        (True, LinkFailed(Reason.TIMEOUT, "")),
        (True, LinkFailed(Reason.OUTCOME_UNKNOWN, "")),
        (True, LinkFailed(Reason.BAD_ANSWER, "", status=401)),
        (True, LinkFailed(Reason.BAD_ANSWER, "", status=403)),
        (True, LinkFailed(Reason.BAD_ANSWER, "", status=429)),
        (True, LinkFailed(Reason.BAD_ANSWER, "", status=500)),
        (True, LinkFailed(Reason.BAD_ANSWER, "", status=503)),
    ],
)
def test_failures_that_say_nothing_of_the_era(http: bool, failure: LinkFailed) -> None:
    bench = Bench(Scripted(http=http))
    bench.server.legacyFails = failure
    assert failed(bench.link()) is failure
    assert bench.server.probes == 0 and bench.known == (None, None)


def test_an_honest_error_costs_one_probe() -> None:
    bench = legacyOnly()
    bench.server.legacyFails = error = refused(-32602)
    for _ in range(5):
        assert failed(bench.link()) is error
    assert bench.server.probes == 1 and bench.known == (False, None)
    bench.server.legacyFails = None
    got(bench.link())
    assert bench.known == (False, True)
    bench.server.legacyFails = error
    assert failed(bench.link()) is error
    assert bench.server.probes == 1


def test_an_honest_error_of_a_legacy_server_that_was_seen_costs_nothing() -> None:
    bench = legacyOnly()
    got(bench.link())
    bench.server.legacyFails = error = refused(-32602)
    assert failed(bench.link()) is error
    assert bench.server.probes == 0


def test_an_honest_error_of_a_server_of_both_eras() -> None:
    bench = Bench()
    bench.server.failures.append(error := refused(-32602))
    assert failed(bench.link()) is error
    assert bench.known == (True, True)
    # It was asked for a handshake of our own, whose link is closed.
    assert bench.server.handshakes == 2 and bench.server.newest.closed
    assert got(bench.link()) is bench.server.newest
    bench.server.failures.append(error)
    assert failed(bench.link()) is error
    assert (bench.server.handshakes, bench.server.probes) == (4, 1)
    bench.clock.advance(SPARE_WAIT)
    assert bench.server.modernLinks[0].closed


class Picky(Scripted):
    """Refuses whom it sees one header of, in either era, as one does who knows neither."""

    status = 400

    def refuses(self, context: CallContext) -> bool:
        return (b"x-bad", b"1") in context.headers

    def link(
        self, hello: Hello, listener: ILinkListener, context: CallContext, ownStreams: bool = False
    ) -> Deferred[ILink]:
        if self.refuses(context):
            return fail(LinkFailed(Reason.BAD_ANSWER, "refused", status=self.status))
        return super().link(hello, listener, context, ownStreams)

    def modernLink(self, listener: ILinkListener, context: CallContext) -> Deferred[ILink]:
        if self.refuses(context):
            return fail(NotModern(Reason.BAD_ANSWER, "refused", status=self.status))
        return super().modernLink(listener, context)


BAD = CallContext("scripted", headers=((b"x-bad", b"1"),))


def test_nobody_makes_a_modern_server_a_legacy_one() -> None:
    bench = Bench(Picky(http=True))
    bench.server.legacyFails = refused(-32602)
    # Who asks meanwhile hears what is so.
    bench.server.modernHeld = True
    bad, good = bench.eras.findModern(BAD), bench.eras.findModern(CONTEXT)
    bench.server.waiting[0].callback(None)
    assert got(bad) and got(good)
    assert bench.known == (True, None)
    bench.server.modernHeld = False
    assert isinstance(got(bench.link()), BridgedLink)
    # Through a bridge, the fault is its client's own.
    assert failed(bench.link(BAD)).status == 400
    assert isinstance(got(bench.link()), BridgedLink)
    assert bench.known == (True, False)


def test_nobody_makes_a_server_of_both_eras_a_modern_one() -> None:
    bench = Bench(Picky(http=True))
    assert failed(bench.link(BAD)).status == 400
    assert bench.known == (True, True)
    assert got(bench.link()) is bench.server.newest


@pytest.mark.parametrize("code", [-32601, -32020, -32022])
def test_an_error_of_the_other_era_to_one_client_is_no_word_on_all(code: int) -> None:
    bench = Bench()
    bench.server.failures.append(error := refused(code))
    assert failed(bench.link()) is error
    assert bench.known == (True, True)


@pytest.mark.parametrize("modern", [False, True])
def test_a_server_that_answers_only_with_credentials(modern: bool) -> None:
    class Locked(Picky):
        def _locked(self, context: CallContext) -> bool:
            return (b"authorization", b"other") not in context.headers

        def link(self, *arguments: Any, **keywords: Any) -> Deferred[ILink]:
            if self._locked(arguments[2]):
                return fail(LinkFailed(Reason.BAD_ANSWER, "refused", status=401))
            return super().link(*arguments, **keywords)

        def modernLink(self, listener: ILinkListener, context: CallContext) -> Deferred[ILink]:
            if self._locked(context):
                return fail(LinkFailed(Reason.BAD_ANSWER, "refused", status=401))
            return super().modernLink(listener, context)

    bench = Bench(Locked(http=True))
    if modern:
        bench.server.legacyFails = refused(-32602)
        assert isinstance(got(bench.link(OTHER)), BridgedLink)
        assert bench.known == (True, False)
    else:
        bench.server.modernFails = notModern()
        assert got(bench.eras.findModern(OTHER)) is False
        # A client's header may be why: a contradiction is believed.
        assert bench.known == (False, None) and not bench.eras.verdict.firm


def test_whether_a_server_speaks_both_eras_may_stay_open() -> None:
    bench = Bench()
    error = refused(-32602)
    wait = LinkFailed(Reason.UPSTREAM_UNREACHABLE, "left alone", retryAfter=5.0)
    bench.server.failures += [error, wait]
    assert failed(bench.link()) is error
    assert bench.known == (True, None)


def test_a_modern_server_without_a_revision_of_ours_says_so() -> None:
    bench = modernOnly()
    bench.server.modernFails = unsupported = LinkFailed(Reason.BAD_ANSWER, "speaks only 2027")
    assert failed(bench.link()) is unsupported
    assert bench.known == (None, None)


@pytest.mark.parametrize(
    "failure",
    [
        LinkFailed(Reason.TIMEOUT, ""),
        LinkFailed(Reason.OVERLOADED, ""),
        LinkFailed(Reason.BAD_ANSWER, "", status=403),
        LinkFailed(Reason.BAD_ANSWER, "", status=502),
    ],
)
def test_a_probe_that_says_nothing_leaves_the_first_error(failure: LinkFailed) -> None:
    bench = modernOnly()
    bench.server.modernFails = failure
    assert failed(bench.link()) is bench.server.legacyFails
    assert bench.known == (None, None)
    bench.server.modernFails = None
    assert isinstance(got(bench.link()), BridgedLink)


def test_the_setting_decides() -> None:
    bench = Bench(Scripted(era="legacy"))
    got(bench.link())
    bench.server.legacyFails = refused(-32601)
    failed(bench.link())
    assert got(bench.eras.findModern(CONTEXT)) is False
    assert bench.known == (False, True) and bench.server.probes == 0

    bench = Bench(Scripted(era="modern"))
    assert got(bench.eras.findModern(CONTEXT)) is True
    assert isinstance(got(bench.link()), BridgedLink)
    bench.server.modernFails = notModern()
    assert isinstance(failed(bench.link()), NotModern)
    assert bench.server.handshakes == 0 and not bench.eras.doubt()
    assert bench.known == (True, False) and bench.found == []


def test_a_bridge_that_cannot_begin_closes_its_link() -> None:
    bench = Bench(Scripted(era="modern"))
    bench.server.losesAtOnce = True
    assert failed(bench.link()).reason is Reason.SERVER_EXITED
    assert bench.server.modernLinks[0].closed


def test_cancelling_gives_the_attempt_up() -> None:
    bench = Bench()
    bench.server.handshakeHeld = True
    linking = bench.link()
    linking.cancel()
    linking.addErrback(lambda failure: failure.trap(CancelledError) and None)
    assert bench.server.givenUp == 1


def test_cancelling_while_the_era_is_found_stops_the_wait_alone() -> None:
    bench = modernOnly()
    bench.server.modernHeld = True
    first, second = bench.link(), bench.link()
    first.cancel()
    first.addErrback(lambda failure: failure.trap(CancelledError) and None)
    bench.server.waiting.pop().callback(None)
    assert isinstance(got(second), BridgedLink)
    assert bench.server.probes == 1


def test_cancelling_a_bridge_gives_its_link_up() -> None:
    bench = modernOnly()
    got(bench.link())
    bench.server.modernHeld = True
    linking = bench.link()
    linking.cancel()
    linking.addErrback(lambda failure: failure.trap(CancelledError) and None)
    assert bench.known == (True, False) and len(bench.server.modernLinks) == 1


# what is remembered


def test_a_verdict_lives_for_a_day() -> None:
    bench = modernOnly()
    got(bench.link())
    bench.clock.advance(86_399.0)
    assert bench.known == (True, False)
    bench.clock.advance(1.0)
    assert bench.known == (None, None)
    got(bench.link())
    assert bench.known == (True, False)


def test_verdicts_are_bounded() -> None:
    bench = Bench(limits=Limits(max_eras=2))
    keys = [bytes([n]) for n in range(3)]
    for key in keys:
        bench.verdicts.found(key, "s", modern=True)
    assert [bench.verdicts.of(key).modern for key in keys] == [None, True, True]
    assert BoundReached("max_eras", "s") in bench.observed.events


def test_what_makes_a_server_the_same() -> None:
    verdicts = Bench().verdicts
    one = StdioSettings(name="a", command="c", args=("x",), env={"K": "secret"}, cwd="/")
    same = evolve(one, name="b", timeout=5.0, env={"K": "secret"})
    assert verdicts.keyOf(one) == verdicts.keyOf(same)
    others = [
        evolve(one, command="d"),
        evolve(one, args=("y",)),
        evolve(one, args=("x", "")),
        evolve(one, env={"K": "other"}),
        evolve(one, cwd=None),
        HTTPSettings(name="a", url="http://h/mcp"),
        HTTPSettings(name="a", url="http://h/other"),
    ]
    keys = {verdicts.keyOf(each) for each in (one, *others)}
    assert len(keys) == 1 + len(others)
    http = HTTPSettings(name="a", url="http://h/mcp")
    assert verdicts.keyOf(http) == verdicts.keyOf(evolve(http, name="b", headers={"X": "1"}))
    assert Bench().verdicts.keyOf(one) != verdicts.keyOf(one)
    assert b"secret" not in repr(verdicts).encode() + verdicts.keyOf(one)


def test_another_version_of_the_server_is_another_server() -> None:
    bench = modernOnly()
    got(bench.link())
    assert bench.known == (True, False)
    bench.server.discovered = discovered("2")
    got(bench.link())
    assert bench.known == (True, None)
    bench.server.legacyFails = None
    bench.server.result = initialized("2")
    assert not isinstance(got(bench.link()), BridgedLink)
    assert bench.known == (True, True)


def test_a_server_may_have_a_name_in_each_era() -> None:
    bench = Bench()
    bench.server.result = initialized("other")
    for _ in range(2):
        got(bench.link())
        got(bench.eras.modernLink(Session(), CONTEXT))
    assert bench.found == [(None, True), (True, True)]


def test_a_modern_server_that_became_a_legacy_one() -> None:
    bench = modernOnly()
    got(bench.link())
    bench.server.legacyFails, bench.server.modernFails = None, notModern()
    assert got(bench.link()) is bench.server.newest
    assert bench.known == (False, True)


@pytest.mark.parametrize("code", [-32601, -32020, -32022])
def test_a_legacy_server_that_became_a_modern_one(code: int) -> None:
    bench = legacyOnly()
    got(bench.link())
    assert got(bench.eras.findModern(CONTEXT)) is False
    bench.server.legacyFails, bench.server.modernFails = refused(code), None
    assert isinstance(got(bench.link()), BridgedLink)
    assert bench.known == (True, False)


@pytest.mark.parametrize("reason", [Reason.SERVER_EXITED, Reason.TIMEOUT])
def test_what_silence_seemed_to_say_is_not_held_against_an_answer(reason: Reason) -> None:
    bench = legacyOnly(reason)
    bench.server.legacyFails = LinkFailed(reason, "")
    failed(bench.link())
    assert bench.known == (False, None) and bench.server.probes == 1
    # As long as it says nothing, it is not asked again.
    failed(bench.link())
    assert bench.server.probes == 1
    bench.server.legacyFails, bench.server.modernFails = refused(-32602), None
    assert isinstance(got(bench.link()), BridgedLink)


@pytest.mark.parametrize("reason", [Reason.SERVER_EXITED, Reason.TIMEOUT])
def test_a_modern_child_that_gives_no_answer_any_more_is_asked_for_both(reason: Reason) -> None:
    bench = modernOnly()
    got(bench.link())
    bench.server.legacyFails, bench.server.modernFails = None, LinkFailed(reason, "")
    assert got(bench.link()) is bench.server.newest


def test_a_verdict_is_not_doubted_all_the_time() -> None:
    bench = legacyOnly()
    bench.server.legacyFails = refused(-32601)
    for _ in range(5):
        failed(bench.link())
    # Found, and found anew.
    assert bench.server.probes == 2
    bench.clock.advance(DOUBT_WAIT)
    failed(bench.link())
    assert bench.server.probes == 3
    assert not bench.eras.doubt()
    bench.clock.advance(DOUBT_WAIT)
    assert bench.eras.doubt() and bench.known == (None, None)


# modern clients


def test_modern_is_found_once() -> None:
    bench = Bench()
    assert got(bench.eras.findModern(CONTEXT)) is True
    assert got(bench.eras.findModern(CONTEXT)) is True
    assert bench.server.probes == 1 and bench.known == (True, None)
    bench = legacyOnly(Reason.SERVER_EXITED)
    assert got(bench.eras.findModern(CONTEXT)) is False
    assert got(bench.eras.findModern(CONTEXT)) is False
    assert bench.server.probes == 1 and bench.known == (False, None)


def test_all_who_ask_wait_for_one_answer() -> None:
    bench = Bench()
    bench.server.modernHeld = True
    asking = [bench.eras.findModern(CONTEXT) for _ in range(3)]
    asking[0].cancel()
    asking[0].addErrback(lambda failure: failure.trap(CancelledError) and None)
    assert bench.server.probes == 1
    bench.server.waiting.pop().callback(None)
    assert [got(each) for each in asking[1:]] == [True, True]


def test_what_says_nothing_of_the_era_is_told_and_asked_again() -> None:
    bench = Bench()
    bench.server.modernFails = LinkFailed(Reason.UPSTREAM_UNREACHABLE, "")
    assert failed(bench.eras.findModern(CONTEXT)) is bench.server.modernFails
    assert bench.known == (None, None)
    bench.server.modernFails = None
    assert got(bench.eras.findModern(CONTEXT)) is True


def test_refused_credentials_are_one_askers_own() -> None:
    bench = Bench(Scripted(http=True))
    bench.server.modernHeld = True
    mine, same, other = (bench.eras.findModern(context) for context in (CONTEXT, CONTEXT, OTHER))
    bench.server.modernFails = LinkFailed(Reason.BAD_ANSWER, "", status=401)
    bench.server.waiting.pop().callback(None)
    assert failed(mine).status == failed(same).status == 401
    bench.server.modernFails = None
    bench.server.waiting.pop().callback(None)
    assert got(other) is True
    assert bench.server.contexts == [CONTEXT, OTHER]


def test_who_needs_a_link_next_gets_the_one_that_told() -> None:
    bench = Bench()
    got(bench.eras.findModern(CONTEXT))
    (made,) = bench.server.modernLinks
    made.push(b'{"jsonrpc":"2.0","method":"notifications/message"}')
    assert MessageDropped("scripted", "undeliverable") in bench.observed.events
    session = Session()
    assert got(bench.eras.modernLink(session, OTHER)) is made
    made.push(b'{"jsonrpc":"2.0","method":"notifications/message"}')
    made.lose()
    assert len(session.heard) == 1 and session.losses == [Reason.SERVER_EXITED]
    bench.clock.advance(SPARE_WAIT)
    assert not made.closed
    assert got(bench.eras.modernLink(session, OTHER)) is not made


def test_a_link_over_http_fits_only_who_asked() -> None:
    bench = Bench(Scripted(http=True))
    got(bench.eras.findModern(CONTEXT))
    (made,) = bench.server.modernLinks
    assert got(bench.eras.modernLink(Session(), OTHER)) is not made
    assert got(bench.eras.modernLink(Session(), CONTEXT)) is made


def test_a_link_that_was_lost_meanwhile_is_given_to_nobody() -> None:
    bench = Bench()
    got(bench.eras.findModern(CONTEXT))
    (made,) = bench.server.modernLinks
    made.lose()
    assert got(bench.eras.modernLink(Session(), CONTEXT)) is not made


def test_draining_closes_what_nobody_took() -> None:
    bench = Bench()
    got(bench.eras.findModern(CONTEXT))
    got(bench.eras.drain())
    assert bench.server.modernLinks[0].closed and bench.server.drained
    assert not bench.clock.getDelayedCalls()


def test_draining_ends_the_search() -> None:
    bench = Bench()
    bench.server.modernHeld = True
    asking = bench.eras.findModern(CONTEXT)
    got(bench.eras.drain())
    assert failed(asking).reason is Reason.SHUTTING_DOWN


def test_modern_links_keep_the_verdict() -> None:
    bench = Bench()
    got(bench.eras.modernLink(Session(), CONTEXT))
    assert bench.known == (True, None)
    bench.server.modernFails = notModern()
    failed(bench.eras.modernLink(Session(), CONTEXT))
    assert bench.known == (False, None)
