"""
A stdio server made of the SDK (PyPI `mcp` 2.x): python tests/sdk_server.py (dual | modern)

`modern` refuses `initialize`, as a server of the modern era alone does.
"""

from __future__ import annotations

import logging
import sys
from typing import Any

import anyio
from mcp.server.mcpserver import Context, MCPServer
from mcp.server.stdio import stdio_server
from mcp.shared.message import SessionMessage
from mcp.types import ErrorData, JSONRPCError, JSONRPCRequest

server = MCPServer("sdk", version="1.0")


@server.tool()
async def echo(text: str, ctx: Context) -> str:
    """Say it again, with one step of progress."""
    await ctx.report_progress(0.5, 1.0)
    return text


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


async def main(how: str) -> None:
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
    anyio.run(main, sys.argv[1])
