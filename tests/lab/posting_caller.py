"""A client of one of the proxies that answer where they were asked, and what it does wrong."""

from __future__ import annotations

import json
from typing import Any

from raw import Response
from twisted.internet import reactor
from twisted.internet.error import ConnectionClosed

from .book import Asked, Wrong
from .caller import ENDS, GUARD, Caller, Connection, pause

__all__ = ["PostingCaller", "decoded"]

JSON = dict[str, Any]

_RESUMES = 8
"""Connections over which one stream may come at most."""


class _Lost(Exception):
    """The session ended while a stream of it was to be resumed."""


class PostingCaller(Caller):
    """Its calls are POSTs, and so are their answers' ways back."""

    async def lane(self, number: int) -> None:
        client = await self.connect()
        while (asked := await self.next()) is not None:
            await self.ready()
            verb = asked.fault.verb
            act = getattr(self, "_" + verb.replace("-", "_"), None)
            guard = reactor.callLater(GUARD, client.reset)  # type: ignore[attr-defined]
            asked.began = self.plan.now()
            client.answering = False
            try:
                if act is not None and verb.startswith("client-"):
                    alive = await act(client, asked)
                else:
                    client.send(self.posted(self.message(asked)))
                    alive = await self.answered(client, asked)
            except Wrong as wrong:
                self.wrong(asked, wrong)
                alive = False
            except ENDS as error:
                self.cut(client, asked, error)
                alive = False
            if guard.active():
                guard.cancel()
            if not alive:
                client.reset()
                await client.ended
                client = await self.connect()
        client.close()
        await client.ended

    async def answered(self, client: Connection, asked: Asked, resumes: int = 0) -> bool:
        """
        Read the answer to a call and judge it; returns whether the connection goes on.

        resumes: how many times to lose the connection and resume.
        """
        try:
            messages, alive = await self.received(client, asked, resumes)
        except _Lost as lost:
            self.ended(asked, str(lost))
            return False
        if messages is not None:
            self.ended(asked, asked.judge(messages))
        return alive

    async def received(
        self, client: Connection, asked: Asked, resumes: int = 0
    ) -> tuple[list[JSON] | None, bool]:
        """
        What comes in answer to a call, None if it has ended; and whether the connection goes on.

        Raises: Wrong; what ENDS are.
        """
        head = await client.head()
        going = head.header(b"connection") != b"close"
        if not (head.header(b"content-type") or b"").startswith(b"text/event-stream"):
            return self.refused(asked, await client.body(head)), going
        messages: list[JSON] = []
        others: list[Connection] = []
        try:
            await self._stream(client, asked, messages, resumes, others)
        finally:
            # What it was resumed on is not the lane's.
            for one in others:
                one.reset()
        return messages, going and not others

    def refused(self, asked: Asked, answer: Response) -> list[JSON] | None:
        """What an answer says that is no stream; None if that was the end of the call."""
        message = decoded(asked, answer.body)
        code = message.get("error", {}).get("code")
        if answer.status == 404 and code == -32000 and self.plan.changes:
            self.ended(asked, "unknown server")
            return None
        return [message]

    async def _stream(
        self,
        client: Connection,
        asked: Asked,
        messages: list[JSON],
        resumes: int,
        others: list[Connection],
    ) -> None:
        """Read an event stream to its end, over as many other connections as that takes."""
        last, seen = b"", set()
        named = {"Mcp_Session_Id": asked.session} if asked.session else {}
        for _ in range(_RESUMES):
            try:
                while (event := await client.event()) is not None:
                    if event.id:
                        if event.id in seen:
                            raise Wrong(f"{asked.token}: an event came twice")
                        seen.add(event.id)
                        last = event.id
                    # Other types are none of MCP's, and its clients skip them.
                    if event.data and event.event == b"message":
                        messages.append(decoded(asked, event.data))
                        self.heard(messages[-1])
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
            before = client.restarts
            client = await self.connect()
            others.append(client)
            if client.restarts != before:
                # It waited for another gateway, which has its own time.
                asked.began = self.plan.now()
            client.send(self.posted(None, "GET", Last_Event_ID=last.decode(), **named))
            try:
                head = await client.head()
            except ConnectionClosed:
                if self.wired or not self.mayEnd(client):
                    raise
                raise _Lost("nothing left to resume") from None
            if head.status != 200:
                await client.body(head)
                if head.status == 404:
                    raise _Lost("session lost")
                raise Wrong(f"{asked.token}: not resumed, {head}, after {messages}")
        if self.wired:
            raise ConnectionClosed("again and again")

    def heard(self, message: JSON) -> None:
        """A message on a stream that may be a question."""

    # What clients do wrong.

    async def _client_reset(self, client: Connection, asked: Asked) -> bool:
        client.send(self.posted(self.message(asked)))
        await pause(self.dice.random() / 50)
        client.reset()
        await client.ended
        self.ended(asked, "left")
        return False

    async def _client_half_close(self, client: Connection, asked: Asked) -> bool:
        client.send(self.posted(self.message(asked)))
        client.transport.loseWriteConnection()
        try:
            await self.answered(client, asked)
        except ConnectionClosed:
            self.ended(asked, "left")
        return False

    async def _client_slow_reader(self, client: Connection, asked: Asked) -> bool:
        client.send(self.posted(self.message(asked)))
        client.pause()
        await pause(0.3)
        client.resume()
        return await self.answered(client, asked)

    async def _client_drip(self, client: Connection, asked: Asked) -> bool:
        data = self.posted(self.message(asked))
        for start in range(0, len(data), 70):
            client.send(data[start : start + 70])
            await pause(0.001)
        return await self.answered(client, asked)

    async def _client_pipelines(self, client: Connection, asked: Asked) -> bool:
        other = self.asked(asked.fault)
        client.send(self.posted(self.message(asked)) + self.posted(self.message(other)))
        return await self._both(client, asked, client, other)

    async def _client_duplicate_ids(self, client: Connection, asked: Asked) -> bool:
        second = await self.connect()
        # Meanwhile the other lane may have lost the session.
        await self.ready()
        asked.began = self.plan.now()
        other = self.asked(asked.fault, asked.id)
        requests = [self.posted(self.message(one)) for one in (asked, other)]
        client.send(requests[0])
        second.send(requests[1])
        alive = await self._both(client, asked, second, other)
        second.reset()
        return alive

    async def _both(
        self, client: Connection, asked: Asked, second: Connection, other: Asked
    ) -> bool:
        """The answers to two calls, the second of which is judged whatever the first was."""
        try:
            alive = await self.answered(client, asked)
        except Wrong as wrong:
            self.wrong(asked, wrong)
            alive = False
        except ENDS as error:
            self.cut(client, asked, error)
            alive = False
        second.answering = bool(second.unread)
        try:
            return await self.answered(second, other) and alive
        except Wrong as wrong:
            self.wrong(other, wrong)
        except ENDS as error:
            self.cut(second, other, error)
        return False


def decoded(asked: Asked, data: bytes) -> JSON:
    """A message. Raises: Wrong."""
    try:
        found: JSON = json.loads(data)
    except ValueError:
        raise Wrong(f"{asked.token}: no JSON, {data[:200]!r}") from None
    return found
