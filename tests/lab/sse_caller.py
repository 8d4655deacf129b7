"""A client of HTTP+SSE (2024-11-05): answers come on its stream, so its ids are its lanes'."""

from __future__ import annotations

import json
from collections.abc import Awaitable
from typing import Any

from raw import hello
from twisted.internet import reactor
from twisted.internet.defer import Deferred, ensureDeferred
from twisted.internet.defer import TimeoutError as DeferredTimeout
from twisted.internet.error import ConnectionClosed

from .book import Asked, Wrong
from .caller import ENDS, GUARD, PRINCIPALS, Caller, Connection, pause
from .questions import CAPABILITIES

__all__ = ["SSECaller"]

JSON = dict[str, Any]


class _Lost(Exception):
    """The session is not known any more."""


class SSECaller(Caller):
    """A client of HTTP+SSE: answers come on its stream, so its ids are its lanes'."""

    def __attrs_post_init__(self) -> None:
        super().__attrs_post_init__()
        self.kind = "sse"
        self.stream: Connection | None = None
        self.target = ""
        self._waiting: dict[object, tuple[Asked | None, Deferred[JSON | None]]] = {}
        self._reading: Deferred[None] | None = None
        self._left = False
        self._aside: list[Deferred[None]] = []

    @property
    def path(self) -> str:
        return self.target

    @property
    def joined(self) -> bool:
        return self.stream is not None

    async def open(self) -> bool:
        if self._reading is not None:
            await self._reading
        stream = await self.connect()
        try:
            stream.send(self.posted(None, "GET", f"/servers/{self.server}/sse"))
            head = await stream.head()
            self.plan.book.openings[f"sse: {head.status}"] += 1
            if head.status == 200:
                event = await stream.event()
                assert event is not None and event.data is not None
                self.target = event.data.decode()
                self.stream, self._left = stream, False
                self._reading = ensureDeferred(self._read(stream))
                if await self._greeted():
                    return self.stream is stream
                self.plan.book.openings["sse: failed"] += 1
        except ENDS:
            stream.reset()
            await stream.ended
            raise
        stream.reset()
        await stream.ended
        return False

    async def _greeted(self) -> bool:
        client = await self.connect()
        try:
            asked = json.loads(hello("2024-11-05", "hello", **CAPABILITIES))
            try:
                answer = await self._ask(client, None, asked, "hello")
            except _Lost:
                return False
            if answer is None or "result" not in answer:
                return False
            client.send(self.posted({"jsonrpc": "2.0", "method": "notifications/initialized"}))
            await client.response()
            return True
        finally:
            client.close()
            await client.ended

    async def _read(self, stream: Connection) -> None:
        """Hand out what comes on the stream until it ends; then nothing more will come."""
        try:
            while (event := await stream.event()) is not None:
                if event.data:
                    self._heard(json.loads(event.data))
        except ConnectionClosed:
            pass
        except DeferredTimeout:
            if not self.patient:
                self.plan.book.blame(f"{self.name}: not even a heartbeat")
        if self.stream is stream:
            self.stream = None
        stream.reset()
        waiting, self._waiting = self._waiting, {}
        for _, answer in waiting.values():
            answer.callback(None)

    def _heard(self, message: JSON) -> None:
        if "method" in message:
            if "id" in message:
                told = {"jsonrpc": "2.0", "id": message["id"], "result": self.inquired(message)}
                self._aside = [one for one in self._aside if not one.called]
                self._aside.append(ensureDeferred(self._told(told)))
            if message["method"] != "notifications/progress":
                return
            asked, _ = self._waiting.get(message["params"]["progressToken"], (None, None))
            if asked is None or message["params"].get("message") != asked.token:
                self.plan.book.blame(f"{self.name}: crossed, {message}")
            return
        entry = self._waiting.pop(message.get("id"), None)
        if entry is None:
            self.plan.book.blame(f"{self.name}: nobody's answer, {message}")
        else:
            entry[1].callback(message)

    async def _ask(
        self, client: Connection, asked: Asked | None, message: JSON, id: object
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
                raise _Lost
            if said.status == 503 and self.plan.restarts and asked is not None:
                return {"id": asked.id, "error": json.loads(said.body)["error"]}
            raise Wrong(f"{asked and asked.token}: {said}")
        return await answer

    async def lane(self, number: int) -> None:
        client = await self.connect()
        while (asked := await self.next()) is not None:
            await self.ready()
            # On one stream ids of calls in flight are apart.
            asked.id = number * 100 + self.count % 7 + 1
            guard = reactor.callLater(GUARD, self._giveUp)  # type: ignore[attr-defined]
            asked.began = self.plan.now()
            client.answering = False
            alive = True
            try:
                alive = await self._one(client, asked)
            except Wrong as wrong:
                self.wrong(asked, wrong)
            except ENDS as error:
                self.cut(client, asked, error)
                if self.wired and self.stream is not None:
                    # Whether it was taken is not known: its answer may still come on this one.
                    self._left = True
                    self.stream.reset()
                self._waiting.pop(asked.id, None)
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
        self.plan.book.blame(f"{self.name}: a call did not end in {GUARD:.0f} s")
        if self.stream is not None:
            self.stream.reset()

    async def _one(self, client: Connection, asked: Asked) -> bool:
        act = getattr(self, "_" + asked.fault.verb.replace("-", "_"), None)
        if act is not None and asked.fault.verb.startswith("client-"):
            alive: bool = await act(client, asked)
            return alive
        return await self._answered(client, asked)

    async def _answered(
        self, client: Connection, asked: Asked, beside: Awaitable[None] | None = None
    ) -> bool:
        """Make a call and judge its answer. beside: what is done meanwhile."""
        meanwhile = None if beside is None else ensureDeferred(beside)  # type: ignore[arg-type]
        try:
            answer = await self._ask(client, asked, self.message(asked), asked.id)
        except _Lost:
            self.ended(asked, "session lost")
        else:
            if answer is not None:
                self.ended(asked, asked.judge([answer]))
            elif self._left or self.wired:
                self.ended(asked, "left" if self._left else "cut by the wire")
            else:
                self.wrong(asked, f"{asked.token}: its stream ended before")
        if meanwhile is not None:
            await meanwhile
        return True

    async def _told(self, message: JSON) -> None:
        try:
            other = await self.connect(patient=False)
        except ENDS:
            if not self.patient:
                raise
            return
        try:
            other.send(self.posted(message))
            await other.response()
        except ENDS:
            if not self.mayEnd(other):
                raise
        other.close()
        await other.ended

    # What clients do wrong, or do.

    async def _client_asked(self, client: Connection, asked: Asked) -> bool:
        self.mayBeAsked(asked)
        return await self._answered(client, asked)

    async def _client_wrong_session(self, client: Connection, asked: Asked) -> bool:
        target = self.target[:-8] + "notthere"
        client.send(self.posted(self.message(asked), target=target))
        return self.refusedAs(asked, await client.response(), 404, -32001)

    async def _client_other_principal(self, client: Connection, asked: Asked) -> bool:
        other = self.dice.choice([one for one in PRINCIPALS if one != self.principal])
        client.send(self.posted(self.message(asked), principal=other))
        return self.refusedAs(asked, await client.response(), 404, -32001)

    async def _client_reset(self, client: Connection, asked: Asked) -> bool:
        return await self._answered(client, asked, self._leave())

    async def _leave(self) -> None:
        await pause(self.dice.random() / 50)
        self._left = True
        if self.stream is not None:
            self.stream.reset()

    async def _client_cancel(self, client: Connection, asked: Asked) -> bool:
        return await self._answered(client, asked, self._cancelled(asked.id))

    async def _cancelled(self, id: object) -> None:
        await pause(0.02)
        params = {"requestId": id}
        await self._told({"jsonrpc": "2.0", "method": "notifications/cancelled", "params": params})

    async def close(self) -> None:
        if self.stream is not None:
            self.stream.close()
            await self.stream.ended
        if self._reading is not None:
            await self._reading
        for one in self._aside:
            await one
