"""A client of the matrix on PyPI `mcp` 2.x, in any of its modes; see steps.py."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import anyio
import mcp
from answers import callbacks, http
from mcp.client.sse import sse_client
from mcp.client.streamable_http import streamable_http_client
from steps import JSON, Heard, dumped, main

MODERN = "2026-07-28"


class Client:
    def __init__(self, client: mcp.Client) -> None:
        self._client = client
        self._modern = client.protocol_version == MODERN

    async def about(self) -> tuple[str, Any]:
        revision = self._client.protocol_version
        if self._modern:
            # Told its revision, the SDK asks nobody what the server can.
            found = await self._client.session.send_discover(MODERN)
            return revision, found["capabilities"]
        return revision, dumped(self._client.server_capabilities)

    async def list(self, kind: str) -> Any:
        return await getattr(self._client, f"list_{kind}")()

    async def read(self, uri: str) -> Any:
        return await self._client.read_resource(uri)

    async def call(self, tool: str, arguments: JSON, progress: Any = None) -> Any:
        return await self._client.call_tool(tool, arguments, progress_callback=progress)

    async def prompt(self, name: str) -> Any:
        return await self._client.get_prompt(name)

    async def cancelled(self, tool: str, arguments: JSON) -> Any:
        with anyio.CancelScope() as scope:

            async def begun(*_: Any) -> None:
                scope.cancel()

            await self.call(tool, arguments, begun)
            return "an answer"
        return "cancelled"

    @asynccontextmanager
    async def watching(self, uri: str) -> AsyncIterator[None]:
        if self._modern:
            async with self._client.listen(resource_subscriptions=[uri], tools_list_changed=True):
                yield
        else:
            await self._client.subscribe_resource(uri)
            yield
            await self._client.unsubscribe_resource(uri)


@asynccontextmanager
async def connect(transport: str, url: str, heard: Heard, mode: str) -> AsyncIterator[Client]:
    async with AsyncExitStack() as stack:
        if transport == "http":
            client = await stack.enter_async_context(http(heard)())
            # By default it takes no event over 1 MiB, whoever sends it.
            way = streamable_http_client(url, http_client=client, max_sse_event_size=None)
        else:
            way = sse_client(url, httpx_client_factory=http(heard))
        client = mcp.Client(
            way,
            mode=MODERN if mode == "modern" else mode,
            **callbacks(heard),
        )
        yield Client(await stack.enter_async_context(client))


if __name__ == "__main__":
    main(connect)
