"""A client of the matrix on PyPI `mcp` 1.x; see steps.py."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import anyio
from answers import callbacks, http
from mcp import ClientSession, types
from mcp.client.sse import sse_client
from mcp.client.streamable_http import streamable_http_client
from pydantic import AnyUrl
from steps import JSON, SILENCE_SECONDS, Heard, dumped, main


class Client:
    def __init__(self, session: ClientSession, greeting: types.InitializeResult) -> None:
        self._session = session
        self._greeting = greeting

    async def about(self) -> tuple[str, Any]:
        return str(self._greeting.protocolVersion), dumped(self._greeting.capabilities)

    async def list(self, kind: str) -> Any:
        return await getattr(self._session, f"list_{kind}")()

    async def read(self, uri: str) -> Any:
        return await self._session.read_resource(AnyUrl(uri))

    async def call(self, tool: str, arguments: JSON, progress: Any = None) -> Any:
        return await self._session.call_tool(tool, arguments, progress_callback=progress)

    async def prompt(self, name: str) -> Any:
        return await self._session.get_prompt(name)

    async def cancelled(self, tool: str, arguments: JSON) -> Any:
        # This SDK does not cancel: its user sends the notification, with an id that only the
        # session's counter tells, and the call stays open until it is answered.
        params = types.CancelledNotificationParams(requestId=self._session._request_id)
        begun = anyio.Event()

        async def note(*_: Any) -> None:
            begun.set()

        async def tell(scope: anyio.CancelScope) -> None:
            await begun.wait()
            notification = types.CancelledNotification(params=params)
            await self._session.send_notification(types.ClientNotification(notification))
            scope.deadline = anyio.current_time() + SILENCE_SECONDS

        async with anyio.create_task_group() as tasks:
            with anyio.CancelScope() as scope:
                tasks.start_soon(tell, scope)
                return await self.call(tool, arguments, note)
        return "no answer"

    @asynccontextmanager
    async def watching(self, uri: str) -> AsyncIterator[None]:
        await self._session.subscribe_resource(AnyUrl(uri))
        yield
        await self._session.unsubscribe_resource(AnyUrl(uri))


@asynccontextmanager
async def connect(transport: str, url: str, heard: Heard, _: str) -> AsyncIterator[Client]:
    async with AsyncExitStack() as stack:
        if transport == "http":
            client = await stack.enter_async_context(http(heard)())
            streams = await stack.enter_async_context(
                streamable_http_client(url, http_client=client)
            )
        else:
            streams = await stack.enter_async_context(
                sse_client(url, httpx_client_factory=http(heard))
            )
        session = await stack.enter_async_context(
            ClientSession(
                streams[0],
                streams[1],
                **callbacks(heard),
            )
        )
        yield Client(session, await session.initialize())


if __name__ == "__main__":
    main(connect)
