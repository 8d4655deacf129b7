"""
A scripted server over HTTP that fails on demand, of either era and of both legacy transports.

    python -m tests.lab.http_server LEDGER

    /legacy   Streamable HTTP with sessions
    /modern   revision 2026-07-28
    /both     both of them
    /sse      HTTP+SSE, with /messages

It prints `ready PORT`. The tool and the ledger are those of stdio_server.py; what is asked beside
calls is answered by it, too.
"""

from __future__ import annotations

import gzip
import os
import sys
import uuid
from collections.abc import Callable
from typing import Any

from attrs import define, field
from faulty_upstream import FaultyUpstream, Received

from .http_call import HTTPCall, dumps, event
from .http_sse import OverSSE
from .stdio_server import CLAIM, other

__all__ = ["LabServer"]

JSON = dict[str, Any]
AWAY = b"http://127.0.0.1:1/away"
_RESUMABLE = 1000
"""Calls whose streams can be resumed."""
RESTART_SECONDS = 0.1
"""For how long a server that restarts refuses connections."""


@define(eq=False)
class LabServer(FaultyUpstream):
    """
    The server. `start` opens it.

    sessions: those of Streamable HTTP.
    """

    ledger: int = 1
    sessions: set[str] = field(factory=set)
    restarts: int = 0
    _refused: set[str] = field(factory=set)
    _resumable: dict[str, HTTPCall] = field(factory=dict)
    _asked: dict[str, list[HTTPCall]] = field(factory=dict)
    _overSSE: OverSSE = field(init=False)

    def __attrs_post_init__(self) -> None:
        self._overSSE = OverSSE(self)

    def later(self, seconds: float, act: Callable[..., object], *args: object) -> None:
        self._reactor.callLater(seconds, act, *args)

    def got(self, request: Received) -> None:
        path = request.target.partition(b"?")[0].strip(b"/").decode()
        if path in ("sse", "messages"):
            self._overSSE.got(request)
        else:
            self._streamable(request, path)

    # Streamable HTTP, both eras.

    def _streamable(self, request: Received, era: str) -> None:
        message = request.message
        params = message.get("params") or {}
        modern = CLAIM in params.get("_meta", {}) and era != "legacy"
        session = (request.header(b"mcp-session-id") or b"").decode()
        if request.method == b"DELETE":
            self.sessions.discard(session)
            request.reply(204, type=None)
        elif request.method == b"GET":
            self._resume(request)
        elif request.rpc == "initialize" and era != "modern":
            new = uuid.uuid4().hex
            self.sessions.add(new)
            head = ((b"Mcp-Session-Id", new.encode()),)
            answer = {"id": message["id"], **other("initialize", params, False)}
            request.reply(200, dumps(answer), headers=head)
        elif modern or session in self.sessions:
            if request.rpc == "tools/call":
                self._called(HTTPCall(self.ledger, request, message, "" if modern else session))
            elif "id" in message and request.rpc:
                found = other(request.rpc, params, modern)
                status = 404 if modern and "error" in found else 200
                request.reply(status, dumps({"id": message["id"], **found}))
            else:
                request.reply(202, type=None)
                if not request.rpc and "id" in message:
                    call = self._asked[session][message["id"] - 1]
                    call.said(call.heard(message))
        elif session:
            self.unknown(request)
        else:
            error: JSON = {"code": -32000, "message": "Bad Request: no session id"}
            if era == "modern":
                data = {"supported": ["2026-07-28"], "requested": ""}
                error = {"code": -32022, "message": "Unsupported version", "data": data}
            request.reply(400, dumps({"id": message.get("id", 0), "error": error}))

    def refused(self, call: HTTPCall) -> None:
        """A call was refused, and is served when it comes again."""
        self._refused.add(call.token)

    def again(self, call: HTTPCall) -> bool:
        """Whether that call was refused before."""
        if call.token not in self._refused:
            return False
        self._refused.discard(call.token)
        return True

    def unknown(self, request: Received) -> None:
        error = {"code": -32001, "message": "Session not found"}
        request.reply(404, dumps({"id": request.message.get("id", 0), "error": error}))

    def _resume(self, request: Received) -> None:
        last = (request.header(b"last-event-id") or b"").decode()
        token, _, seen = last.rpartition("/")
        call = self._resumable.get(token)
        if call is None:
            request.reply(405, type=None)
            return
        request.stream()
        for number, message in enumerate((call.advanced(1), call.result()), 1):
            if number > int(seen):
                request.chunk(event(message, f"{token}/{number}"))
        request.end()

    def _called(self, call: HTTPCall) -> None:
        verb, request = call.arguments["verb"], call.request
        if self.refuses(call, verb):
            return
        if verb == "asks":
            self._asks(call)
            return
        call.executed()
        answer = dumps(call.result())
        if verb == "answer":
            call.answered()
        elif verb == "slow":
            self.later(0.005 + call.place % 60 / 1000, call.answered)
        elif verb == "progress":
            call.streamed(*(call.advanced(step) for step in (1, 2, 3)), call.result())
        elif verb == "events":
            call.streamed(call.result())
        elif verb == "error":
            error = {"code": -32050, "message": "no", "data": {"token": call.token}}
            call.answered({"id": call.message["id"], "error": error})
        elif verb == "tool-error":
            call.answered(call.result(isError=True))
        elif verb == "double":
            call.streamed(call.result(), call.result())
        elif verb == "wrong-id":
            call.streamed({"id": 987654321, "result": {}}, call.result())
        elif verb == "garbage":
            request.stream()
            request.chunk(b"data: } this is no JSON {\n\n" + event(call.result()))
            request.end()
        elif verb == "bad-answer":
            request.reply(200, answer[:-3] + b":}}")
        elif verb == "bad-utf8":
            request.reply(200, answer[:-2] + b',"x":"\xff"}}')
        elif verb == "both":
            request.reply(200, answer[:-1] + b',"error":{"code":1,"message":"x"}}')
        elif verb == "flood":
            told = {
                "method": "notifications/message",
                "params": {"level": "info", "data": "x" * 200},
            }
            call.streamed(*([told] * 200), call.result())
        elif verb == "big":
            call.answered(call.result(content=[{"type": "text", "text": "x" * 200_000}]))
        elif verb == "hang":
            request.stream()
        else:
            self._broken(call, verb, answer)

    def _asks(self, call: HTTPCall) -> None:
        responses = call.message["params"].get("inputResponses")
        if not call.modern:
            call.executed()
            asked = self._asked.setdefault(call.session, [])
            asked.append(call)
            call.streamed({"id": len(asked), **call.question}, last=False)
        elif responses is None:
            more = {"inputRequests": {"it": call.question}, "requestState": call.token}
            result = {"resultType": "input_required", **more}
            call.answered({"id": call.message["id"], "result": result})
        else:
            call.executed()
            call.answered(call.heard(responses))

    def refuses(self, call: HTTPCall, verb: str) -> bool:
        """Whether a verb is one by which a call is not executed, or not yet."""
        request = call.request
        if verb in ("lost", "redirect") and self.again(call):
            call.executed()
            call.answered()
        elif verb == "lost":
            self.refused(call)
            self.sessions.discard(call.session)
            self.unknown(request)
        elif verb == "lost-again":
            self.sessions.discard(call.session)
            self.unknown(request)
        elif verb == "redirect":
            self.refused(call)
            target = request.target.partition(b"?")[0] + b"?moved"
            request.reply(307, type=None, headers=((b"Location", target),))
        elif verb == "redirect-away":
            request.reply(307, type=None, headers=((b"Location", AWAY),))
        elif verb == "status-500":
            request.reply(500, b"Internal Server Error", b"text/plain")
        elif verb == "status-502":
            request.reply(502, type=None)
        elif verb == "status-401":
            request.reply(401, type=None, headers=((b"WWW-Authenticate", b"Bearer"),))
        elif verb == "restart":
            self.restart()
        else:
            return False
        return True

    def _broken(self, call: HTTPCall, verb: str, answer: bytes) -> None:
        """What is no HTTP answer, or not all of one."""
        request = call.request
        head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
        said = event(call.result())
        if verb == "reset-before":
            request.cut()
        elif verb == "accepted":
            request.reply(202, type=None)
        elif verb == "nothing":
            request.reply(200)
        elif verb == "wrong-type":
            request.reply(200, b"<html>hello</html>", b"text/html")
        elif verb == "bad-framing":
            request.raw(head + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n" + answer)
            request.finish()
        elif verb == "truncated-body":
            request.raw(head + b"Content-Length: %d\r\n\r\n" % len(answer))
            request.raw(answer[: call.place % len(answer)])
            request.finish()
        elif verb == "reset-after-head":
            request.raw(head + b"Content-Length: %d\r\n\r\n" % len(answer))
            self.later(0.01, request.cut)
        elif verb == "stall-mid":
            request.stream()
            request.chunk(said[: 1 + call.place % (len(said) - 2)])
        elif verb == "cut-event":
            request.stream()
            request.chunk(said[: 1 + call.place % (len(said) - 2)])
            self.later(0.005, request.cut)
        elif verb == "resumed":
            self._resumed(call)
        elif verb == "gzip":
            coded = ((b"Content-Encoding", b"gzip"),)
            request.reply(200, gzip.compress(answer), headers=coded)
        elif verb == "trickle":
            self._trickle(request, head + b"Content-Length: %d\r\n\r\n" % len(answer) + answer)
        elif verb == "extra":
            request.reply(200, answer)
            request.raw(b"and more of it\r\n\r\n")
        elif verb == "stale":
            request.reply(200, answer)
            request.finish()
        elif verb != "stall-before-head":
            raise AssertionError(verb)

    def _resumed(self, call: HTTPCall) -> None:
        """A numbered stream that is cut at any byte of its first event; the rest by GET."""
        if call.modern:
            call.streamed(call.advanced(1), call.result())
            return
        self._resumable[call.token] = call
        if len(self._resumable) > _RESUMABLE:
            del self._resumable[next(iter(self._resumable))]
        request = call.request
        request.stream()
        request.chunk(f"id: {call.token}/0\nretry: 10\ndata:\n\n".encode())
        said = event(call.advanced(1), f"{call.token}/1")
        request.chunk(said[: 1 + call.place % (len(said) - 2)])
        self.later(0.005, request.cut)

    def _trickle(self, request: Received, data: bytes) -> None:
        if data:
            request.raw(data[:17])
            self.later(0.001, self._trickle, request, data[17:])

    def restart(self) -> None:
        """What the rest sees of a server that restarts."""
        self.restarts += 1
        port = self._port
        if port is None:
            return
        number = port.getHost().port
        factory = port.factory
        self._port = None
        self.sessions.clear()
        self._overSSE.streams.clear()
        for connection in list(self.connections):
            connection.transport.abortConnection()
        stopped = port.stopListening()

        def again(_: object = None) -> None:
            self._port = self._reactor.listenTCP(number, factory, interface="127.0.0.1")

        stopped.addCallback(lambda _: self.later(RESTART_SECONDS, again))


def main() -> None:
    from twisted.internet import reactor

    server = LabServer(ledger=os.open(sys.argv[1], os.O_WRONLY | os.O_APPEND | os.O_CREAT))
    server.start(reactor)
    print(f"ready {server.origin.rpartition(':')[2]}", flush=True)
    reactor.run()  # type: ignore[attr-defined]


if __name__ == "__main__":
    main()
