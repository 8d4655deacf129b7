"""A call that came over HTTP, and what may be said of it."""

from __future__ import annotations

import json
import os
from typing import Any

from attrs import define
from faulty_upstream import Received

from .stdio_server import isAnswered, question

__all__ = ["HTTPCall", "dumps", "event"]

JSON = dict[str, Any]


def dumps(message: JSON) -> bytes:
    return json.dumps({"jsonrpc": "2.0", **message}, separators=(",", ":")).encode()


def event(message: JSON, id: str = "") -> bytes:
    head = f"id: {id}\n".encode() if id else b""
    return b"%bevent: message\ndata: %b\n\n" % (head, dumps(message))


@define(eq=False)
class HTTPCall:
    """One call, however it came. session: that it came in; a modern call has none."""

    ledger: int
    request: Received
    message: JSON
    session: str = ""

    @property
    def arguments(self) -> JSON:
        found: JSON = self.message["params"]["arguments"]
        return found

    @property
    def token(self) -> str:
        return str(self.arguments["token"])

    @property
    def place(self) -> int:
        return int(self.arguments.get("place", 0))

    @property
    def modern(self) -> bool:
        return not self.session

    def executed(self, mark: str = "") -> None:
        line = f"{self.token}{mark} {os.getpid()} {self.session or '-'}\n"
        os.write(self.ledger, line.encode())

    @property
    def question(self) -> JSON:
        """What is asked in this call, but for its id."""
        return question(self.token, self.place)

    def heard(self, answer: JSON) -> JSON:
        """The answer to a question came: the answer to the call."""
        self.executed("?")
        if "error" in answer or isAnswered(self.token, answer):
            return self.result()
        return self.result(structuredContent={"token": str(answer)})

    def result(self, **more: object) -> JSON:
        complete = {"resultType": "complete"} if self.modern else {}
        seen = {"structuredContent": {"token": self.token}, "content": []}
        return {"id": self.message["id"], "result": {**complete, **seen, **more}}

    def advanced(self, step: int) -> JSON:
        token = self.message["params"].get("_meta", {}).get("progressToken")
        params = {"progressToken": token, "progress": step, "message": self.token}
        return {"method": "notifications/progress", "params": params}

    def answered(self, message: JSON | None = None) -> None:
        self.request.reply(200, dumps(message or self.result()))

    def streamed(self, *messages: JSON, last: bool = True) -> None:
        """Say this on a stream. last: whether it ends there."""
        self.request.stream()
        self.said(*messages, last=last)

    def said(self, *messages: JSON, last: bool = True) -> None:
        """Say more on it."""
        for message in messages:
            self.request.chunk(event(message))
        if last:
            self.request.end()
