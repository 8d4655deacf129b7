"""The floors' stdio servers: ids and progress tokens are mapped, lines are split, that is all."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from itertools import count
from typing import Any

from attrs import define, field
from twisted.internet.interfaces import IReactorProcess
from twisted.internet.protocol import ProcessProtocol

__all__ = ["JSON", "Child", "Children", "dumped"]

JSON = dict[str, Any]
Deliver = Callable[[JSON, bool], None]
"""Takes a message of the call, and whether it is the answer."""


def dumped(message: JSON) -> bytes:
    """A message as compact JSON."""
    return json.dumps(message, separators=(",", ":")).encode()


class Child(ProcessProtocol):
    """A stdio server. `told` gets what belongs to no call."""

    transport: Any = None

    def __init__(self, told: Callable[[JSON], None]) -> None:
        self._told = told
        self._ids = count(1)
        self._waiting: dict[int, tuple[object, object, Deliver]] = {}
        self._rest: list[bytes] = []

    def call(self, message: JSON, deliver: Deliver) -> None:
        """Send a request under an id of our own."""
        id = next(self._ids)
        token = None
        meta = message.get("params", {}).get("_meta")
        if meta and "progressToken" in meta:
            token, meta["progressToken"] = meta["progressToken"], id
        self._waiting[id] = (message["id"], token, deliver)
        message["id"] = id
        self.send(message)

    def send(self, message: JSON) -> None:
        """Send a notification."""
        self.transport.write(dumped(message) + b"\n")

    def outReceived(self, data: bytes) -> None:
        if b"\n" not in data:
            # Joined once: an unfinished line grows by 8 KiB a read.
            self._rest.append(data)
            return
        self._rest.append(data)
        *lines, rest = b"".join(self._rest).split(b"\n")
        self._rest = [rest] if rest else []
        for line in lines:
            self._received(json.loads(line))

    def _received(self, message: JSON) -> None:
        if "id" in message and "method" not in message:
            message["id"], _, deliver = self._waiting.pop(message["id"])
            deliver(message, True)
        elif message.get("method") == "notifications/progress":
            params = message["params"]
            _, params["progressToken"], deliver = self._waiting[params["progressToken"]]
            deliver(message, False)
        else:
            self._told(message)


@define
class Children:
    """Starts the child of a session, or the one child that is there for all."""

    reactor: IReactorProcess
    script: str
    shared: bool
    _one: Child | None = None
    _tell: list[Callable[[JSON], None]] = field(factory=list)

    def child(self, told: Callable[[JSON], None]) -> Child:
        """The child for a new session."""
        if not self.shared:
            return self._spawn(told)
        self._tell.append(told)
        if self._one is None:
            self._one = self._spawn(self._toldAll)
        return self._one

    def leave(self, child: Child, told: Callable[[JSON], None]) -> None:
        """A session is over."""
        if self.shared:
            self._tell.remove(told)
        else:
            child.transport.loseConnection()

    def _toldAll(self, message: JSON) -> None:
        for told in self._tell:
            told(message)

    def _spawn(self, told: Callable[[JSON], None]) -> Child:
        child = Child(told)
        argv = [sys.executable, "-I", "-S", self.script]
        self.reactor.spawnProcess(child, sys.executable, argv, env={})
        return child
