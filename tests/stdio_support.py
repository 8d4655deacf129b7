"""What tests with real child processes share: a server of faults, and a listener that records."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

from attrs import define, field
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from zope.interface import implementer

from gateway.guard.limits import Limits
from gateway.links.interfaces import EventMark, Hello, ILink, ILinkListener, Reason, Settled
from gateway.links.process import Reaper
from gateway.observe.observer import Event, IObserver
from gateway.servers.stdio import StdioServer
from gateway.settings import StdioSettings
from gateway.wire.context import CallContext
from gateway.wire.envelope import Message, decode

FAULTY = str(Path(__file__).with_name("faulty_server.py"))
CONTEXT = CallContext("faulty")
HELLO = Hello(
    b'{"protocolVersion":"2025-06-18","capabilities":{},"clientInfo":{"name":"t","version":"1"}}'
)
QUICK = Limits(eof_wait=0.2, term_wait=0.2)


def request(id: int, method: str, params: object | None = None) -> Message:
    """A request with an integer id."""
    fields: dict[str, object] = {"jsonrpc": "2.0", "id": id, "method": method}
    if params is not None:
        fields["params"] = params
    message = decode(json.dumps(fields).encode())
    assert isinstance(message, Message)
    return message


def call(id: int, verb: str, **arguments: object) -> Message:
    """A tools/call of one of the verbs of tests/faulty_server.py."""
    return request(id, "tools/call", {"name": verb, "arguments": arguments})


def alive(pid: int) -> bool:
    """Whether a process is there and no zombie."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return status.rpartition(")")[2].split()[0] != "Z"


def children() -> list[str]:
    """Our direct children, zombies included."""
    pid = os.getpid()
    return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()


@implementer(IObserver)
@define(eq=False)
class Observed:
    """Every event."""

    events: list[Event] = field(factory=list)

    def observed(self, event: Event) -> None:
        self.events.append(event)

    def of(self, kind: type[Event]) -> list[Any]:
        return [event for event in self.events if isinstance(event, kind)]


@implementer(ILinkListener)
class Listener:
    """
    Records what a link tells, in order, and waits for it.

    told: ("received", Message) | ("settled", call, Settled) | ("drained",) | ("lost", Reason, str)
    """

    def __init__(self) -> None:
        self.told: list[tuple[Any, ...]] = []
        self._waiting: list[tuple[Callable[[], bool], Deferred[None]]] = []

    def _tell(self, *what: Any) -> None:
        self.told.append(what)
        for entry in list(self._waiting):
            if entry[0]():
                self._waiting.remove(entry)
                entry[1].callback(None)

    def received(
        self, message: Message, origin: object | None, mark: EventMark | None = None
    ) -> None:
        assert origin is None and mark is None
        self._tell("received", message)

    def settled(self, call: object, settled: Settled) -> None:
        self._tell("settled", call, settled)

    def drained(self) -> None:
        self._tell("drained")

    def lost(self, reason: Reason, message: str) -> None:
        self._tell("lost", reason, message)

    def accepted(self, call: object) -> None:
        raise AssertionError("a child accepts nothing one by one")

    def marked(self, origin: object | None, mark: EventMark) -> None:
        raise AssertionError("a child has no event ids")

    def ended(self, origin: object) -> None:
        raise AssertionError("a child has no streams")

    @property
    def messages(self) -> list[Message]:
        """Every message received."""
        return [what[1] for what in self.told if what[0] == "received"]

    @property
    def losses(self) -> list[tuple[Any, ...]]:
        return [what[1:] for what in self.told if what[0] == "lost"]

    @property
    def settlements(self) -> list[tuple[Any, ...]]:
        return [what[1:] for what in self.told if what[0] == "settled"]

    def answers(self, id: int) -> list[Message]:
        """The responses to an id."""
        return [m for m in self.messages if not m.method and m.id == b"%d" % id]

    def until(self, condition: Callable[[], bool]) -> Deferred[None]:
        """Fires when a condition holds, looked at after each thing told. Fails after 20 s."""
        waiter: Deferred[None] = Deferred()
        if condition():
            waiter.callback(None)
        else:
            self._waiting.append((condition, waiter))
        return waiter.addTimeout(20, reactor)  # type: ignore[arg-type]

    async def answer(self, id: int) -> Message:
        """The first response to an id."""
        await self.until(lambda: bool(self.answers(id)))
        return self.answers(id)[0]

    async def structured(self, id: int) -> Any:
        """`structuredContent` of the answer to an id."""
        return json.loads((await self.answer(id)).encode())["result"]["structuredContent"]

    async def loss(self) -> tuple[Any, ...]:
        """(reason, message) of `lost`."""
        await self.until(lambda: bool(self.losses))
        return self.losses[0]


class Bench:
    """A StdioServer over tests/faulty_server.py and all that belongs to it; `end` clears it up."""

    def __init__(
        self,
        *flags: str,
        limits: Limits = QUICK,
        clock: Any = reactor,
        spawner: Any = reactor,
        environ: dict[str, str] | None = None,
        **settings: Any,
    ) -> None:
        self.observed = Observed()
        self.reaper = Reaper(reactor)
        settings.setdefault("command", sys.executable)
        settings.setdefault("args", (FAULTY, *flags))
        settings.setdefault("handshake_timeout", 20.0)
        self.server = StdioServer(
            StdioSettings(name="faulty", **settings),
            limits,
            spawner,
            clock,
            self.observed,
            self.reaper,
            environ=environ,
        )

    async def link(self) -> tuple[ILink, Listener]:
        listener = Listener()
        return await self.server.link(HELLO, listener, CONTEXT), listener

    async def end(self) -> None:
        await self.server.drain()
        await self.reaper.close()


async def benches() -> AsyncIterator[Callable[..., Bench]]:
    """For a fixture: makes benches, ends them, and sees that no child is left."""
    before = children()
    made: list[Bench] = []

    def make(*flags: str, **keywords: Any) -> Bench:
        made.append(Bench(*flags, **keywords))
        return made[-1]

    yield make
    for one in made:
        await one.end()
    assert children() == before
