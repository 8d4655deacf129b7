"""A call: what is sent, and the check that what comes back is its own answer and nothing else."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import count
from typing import Any

import msgspec
from attrs import frozen

from benchmarks.load.connection import events

__all__ = ["Call", "Shape", "notification", "text"]

_texts = count(1)
_ID = b'{"jsonrpc":"2.0","id":'
_TEXT = b',"method":"tools/call","params":{"name":"echo","arguments":{"text":"'
_END = b'"}}}'
_decode = msgspec.json.Decoder().decode


@frozen
class Shape:
    """
    What every call of a round is like.

    size: characters of its text, which the answer brings back.
    progress: notifications that have to come before the answer.
    interval: seconds between two of them; 0: all at once.
    """

    size: int = 64
    progress: int = 0
    interval: float = 0.0


def text(size: int) -> str:
    """A text of this size that no other call of this process has."""
    return f"{next(_texts):x}-".ljust(size, "x")


def notification(method: str) -> bytes:
    """A notification without parameters."""
    return json.dumps({"jsonrpc": "2.0", "method": method}, separators=(",", ":")).encode()


class Call:
    """
    One `tools/call` of the echo servers.

    Its id is also its progress token, as in the SDKs: ids of several sessions are the same, so
    that an answer that went to the wrong one shows. `over` is called once, with the call.

    wrong: what was wrong with the answer; "" if nothing.
    answered: whether the answer came.
    posted: over HTTP+SSE, whether its POST was accepted.
    """

    __slots__ = (
        "_chunks",
        "_feed",
        "_over",
        "_seen",
        "answered",
        "began",
        "id",
        "posted",
        "shape",
        "text",
        "wrong",
    )

    def __init__(self, id: int, shape: Shape, over: Callable[[Call], None]) -> None:
        self.id = id
        self.shape = shape
        self.text = text(shape.size)
        self.wrong = ""
        self.began = 0.0
        self._over: Callable[[Call], None] | None = over
        self._seen = 0
        self.answered = False
        self.posted = False
        self._chunks: list[bytes] = []
        self._feed: Callable[[bytes], None] | None = None

    def body(self) -> bytes:
        """The message."""
        shape = self.shape
        if not shape.progress:
            return b"".join((_ID, b"%d" % self.id, _TEXT, self.text.encode(), _END))
        arguments: dict[str, Any] = {"text": self.text}
        name = "echo"
        if shape.interval:
            name = "stream"
            arguments |= {"count": shape.progress, "interval": shape.interval}
        else:
            arguments["progress"] = shape.progress
        params = {"name": name, "arguments": arguments, "_meta": {"progressToken": self.id}}
        message = {"jsonrpc": "2.0", "id": self.id, "method": "tools/call", "params": params}
        return json.dumps(message, separators=(",", ":")).encode()

    def received(self, data: bytes) -> None:
        """A message that came for it."""
        try:
            message = _decode(data)
        except msgspec.DecodeError as error:
            self.wrong = self.wrong or f"no JSON: {error}"
            return
        self.messageReceived(message)

    def messageReceived(self, message: Any) -> None:
        """The same, decoded."""
        wrong = ""
        if not isinstance(message, dict) or message.get("jsonrpc") != "2.0":
            wrong = "no JSON-RPC message"
        elif "method" in message:
            wrong = self._progressed(message)
        else:
            wrong = self._checked(message)
        self.wrong = self.wrong or wrong

    def _progressed(self, message: dict[str, Any]) -> str:
        if message["method"] != "notifications/progress":
            return ""  # for the session, whatever stream it came on
        params = message.get("params", {})
        token = params.get("progressToken")
        if token != self.id or type(token) is not int:
            return f"progress with token {token!r} instead of {self.id}"
        self._seen += 1
        if params.get("progress") != self._seen:
            return f"progress {params.get('progress')!r} instead of {self._seen}"
        return ""

    def _checked(self, message: dict[str, Any]) -> str:
        if self.answered:
            return "a second answer"
        self.answered = True
        id = message.get("id")
        if id != self.id or type(id) is not int:
            return f"an answer with id {id!r} instead of {self.id}"
        if "error" in message:
            return f"an error: {str(message['error'])[:200]}"
        try:
            found = message["result"]["content"][0]["text"]
        except (KeyError, IndexError, TypeError):
            return f"a strange result: {str(message)[:200]}"
        if found != self.text:
            return "the content of another call" if len(found) == len(self.text) else "cut content"
        if self._seen != self.shape.progress:
            return f"{self._seen} progress notifications instead of {self.shape.progress}"
        return ""

    @property
    def ended(self) -> bool:
        """Whether `over` was called."""
        return self._over is None

    def end(self, wrong: str = "") -> None:
        """Nothing more comes for it."""
        self.wrong = self.wrong or wrong
        if not self.answered and not self.wrong:
            self.wrong = "no answer"
        over, self._over = self._over, None
        if over is not None:
            over(self)

    # Exchange: over Streamable HTTP, where the answer to the POST is the answer to the call.

    def head(self, status: int, stream: bool, session: str) -> None:
        if status != 200:
            self.wrong = self.wrong or f"HTTP status {status}"
        elif stream:
            self._feed = events(lambda kind, data: self.received(data))

    def data(self, data: bytes) -> None:
        if self._feed is not None:
            self._feed(data)
        else:
            self._chunks.append(data)

    def done(self) -> None:
        if self._feed is None and not self.wrong:
            self.received(b"".join(self._chunks))
        self.end()

    def failed(self, error: Exception) -> None:
        self.end(str(error))
