"""A client of Streamable HTTP with sessions, of the revisions before 2026-07-28."""

from __future__ import annotations

import json
from typing import Any

from raw import Response, hello
from twisted.internet.defer import Deferred, ensureDeferred
from twisted.internet.defer import TimeoutError as DeferredTimeout

from .book import Asked, Wrong
from .caller import ENDS, PRINCIPALS, Connection, pause
from .posting_caller import PostingCaller, decoded
from .questions import CAPABILITIES

__all__ = ["StreamableCaller"]

JSON = dict[str, Any]
REVISIONS = ("2025-03-26", "2025-06-18", "2025-11-25")


class StreamableCaller(PostingCaller):
    """It has one session at a time, and a GET stream in it."""

    def __attrs_post_init__(self) -> None:
        super().__attrs_post_init__()
        self.kind = "streamable"
        self.session = ""
        self.revision = self.dice.choice(REVISIONS)
        self._listening: set[Connection] = set()
        self._aside: list[Deferred[None]] = []

    def fields(self, message: JSON | None) -> dict[str, str]:
        return {"Mcp-Session-Id": self.session} if self.session else {}

    def message(self, asked: Asked) -> JSON:
        asked.session = self.session
        return super().message(asked)

    @property
    def joined(self) -> bool:
        return bool(self.session)

    async def open(self) -> bool:
        client = await self.connect()
        try:
            client.send(self.posted(json.loads(hello(self.revision, **CAPABILITIES))))
            answer = await client.response()
            session = answer.header(b"mcp-session-id")
            if session is None:
                error = json.loads(answer.body)["error"]
                why = error.get("data", {}).get("reason", "error")
                self.plan.book.openings[f"{self.kind}: {answer.status} {why}"] += 1
                return False
            self.session = session.decode()
            if answer.header(b"connection") != b"close":
                told = {"jsonrpc": "2.0", "method": "notifications/initialized"}
                client.send(self.posted(told))
                said = await client.response()
                self.plan.book.openings[f"{self.kind}: {said.status}"] += 1
        finally:
            client.close()
            await client.ended
        self._beside(self._listen(self.session))
        return True

    def _beside(self, doing: Any) -> None:
        """Do something beside the calls; it is over before the client leaves."""
        self._aside = [one for one in self._aside if not one.called]
        self._aside.append(ensureDeferred(doing))

    def refused(self, asked: Asked, answer: Response) -> list[JSON] | None:
        if answer.status == 404:
            error = decoded(asked, answer.body)
            if self.session == asked.session:
                self.session = ""
            if error["error"]["code"] != -32001 or error.get("id", asked.id) != asked.id:
                return super().refused(asked, answer)
            self.ended(asked, "session lost")
            return None
        if answer.status != 200 and not (answer.status == 503 and self.plan.restarts):
            raise Wrong(f"{asked.token}: {answer}")
        return super().refused(asked, answer)

    async def _listen(self, session: str) -> None:
        """Hear the session's GET stream to its end: no answer is ever on it."""
        client: Connection | None = None
        try:
            client = await self.connect()
            self._listening.add(client)
            client.send(self.posted(None, "GET", Mcp_Session_Id=session))
            if (await client.head()).status == 200:
                while (event := await client.event()) is not None:
                    message = json.loads(event.data or b'{"method":""}')
                    if message.get("method") in (None, "notifications/progress"):
                        self.plan.book.blame(f"{self.name}: on the GET stream, {message}")
                    self.heard(message)
        except DeferredTimeout:
            if not self.patient:
                self.plan.book.blame(f"{self.name}: not even a heartbeat on the GET stream")
        except ENDS:
            pass
        if client is not None:
            self._listening.discard(client)
            client.reset()
            await client.ended

    def heard(self, message: JSON) -> None:
        if "method" in message and "id" in message:
            told = {"jsonrpc": "2.0", "id": message["id"], "result": self.inquired(message)}
            self._beside(self._told(told))

    async def close(self) -> None:
        if self.session:
            client = await self.connect()
            try:
                client.send(self.posted(None, "DELETE"))
                await client.response()
            except ENDS:
                if not self.patient:
                    raise
            client.close()
            await client.ended
        for client in list(self._listening):
            client.reset()
        for one in self._aside:
            await one

    async def _told(self, message: JSON | None, method: str = "POST", **others: str) -> int:
        """Say something on a connection of its own; returns the status, 0 if there is none."""
        try:
            other = await self.connect(patient=False)
        except ENDS:
            if not self.patient:
                raise
            return 0
        try:
            other.send(self.posted(message, method, **others))
            return (await other.response()).status
        except ENDS:
            if not self.mayEnd(other):
                raise
            return 0
        finally:
            other.close()
            await other.ended

    # What clients do wrong, or do.

    async def _client_asked(self, client: Connection, asked: Asked) -> bool:
        self.mayBeAsked(asked)
        client.send(self.posted(self.message(asked)))
        return await self.answered(client, asked)

    async def _client_cancel(self, client: Connection, asked: Asked) -> bool:
        asked.id = f"cancelled {asked.token}"
        client.send(self.posted(self.message(asked)))
        await pause(0.01)
        params = {"requestId": asked.id}
        await self._told({"jsonrpc": "2.0", "method": "notifications/cancelled", "params": params})
        return await self.answered(client, asked)

    async def _client_delete(self, client: Connection, asked: Asked) -> bool:
        session = self.session
        client.send(self.posted(self.message(asked)))
        await pause(0.005)
        status = await self._told(None, "DELETE", Mcp_Session_Id=session)
        if self.session == session:
            self.session = ""
        if status not in (204, 404) and not self.patient:
            raise Wrong(f"{asked.token}: DELETE {status}")
        return await self.answered(client, asked)

    async def _client_wrong_session(self, client: Connection, asked: Asked) -> bool:
        wrong = "".join(self.dice.choices("abcdefghijklmnop", k=43))
        client.send(self.posted(self.message(asked), Mcp_Session_Id=wrong))
        return self.refusedAs(asked, await client.response(), 404, -32001)

    async def _client_other_principal(self, client: Connection, asked: Asked) -> bool:
        other = self.dice.choice([one for one in PRINCIPALS if one != self.principal])
        client.send(self.posted(self.message(asked), principal=other))
        return self.refusedAs(asked, await client.response(), 404, -32001)

    async def _client_resumes(self, client: Connection, asked: Asked) -> bool:
        client.send(self.posted(self.message(asked)))
        return await self.answered(client, asked, self.dice.randint(1, 3))
