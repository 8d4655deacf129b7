"""The part of the HTTP server that speaks HTTP+SSE (2024-11-05)."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from attrs import define, field
from faulty_upstream import Received

from .http_call import HTTPCall, dumps, event
from .stdio_server import other

if TYPE_CHECKING:
    from .http_server import LabServer

__all__ = ["OverSSE"]

JSON = dict[str, Any]


@define(eq=False)
class OverSSE:
    """`/sse` and `/messages` of a server. streams: those that are open, by session."""

    server: LabServer
    streams: dict[str, Received] = field(factory=dict)
    _late: dict[str, Callable[[], None]] = field(factory=dict)
    _asked: dict[str, list[HTTPCall]] = field(factory=dict)

    def got(self, request: Received) -> None:
        if request.method == b"GET":
            session = uuid.uuid4().hex
            self.streams[session] = request
            request.stream()
            request.chunk(f"event: endpoint\ndata: /messages?session_id={session}\n\n".encode())
            request.connection.lost.addCallback(lambda _: self.streams.pop(session, None))
            return
        session = request.target.rpartition(b"=")[2].decode()
        stream = self.streams.get(session)
        if stream is None:
            self.server.unknown(request)
            return
        message = request.message
        if request.rpc == "tools/call":
            self._called(HTTPCall(self.server.ledger, request, message, session), stream)
            return
        request.reply(202, type=None)
        if "id" in message and request.rpc:
            found = other(request.rpc, message.get("params") or {}, False)
            stream.chunk(event({"id": message["id"], **found}))
        elif "id" in message:
            call = self._asked[session][message["id"] - 1]
            stream.chunk(event(call.heard(message)))
        elif request.rpc == "notifications/cancelled":
            late = self._late.pop(f"{session} {message['params'].get('requestId')}", None)
            if late is not None:
                late()

    def _called(self, call: HTTPCall, stream: Received) -> None:
        verb = call.arguments["verb"]
        if verb in ("lost", "lost-again"):
            if not self.server.again(call) or verb == "lost-again":
                self.server.refused(call)
                self.server.unknown(call.request)
                stream.cut()
                return
        elif self.server.refuses(call, verb):
            return
        call.executed()
        if verb == "reset-before":
            call.request.cut()
            return
        call.request.reply(202, type=None)

        def say(*messages: JSON) -> None:
            if call.session in self.streams:
                for message in messages:
                    stream.chunk(event(message))

        result = call.result()
        data = dumps(result)
        if verb == "slow":
            self.server.later(0.005 + call.place % 60 / 1000, say, result)
        elif verb == "progress":
            say(*(call.advanced(step) for step in (1, 2, 3)), result)
        elif verb == "error":
            error = {"code": -32050, "message": "no", "data": {"token": call.token}}
            say({"id": call.message["id"], "error": error})
        elif verb == "double":
            say(result, result)
        elif verb == "wrong-id":
            say({"id": 987654321, "result": {}}, result)
        elif verb == "garbage":
            stream.chunk(b"event: message\ndata: } no JSON {\n\n" + event(result))
        elif verb == "bad-answer":
            stream.chunk(b"data: %b:}}\n\n" % data[:-3])
        elif verb == "bad-utf8":
            stream.chunk(b'data: %b,"x":"\xff"}}\n\n' % data[:-2])
        elif verb == "both":
            say({**result, "error": {"code": 1, "message": "x"}})
        elif verb == "flood":
            told = {
                "method": "notifications/message",
                "params": {"level": "info", "data": "x" * 200},
            }
            say(*([told] * 200), result)
        elif verb == "big":
            say(call.result(content=[{"type": "text", "text": "x" * 200_000}]))
        elif verb == "late":
            self._late[f"{call.session} {call.message['id']}"] = lambda: say(result)
        elif verb == "stream-cut":
            said = event(result)
            stream.chunk(said[: 1 + call.place % (len(said) - 2)])
            self.server.later(0.005, stream.cut)
        elif verb == "asks":
            asked = self._asked.setdefault(call.session, [])
            asked.append(call)
            say({"id": len(asked), **call.question})
        elif verb == "tool-error":
            say(call.result(isError=True))
        elif verb != "hang":
            say(result)
