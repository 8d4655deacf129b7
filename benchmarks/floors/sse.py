"""The floor of HTTP+SSE in front of stdio servers."""

from __future__ import annotations

import json
import secrets
from typing import Any

from attrs import define
from twisted.internet.interfaces import IReactorProcess
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET, Request

from benchmarks.floors.children import JSON, Child, Children, dumped

__all__ = ["SSEFloor"]


@define(eq=False)
class _Session:
    """A session is its stream; every message goes there."""

    stream: Request
    child: Child = None  # type: ignore[assignment]  # set as soon as there is one

    def deliver(self, message: JSON, last: bool) -> None:
        self.told(message)

    def told(self, message: JSON) -> None:
        if not self.stream.finished and not self.stream._disconnected:
            self.stream.write(b"event: message\ndata: " + dumped(message) + b"\n\n")


class _Stream(Resource):
    """`/sse`: GET."""

    isLeaf = True

    def __init__(self, sessions: dict[str, _Session], children: Children) -> None:
        super().__init__()
        self._sessions = sessions
        self._children = children

    def render_GET(self, request: Request) -> Any:
        id = secrets.token_urlsafe(32)
        session = self._sessions[id] = _Session(request)
        session.child = self._children.child(session.told)
        request.setHeader(b"content-type", b"text/event-stream")
        request.setHeader(b"cache-control", b"no-store")
        request.write(b"event: endpoint\ndata: /messages?session_id=%b\n\n" % id.encode())

        def gone(_: object) -> None:
            del self._sessions[id]
            self._children.leave(session.child, session.told)

        request.notifyFinish().addErrback(gone)
        return NOT_DONE_YET


class _Messages(Resource):
    """`/messages`: POST, always 202; the answer comes on the stream."""

    isLeaf = True

    def __init__(self, sessions: dict[str, _Session]) -> None:
        super().__init__()
        self._sessions = sessions

    def render_POST(self, request: Request) -> Any:
        session = self._sessions.get(request.args[b"session_id"][0].decode())
        if session is None:
            request.setResponseCode(404)
            return b""
        message = json.loads(request.content.read())
        if "id" in message:
            session.child.call(message, session.deliver)
        else:
            session.child.send(message)
        request.setResponseCode(202)
        return b"Accepted"


class SSEFloor(Resource):
    """Both paths."""

    def __init__(self, reactor: IReactorProcess, script: str, shared: bool) -> None:
        super().__init__()
        sessions: dict[str, _Session] = {}
        self.putChild(b"sse", _Stream(sessions, Children(reactor, script, shared)))
        self.putChild(b"messages", _Messages(sessions))
