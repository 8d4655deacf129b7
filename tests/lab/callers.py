"""
The clients of a ledger run: each calls one server by one proxy, a few calls at a time.

Ids meet on purpose: everybody counts from 1, and begins again. What names a call is its token.
"""

from __future__ import annotations

import json
import random
from collections.abc import Awaitable, Callable
from typing import Any

from attrs import define, field
from raw import RawClient, Response
from twisted.internet import reactor
from twisted.internet.defer import Deferred, ensureDeferred, gatherResults
from twisted.internet.defer import TimeoutError as DeferredTimeout
from twisted.internet.endpoints import TCP4ClientEndpoint, connectProtocol
from twisted.internet.error import ConnectError, ConnectionClosed
from twisted.internet.task import deferLater
from twisted.logger import Logger

from .book import Asked, Book, Wrong
from .faults import Fault, pick

__all__ = ["KINDS", "ModernCaller", "Plan", "SSECaller", "StreamableCaller"]

JSON = dict[str, Any]
MODERN = "2026-07-28"
REVISIONS = ("2025-03-26", "2025-06-18", "2025-11-25")
LANES = 2
"""Calls that one client has in flight at once, beside those that a fault adds."""

_GUARD = 20.0
"""Seconds after which a call that did not end is given up, and that is told."""
_TRIES = 100
_PAUSE = 0.1
_ENDS = (ConnectionClosed, ConnectError)

_log = Logger()


class _Lost(Exception):
    """The session ended while a stream of it was to be resumed."""


def pause(seconds: float) -> Deferred[None]:
    return deferLater(reactor, seconds)  # type: ignore[arg-type]


@define
class Plan:
    """
    What all callers have in common.

    left: how many calls are still to be begun. faults: how many of a hundred go wrong. until: when
    the last one begins. rest: seconds between two calls of one lane, on the average.
    """

    base: str
    book: Book
    seed: int
    left: int
    faults: float
    until: float = float("inf")
    rest: float = 0.0

    @property
    def over(self) -> bool:
        return self.left <= 0 or self.now() >= self.until

    def now(self) -> float:
        return float(reactor.seconds())  # type: ignore[attr-defined]


@define(eq=False)
class Caller:
    """
    One client. who: its name. server: whom it calls. behind: what kind of server that is. due:
    faults that its next calls have.
    """

    plan: Plan
    who: str
    server: str
    behind: str
    kind: str = field(default="", init=False)
    dice: random.Random = field(init=False)
    count: int = field(default=0, init=False)
    due: list[Fault] = field(factory=list, init=False)

    def __attrs_post_init__(self) -> None:
        self.dice = random.Random(f"{self.plan.seed} {self.who}")

    @property
    def path(self) -> str:
        return f"/servers/{self.server}/mcp"

    # Connections.

    async def connect(self) -> RawClient:
        port = int(self.plan.base.rpartition(":")[2])
        endpoint = TCP4ClientEndpoint(reactor, "127.0.0.1", port)
        client: RawClient = await connectProtocol(endpoint, RawClient())
        return client

    def posted(self, message: JSON | None, method: str = "POST", **others: str) -> bytes:
        """The bytes of a request."""
        body = b"" if message is None else json.dumps(message, separators=(",", ":")).encode()
        fields = {
            "Host": self.plan.base.removeprefix("http://"),
            "Accept": "application/json, text/event-stream",
            "X-Caller": self.who,
            **self.fields(message),
            **{name.replace("_", "-"): value for name, value in others.items()},
        }
        if message is not None:
            fields |= {"Content-Type": "application/json", "Content-Length": str(len(body))}
        target = others.pop("target", "") or self.path
        fields.pop("target", None)
        head = [f"{method} {target} HTTP/1.1", *(f"{name}: {one}" for name, one in fields.items())]
        return "\r\n".join([*head, "", ""]).encode() + body

    def fields(self, message: JSON | None) -> dict[str, str]:
        return {}

    async def run(self) -> None:
        await self.open()
        lanes = [ensureDeferred(self._lane(number)) for number in range(LANES)]
        await gatherResults(lanes, consumeErrors=True)
        await self.close()

    async def open(self) -> None:
        """Become one that may call."""

    async def close(self) -> None:
        """Leave."""

    async def _lane(self, number: int) -> None:
        raise NotImplementedError

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
        number = self.count
        asked = Asked(f"{self.who}-{number}", fault, id or number % 7 + 1, self.plan.now())
        self.plan.book.ask(asked)
        return asked

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
        self.plan.book.end(asked, outcome, self.plan.now())
        if self.behind == "steady" and outcome != "result":
            self.plan.book.blame(f"{asked.token}: {outcome}, of a server that did nothing wrong")

    def wrong(self, asked: Asked, why: object) -> None:
        self.plan.book.blame(f"{asked.fault.verb} {why}")
        self.ended(asked, "WRONG")


class _Posting(Caller):
    """A client of one of the proxies that answer where they were asked."""

    async def _lane(self, number: int) -> None:
        client = await self.connect()
        while (asked := await self.next()) is not None:
            await self.ready()
            verb = asked.fault.verb
            act = getattr(self, "_" + verb.replace("-", "_"), None)
            guard = reactor.callLater(_GUARD, client.reset)  # type: ignore[attr-defined]
            asked.began = self.plan.now()
            try:
                if act is not None and verb.startswith("client-"):
                    alive = await act(client, asked)
                else:
                    client.send(self.posted(self.message(asked)))
                    alive = await self.answered(client, asked)
            except Wrong as wrong:
                self.wrong(asked, wrong)
                alive = False
            except (*_ENDS, DeferredTimeout) as error:
                self.cut(asked, error)
                alive = False
            if guard.active():
                guard.cancel()
            if not alive:
                client.reset()
                await client.ended
                client = await self.connect()
        client.close()
        await client.ended

    def cut(self, asked: Asked, error: Exception) -> None:
        """The connection ended, or was silent, before there was an answer."""
        self.wrong(asked, f"{asked.token}: {error!r}")

    async def ready(self) -> None:
        """Be in a session, where there are some."""

    async def answered(self, client: RawClient, asked: Asked, resumes: int = 0) -> bool:
        """
        Read the answer to a call and judge it; returns whether the connection goes on.

        resumes: how many times to lose the connection and resume.
        """
        head = await client.head()
        if (head.header(b"content-type") or b"").startswith(b"text/event-stream"):
            messages: list[JSON] = []
            others: list[RawClient] = []
            try:
                await self._stream(client, asked, messages, resumes, others)
            except _Lost as lost:
                self.ended(asked, str(lost))
                return False
            finally:
                # What it was resumed on is not the lane's.
                for one in others:
                    one.reset()
            self.ended(asked, asked.judge(messages))
            if others:
                return False
        else:
            await client.body(head)
            self.refused(asked, head)
        return head.header(b"connection") != b"close"

    def refused(self, asked: Asked, answer: Response) -> None:
        """An answer that is no stream."""
        if answer.status != 200:
            raise Wrong(f"{asked.token}: {answer}")
        self.ended(asked, asked.judge([_decoded(asked, answer.body)]))

    async def _stream(
        self,
        client: RawClient,
        asked: Asked,
        messages: list[JSON],
        resumes: int,
        others: list[RawClient],
    ) -> None:
        """Read an event stream to its end, over as many other connections as that takes."""
        last, seen = b"", set()
        named = self.fields(None) if self.kind == "streamable" else {}
        for _ in range(8):
            try:
                while (event := await client.event()) is not None:
                    if event.id:
                        if event.id in seen:
                            raise Wrong(f"{asked.token}: an event came twice")
                        seen.add(event.id)
                        last = event.id
                    if event.data:
                        messages.append(_decoded(asked, event.data))
                    if resumes and last:
                        resumes -= 1
                        client.reset()
                        await client.ended
                        raise ConnectionClosed
            except ConnectionClosed:
                if not last:
                    raise
            if any("method" not in one for one in messages) or not last:
                return
            client = await self.connect()
            others.append(client)
            client.send(self.posted(None, "GET", Last_Event_ID=last.decode(), **named))
            head = await client.head()
            if head.status != 200:
                await client.body(head)
                if head.status == 404:
                    raise _Lost("session lost")
                if head.status == 405 and self.server == "http":
                    # The stream was its server's own, and that has lost its sessions.
                    raise _Lost("nothing left to resume")
                raise Wrong(f"{asked.token}: not resumed, {head}, after {messages}")

    # What clients do wrong.

    async def _client_reset(self, client: RawClient, asked: Asked) -> bool:
        client.send(self.posted(self.message(asked)))
        await pause(self.dice.random() / 50)
        client.reset()
        await client.ended
        self.ended(asked, "left")
        return False

    async def _client_half_close(self, client: RawClient, asked: Asked) -> bool:
        client.send(self.posted(self.message(asked)))
        client.transport.loseWriteConnection()
        try:
            await self.answered(client, asked)
        except ConnectionClosed:
            self.ended(asked, "left")
        return False

    async def _client_slow_reader(self, client: RawClient, asked: Asked) -> bool:
        client.send(self.posted(self.message(asked)))
        client.pause()
        await pause(0.3)
        client.resume()
        return await self.answered(client, asked)

    async def _client_half_body(self, client: RawClient, asked: Asked) -> bool:
        data = self.posted(self.message(asked))
        client.send(data[: len(data) - 1 - self.dice.randrange(60)])
        await pause(self.dice.random() / 100)
        client.reset()
        await client.ended
        self.ended(asked, "never sent")
        return False

    async def _client_drip(self, client: RawClient, asked: Asked) -> bool:
        data = self.posted(self.message(asked))
        for start in range(0, len(data), 70):
            client.send(data[start : start + 70])
            await pause(0.001)
        return await self.answered(client, asked)

    async def _client_pipelines(self, client: RawClient, asked: Asked) -> bool:
        other = self.asked(asked.fault)
        client.send(self.posted(self.message(asked)) + self.posted(self.message(other)))
        return await self._both(client, asked, client, other)

    async def _client_duplicate_ids(self, client: RawClient, asked: Asked) -> bool:
        other = self.asked(asked.fault, asked.id)
        requests = [self.posted(self.message(one)) for one in (asked, other)]
        second = await self.connect()
        client.send(requests[0])
        second.send(requests[1])
        alive = await self._both(client, asked, second, other)
        second.reset()
        return alive

    async def _both(self, client: RawClient, asked: Asked, second: RawClient, other: Asked) -> bool:
        """The answers to two calls, the second of which is judged whatever the first was."""
        try:
            alive = await self.answered(client, asked)
        except Wrong as wrong:
            self.wrong(asked, wrong)
            alive = False
        except (*_ENDS, DeferredTimeout) as error:
            self.cut(asked, error)
            alive = False
        try:
            return await self.answered(second, other) and alive
        except Wrong as wrong:
            self.wrong(other, wrong)
        except (*_ENDS, DeferredTimeout) as error:
            self.cut(other, error)
        return False


class StreamableCaller(_Posting):
    """A client of a legacy era: it has a session."""

    def __attrs_post_init__(self) -> None:
        super().__attrs_post_init__()
        self.kind = "streamable"
        self.session = ""
        self.revision = self.dice.choice(REVISIONS)
        self._listening: set[RawClient] = set()
        self._listened: list[Deferred[None]] = []
        self._opening: list[Deferred[None]] | None = None

    def fields(self, message: JSON | None) -> dict[str, str]:
        return {"Mcp-Session-Id": self.session} if self.session else {}

    async def ready(self) -> None:
        for _ in range(_TRIES):
            if self.session:
                return
            await self._opened()

    async def _opened(self) -> None:
        """Open a session, or wait until another lane has."""
        if self._opening is not None:
            waits: Deferred[None] = Deferred()
            self._opening.append(waits)
            await waits
            return
        self._opening = []
        try:
            await self._open()
        finally:
            waiting, self._opening = self._opening, None
            for one in waiting:
                one.callback(None)

    async def _open(self) -> None:
        hello = _hello(self.revision)
        client = await self.connect()
        for _ in range(_TRIES):
            client.send(self.posted(hello))
            answer = await client.response()
            session = answer.header(b"mcp-session-id")
            if session is not None:
                self.session = session.decode()
                told = {"jsonrpc": "2.0", "method": "notifications/initialized"}
                client.send(self.posted(told))
                said = await client.response()
                self.plan.book.openings[f"{self.kind}: {said.status}"] += 1
                self._listened = [one for one in self._listened if not one.called]
                self._listened.append(ensureDeferred(self._listen(self.session)))
                break
            why = json.loads(answer.body)["error"].get("data", {}).get("reason", "error")
            self.plan.book.openings[f"{self.kind}: {answer.status} {why}"] += 1
            await pause(_PAUSE)
        else:
            self.plan.book.blame(f"{self.who}: no session")
        client.close()
        await client.ended

    def refused(self, asked: Asked, answer: Response) -> None:
        if answer.status == 404:
            error = _decoded(asked, answer.body)
            if error["error"]["code"] != -32001 or error.get("id", asked.id) != asked.id:
                raise Wrong(f"{asked.token}: {answer}")
            self.session = ""
            self.ended(asked, "session lost")
        else:
            super().refused(asked, answer)

    async def _listen(self, session: str) -> None:
        """Hear the session's GET stream to its end: no answer is ever on it."""
        client = await self.connect()
        self._listening.add(client)
        try:
            client.send(self.posted(None, "GET", Mcp_Session_Id=session))
            if (await client.head()).status == 200:
                while (event := await client.event()) is not None:
                    message = json.loads(event.data or b'{"method":""}')
                    if message.get("method") in (None, "notifications/progress"):
                        self.plan.book.blame(f"{self.who}: on the GET stream, {message}")
        except ConnectionClosed:
            pass
        except DeferredTimeout:
            self.plan.book.blame(f"{self.who}: not even a heartbeat on the GET stream")
        self._listening.discard(client)
        client.reset()
        await client.ended

    async def close(self) -> None:
        if self.session:
            client = await self.connect()
            client.send(self.posted(None, "DELETE"))
            await client.response()
            client.close()
            await client.ended
        for client in list(self._listening):
            client.reset()
        for one in self._listened:
            await one

    async def _client_cancel(self, client: RawClient, asked: Asked) -> bool:
        asked.id = f"cancelled {asked.token}"
        client.send(self.posted(self.message(asked)))
        await pause(0.01)
        params = {"requestId": asked.id}
        await self._told({"jsonrpc": "2.0", "method": "notifications/cancelled", "params": params})
        return await self.answered(client, asked)

    async def _told(self, message: JSON | None, method: str = "POST", **others: str) -> int:
        other = await self.connect()
        other.send(self.posted(message, method, **others))
        answer = await other.response()
        other.close()
        await other.ended
        return answer.status

    async def _client_delete(self, client: RawClient, asked: Asked) -> bool:
        session = self.session
        client.send(self.posted(self.message(asked)))
        await pause(0.005)
        status = await self._told(None, "DELETE", Mcp_Session_Id=session)
        if self.session == session:
            self.session = ""
        if status not in (204, 404):
            raise Wrong(f"{asked.token}: DELETE {status}")
        return await self.answered(client, asked)

    async def _client_wrong_session(self, client: RawClient, asked: Asked) -> bool:
        wrong = "".join(self.dice.choices("abcdefghijklmnop", k=43))
        client.send(self.posted(self.message(asked), Mcp_Session_Id=wrong))
        answer = await client.response()
        if answer.status != 404 or json.loads(answer.body)["error"]["code"] != -32001:
            raise Wrong(f"{asked.token}: {answer}")
        self.ended(asked, "never sent")
        return True

    async def _client_resumes(self, client: RawClient, asked: Asked) -> bool:
        client.send(self.posted(self.message(asked)))
        return await self.answered(client, asked, self.dice.randint(1, 3))


class ModernCaller(_Posting):
    """A client of revision 2026-07-28: every request says who it is."""

    def __attrs_post_init__(self) -> None:
        super().__attrs_post_init__()
        self.kind = "modern"

    def fields(self, message: JSON | None) -> dict[str, str]:
        assert message is not None
        return {"MCP-Protocol-Version": MODERN, "Mcp-Method": message["method"], "Mcp-Name": "do"}

    def meta(self, asked: Asked) -> JSON:
        return {
            "progressToken": asked.id,
            "io.modelcontextprotocol/protocolVersion": MODERN,
            "io.modelcontextprotocol/clientInfo": {"name": self.who, "version": "1"},
            "io.modelcontextprotocol/clientCapabilities": {},
        }

    def refused(self, asked: Asked, answer: Response) -> None:
        message = _decoded(asked, answer.body)
        self.ended(asked, asked.judge([message]))

    @property
    def passed(self) -> bool:
        """Whether its bytes go straight through."""
        return self.behind in ("http", "wire") and self.server.endswith("modern")

    def cut(self, asked: Asked, error: Exception) -> None:
        # A stream that a server broke off is broken off: nothing is said in its place.
        if self.passed and isinstance(error, ConnectionClosed):
            self.ended(asked, "cut, as the server was")
        else:
            super().cut(asked, error)

    def wrong(self, asked: Asked, why: object) -> None:
        # Straight through: what a server says instead of an answer is its own affair.
        if (
            self.passed
            and isinstance(why, Wrong)
            and asked.fault.breaks
            and "crossed" not in str(why)
        ):
            self.ended(asked, "what the server said, passed on")
        else:
            super().wrong(asked, why)


class SSECaller(Caller):
    """A client of HTTP+SSE: answers come on its stream, so its ids are its lanes'."""

    def __attrs_post_init__(self) -> None:
        super().__attrs_post_init__()
        self.kind = "sse"
        self.stream: RawClient | None = None
        self.target = ""
        self._waiting: dict[object, tuple[Asked | None, Deferred[JSON | None]]] = {}
        self._reading: Deferred[None] | None = None
        self._left = False
        self._opening: list[Deferred[None]] | None = None

    @property
    def path(self) -> str:
        return self.target

    async def ready(self) -> None:
        if self.stream is not None and self._opening is None:
            return
        if self._opening is not None:
            waits: Deferred[None] = Deferred()
            self._opening.append(waits)
            await waits
            return
        self._opening = []
        try:
            await self._open()
        finally:
            waiting, self._opening = self._opening, None
            for one in waiting:
                one.callback(None)

    async def _open(self) -> None:
        for _ in range(_TRIES):
            if self._reading is not None:
                await self._reading
            stream = await self.connect()
            self.target = f"/servers/{self.server}/sse"
            stream.send(self.posted(None, "GET"))
            head = await stream.head()
            if head.status != 200:
                self.plan.book.openings[f"sse: {head.status}"] += 1
                stream.reset()
                await stream.ended
                await pause(_PAUSE)
                continue
            event = await stream.event()
            assert event is not None and event.data is not None
            self.target = event.data.decode()
            self.stream, self._left = stream, False
            self._reading = ensureDeferred(self._read(stream))
            client = await self.connect()
            answer = await self._ask(client, None, _hello("2024-11-05"), 1)
            if answer is not None and "result" in answer:
                told = {"jsonrpc": "2.0", "method": "notifications/initialized"}
                client.send(self.posted(told))
                said = await client.response()
                self.plan.book.openings[f"sse: {said.status}"] += 1
                client.close()
                await client.ended
                if self.stream is stream:
                    return
                continue
            self.plan.book.openings["sse: failed"] += 1
            client.reset()
            await client.ended
            stream.reset()
            await stream.ended
            await pause(_PAUSE)
        self.plan.book.blame(f"{self.who}: no session")

    async def _read(self, stream: RawClient) -> None:
        """Hand out what comes on the stream until it ends; then nothing more will come."""
        try:
            while (event := await stream.event()) is not None:
                self._heard(json.loads(event.data or b"{}"))
        except ConnectionClosed:
            pass
        except DeferredTimeout:
            self.plan.book.blame(f"{self.who}: not even a heartbeat")
        if self.stream is stream:
            self.stream = None
        stream.reset()
        waiting, self._waiting = self._waiting, {}
        for _, answer in waiting.values():
            answer.callback(None)

    def _heard(self, message: JSON) -> None:
        if "method" in message:
            if message["method"] != "notifications/progress":
                return
            asked, _ = self._waiting.get(message["params"]["progressToken"], (None, None))
            if asked is None or message["params"].get("message") != asked.token:
                self.plan.book.blame(f"{self.who}: crossed, {message}")
            return
        entry = self._waiting.pop(message.get("id"), None)
        if entry is None:
            self.plan.book.blame(f"{self.who}: nobody's answer, {message}")
        else:
            entry[1].callback(message)

    async def _ask(
        self, client: RawClient, asked: Asked | None, message: JSON, id: object
    ) -> JSON | None:
        """A request and its answer; None where the stream ended before."""
        answer: Deferred[JSON | None] = Deferred()
        self._waiting[id] = asked, answer
        client.send(self.posted(message))
        said = await client.response()
        if said.status != 202:
            self._waiting.pop(id, None)
            if said.status == 404:
                # A session lives as long as its stream, which has ended or is about to.
                return None
            raise Wrong(f"{asked and asked.token}: {said}")
        return await answer

    async def _lane(self, number: int) -> None:
        client = await self.connect()
        while (asked := await self.next()) is not None:
            await self.ready()
            # On one stream ids of calls in flight are apart.
            asked.id = number * 100 + self.count % 7 + 1
            guard = reactor.callLater(_GUARD, self._giveUp)  # type: ignore[attr-defined]
            asked.began = self.plan.now()
            alive = True
            try:
                alive = await self._one(client, asked)
            except Wrong as wrong:
                self.wrong(asked, wrong)
            except (*_ENDS, DeferredTimeout) as error:
                self.wrong(asked, f"{asked.token}: {error!r}")
                alive = False
            if guard.active():
                guard.cancel()
            if not alive:
                client.reset()
                await client.ended
                client = await self.connect()
        client.close()
        await client.ended

    def _giveUp(self) -> None:
        self.plan.book.blame(f"{self.who}: a call did not end in {_GUARD:.0f} s")
        if self.stream is not None:
            self.stream.reset()

    async def _one(self, client: RawClient, asked: Asked) -> bool:
        verb = asked.fault.verb
        message = self.message(asked)
        if verb == "client-half-body":
            data = self.posted(message)
            client.send(data[: len(data) - 1 - self.dice.randrange(60)])
            await pause(self.dice.random() / 100)
            client.reset()
            await client.ended
            self.ended(asked, "never sent")
            return False
        if verb == "client-wrong-session":
            target = self.target[:-8] + "notthere"
            client.send(self.posted(message, target=target))
            answer = await client.response()
            if answer.status != 404 or json.loads(answer.body)["error"]["code"] != -32001:
                raise Wrong(f"{asked.token}: {answer}")
            self.ended(asked, "never sent")
            return True
        does: Callable[[], Awaitable[None]] | None = None
        if verb == "client-reset":
            does = self._leave
        elif verb == "client-cancel":
            does = self._canceller(asked)
        beside = None if does is None else ensureDeferred(does())  # type: ignore[arg-type]
        answer_ = await self._ask(client, asked, message, asked.id)
        if beside is not None:
            await beside
        if answer_ is not None:
            self.ended(asked, asked.judge([answer_]))
        else:
            self.ended(asked, "left" if self._left else "session lost")
        return True

    async def _leave(self) -> None:
        await pause(self.dice.random() / 50)
        self._left = True
        if self.stream is not None:
            self.stream.reset()

    def _canceller(self, asked: Asked) -> Callable[[], Awaitable[None]]:
        async def cancel() -> None:
            await pause(0.02)
            other = await self.connect()
            params = {"requestId": asked.id}
            told = {"jsonrpc": "2.0", "method": "notifications/cancelled", "params": params}
            other.send(self.posted(told))
            await other.response()
            other.close()
            await other.ended

        return cancel

    async def close(self) -> None:
        if self.stream is not None:
            self.stream.close()
            await self.stream.ended
        if self._reading is not None:
            await self._reading


def _decoded(asked: Asked, data: bytes) -> JSON:
    try:
        found: JSON = json.loads(data)
    except ValueError:
        raise Wrong(f"{asked.token}: no JSON, {data[:200]!r}") from None
    return found


def _hello(revision: str) -> JSON:
    params = {
        "protocolVersion": revision,
        "capabilities": {},
        "clientInfo": {"name": "lab", "version": "1"},
    }
    return {"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": params}


KINDS = {"streamable": StreamableCaller, "modern": ModernCaller, "sse": SSECaller}
"""The clients, by what they speak."""
