"""
A server made of the SDK (PyPI `mcp` 2.x).

    python tests/sdk_server.py (dual | modern)             over stdio
    python tests/sdk_server.py (dual | modern) --http      prints "ready http://127.0.0.1:PORT/mcp"

`modern` refuses what opens a legacy session, as a server of the modern era alone does.
"""

from __future__ import annotations

import json
import logging
import socket
import sys
from typing import Annotated, Any

import anyio
import uvicorn
from mcp.server.mcpserver import Context, MCPServer
from mcp.server.stdio import stdio_server
from mcp.shared.message import SessionMessage
from mcp.types import ErrorData, JSONRPCError, JSONRPCRequest
from pydantic import Field

server = MCPServer("sdk", version="1.0")


@server.tool()
async def echo(text: str, ctx: Context) -> str:
    """Say it again, with one step of progress."""
    await ctx.report_progress(0.5, 1.0)
    return text


@server.tool()
async def routed(
    region: Annotated[str, Field(json_schema_extra={"x-mcp-header": "Region"})],
) -> str:
    """A tool with a parameter that goes in a header field."""
    return region


async def modernOnly(source: Any, sink: Any, kept: Any) -> None:
    """Pass messages on; refuse what opens a legacy session."""
    async with kept:
        async for item in source:
            request = item.message if isinstance(item, SessionMessage) else None
            if isinstance(request, JSONRPCRequest) and request.method == "initialize":
                error = ErrorData(code=-32601, message="this server speaks 2026-07-28 alone")
                refused = JSONRPCError(jsonrpc="2.0", id=request.id, error=error)
                await sink.send(SessionMessage(refused))
            else:
                await kept.send(item)


def modernOverHTTP(app: Any) -> Any:
    """The same over HTTP: what has no modern version in its header is refused."""

    async def filtered(scope: Any, receive: Any, send: Any) -> None:
        headers = dict(scope.get("headers", ()))
        if scope["type"] != "http" or headers.get(b"mcp-protocol-version") == b"2026-07-28":
            await app(scope, receive, send)
            return
        error = {"code": -32020, "message": "MCP-Protocol-Version is missing"}
        body = json.dumps({"jsonrpc": "2.0", "error": error}).encode()
        status = 400 if scope["method"] == "POST" else 405
        fields = [(b"content-type", b"application/json")]
        await send({"type": "http.response.start", "status": status, "headers": fields})
        await send({"type": "http.response.body", "body": body})

    return filtered


async def serveHTTP(how: str) -> None:
    app: Any = server.streamable_http_app()
    listening = socket.create_server(("127.0.0.1", 0))
    serving = uvicorn.Server(
        uvicorn.Config(modernOverHTTP(app) if how == "modern" else app, log_level="critical")
    )
    print(f"ready http://127.0.0.1:{listening.getsockname()[1]}/mcp", flush=True)
    await serving.serve(sockets=[listening])


async def serveStdio(how: str) -> None:
    low = server._lowlevel_server
    options = low.create_initialization_options()
    async with stdio_server() as (source, sink):
        if how == "dual":
            await low.run(source, sink, options)
            return
        kept, passed = anyio.create_memory_object_stream[Any](8)
        async with anyio.create_task_group() as group:
            group.start_soon(modernOnly, source, sink, kept)
            await low.run(passed, sink, options)


if __name__ == "__main__":
    logging.disable(logging.CRITICAL)
    anyio.run(serveHTTP if "--http" in sys.argv else serveStdio, sys.argv[1])
