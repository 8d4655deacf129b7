"""A relay before a modern server: it need not know."""

from __future__ import annotations

import json
from typing import Any

import pytest
from bridge_support import DISCOVERED
from relay_support import Bench, MemoryTarget, notify, response
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.interfaces import IReactorTime

from gateway.links.bridged import BridgedLink
from gateway.links.interfaces import Hello, ILink, ILinkListener, Reason
from gateway.observe.observer import CallFailed, SessionRecovered
from gateway.testing.scripted import ScriptedServer, message
from gateway.wire.context import CallContext

META = "io.modelcontextprotocol/"


class ModernServer(ScriptedServer):
    """A scripted server whose links are of the modern era, bridged."""

    clock: IReactorTime
    bench: Bench

    def link(
        self, hello: Hello, listener: ILinkListener, context: CallContext, ownStreams: bool = False
    ) -> Deferred[ILink]:
        limits, observed = self.bench.limits, self.bench.observed
        bridged = BridgedLink(
            hello, listener, self.bench.clock, limits, observed, self.name, self.http
        )

        def begin() -> ILink:
            inner = self._make(hello, bridged, context, False)
            bridged.begin(inner)
            return bridged

        return maybeDeferred(begin)


@pytest.fixture(params=[False, True], ids=["stdio", "http"])
def bench(request: pytest.FixtureRequest) -> Bench:
    result = json.dumps(DISCOVERED).encode()
    server = ModernServer(http=request.param, result=result, sessionless=True)
    bench = Bench(server, transparent=request.param)
    server.bench = bench
    opened(bench)
    return bench


def opened(bench: Bench) -> None:
    done: list[Any] = []
    bench.opening().addCallback(done.append)
    assert len(done) == 1
    bench.session.opened(bench.clock.seconds())
    taken = bench.tell(notify("notifications/initialized"))
    bench.clock.advance(0)
    assert taken == [True]
    assert not bench.relay.transparent


def asked(bench: Bench, **requests: Any) -> None:
    """The server asks for input in its newest call."""
    sent = bench.server.newest.last("tools/call")
    result = {"resultType": "input_required", "inputRequests": requests, "requestState": "s"}
    bench.server.newest.reply(sent, json.dumps(result).encode())


def said(target: MemoryTarget) -> Any:
    return json.loads(target.delivered.pop(0).encode())


def test_a_call_is_answered(bench: Bench) -> None:
    target = bench.ask()
    inner = bench.server.newest
    inner.reply(inner.last("tools/call"), b'{"resultType":"complete","content":[]}')
    assert target.json == {"jsonrpc": "2.0", "id": 1, "result": {"content": []}}
    bench.end()


def test_what_is_answered_here_comes_in_a_turn_of_its_own(bench: Bench) -> None:
    target = bench.ask(1, "ping")
    assert not target.answers
    bench.clock.advance(0)
    assert target.json["result"] == {}
    bench.end()


def test_the_client_is_asked_on_the_stream_of_its_call(bench: Bench) -> None:
    target, other = bench.ask(1), bench.ask(2)
    first = bench.server.newest.of("tools/call")[0]
    result = {"resultType": "input_required", "inputRequests": {"r": {"method": "roots/list"}}}
    bench.server.newest.reply(first, json.dumps(result).encode())
    question = said(target)
    assert question["method"] == "roots/list"
    assert not other.delivered
    bench.tell(response(str(question["id"]).encode(), '{"roots":[]}'))
    second = bench.server.newest.last("tools/call")
    params = json.loads(second.message.encode())["params"]
    assert params["inputResponses"] == {"r": {"roots": []}}
    bench.server.newest.reply(second, b'{"resultType":"complete","content":[]}')
    assert target.json["result"] == {"content": []}
    bench.end()
    assert other.reason == "cancelled"


def test_what_the_client_did_not_offer_fails_the_call(bench: Bench) -> None:
    target = bench.ask()
    params = {"message": "?", "requestedSchema": {"type": "object", "properties": {}}}
    asked(bench, e={"method": "elicitation/create", "params": params}, r={"method": "roots/list"})
    bench.clock.advance(0)
    assert "elicitation" in target.json["error"]["message"]
    assert not target.delivered
    bench.end()


def test_a_deadline_cancels_upstream_and_stands_still_while_the_client_is_asked(
    bench: Bench,
) -> None:
    target = bench.ask()
    asked(bench, r={"method": "roots/list"})
    question = said(target)
    bench.clock.advance(bench.server.settings.timeout + 1)
    assert not target.answers
    bench.tell(response(str(question["id"]).encode(), '{"roots":[]}'))
    sent = bench.server.newest.last("tools/call")
    bench.clock.advance(bench.server.settings.timeout + 1)
    assert target.reason == "timeout"
    assert sent.call in bench.server.newest.cancelled
    cancelled = [
        one.message.param("requestId") for one in bench.server.newest.of("notifications/cancelled")
    ]
    assert (sent.id in cancelled) is not bench.server.http
    bench.clock.advance(0)
    bench.end()


def test_a_deadline_takes_the_questions_back(bench: Bench) -> None:
    target = bench.ask()
    asked(bench, r={"method": "roots/list"})
    question = said(target)
    stream = bench.stream()
    bench.clock.advance(bench.server.settings.max_timeout + 1)
    bench.clock.advance(0)
    assert target.reason == "timeout"
    told = said(stream)
    assert told["method"] == "notifications/cancelled"
    assert told["params"]["requestId"] == question["id"]
    bench.end()


def test_a_call_that_its_client_cancels_ends_soon(bench: Bench) -> None:
    target = bench.ask(5)
    sent = bench.server.newest.last("tools/call")
    bench.tell(notify("notifications/cancelled", '{"requestId":5}'))
    if bench.server.http:
        assert sent.call in bench.server.newest.cancelled
    else:
        said = bench.server.newest.last("notifications/cancelled")
        assert said.message.param("requestId") == sent.id
    bench.clock.advance(bench.limits.cancel_wait)
    assert target.reason == "cancelled"
    bench.end()


def test_a_lost_link_is_made_again_and_told_everything(bench: Bench) -> None:
    for id, (method, params) in enumerate(
        [("logging/setLevel", '{"level":"info"}'), ("resources/subscribe", '{"uri":"a:b"}')], 1
    ):
        bench.ask(id, method, params)
    inner = bench.server.newest
    for sent in inner.of("subscriptions/listen"):
        acknowledge(bench, sent)
    bench.clock.advance(0)
    acknowledge(bench, inner.last("subscriptions/listen"))
    bench.clock.advance(60)
    assert bench.session.record.subscriptions == ["a:b"]
    running = bench.ask(8)
    inner.lose()
    assert running.reason == "server_exited"
    stream = bench.stream()
    bench.ask(9)
    bench.clock.advance(0)
    again = bench.server.newest
    assert again is not inner
    assert any(isinstance(event, SessionRecovered) for event in bench.observed.events)
    acknowledge(bench, again.of("subscriptions/listen")[0])
    filters = [
        json.loads(sent.message.encode())["params"]["notifications"]
        for sent in again.of("subscriptions/listen")
    ]
    assert filters[-1]["resourceSubscriptions"] == ["a:b"]
    bench.ask(10)
    meta = json.loads(again.last("tools/call").message.encode())["params"]["_meta"]
    assert meta[META + "logLevel"] == "info"
    changed = [json.loads(one.encode())["method"] for one in stream.delivered]
    assert "notifications/tools/list_changed" in changed
    bench.clock.advance(0)
    bench.end()


def acknowledge(bench: Bench, sent: Any) -> None:
    params = json.loads(sent.message.encode())["params"]
    body = {
        "jsonrpc": "2.0",
        "method": "notifications/subscriptions/acknowledged",
        "params": {
            "_meta": {META + "subscriptionId": json.loads(sent.id)},
            "notifications": params["notifications"],
        },
    }
    origin = sent.call if bench.server.http else None
    bench.server.newest.push(json.dumps(body).encode(), origin)


def test_a_404_loses_no_session() -> None:
    server = ModernServer(http=True, result=json.dumps(DISCOVERED).encode(), on_exit="lost")
    bench = Bench(server)
    server.bench = bench
    opened(bench)
    target, empty = bench.ask(1, "x/y"), bench.ask(2)
    body = message(b'{"jsonrpc":"2.0","id":1,"error":{"code":-32601,"message":"no"}}')
    first = server.newest.last("x/y")
    server.newest.settle(first, Reason.BAD_ANSWER, "refused", status=404, body=body)
    server.newest.settle(server.newest.last("tools/call"), Reason.BAD_ANSWER, "no", status=404)
    assert target.json["error"]["code"] == -32601
    assert empty.reason == "bad_answer"
    assert not bench.session.ended
    assert [event.reason for event in bench.observed.events if isinstance(event, CallFailed)] == [
        "bad_answer"
    ]
    bench.end()


def test_a_server_that_is_lost_before_it_began_fails_the_handshake() -> None:
    server = ModernServer(result=b"{}")
    bench = Bench(server)
    server.bench = bench
    bridged = BridgedLink(
        Hello(b"{}"), bench.relay, bench.clock, bench.limits, bench.observed, "s", False
    )
    bridged.lost(Reason.SERVER_EXITED, "gone")
    with pytest.raises(Exception, match="gone"):
        bridged.begin(server.newest if server.links else _inner(server, bridged))
    assert bridged.close().called


def _inner(server: ModernServer, bridged: BridgedLink) -> Any:
    return server._make(Hello(b"{}"), bridged, CallContext("s"), False)
