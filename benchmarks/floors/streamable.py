"""The floor of Streamable HTTP in front of stdio servers."""

from __future__ import annotations

import json
import secrets
from typing import Any

from attrs import define
from twisted.internet.interfaces import IReactorProcess
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET, Request

from benchmarks.floors.children import JSON, Child, Children, dumped

__all__ = ["StreamableFloor"]


@define(eq=False)
class _Session:
    """A session: its child and its open GET stream."""

    child: Child = None  # type: ignore[assignment]  # set as soon as there is one
    stream: Request | None = None

    def told(self, message: JSON) -> None:
        if self.stream is not None:
            self.stream.write(_event(message))


def _event(message: JSON) -> bytes:
    return b"event: message\ndata: " + dumped(message) + b"\n\n"


def _stream(request: Request) -> None:
    request.setHeader(b"content-type", b"text/event-stream")
    request.setHeader(b"cache-control", b"no-store")


@define(eq=False)
class _Reply:
    """The answer to one POST: JSON, or an event stream where something comes before it."""

    request: Request
    streaming: bool = False

    def deliver(self, message: JSON, last: bool) -> None:
        request = self.request
        if not last and not self.streaming:
            self.streaming = True
            _stream(request)
        if self.streaming:
            request.write(_event(message))
        else:
            body = dumped(message)
            request.setHeader(b"content-type", b"application/json")
            request.setHeader(b"content-length", b"%d" % len(body))
            request.write(body)
        if last:
            request.finish()


class StreamableFloor(Resource):
    """`/mcp`: POST, GET, DELETE."""

    isLeaf = True

    def __init__(self, reactor: IReactorProcess, script: str, shared: bool) -> None:
        super().__init__()
        self._children = Children(reactor, script, shared)
        self._sessions: dict[str, _Session] = {}

    def _session(self, request: Request) -> _Session | None:
        return self._sessions.get(request.getHeader("mcp-session-id") or "")

    def _begin(self, request: Request) -> _Session:
        session = _Session()
        session.child = self._children.child(session.told)
        id = secrets.token_urlsafe(32)
        self._sessions[id] = session
        request.setHeader(b"mcp-session-id", id.encode())
        return session

    def render_POST(self, request: Request) -> Any:
        content: Any = request.content
        message = json.loads(content.read())
        opens = message.get("method") == "initialize"
        session = self._begin(request) if opens else self._session(request)
        if session is None:
            request.setResponseCode(404)
            return b""
        if "id" not in message:
            session.child.send(message)
            request.setResponseCode(202)
            return b""
        session.child.call(message, _Reply(request).deliver)
        return NOT_DONE_YET

    def render_GET(self, request: Request) -> Any:
        session = self._session(request)
        if session is None:
            request.setResponseCode(404)
            return b""
        session.stream = request
        _stream(request)
        request.write(b": open\n\n")

        def gone(_: object) -> None:
            session.stream = None

        request.notifyFinish().addErrback(gone)
        return NOT_DONE_YET

    def render_DELETE(self, request: Request) -> Any:
        session = self._sessions.pop(request.getHeader("mcp-session-id") or "", None)
        if session is None:
            request.setResponseCode(404)
            return b""
        self._children.leave(session.child, session.told)
        if session.stream is not None:
            session.stream.finish()
        request.setResponseCode(204)
        return b""
