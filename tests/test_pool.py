"""Modern clients to a legacy server: `LegacyPool` on a scripted server."""

from __future__ import annotations

import json
from typing import Any

import pytest
from pool_support import ALICE, ALL, BOB, FORM, INFO, RESULT, Asked, PoolBench, modern
from relay_support import MemoryTarget

from gateway.guard.limits import Limits
from gateway.guard.policy import Direction
from gateway.links.interfaces import LinkFailed, Reason
from gateway.testing.scripted import ScriptedLink, ScriptedServer, Sent, message
from gateway.wire.context import ANONYMOUS, CallContext, Principal
from gateway.wire.refusals import FailedCall

CAROL = Principal("https://idp", "carol", "gateway")
OK = b'{"content":[{"type":"text","text":"ok"}]}'
ELICIT = (
    b'{"jsonrpc":"2.0","id":"e%d","method":"elicitation/create","params":'
    b'{"mode":"form","message":"who?","requestedSchema":{"type":"object","properties":{}}}}'
)
NARROW = (
    b'{"protocolVersion":"2025-11-25","capabilities":{"tools":{}},'
    b'"serverInfo":{"name":"s","version":"2"}}'
)
PROGRESS = (
    b'{"jsonrpc":"2.0","method":"notifications/progress","params":{"progressToken":%b,'
    b'"progress":1.0}}'
)
ROOTS = b'{"jsonrpc":"2.0","id":"r1","method":"roots/list"}'
SAMPLE = (
    b'{"jsonrpc":"2.0","id":7,"method":"sampling/createMessage","params":{"maxTokens":1,'
    b'"messages":[{"role":"user","content":{"type":"text","text":"hi"}}]%b}}'
)
ACCEPT = {"action": "accept", "content": {"name": "x"}}


def answers(link: ScriptedLink) -> list[Any]:
    """What was sent to a server that is a response."""
    return [json.loads(sent.message.encode()) for sent in link.of("")]


def only(bench: PoolBench, method: str = "tools/call") -> tuple[ScriptedLink, Sent]:
    """The one call that was sent, and on which link."""
    ((link, sent),) = [(one, sent) for one in bench.server.links for sent in one.of(method)]
    return link, sent


def asked(bench: PoolBench, count: int = 1, **options: Any) -> tuple[Asked, ScriptedLink, Sent]:
    """A call whose server asked something, as its client was told."""
    options.setdefault("caps", ALL)
    call = bench.ask(**options)
    link, sent = bench.links[-1], bench.links[-1].last(call.request.method)
    for number in range(count):
        link.push(ELICIT % (number + 1))
    bench.turn()
    assert call.result["resultType"] == "input_required"
    return call, link, sent


# Handshake, requests, results.


def test_aCallRunsInASessionOfTheGatewaysOwn() -> None:
    bench = PoolBench()
    call = bench.ask("id", caps={**ALL, "extensions": {"x.y/z": {}}}, token="tok")
    link, sent = only(bench)
    hello = json.loads(link.hello.params)
    assert hello["protocolVersion"] == "2025-11-25"
    assert hello["clientInfo"] == {"name": "c", "version": "2"}
    assert hello["capabilities"] == {
        "elicitation": {"form": {}, "url": {}},
        "sampling": {"tools": {}},
        "roots": {"listChanged": False},
    }
    assert [one.method for one in link.sent] == ["notifications/initialized", "tools/call"]
    params = json.loads(sent.message.encode())["params"]
    assert set(params["_meta"]) == {"progressToken"}
    link.push(PROGRESS % sent.id)
    assert call.target.delivered[0].param("progress") == b"1.0"
    assert call.heard[0]["params"]["progressToken"] == "tok"
    assert bench.pool.running
    link.reply(sent, OK)
    assert call.json["id"] == "id"
    assert call.result["resultType"] == "complete"
    assert call.result["_meta"] == {"io.modelcontextprotocol/serverInfo": INFO}
    assert not bench.pool.running
    bench.stop()


def test_equalIDsOfTwoClientsAreTwo() -> None:
    bench = PoolBench()
    first, second = bench.ask(1), bench.ask(1)
    one, two = bench.link.of("tools/call")
    assert one.id != two.id
    bench.link.reply(two, b'{"content":[{"type":"text","text":"2"}]}')
    bench.link.reply(one, b'{"content":[{"type":"text","text":"1"}]}')
    assert [a.result["content"][0]["text"] for a in (first, second)] == ["1", "2"]
    bench.stop()


def test_discoverIsAnsweredFromTheHandshake() -> None:
    bench = PoolBench()
    for _ in range(2):
        found = bench.ask(method="server/discover").result
        assert found == {
            "resultType": "complete",
            "supportedVersions": ["2026-07-28"],
            "capabilities": {
                "tools": {"listChanged": True},
                "prompts": {"listChanged": True},
                "resources": {"subscribe": True, "listChanged": True},
                "logging": {},
                "completions": {},
            },
            "instructions": "be kind",
            "ttlMs": 0,
            "cacheScope": "private",
            "_meta": {"io.modelcontextprotocol/serverInfo": INFO},
        }
    assert bench.server.handshakes == 1
    assert [one.method for one in bench.link.sent] == ["notifications/initialized"]
    bench.stop()


@pytest.mark.parametrize(
    "method",
    [
        "initialize",
        "ping",
        "logging/setLevel",
        "resources/subscribe",
        "resources/unsubscribe",
        "tasks/get",
        "tasks/list",
        "tasks/result",
        "tasks/cancel",
    ],
)
def test_whatTheModernEraDoesNotHaveNeverReachesTheServer(method: str) -> None:
    bench = PoolBench()
    assert bench.ask(method=method).error["code"] == -32601
    assert not bench.server.handshakes
    bench.stop()


def test_aLogLevelThatIsNone() -> None:
    bench = PoolBench()
    assert bench.ask(level="loud").error["code"] == -32602
    bench.stop()


def test_cacheableResultsSayThatNothingIsKnown() -> None:
    bench = PoolBench()
    call = bench.ask(method="tools/list")
    link, sent = only(bench, "tools/list")
    link.reply(sent, b'{"tools":[],"x":1.0}')
    assert (call.result["ttlMs"], call.result["cacheScope"]) == (0, "private")
    assert b'"x":1.0' in call.target.answers[0].encode()
    bench.stop()


# Whose session.


def test_nobodySeesAnothersSession() -> None:
    bench = PoolBench()
    bench.ask(who=ALICE)
    bench.ask(who=BOB)
    bench.ask(who=ALICE)
    assert [len(link.of("tools/call")) for link in bench.links] == [2, 1]
    assert [link.context.principal for link in bench.links] == [ALICE, BOB]
    bench.stop()


def test_callersByHeader() -> None:
    server = ScriptedServer(result=RESULT, callers="header:X-Caller")
    bench = PoolBench(server)
    for caller in ("a", "b", "a"):
        bench.ask(caller=caller)
    assert [len(link.of("tools/call")) for link in bench.links] == [2, 1]
    bench.stop()


def test_byPrincipalNoHeaderTellsCallersApart() -> None:
    bench = PoolBench()
    bench.ask(caller="a")
    bench.ask(caller="b")
    assert len(bench.links) == 1
    bench.stop()


def test_whoseCredentialsAreForwardedHasASessionOfItsOwn() -> None:
    one, two = ((b"authorization", b"Bearer 1"),), ((b"authorization", b"Bearer 2"),)
    for who, renews in ((ALICE, True), (ANONYMOUS, False)):
        bench = PoolBench(ScriptedServer(result=RESULT, http=True, forward_authorization=True))
        first = bench.ask(1, headers=one, caps=ALL, who=who)
        bench.ask(2, headers=two, caps=ALL, who=who)
        bench.ask(3, headers=((b"x-other", b"1"), *one), caps=ALL, who=who)
        links = bench.links
        assert [dict(link.context.headers)[b"authorization"] for link in links] == [
            b"Bearer 1",
            b"Bearer 2",
            b"Bearer 1",
        ]
        for link in links:
            link.accept(link.last("notifications/initialized"))
        sent = links[0].last("tools/call")
        links[0].push(message(ELICIT % 1), sent.call)
        bench.turn()
        retry = bench.retry(first, {"q1": ACCEPT}, headers=two)
        assert retry.waits if renews else retry.error["code"] == -32602
        bench.stop()


def test_aSessionForEachCallEndsWithIt() -> None:
    bench = PoolBench(ScriptedServer(result=RESULT, callers="call"))
    first, second = bench.ask(1), bench.ask(2)
    one, two = bench.links
    one.reply(one.last("tools/call"), OK)
    assert first.result and bench.links == [two]
    two.reply(two.last("tools/call"), OK)
    assert second.result and not bench.links
    assert not bench.pool._listening._audiences
    bench.stop()


def test_otherCapabilitiesAreAnotherSession() -> None:
    bench = PoolBench()
    for caps in (
        FORM,
        {"elicitation": {}},
        {"elicitation": {"form": {"x": 1}}, "experimental": {}},
    ):
        call = bench.ask(caps=caps)
        bench.link.reply(bench.link.last("tools/call"), OK)
        assert call.result
    assert bench.server.handshakes == 1
    bench.ask(caps={"elicitation": {"url": {}}})
    assert bench.server.handshakes == 2
    bench.stop()


def test_whereNothingMayBeAskedCallsShareASession() -> None:
    bench = PoolBench()
    for id in range(20):
        bench.ask(id)
    assert len(bench.link.of("tools/call")) == 20
    bench.stop()


def test_whereTheServerMayAskACallHasASessionToItself_theLastUsedFirst() -> None:
    bench = PoolBench()
    bench.ask(1, caps=FORM)
    bench.ask(2, caps=FORM)
    one, two = bench.links
    two.reply(two.last("tools/call"), OK)
    one.reply(one.last("tools/call"), OK)
    for id in (3, 4, 5):
        bench.ask(id, caps=FORM)
        one.reply(one.last("tools/call"), OK)
    assert (len(one.of("tools/call")), len(two.of("tools/call"))) == (4, 1)
    bench.stop()


# Bounds.


def test_furtherCallsOfACallerWaitInOrder() -> None:
    bench = PoolBench(limits=Limits(max_pooled_sessions=2))
    calls = [bench.ask(id, caps=FORM) for id in range(4)]
    assert "max_pooled_sessions" in bench.bounds()
    one, _ = bench.links
    other = bench.ask("b", caps=FORM, who=BOB)
    assert len(bench.links) == 3
    one.reply(one.last("tools/call"), OK)
    bench.turn()
    assert len(one.of("tools/call")) == 2
    one.reply(one.last("tools/call"), b'{"content":[],"n":3}')
    assert calls[2].result["n"] == 3
    assert other.waits
    bench.stop()


def test_callsThatNobodyComesBackForHoldUpNoOthersForLong() -> None:
    bench = PoolBench(limits=Limits(max_pooled_sessions=2))
    first, link, sent = asked(bench)
    bench.turn(20)
    second, _, _ = asked(bench, id=2)
    call = bench.ask(3, caps=ALL)
    bench.turn(9)
    assert not link.of("notifications/cancelled") and call.waits
    bench.turn(1)
    assert "parked_beside" in bench.bounds()
    assert link.last("notifications/cancelled").message.param("requestId") == sent.id
    assert answers(link)[0]["error"]["code"] == -32603 and call.waits
    bench.turn(1)
    link.reply(link.last("tools/call"), OK)
    assert call.result
    assert bench.retry(first, {"q1": ACCEPT}).error["code"] == -32602
    assert bench.retry(second, {"q1": ACCEPT}).waits
    bench.stop()


def test_whoWaitedBeforeTheOthersWereAskedHasItsTurnToo() -> None:
    bench = PoolBench(limits=Limits(max_pooled_sessions=1))
    first = bench.ask(1, caps=ALL)
    call = bench.ask(2, caps=ALL)
    link, sent = only(bench)
    link.push(ELICIT % 1)
    bench.turn()
    assert first.result["resultType"] == "input_required" and call.waits
    bench.turn(30)
    assert link.last("notifications/cancelled").message.param("requestId") == sent.id
    bench.turn(1)
    link.reply(link.last("tools/call"), OK)
    assert call.result
    bench.stop()


def test_theBoundIsTheCallersWhateverItsClientsDeclare() -> None:
    bench = PoolBench(limits=Limits(max_pooled_sessions=1))
    first = bench.ask(1, caps=FORM)
    waits = bench.ask(2, caps=ALL)
    other = bench.link
    other.reply(other.last("tools/call"), OK)
    bench.turn()
    assert first.result and not other.alive
    bench.link.reply(bench.link.last("tools/call"), OK)
    assert waits.result
    bench.stop()


def test_howManyWait() -> None:
    bench = PoolBench(limits=Limits(max_pooled_sessions=1, max_modern_waiting=1))
    bench.ask(1, caps=FORM)
    waits = bench.ask(2, caps=FORM)
    assert bench.ask(3, caps=FORM).reason == "overloaded"
    assert "max_modern_waiting" in bench.bounds() and waits.waits
    bench.pool.gone(waits.target)
    assert bench.ask(4, caps=FORM).waits
    bench.stop()


def test_nobodyTakesAllPlacesThatOthersWaitFor() -> None:
    """Whatever its callers are called."""
    limits = Limits(max_pooled_total=1, max_modern_waiting_per_principal=1)
    bench = PoolBench(ScriptedServer(result=RESULT, callers="header:X"), limits)
    bench.ask(1, caps=FORM, who=ALICE)
    waits = bench.ask(2, caps=FORM, who=ALICE, caller="a")
    assert bench.ask(3, caps=FORM, who=ALICE, caller="b").reason == "rate_limited"
    assert "max_modern_waiting_per_principal" in bench.bounds() and waits.waits
    assert bench.ask(4, caps=FORM, who=BOB).waits
    bench.pool.gone(waits.target)
    assert bench.ask(5, caps=FORM, who=ALICE, caller="b").waits
    bench.stop()


def test_whoWaitsIsToldThatItsTimeIsOver() -> None:
    server = ScriptedServer(result=RESULT, timeout=30.0)
    bench = PoolBench(server, limits=Limits(max_pooled_sessions=1))
    first = bench.ask(1, caps=FORM, token=1)
    bench.turn(20)
    link, sent = only(bench)
    waits = bench.ask(2, caps=FORM)
    for _ in range(4):
        bench.turn(8)
        link.push(
            b'{"jsonrpc":"2.0","method":"notifications/progress","params":{"progressToken":%b,'
            b'"progress":1}}' % sent.id
        )
    assert waits.reason == "timeout" and first.waits
    bench.stop()


def test_theLongestIdleSessionOfAnybodyMakesRoom() -> None:
    bench = PoolBench(limits=Limits(max_pooled_total=2))
    for who in (ALICE, BOB):
        bench.ask(who=who)
        bench.links[-1].reply(bench.links[-1].last("tools/call"), OK)
        bench.turn(1)
    alices, bobs = bench.links
    third = bench.ask(3)
    assert not alices.alive and bobs.alive and "max_pooled_total" in bench.bounds()
    bench.ask(4, who=BOB)
    waits = bench.ask(5, who=ALICE)
    assert len(bench.links) == 2
    link = bench.links[-1]
    link.reply(link.last("tools/call"), OK)
    bench.turn()
    assert third.result and waits.waits and len(bench.links) == 2
    assert bench.links[-1].context.principal is ALICE
    bench.stop()


def test_idleSessionsEnd() -> None:
    bench = PoolBench(limits=Limits(pooled_idle=300.0))
    bench.ask(1, caps=FORM)
    bench.ask(2, caps=FORM)
    one, two = bench.links
    one.reply(one.last("tools/call"), OK)
    bench.turn(100)
    two.reply(two.last("tools/call"), OK)
    assert len(bench.clock.getDelayedCalls()) <= 3, "a timer for each relay, and one for all"
    bench.turn(200)
    assert not one.alive and two.alive
    bench.turn(100)
    assert not two.alive and bench.bounds() == ["pooled_idle", "pooled_idle"]
    bench.turn(1000)
    assert not bench.clock.getDelayedCalls()
    bench.stop()


# Loss.


def test_aLostServerIsMadeAgainForTheNextCall() -> None:
    bench = PoolBench()
    call = bench.ask(level="info")
    bench.link.reply(bench.link.last("logging/setLevel"))
    bench.link.lose(Reason.SERVER_EXITED)
    assert isinstance(call.target.answers[0], FailedCall)
    assert call.json["id"] == 1 and call.reason == "server_exited"
    bench.ask(2)
    methods = [sent.method for sent in bench.link.sent]
    assert methods == ["notifications/initialized", "logging/setLevel", "tools/call"]
    bench.stop()


def test_aServerThatComesBackNarrowedIsAnother() -> None:
    bench = PoolBench()
    bench.ask(1)
    bench.link.lose()
    bench.server.result = NARROW
    bench.turn(1)
    call = bench.ask(2)
    bench.link.reply(bench.link.last("tools/call"), OK)
    assert call.result["_meta"]["io.modelcontextprotocol/serverInfo"]["version"] == "2"
    bench.stop()


def test_onExitLost() -> None:
    bench = PoolBench(
        ScriptedServer(result=RESULT, on_exit="lost"), limits=Limits(max_pooled_sessions=1)
    )
    call = bench.ask(1, caps=FORM)
    waits = bench.ask(2, caps=FORM)
    bench.link.lose()
    bench.turn()
    assert call.reason == "server_exited"
    bench.link.reply(bench.link.last("tools/call"), OK)
    assert waits.result
    bench.stop()


def test_aHandshakeThatFails() -> None:
    bench = PoolBench()
    bench.server.failNext(Reason.UPSTREAM_UNREACHABLE, "nothing there")
    call = bench.ask(1)
    assert isinstance(call.target.answers[0], FailedCall)
    assert call.reason == "upstream_unreachable"
    assert bench.ask(2).waits
    bench.stop()


@pytest.mark.parametrize("caps", [{}, FORM])
@pytest.mark.parametrize("listens", [False, True])
def test_aHandshakeThatIsRefusedIsNotMadeAgainForOthers(
    caps: dict[str, Any], listens: bool
) -> None:
    bench = PoolBench()
    refusal = message(b'{"jsonrpc":"2.0","id":0,"error":{"code":-32602,"message":"no"}}')
    bench.server.failures.append(LinkFailed(Reason.BAD_ANSWER, "refused", refusal))
    filter = {"notifications": {"toolsListChanged": True}}
    method, params = ("subscriptions/listen", filter) if listens else ("tools/call", None)
    bad = bench.ask(1, method, params, caps=caps, name="bad")
    assert bad.reason == "bad_answer"
    assert bench.ask(2, caps=caps, name="good").waits
    assert json.loads(bench.link.hello.params)["clientInfo"]["name"] == "good"
    bench.stop()


def test_whoseCredentialsAreRefusedTakesNobodysRoom() -> None:
    server = ScriptedServer(result=RESULT, http=True, forward_authorization=True)
    bench = PoolBench(server, limits=Limits(max_pooled_total=2))
    bench.ask(1, headers=((b"authorization", b"good"),))
    link = bench.link
    link.accept(link.last("notifications/initialized"))
    link.reply(link.last("tools/call"), OK)
    for id in range(2, 5):
        bench.server.failNext(Reason.BAD_ANSWER, "refused", status=401)
        guess = b"bad %d" % id
        assert bench.ask(id, headers=((b"authorization", guess),)).reason == "bad_answer"
    assert link.alive and not bench.bounds()
    bench.stop()


def test_policyIsTheRelays() -> None:
    class NoTools:
        def allows(
            self, direction: Direction, method: str, name: str, context: CallContext
        ) -> bool:
            return method != "tools/call"

    bench = PoolBench(policy=NoTools())  # type: ignore[arg-type]
    assert bench.ask(1).reason == "forbidden"
    assert bench.ask(2, "tools/list").waits
    bench.stop()


# Errors.


def test_errorCodesThatMeanSomethingElse() -> None:
    bench = PoolBench()
    expected = {
        -32002: {"code": -32602, "message": "m", "data": {"uri": "x"}},
        -32022: {"code": -32603, "message": "m", "data": {"code": -32022, "data": {"uri": "x"}}},
        -32077: {"code": -32603, "message": "m", "data": {"code": -32077, "data": {"uri": "x"}}},
        -32001: {"code": -32001, "message": "m", "data": {"uri": "x"}},
        -32601: {"code": -32601, "message": "m", "data": {"uri": "x"}},
        5: {"code": 5, "message": "m", "data": {"uri": "x"}},
    }
    for code, said in expected.items():
        call = bench.ask(code, "resources/read", {"uri": "x:y"})
        sent = bench.link.last("resources/read")
        error = b'{"jsonrpc":"2.0","id":%b,"error":{"code":%d,"message":"m","data":{"uri":"x"}}}'
        bench.link.push(error % (sent.id, code))
        assert call.error == said
    bench.stop()


URL_ERROR = (
    b'{"jsonrpc":"2.0","id":%b,"error":{"code":-32042,"message":"m","data":{"elicitations":['
    b'{"mode":"url","elicitationId":"i","url":"https://x.invalid/","message":"go"}]}}}'
)


def test_aURLThatMustBeVisitedFirst() -> None:
    bench = PoolBench()
    call = bench.ask(caps=ALL)
    link, sent = only(bench)
    link.push(URL_ERROR % sent.id)
    assert call.result["inputRequests"] == {
        "url-1": {
            "method": "elicitation/create",
            "params": {"mode": "url", "url": "https://x.invalid/", "message": "go"},
        }
    }
    assert "requestState" not in call.result
    again = bench.retry(call, {"url-1": {"action": "accept"}})
    assert len(link.of("tools/call")) == 2
    link.reply(link.last("tools/call"), OK)
    assert again.result["resultType"] == "complete"
    declined = bench.retry(call, {"url-1": {"action": "decline"}}, id=3)
    assert declined.error["code"] == -32603 and len(link.of("tools/call")) == 2
    bench.stop()


def test_aURLThatNobodyCanVisit() -> None:
    bench = PoolBench()
    call = bench.ask(caps=FORM)
    link, sent = only(bench)
    link.push(URL_ERROR % sent.id)
    assert call.error["code"] == -32021
    assert call.error["data"] == {"requiredCapabilities": {"elicitation": {"url": {}}}}
    bench.stop()


# Log messages.

LOG = b'{"jsonrpc":"2.0","method":"notifications/message","params":{"level":"%b","data":1.0}}'


def test_logMessagesOnlyForWhoAskedForThem() -> None:
    bench = PoolBench()
    silent = bench.ask(1)
    link = bench.link
    assert not link.of("logging/setLevel")
    link.push(LOG % b"error")
    link.reply(link.last("tools/call"), OK)
    asks = bench.ask(2, level="warning")
    assert json.loads(link.last("logging/setLevel").message.encode())["params"] == {
        "level": "warning"
    }
    assert len(link.of("tools/call")) == 1, "the level comes first"
    link.reply(link.last("logging/setLevel"))
    assert len(link.of("tools/call")) == 2
    for level in (b"debug", b"warning", b"error"):
        link.push(LOG % level)
    assert not silent.heard
    assert [one["params"]["level"] for one in asks.heard] == ["warning", "error"]
    again = bench.ask(3, level="warning")
    assert len(link.of("logging/setLevel")) == 1
    # Of two that asked, nobody knows whose it is.
    link.push(LOG % b"error")
    assert not again.heard and bench.drops()[-1] == "log_of_no_call"
    bench.stop()


def test_aSharedSessionLogsAtTheLowestLevel() -> None:
    bench = PoolBench()
    for id, level in enumerate(("error", "debug", "error")):
        bench.ask(id, level=level)
        for sent in bench.link.of("logging/setLevel")[-1:]:
            if id < 2:
                bench.link.reply(sent)
    levels = [sent.message.paramText("level") for sent in bench.link.of("logging/setLevel")]
    assert levels == ["error", "debug"]
    bench.stop()


def test_aServerThatDoesNotAnswerToALevelHoldsUpNobodyElse() -> None:
    bench = PoolBench()
    asks = bench.ask(1, level="debug")
    silent = bench.ask(2)
    bench.link.reply(bench.link.last("tools/call"), OK)
    assert silent.result and asks.waits
    bench.stop()


def test_aServerWithoutLoggingIsNotAskedForIt() -> None:
    bench = PoolBench(ScriptedServer(result=NARROW))
    bench.ask(level="debug")
    assert len(bench.link.of("tools/call")) == 1 and not bench.link.of("logging/setLevel")
    bench.stop()


# Cancellation.


def test_whoIsGoneCancelsTheCall() -> None:
    bench = PoolBench(limits=Limits(max_pooled_sessions=1))
    call = bench.ask(1, caps=FORM)
    next = bench.ask(2, caps=FORM)
    link, sent = only(bench)
    bench.pool.gone(call.target)
    assert next.waits
    assert link.last("notifications/cancelled").message.param("requestId") == sent.id
    assert len(link.of("tools/call")) == 1, "the server may still be at it"
    bench.turn(1)
    assert len(link.of("tools/call")) == 2
    assert not call.target.answers and not call.target.delivered
    link.reply(sent, OK)
    assert next.waits
    bench.stop()


def test_whoIsGoneBeforeItsTurnLeavesNothing() -> None:
    bench = PoolBench()
    bench.server.handshakeHeld = True
    call = bench.ask(1)
    bench.pool.gone(call.target)
    bench.server.finishHandshake()
    bench.turn()
    assert not call.target.answers and not bench.calls() and not bench.pool.running
    bench.stop()


def test_goneWithinTheTurnOfARefusal() -> None:
    bench = PoolBench()
    target = MemoryTarget()
    bench.pool.request(modern(method="ping"), target, CallContext("scripted"))
    bench.pool.gone(target)
    bench.turn()
    assert not target.answers
    bench.stop()


# Questions.


def test_aQuestionBecomesInputRequired() -> None:
    bench = PoolBench()
    call, link, sent = asked(bench)
    assert call.result["inputRequests"] == {
        "q1": {
            "method": "elicitation/create",
            "params": {
                "mode": "form",
                "message": "who?",
                "requestedSchema": {"type": "object", "properties": {}},
            },
        }
    }
    assert call.result["_meta"] == {"io.modelcontextprotocol/serverInfo": INFO}
    assert not bench.pool.running
    bench.pool.gone(call.target)
    bench.turn(300)
    assert not link.of("notifications/cancelled"), "a parked call waits"
    retry = bench.retry(call, {"q1": ACCEPT, "other": {"x": 1}})
    assert answers(link) == [{"jsonrpc": "2.0", "id": "e1", "result": ACCEPT}]
    assert len(link.of("tools/call")) == 1 and retry.waits and bench.pool.running
    link.reply(sent, OK)
    assert retry.json["id"] == "retry" and retry.result["resultType"] == "complete"
    assert "max_parked" not in bench.bounds()
    bench.stop()


def test_whatIsAskedWithinAWhileGoesTogether() -> None:
    bench = PoolBench()
    call = bench.ask(caps=ALL)
    link, sent = only(bench)
    link.push(ELICIT % 1)
    bench.turn(bench.limits.ask_wait / 2)
    link.push(ROOTS)
    link.push(SAMPLE % b"")
    assert call.waits
    bench.turn(bench.limits.ask_wait / 2)
    kinds = [one["method"] for one in call.result["inputRequests"].values()]
    assert kinds == ["elicitation/create", "roots/list", "sampling/createMessage"]
    bench.retry(call, {"q1": ACCEPT, "q2": {"roots": []}})
    again = bench.all[-1]
    assert list(again.result["inputRequests"]) == ["q3"]
    assert [one["id"] for one in answers(link)] == ["e1", "r1"]
    last = bench.retry(
        again, {"q3": {"role": "assistant", "content": {"type": "text", "text": "x"}, "model": "m"}}
    )
    assert [one["id"] for one in answers(link)] == ["e1", "r1", 7]
    link.reply(sent, OK)
    assert last.result["resultType"] == "complete"
    # The state of the first round is worth nothing after it.
    assert bench.retry(call, {"q1": ACCEPT}).error["code"] == -32602
    bench.stop()


def test_furtherRounds() -> None:
    bench = PoolBench()
    call, link, sent = asked(bench, token="a")
    for number in range(2, 5):
        call = bench.retry(call, {f"q{number - 1}": ACCEPT}, token=f"t{number}")
        link.push(
            b'{"jsonrpc":"2.0","method":"notifications/progress","params":{"progressToken":%b,'
            b'"progress":%d}}' % (sent.id, number)
        )
        assert call.heard[-1]["params"]["progressToken"] == f"t{number}"
        link.push(ELICIT % number)
        bench.turn()
        assert list(call.result["inputRequests"]) == [f"q{number}"]
    bench.stop()


def test_aStateUsedTwiceWhileItIsWaitedFor() -> None:
    bench = PoolBench()
    call, link, sent = asked(bench, 2)
    first = bench.retry(call)
    assert list(first.result["inputRequests"]) == ["q1", "q2"]
    second = bench.retry(call, {"q1": ACCEPT, "q2": ACCEPT})
    assert second.waits and len(answers(link)) == 2
    assert bench.retry(first, {"q1": ACCEPT}).error["code"] == -32602
    link.reply(sent, OK)
    assert second.result
    assert bench.retry(first, {"q1": ACCEPT}).error["code"] == -32602
    bench.stop()


def test_aStateThatIsNotValidSaysNothingMore() -> None:
    bench = PoolBench()
    call, link, _ = asked(bench, who=ALICE, params={"name": "t", "arguments": {"a": 1}})
    state = call.result["requestState"]
    flipped = ("B" if state[0] == "A" else "A") + state[1:]
    for changes in (
        {"who": BOB},
        {"params": {"arguments": {"a": 2}}},
        {"params": {"extra": 1}},
        {"method": "prompts/get"},
        {"state": flipped},
        {"state": state[:-1]},
        {"state": state + "="},
        {"state": ""},
        {"state": 5},
    ):
        refused = bench.retry(call, {"q1": ACCEPT}, **changes)
        assert refused.error == {"code": -32602, "message": "requestState is not valid"}
    assert not answers(link)
    bench.turn(599)
    assert bench.retry(call, {"q1": ACCEPT}, who=ALICE).waits
    bench.stop()


@pytest.mark.parametrize("responses", [[], "x", {"q1": "accept"}, {"q1": ACCEPT, "z": 1}])
def test_malformedResponses(responses: Any) -> None:
    bench = PoolBench()
    call, link, _ = asked(bench)
    assert bench.retry(call, responses).error["code"] == -32602
    assert bench.ask(5, params={"name": "t", "inputResponses": responses}).error["code"] == -32602
    assert bench.retry(call, {"q1": ACCEPT}).waits and len(answers(link)) == 1
    bench.stop()


def test_whatTheClientDidNotDeclareIsNeverAsked() -> None:
    bench = PoolBench()
    call = bench.ask(caps=FORM)
    link, _ = only(bench)
    link.push(ROOTS)
    link.push(SAMPLE % b"")
    link.push(
        b'{"jsonrpc":"2.0","id":3,"method":"elicitation/create","params":{"mode":"url",'
        b'"elicitationId":"i","url":"https://x.invalid/","message":"go"}}'
    )
    bench.turn()
    assert [(one["id"], one["error"]["code"]) for one in answers(link)] == [
        ("r1", -32601),
        (7, -32601),
        (3, -32602),
    ]
    assert call.waits
    sampling = bench.ask(2, caps={"sampling": {}})
    other = bench.links[-1]
    other.push(SAMPLE % b',"tools":[]')
    bench.turn()
    assert answers(other)[0]["error"]["code"] == -32602 and sampling.waits
    bench.stop()


def test_aRetryThatDeclaresLessIsAskedLess() -> None:
    bench = PoolBench()
    call, link, sent = asked(bench)
    retry = bench.retry(call, {}, caps={"roots": {}})
    assert retry.waits and answers(link)[0]["error"]["code"] == -32601
    link.reply(sent, OK)
    assert retry.result
    bench.stop()


def test_rootsAreAskedForByTheNextCallThatMay() -> None:
    bench = PoolBench()
    first = bench.ask(1, "tools/list", caps=ALL)
    link, sent = only(bench, "tools/list")
    link.push(ROOTS)
    link.reply(sent, b'{"tools":[]}')
    assert first.result
    call = bench.ask(2, caps=ALL)
    assert call.result["inputRequests"] == {"q1": {"method": "roots/list"}}
    # The server waits for no roots to answer the call.
    link.reply(link.last("tools/call"), OK)
    retry = bench.retry(call, {"q1": {"roots": []}})
    assert answers(link) == [{"jsonrpc": "2.0", "id": "r1", "result": {"roots": []}}]
    assert retry.result["resultType"] == "complete"
    bench.stop()


def test_rootsThatNoCallCarries() -> None:
    bench = PoolBench()
    bench.ask(1, "server/discover", caps=ALL)
    link = bench.link
    link.push(ROOTS)
    stream = bench.ask("L", "subscriptions/listen", {"notifications": {}}, caps=ALL)
    bench.turn(599)
    assert not answers(link)
    bench.turn(1)
    assert answers(link)[0]["error"]["code"] == -32603 and "parked_for" in bench.bounds()
    link.push(ROOTS)
    link.push(b'{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":"r1"}}')
    call = bench.ask(2, caps=ALL)
    assert call.waits and stream.waits
    bench.stop()


def test_rootsThatAreAskedForWhileTheLogLevelIsSet() -> None:
    bench = PoolBench()
    call = bench.ask(1, caps=ALL, level="info")
    link = bench.link
    link.push(ROOTS)
    bench.turn()
    assert not answers(link)
    link.reply(link.last("logging/setLevel"))
    bench.turn()
    assert list(call.result["inputRequests"]) == ["q1"]
    bench.stop()


def test_otherMethodsCannotAsk() -> None:
    bench = PoolBench()
    call = bench.ask(method="tools/list", caps=ALL)
    link, sent = only(bench, "tools/list")
    link.push(ELICIT % 1)
    link.push(b'{"jsonrpc":"2.0","id":"p","method":"ping"}')
    link.push(b'{"jsonrpc":"2.0","id":"u","method":"vendor/unknown"}')
    bench.turn()
    assert [(one["id"], one.get("error", {}).get("code")) for one in answers(link)] == [
        ("e1", -32601),
        ("p", None),
        ("u", -32601),
    ]
    link.reply(sent, b'{"tools":[]}')
    assert call.result
    bench.stop()


def test_outsideAnyCallNothingCanBeAsked() -> None:
    bench = PoolBench()
    bench.ask(caps=ALL)
    link, sent = only(bench)
    link.reply(sent, OK)
    link.push(ELICIT % 1)
    link.push(b'{"jsonrpc":"2.0","id":"p","method":"ping"}')
    bench.turn()
    assert [(one["id"], "error" in one) for one in answers(link)] == [("e1", True), ("p", False)]
    bench.stop()


def test_theServerTakesAQuestionBack() -> None:
    bench = PoolBench()
    call, link, sent = asked(bench)
    link.push(b'{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":"e1"}}')
    retry = bench.retry(call, {"q1": ACCEPT})
    assert retry.waits and not answers(link)
    link.reply(sent, OK)
    assert retry.result["resultType"] == "complete"
    early = bench.ask(4, caps=ALL)
    link.push(ELICIT % 2)
    link.push(b'{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":"e2"}}')
    bench.turn()
    assert early.waits
    bench.stop()


def test_anAnswerThatComesWhileTheClientIsAwayWaitsForIt() -> None:
    bench = PoolBench(limits=Limits(max_pooled_sessions=1))
    call, link, sent = asked(bench)
    link.reply(sent, OK)
    assert answers(link)[0]["error"]["code"] == -32603
    assert bench.ask(2, caps=ALL).waits and len(link.of("tools/call")) == 2, "the lease is free"
    retry = bench.retry(call, {"q1": ACCEPT})
    assert retry.result["resultType"] == "complete" and len(answers(link)) == 1
    assert bench.retry(call, {"q1": ACCEPT}).error["code"] == -32602
    bench.stop()


def test_aClientThatDoesNotComeBack() -> None:
    bench = PoolBench(limits=Limits(parked_for=600.0, max_pooled_total=1))
    call, link, sent = asked(bench)
    bench.turn(10)
    waits = bench.ask(2, caps=ALL, who=BOB)
    bench.turn(589)
    assert not answers(link)
    bench.turn(1)
    assert answers(link)[0]["error"]["code"] == -32603
    assert link.last("notifications/cancelled").message.param("requestId") == sent.id
    assert "parked_for" in bench.bounds()
    assert bench.retry(call, {"q1": ACCEPT}).error["code"] == -32602
    assert len(link.of("tools/call")) == 1
    bench.turn(1)
    assert not link.alive
    bench.link.reply(bench.link.last("tools/call"), OK)
    assert waits.result
    bench.stop()


def test_howManyWaitForTheirClients() -> None:
    bench = PoolBench(limits=Limits(max_parked=1))
    asked(bench)
    call = bench.ask(2, caps=ALL)
    link = bench.links[-1]
    link.push(ELICIT % 9)
    bench.turn()
    assert answers(link)[0]["error"]["code"] == -32603
    assert call.waits and "max_parked" in bench.bounds()
    bench.stop()


def test_nobodyKeepsOthersFromBeingAsked() -> None:
    bench = PoolBench(limits=Limits(max_parked_per_principal=1))
    for who, asks in ((ALICE, True), (ALICE, False), (BOB, True)):
        call = bench.ask(2, caps=ALL, who=who)
        link = bench.links[-1]
        link.push(ELICIT % 9)
        bench.turn()
        assert call.waits is not asks
        if not asks:
            assert answers(link)[0]["error"]["code"] == -32603
            assert bench.bounds() == ["max_parked_per_principal"]
    bench.stop()


def test_deadlinesStandStillWhileTheClientIsAsked() -> None:
    bench = PoolBench(ScriptedServer(result=RESULT, timeout=10.0))
    call, link, sent = asked(bench)
    bench.turn(300)
    retry = bench.retry(call, {"q1": ACCEPT})
    bench.turn(9)
    assert retry.waits
    bench.turn(2)
    assert retry.reason == "timeout"
    assert sent.id == link.last("notifications/cancelled").message.param("requestId")
    bench.stop()


def test_whoRetriesAndIsGoneCancels() -> None:
    bench = PoolBench()
    call, link, sent = asked(bench)
    retry = bench.retry(call, {"q1": ACCEPT})
    bench.pool.gone(retry.target)
    assert link.last("notifications/cancelled").message.param("requestId") == sent.id
    bench.turn(1)
    bench.stop()


def test_aLostServerWhileTheClientIsAsked() -> None:
    bench = PoolBench()
    call, link, _ = asked(bench)
    link.lose()
    retry = bench.retry(call, {"q1": ACCEPT})
    assert retry.reason == "server_exited"
    bench.stop()


def test_elicitationCompleteIsDropped() -> None:
    bench = PoolBench()
    _, link, _ = asked(bench)
    link.push(
        b'{"jsonrpc":"2.0","method":"notifications/elicitation/complete",'
        b'"params":{"elicitationId":"i"}}'
    )
    assert "no_stream" in bench.drops()
    bench.stop()


# Listening.


def listen(bench: PoolBench, id: object = "L", **wanted: Any) -> Asked:
    """A listen, whose subscriptions the server grants."""
    stream = bench.ask(id, "subscriptions/listen", {"notifications": wanted})
    grant(bench)
    return stream


GRANTED: list[Sent] = []


def grant(bench: PoolBench) -> None:
    """Have the server answer what it was asked to tell of."""
    for link in bench.links:
        for sent in link.of("resources/subscribe"):
            if sent not in GRANTED:
                GRANTED.append(sent)
                link.reply(sent)
    bench.turn()


UPDATED = b'{"jsonrpc":"2.0","method":"notifications/resources/updated","params":{"uri":"%b"}}'
TOOLS = b'{"jsonrpc":"2.0","method":"notifications/tools/list_changed"}'


def test_aListenIsAcknowledgedFirst() -> None:
    bench = PoolBench()
    stream = listen(bench, toolsListChanged=True, resourceSubscriptions=["a:b", "a:b", "c:d"])
    link = bench.link
    assert stream.heard == [
        {
            "jsonrpc": "2.0",
            "method": "notifications/subscriptions/acknowledged",
            "params": {
                "notifications": {
                    "toolsListChanged": True,
                    "resourceSubscriptions": ["a:b", "c:d"],
                },
                "_meta": {"io.modelcontextprotocol/subscriptionId": "L"},
            },
        }
    ]
    assert not bench.pool.running
    uris = [sent.message.paramText("uri") for sent in link.of("resources/subscribe")]
    assert uris == ["a:b", "c:d"]
    link.push(TOOLS)
    link.push(b'{"jsonrpc":"2.0","method":"notifications/prompts/list_changed"}')
    link.push(UPDATED % b"c:d")
    link.push(UPDATED % b"c:d/sub")
    link.push(UPDATED % b"c:other")
    assert [one["method"] for one in stream.heard[1:]] == [
        "notifications/tools/list_changed",
        "notifications/resources/updated",
        "notifications/resources/updated",
    ]
    assert all(
        one["params"]["_meta"] == {"io.modelcontextprotocol/subscriptionId": "L"}
        for one in stream.heard
    )
    bench.stop()
    assert stream.result == {
        "resultType": "complete",
        "_meta": {
            "io.modelcontextprotocol/subscriptionId": "L",
            "io.modelcontextprotocol/serverInfo": INFO,
        },
    }


def test_onlyWhatTheServerCanHonour() -> None:
    bare = (
        b'{"protocolVersion":"2025-06-18","capabilities":{"tools":{},'
        b'"prompts":{"listChanged":true}},"serverInfo":{"name":"s","version":"1"}}'
    )
    bench = PoolBench(ScriptedServer(result=bare))
    stream = listen(
        bench, toolsListChanged=True, promptsListChanged=True, resourceSubscriptions=["a:b"]
    )
    assert stream.heard[0]["params"]["notifications"] == {"promptsListChanged": True}
    assert not bench.link.of("resources/subscribe")
    bench.stop()


def test_anySessionOfTheCallerIsHeard_andNobodyElses() -> None:
    bench = PoolBench()
    stream = listen(bench, toolsListChanged=True, resourceSubscriptions=["a:b"])
    home = bench.link
    bench.ask(1, caps=FORM)
    bench.ask(2, caps=FORM)
    bench.ask(3, who=BOB)
    _, one, two, bobs = bench.links
    for link in (home, one, two):
        assert len(link.of("resources/subscribe")) == 1
        link.push(TOOLS)
    assert not bobs.of("resources/subscribe")
    bobs.push(TOOLS)
    assert len(stream.heard) == 4
    # What the server asks meanwhile is the call's still.
    one.push(ELICIT % 1)
    bench.turn()
    assert list(bench.all[1].result["inputRequests"]) == ["q1"]
    bench.pool.gone(stream.target)
    for link in (home, one, two):
        assert len(link.of("resources/unsubscribe")) == 1
        link.push(TOOLS)
    assert len(stream.heard) == 4 and not stream.target.answers
    bench.stop()


def test_aListenIsAcknowledgedOnceTheServerTellsOfWhatItWants() -> None:
    bench = PoolBench()
    wanted = {"notifications": {"resourceSubscriptions": ["a:b", "c:d"]}}
    one = bench.ask(1, "subscriptions/listen", wanted)
    two = bench.ask(2, "subscriptions/listen", wanted)
    gone = bench.ask(3, "subscriptions/listen", wanted)
    link = bench.link
    link.push(UPDATED % b"a:b")
    bench.pool.gone(gone.target)
    first, second = link.of("resources/subscribe")
    link.reply(second)
    assert not one.heard
    link.refuse(first)
    for stream in (one, two):
        (ack,) = stream.heard
        assert ack["params"]["notifications"] == {"resourceSubscriptions": ["c:d"]}
    assert not gone.heard
    link.push(UPDATED % b"c:d")
    assert len(one.heard) == 2 and len(two.heard) == 2
    bench.pool.gone(one.target)
    bench.pool.gone(two.target)
    assert [sent.message.paramText("uri") for sent in link.of("resources/unsubscribe")] == ["c:d"]
    bench.stop()


def test_aServerThatIsLostBeforeItTells() -> None:
    bench = PoolBench()
    wanted = {"notifications": {"resourceSubscriptions": [f"a:{n}" for n in range(40)]}}
    stream = bench.ask(1, "subscriptions/listen", wanted)
    assert len(bench.link.of("resources/subscribe")) == 16
    bench.link.lose()
    bench.turn()
    for _ in range(5):
        grant(bench)
    assert stream.heard[0]["method"] == "notifications/subscriptions/acknowledged"
    assert len(bench.link.of("resources/subscribe")) == 40
    bench.stop()


def test_aSessionThatIsLostBeforeItsServerTells() -> None:
    bench = PoolBench(ScriptedServer(result=RESULT, on_exit="lost"))
    wanted = {"notifications": {"resourceSubscriptions": [f"a:{n}" for n in range(40)]}}
    stream = bench.ask(1, "subscriptions/listen", wanted)
    bench.link.lose()
    for _ in range(5):
        bench.turn()
        grant(bench)
    assert stream.heard[0]["method"] == "notifications/subscriptions/acknowledged"
    assert len(bench.link.of("resources/subscribe")) == 40
    bench.stop()


def test_subscriptionsAreCounted() -> None:
    bench = PoolBench()
    one = listen(bench, 1, resourceSubscriptions=["a:b"])
    two = listen(bench, 2, resourceSubscriptions=["a:b", "c:d"])
    link = bench.link
    assert len(link.of("resources/subscribe")) == 2
    bench.pool.gone(one.target)
    assert not link.of("resources/unsubscribe")
    bench.pool.gone(two.target)
    assert len(link.of("resources/unsubscribe")) == 2
    bench.stop()


def test_whoListensKeepsOneSession() -> None:
    bench = PoolBench()
    stream = listen(bench, toolsListChanged=True)
    link = bench.link
    bench.turn(10_000)
    assert link.alive
    call = bench.ask(1)
    link.reply(link.last("tools/call"), OK)
    assert call.result
    bench.pool.gone(stream.target)
    bench.turn(301)
    assert not link.alive
    assert not bench.pool._listening._audiences
    bench.stop()


def test_aLostSessionComesBackForWhoListens() -> None:
    bench = PoolBench()
    stream = listen(bench, toolsListChanged=True, resourceSubscriptions=["a:b"])
    bench.link.lose()
    bench.turn()
    again = bench.link
    assert [sent.method for sent in again.sent] == [
        "notifications/initialized",
        "resources/subscribe",
    ]
    assert [one["method"] for one in stream.heard[1:]] == [
        "notifications/tools/list_changed",
        "notifications/resources/updated",
    ]
    bench.stop()


def test_aServerThatStaysAwayIsTriedAgain() -> None:
    bench = PoolBench()
    stream = listen(bench, toolsListChanged=True)
    for _ in range(3):
        bench.server.failNext()
    bench.link.lose()
    bench.turn()
    assert not bench.links
    for _ in range(60):
        bench.turn(1)
    assert bench.link.alive and stream.heard[1]["method"] == "notifications/tools/list_changed"
    bench.stop()
    assert stream.result


def test_aSessionThatIsLostForGoodIsReplaced() -> None:
    bench = PoolBench(ScriptedServer(result=RESULT, on_exit="lost"))
    stream = listen(bench, toolsListChanged=True, resourceSubscriptions=["a:b"])
    bench.link.lose()
    bench.turn()
    assert len(bench.link.of("resources/subscribe")) == 1
    assert [one["method"] for one in stream.heard[1:]] == [
        "notifications/tools/list_changed",
        "notifications/resources/updated",
    ]
    bench.stop()


@pytest.mark.parametrize("callFirst", [False, True])
def test_aSessionThatIsLostForGoodToACallIsReplacedForWhoListens(callFirst: bool) -> None:
    bench = PoolBench()
    stream = listen(bench, toolsListChanged=True)
    bench.server.failNext()
    bench.link.lose()
    bench.turn()
    bench.server.handshakeHeld = True
    if callFirst:
        call = bench.ask(2)
    bench.turn(60)
    if not callFirst:
        call = bench.ask(2)
    bench.server.result = NARROW.replace(b'"tools":{}', b'"tools":{"listChanged":true}')
    bench.server.handshakeHeld = False
    bench.server.finishHandshake()
    bench.turn()
    bench.links[-1].reply(bench.links[-1].last("tools/call"), OK)
    assert call.result and stream.heard[1]["method"] == "notifications/tools/list_changed"
    # It is kept for who listens.
    bench.turn(301)
    bench.link.push(TOOLS)
    assert len(stream.heard) == 3
    bench.stop()


def test_aServerThatCanNoLongerHonourAListenEndsIt() -> None:
    bench = PoolBench()
    stream = listen(bench, resourceSubscriptions=["a:b"])
    bench.server.result = NARROW
    bench.link.lose()
    for _ in range(5):
        bench.turn(1)
    assert stream.result["resultType"] == "complete"
    bench.stop()


@pytest.mark.parametrize(
    "wanted",
    [
        None,
        [],
        {"toolsListChanged": 1},
        {"resourceSubscriptions": "a:b"},
        {"resourceSubscriptions": [1]},
        {"resourceSubscriptions": ["\ud800"]},
    ],
)
def test_aFilterThatIsNone(wanted: Any) -> None:
    bench = PoolBench()
    stream = bench.ask("L", "subscriptions/listen", {"notifications": wanted})
    assert stream.error["code"] == -32602
    bench.stop()


def test_howManyListen() -> None:
    bench = PoolBench(limits=Limits(max_listens=1))
    one = listen(bench, 1, toolsListChanged=True)
    assert listen(bench, 2, toolsListChanged=True).reason == "overloaded"
    assert "max_listens" in bench.bounds()
    bench.pool.gone(one.target)
    assert listen(bench, 3, toolsListChanged=True).waits
    bench.stop()


def test_nobodyKeepsOthersFromListening() -> None:
    bench = PoolBench(limits=Limits(max_listens_per_principal=1))
    wanted = {"notifications": {"toolsListChanged": True}}
    one = bench.ask(1, "subscriptions/listen", wanted, who=ALICE)
    assert bench.ask(2, "subscriptions/listen", wanted, who=ALICE).reason == "rate_limited"
    assert "max_listens_per_principal" in bench.bounds()
    assert bench.ask(3, "subscriptions/listen", wanted, who=BOB).waits
    bench.pool.gone(one.target)
    assert bench.ask(4, "subscriptions/listen", wanted, who=ALICE).waits
    bench.stop()


def test_howMuchOneCallerSubscribesTo() -> None:
    bench = PoolBench(limits=Limits(max_subscriptions=2))
    stream = listen(bench, resourceSubscriptions=["a:1", "a:2", "a:3"])
    acknowledged = stream.heard[0]["params"]["notifications"]
    assert acknowledged == {"resourceSubscriptions": ["a:1", "a:2"]}
    assert "max_subscriptions" in bench.bounds()
    bench.stop()


def test_aListenWhoseSessionCannotBeMade() -> None:
    bench = PoolBench()
    bench.server.failNext()
    stream = listen(bench, toolsListChanged=True)
    assert stream.reason == "server_exited" and not stream.heard
    bench.stop()


def test_stoppingAnswersEverything() -> None:
    bench = PoolBench(limits=Limits(max_pooled_sessions=1))
    running = bench.ask(1, caps=FORM)
    waiting = bench.ask(2, caps=FORM)
    parked, _, _ = asked(bench, who=BOB)
    stream = listen(bench, toolsListChanged=True)
    bench.server.handshakeHeld = True
    opening = bench.ask(3, who=ALICE)
    early = bench.ask("e", "subscriptions/listen", {"notifications": {}}, who=CAROL)
    bench.stop()
    for call in (running, waiting, opening, early):
        assert call.reason == "shutting_down", call
    assert stream.result and parked.result
    late = bench.ask(9)
    assert late.reason == "shutting_down"


def test_aTargetIsToldNothingAfterItIsGone() -> None:
    bench = PoolBench()
    stream = listen(bench, toolsListChanged=True)
    bench.pool.gone(stream.target)
    bench.link.push(TOOLS)
    bench.stop()
    assert not stream.target.answers


def test_anHTTPServersOwnStreams() -> None:
    bench = PoolBench(ScriptedServer(http=True, result=RESULT))
    call = bench.ask(1, caps=ALL, token=3)
    other = bench.ask(2, caps=ALL)
    one, two = bench.links
    for link in (one, two):
        link.accept(link.last("notifications/initialized"))
    sent = one.last("tools/call")
    one.push(message(ELICIT % 1), sent.call)
    bench.turn()
    assert call.result["inputRequests"] and other.waits
    retry = bench.retry(call, {"q1": ACCEPT})
    assert len(answers(one)) == 1
    one.accept(one.last(""))
    one.reply(sent, OK)
    assert retry.result
    bench.pool.gone(other.target)
    assert two.of("notifications/cancelled")
    two.accept(two.last("notifications/cancelled"))
    bench.turn(1)
    bench.stop()


def test_stoppingWaitsForWhatIsClosing() -> None:
    bench = PoolBench(
        ScriptedServer(result=RESULT, on_exit="lost"), limits=Limits(pooled_idle=10.0)
    )
    bench.ask(1, who=ALICE)
    idle, sent = only(bench)
    idle.slowClose = True
    idle.reply(sent, OK)
    bench.turn(10)
    assert idle.closed
    bench.ask(2)
    running = bench.link
    running.slowClose = True
    done: list[None] = []
    bench.pool.stop().addCallback(done.append)
    assert not done
    idle.finishClose()
    assert not done
    running.finishClose()
    assert done == [None]
    bench.stop()


def test_aListenForWhichThereIsNoRoom() -> None:
    bench = PoolBench(limits=Limits(max_pooled_total=1))
    bench.ask(1, who=BOB)
    assert listen(bench, toolsListChanged=True).reason == "overloaded"
    assert "max_pooled_total" in bench.bounds()
    bench.stop()


def test_noRoomToReplaceTheSessionOfWhoListens() -> None:
    server = ScriptedServer(result=RESULT, on_exit="lost")
    bench = PoolBench(server, limits=Limits(max_pooled_total=1))
    stream = listen(bench, toolsListChanged=True)
    waits = bench.ask(1, who=BOB)
    bench.link.lose()
    bench.turn()
    assert stream.result["resultType"] == "complete" and waits.waits
    assert bench.link.of("tools/call")
    bench.stop()


def test_aServerThatIsLostWithinTheTurnOfAListen() -> None:
    bench = PoolBench()
    target, request = MemoryTarget(), modern(1, "subscriptions/listen", {"notifications": {}})
    bench.pool.request(request, target, CallContext("scripted"))
    bench.link.lose()
    bench.turn()
    assert target.reason == "server_exited" and not target.delivered
    gone = MemoryTarget()
    bench.pool.request(request, gone, CallContext("scripted"))
    bench.pool.gone(gone)
    bench.turn()
    assert not gone.delivered and not gone.answers
    bench.stop()


def test_sessionsOfAServerThatCameBackNarrowedAreReplaced() -> None:
    bench = PoolBench()
    for id in range(3):
        bench.ask(id, caps=FORM)
    links = bench.links
    for link in links:
        link.reply(link.last("tools/call"), OK)
        link.lose()
    bench.server.result = NARROW
    bench.turn(1)
    call = bench.ask(4, caps=FORM)
    bench.link.reply(bench.link.last("tools/call"), OK)
    assert call.result
    bench.link.lose()
    bench.server.result = NARROW.replace(b'{"tools":{}}', b"{}")
    bench.turn(1)
    stream = listen(bench, toolsListChanged=True)
    assert stream.heard[0]["params"]["notifications"] == {}
    bench.stop()


def test_aHandshakeThatBreaks(expectedFailures: list[Any]) -> None:
    bench = PoolBench()
    bench.server.failures += [ValueError("oops"), ValueError("oops")]  # type: ignore[list-item]
    assert bench.ask(1).reason == "bad_answer"
    bench.turn(1)
    assert listen(bench, toolsListChanged=True).reason == "bad_answer"
    bench.stop()


def test_questionsAndLogMessagesBesideRequestsOfOurOwn() -> None:
    bench = PoolBench()
    listen(bench, resourceSubscriptions=["a:b"])
    call = bench.ask(1, caps=ALL, level="info")
    link = bench.links[-1]
    link.reply(link.last("logging/setLevel"))
    assert link.of("resources/subscribe") and link.of("tools/call")
    link.push(LOG % b"error")
    link.push(ELICIT % 1)
    link.push(ELICIT % 2)
    link.push(b'{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":"e1"}}')
    bench.turn()
    assert [note["method"] for note in call.heard] == ["notifications/message"]
    assert list(call.result["inputRequests"]) == ["q2"]
    retry = bench.retry(call, {"q2": ACCEPT})
    assert answers(link)[-1]["id"] == "e2" and retry.waits
    bench.stop()


def test_whatIsGivenBackWhileNoServerIsThere() -> None:
    bench = PoolBench()
    stream = listen(bench, resourceSubscriptions=["a:b"])
    call = bench.ask(1, caps=FORM)
    link = bench.links[-1]
    grant(bench)
    link.reply(link.last("tools/call"), OK)
    assert call.result
    link.lose()
    bench.pool.gone(stream.target)
    bench.ask(2, caps=FORM)
    assert not bench.links[-1].of("resources/subscribe")
    bench.stop()


def test_aReaderThatTakesNothing() -> None:
    bench = PoolBench()
    call = bench.ask(1, token="t")
    call.target.takes = False
    link, sent = only(bench)
    link.push(PROGRESS % sent.id)
    assert bench.drops() == ["undeliverable"]
    link.reply(sent, OK)
    assert call.result
    bench.stop()


def test_theSessionIsOverWhileACallRuns() -> None:
    bench = PoolBench(ScriptedServer(result=RESULT, http=True, on_exit="lost"))
    call = bench.ask(1)
    link = bench.link
    link.accept(link.last("notifications/initialized"))
    link.settle(link.last("tools/call"), status=404)
    assert call.reason == "server_exited"
    assert bench.ask(2).waits and len(bench.links) == 1
    bench.stop()


def test_whatAnHTTPServerSaysOnACallsOwnStream() -> None:
    bench = PoolBench(ScriptedServer(result=RESULT, http=True))
    call = bench.ask(1, caps=ALL)
    link = bench.link
    link.accept(link.last("notifications/initialized"))
    sent = link.last("tools/call")
    stream = bench.ask("L", "subscriptions/listen", {"notifications": {"toolsListChanged": True}})
    for said in (
        TOOLS,
        b'{"jsonrpc":"2.0","method":"notifications/elicitation/complete","params":{"elicitationId":"i"}}',
        LOG % b"error",
    ):
        link.push(said, sent.call)
    assert not call.heard and len(stream.heard) == 2
    assert bench.drops() == ["not_modern", "no_log_asked"]
    link.reply(sent, OK)
    assert call.result
    bench.stop()


def test_sessionsOfASharedServer() -> None:
    bench = PoolBench(ScriptedServer(result=RESULT, isolation="shared"), shares=True)
    alices = bench.ask(1, who=ALICE, caps=ALL, token="a")
    bobs = bench.ask(1, who=BOB, caps=ALL, token="b")
    link = bench.link
    one, two = link.of("tools/call")
    link.push(PROGRESS % two.id)
    assert not alices.heard and bobs.heard[0]["params"]["progressToken"] == "b"
    link.reply(two, OK)
    assert bobs.result
    link.push(ELICIT % 1)
    bench.turn()
    assert answers(link)[-1]["error"]["code"] == -32601 and alices.waits
    link.reply(one, OK)
    assert alices.result
    together = [bench.ask(id, caps=ALL) for id in range(20)]
    assert len(link.of("tools/call")) == 22 and all(one.waits for one in together)
    stream = listen(bench, resourceSubscriptions=["a:b"])
    link.push(UPDATED % b"a:b")
    assert len(stream.heard) == 2
    bench.pool.stop()
    bench.turn()
    assert stream.result
