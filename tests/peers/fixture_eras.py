"""
Makes the fixture, which speaks both eras, speak one only: what is said to it in the other it
answers as servers of that era do.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import mcp_types as types
from mcp.shared.message import SessionMessage
from mcp_types.version import HANDSHAKE_PROTOCOL_VERSIONS, MODERN_PROTOCOL_VERSIONS
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

__all__ = ["ERAS", "OneEraApp", "oneEraStreams"]

JSON = dict[str, Any]
ERAS = ("both", "legacy", "modern")
CLAIM = "io.modelcontextprotocol/protocolVersion"


def claims(params: object) -> bool:
    """Whether the `params` of a message claim a revision of the modern era."""
    meta = params.get("_meta") if isinstance(params, dict) else None
    return isinstance(meta, dict) and CLAIM in meta


class OneEraApp:
    """An ASGI application before another, which hears of one era only."""

    def __init__(self, app: Any, era: str) -> None:
        self.app, self.era = app, era

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http" or self.era == "both":
            await self.app(scope, receive, send)
            return
        request = Request(scope, receive)
        said = request.headers.get("mcp-protocol-version")
        modern = said is not None and said not in HANDSHAKE_PROTOCOL_VERSIONS
        if modern == (self.era == "modern"):
            await self.app(scope, receive, send)
        else:
            await (await self._refusal(request))(scope, receive, send)

    async def _refusal(self, request: Request) -> Response:
        if request.method != "POST":
            return Response(status_code=405, headers={"Allow": "POST"})
        try:
            id = json.loads(await request.body()).get("id")
        except (ValueError, AttributeError):
            id = None
        if self.era == "modern":
            error: JSON = {
                "code": types.HEADER_MISMATCH,
                "message": "MCP-Protocol-Version is missing",
            }
        else:
            error = {"code": -32000, "message": "Bad Request: Unsupported protocol version"}
        return JSONResponse({"jsonrpc": "2.0", "id": id, "error": error}, status_code=400)


@asynccontextmanager
async def oneEraStreams(reader: Any, writer: Any, era: str) -> AsyncIterator[tuple[Any, Any]]:
    """The streams of stdio without the requests of the other era, which are answered here."""
    if era == "both":
        yield reader, writer
        return
    passed, passes = anyio.create_memory_object_stream[Any](0)

    async def pump() -> None:
        async with passed:
            async for item in reader:
                message = item.message if isinstance(item, SessionMessage) else None
                refused = _refused(message, era) if message is not None else None
                if refused is None:
                    await passed.send(item)
                else:
                    await writer.send(SessionMessage(refused))

    async with anyio.create_task_group() as group:
        group.start_soon(pump)
        yield passes, writer
        group.cancel_scope.cancel()


def _refused(message: Any, era: str) -> types.JSONRPCError | None:
    if not isinstance(message, types.JSONRPCRequest):
        return None
    if era == "modern" and message.method == "initialize" and not claims(message.params):
        data = {"supported": list(MODERN_PROTOCOL_VERSIONS), "requested": "2025-11-25"}
        error = types.ErrorData(
            code=types.UNSUPPORTED_PROTOCOL_VERSION,
            message="initialize is not served: this server speaks 2026-07-28",
            data=data,
        )
    elif era == "legacy" and claims(message.params):
        error = types.ErrorData(code=types.INVALID_REQUEST, message="Invalid request")
    else:
        return None
    return types.JSONRPCError(jsonrpc="2.0", id=message.id, error=error)
