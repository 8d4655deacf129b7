"""
What the clients of a run have in common, whatever they speak.

Ids meet on purpose: everybody counts from 1, and begins again. What names a call is its token:
`kind:server:number:principal:count`.
"""

from __future__ import annotations

import json
import random
from typing import Any

from attrs import define, field
from raw import RawClient, Response
from twisted.internet import reactor
from twisted.internet.defer import Deferred, ensureDeferred, gatherResults
from twisted.internet.defer import TimeoutError as DeferredTimeout
from twisted.internet.endpoints import TCP4ClientEndpoint, connectProtocol
from twisted.internet.error import ConnectError, ConnectionClosed
from twisted.internet.task import deferLater

from .book import Asked, Book, Wrong
from .faults import Fault, pick
from .questions import answerTo, tokenOf

__all__ = ["ENDS", "GUARD", "LANES", "PRINCIPALS", "Caller", "Connection", "Plan", "pause"]

JSON = dict[str, Any]

LANES = 2
"""Calls that one client has in flight at once, beside those that a fault adds."""
GUARD = 20.0
"""Seconds after which a call that did not end is given up, and that is told."""
PRINCIPALS = ("", "alice", "bob")
"""Who clients say they are; "" says nothing."""
ENDS = (ConnectionClosed, ConnectError, DeferredTimeout)
"""What becomes of a connection that is not answered any more."""
_TRIES = 200
_PAUSE = 0.1


def pause(seconds: float) -> Deferred[None]:
    return deferLater(reactor, seconds)  # type: ignore[arg-type]


@define
class Plan:
    """
    What all callers have in common.

    base: the gateway's URL; wired: the one of the proxy before it that harms connections. left: how
    many calls are still to be begun. faults: how many of a hundred go wrong. until: when the last
    one begins. rest: seconds between two calls of one lane, on the average. restarts: how often the
    gateway was told to end, so far. away: whether it was, and is not back. changes: whether its
    configuration does.
    """

    base: str
    wired: str
    book: Book
    seed: int
    left: int
    faults: float
    until: float = float("inf")
    rest: float = 0.0
    restarts: int = 0
    away: bool = False
    changes: bool = False

    @property
    def over(self) -> bool:
        return self.left <= 0 or self.now() >= self.until

    def now(self) -> float:
        return float(reactor.seconds())  # type: ignore[attr-defined]


class Connection(RawClient):
    """
    A connection of a client.

    restarts: how many there had been when it was made; -1: it was made amid one. answering: whether
    anything came.
    """

    restarts = 0
    answering = False

    def dataReceived(self, data: bytes) -> None:
        self.answering = True
        super().dataReceived(data)


@define(eq=False)
class Caller:
    """
    One client.

    name: the first parts of its tokens. server: whom it calls. behind: what kind of server
    that is. principal: who it says it is. wired: whether its connections are harmed at any time.
    due: faults that its next calls have.
    """

    plan: Plan
    name: str
    server: str
    behind: str
    principal: str = ""
    wired: bool = False
    kind: str = field(default="", init=False)
    dice: random.Random = field(init=False)
    count: int = field(default=0, init=False)
    due: list[Fault] = field(factory=list, init=False)
    _bearer: bool = field(init=False)
    _opening: list[Deferred[None]] | None = field(default=None, init=False)
    _inquired: dict[str, bool] = field(factory=dict, init=False)

    def __attrs_post_init__(self) -> None:
        self.dice = random.Random(f"{self.plan.seed} {self.name}")
        self._bearer = self.dice.random() < 0.5

    @property
    def path(self) -> str:
        return f"/servers/{self.server}/mcp"

    # Connections.

    async def connect(self, patient: bool = True) -> Connection:
        """A connection to the gateway. patient: however long it may take to come back."""
        base = self.plan.wired if self.wired else self.plan.base
        port = int(base.rpartition(":")[2])
        endpoint = TCP4ClientEndpoint(reactor, "127.0.0.1", port)
        while patient and self.wired and self.plan.away:
            # The proxy before it takes whoever comes.
            await pause(_PAUSE)
        for _ in range(_TRIES):
            try:
                client: Connection = await connectProtocol(endpoint, Connection())
            except ConnectError:
                if not (patient and self.patient):
                    raise
                await pause(_PAUSE)
                continue
            client.restarts = -1 if self.plan.away else self.plan.restarts
            return client
        raise ConnectError("not even after a restart")

    def mayEnd(self, client: Connection) -> bool:
        """Whether a connection may have ended by itself."""
        return self.wired or client.restarts != self.plan.restarts

    @property
    def patient(self) -> bool:
        """Whether what is begun may have to be begun again."""
        return self.wired or self.plan.restarts > 0

    def posted(
        self,
        message: JSON | None,
        method: str = "POST",
        target: str = "",
        principal: str | None = None,
        **others: str,
    ) -> bytes:
        """The bytes of a request. target: if not its path. principal: if not its own."""
        who = self.who(message) if principal is None else principal
        body = b"" if message is None else json.dumps(message, separators=(",", ":")).encode()
        fields = {
            "Host": self.plan.base.removeprefix("http://"),
            "Accept": "application/json, text/event-stream",
            "X-Caller": "lab",
            **self.credentials(who),
            **self.fields(message),
            **{name.replace("_", "-"): value for name, value in others.items()},
        }
        if message is not None:
            fields |= {"Content-Type": "application/json", "Content-Length": str(len(body))}
        head = [f"{method} {target or self.path} HTTP/1.1"]
        head += [f"{name}: {one}" for name, one in fields.items()]
        return "\r\n".join([*head, "", ""]).encode() + body

    def who(self, message: JSON | None) -> str:
        """Whose request with this message is."""
        return self.principal

    def credentials(self, principal: str) -> dict[str, str]:
        """The header fields that say who asks."""
        if not principal:
            return {}
        return {"Authorization": f"Bearer {principal}"} if self._bearer else {"X-Who": principal}

    def fields(self, message: JSON | None) -> dict[str, str]:
        """The header fields that say which session, or what is asked."""
        return {}

    # A life.

    async def run(self) -> None:
        await self.ready()
        lanes = [ensureDeferred(self.lane(number)) for number in range(LANES)]
        await gatherResults(lanes, consumeErrors=True)
        try:
            await self.close()
        except ENDS:
            if not self.patient:
                raise

    @property
    def joined(self) -> bool:
        """Whether it may call: it is in a session, where there are some."""
        return True

    async def open(self) -> bool:
        """Join; returns whether it worked."""
        return True

    async def ready(self) -> None:
        """Have joined; only one lane does it at a time."""
        while self._opening is not None:
            waits: Deferred[None] = Deferred()
            self._opening.append(waits)
            await waits
        if self.joined:
            return
        self._opening = []
        try:
            await self._opened()
        finally:
            waiting, self._opening = self._opening, None
            for one in waiting:
                one.callback(None)

    async def _opened(self) -> None:
        for _ in range(_TRIES):
            try:
                if await self.open():
                    return
            except ENDS:
                if not self.patient:
                    raise
            await pause(_PAUSE)
        self.plan.book.blame(f"{self.name}: no session")

    async def close(self) -> None:
        """Leave."""

    async def lane(self, number: int) -> None:
        """One call after the other."""
        raise NotImplementedError

    # Calls.

    async def next(self) -> Asked | None:
        """The next call, after a rest if there is one; None when there is none."""
        if self.plan.rest:
            await pause(self.plan.rest * self.dice.uniform(0.5, 1.5))
        if self.plan.over:
            return None
        if self.due:
            return self.asked(self.due.pop())
        return self.asked(pick(self.dice, self.behind, self.kind, self.plan.faults))

    def asked(self, fault: Fault, id: object = None) -> Asked:
        self.plan.left -= 1
        self.count += 1
        token = f"{self.name}:{self.asking()}:{self.count}"
        asked = Asked(token, fault, id or self.count % 7 + 1, self.plan.now())
        self.plan.book.ask(asked)
        return asked

    def asking(self) -> str:
        """Who is to ask the next call."""
        return self.principal

    def message(self, asked: Asked) -> JSON:
        fault = asked.fault
        verb = fault.verb if not fault.verb.startswith("client-") else fault.does
        arguments: JSON = {"token": asked.token, "verb": verb, "place": self.dice.randrange(10**4)}
        if verb.startswith("wire-"):
            arguments = {**arguments, "verb": "answer", "wire": verb}
        params: JSON = {"name": "do", "arguments": arguments, "_meta": self.meta(asked)}
        return {"jsonrpc": "2.0", "id": asked.id, "method": "tools/call", "params": params}

    def meta(self, asked: Asked) -> JSON:
        return {"progressToken": asked.id}

    def ended(self, asked: Asked, outcome: str) -> None:
        if self._inquired.get(asked.token) and outcome in ("not taken", "unknown server"):
            # What was refused is the answer to a question: the call itself ran before.
            outcome = f"{outcome}, after a question"
        self.plan.book.end(asked, outcome, self.plan.now())
        restarted = ("not taken", "session lost", "shutting_down") if self.plan.restarts else ()
        if self.behind == "steady" and outcome not in ("result", *restarted):
            self.plan.book.blame(f"{asked.token}: {outcome}, of a server that did nothing wrong")

    def cut(self, client: Connection, asked: Asked, error: Exception) -> None:
        """A connection ended, or was silent, before there was an answer."""
        if self.wired:
            self.ended(asked, "cut by the wire")
        elif self.mayEnd(client) and not client.answering:
            # It went to a gateway that took nothing any more: it must not have run.
            self.ended(asked, "not taken")
        else:
            self.wrong(asked, f"{asked.token}: {error!r}")

    def wrong(self, asked: Asked, why: object) -> None:
        self.plan.book.blame(f"{asked.fault.verb} {why}")
        self.ended(asked, "WRONG")

    def refusedAs(self, asked: Asked, answer: Response, status: int, code: int) -> bool:
        """
        End a call that was refused with this status and code, where its server is at all.

        Returns: whether the connection goes on. Raises: Wrong, it was not.
        """
        codes = (code, -32000) if self.plan.changes else (code,)
        if answer.status != status and not (answer.status == 404 and self.plan.changes):
            raise Wrong(f"{asked.token}: {answer}")
        if json.loads(answer.body)["error"]["code"] not in codes:
            raise Wrong(f"{asked.token}: {answer}")
        self.ended(asked, "never sent")
        return answer.header(b"connection") != b"close"

    async def _client_bad_token(self, client: Connection, asked: Asked) -> bool:
        client.send(self.posted(self.message(asked), principal="mallory"))
        return self.refusedAs(asked, await client.response(), 401, -32000)

    async def _client_half_body(self, client: Connection, asked: Asked) -> bool:
        data = self.posted(self.message(asked))
        client.send(data[: len(data) - 1 - self.dice.randrange(60)])
        await pause(self.dice.random() / 100)
        client.reset()
        await client.ended
        self.ended(asked, "never sent")
        return False

    # What servers ask.

    def mayBeAsked(self, asked: Asked) -> None:
        """From now on its server may ask something, once."""
        self._inquired[asked.token] = False

    def inquired(self, question: JSON) -> JSON:
        """The answer to what a server asked; a question that is another's is told."""
        token = tokenOf(question)
        # That its call is over already its server may not know yet.
        if self._inquired.get(token, True):
            again = "asked twice" if token in self._inquired else "crossed"
            self.plan.book.blame(f"{self.name}: {again}, {str(question)[:300]}")
        self._inquired[token] = True
        self.plan.book.questions += 1
        return answerTo(question)
