"""
A server of both eras made of the SDK (PyPI `mcp` 2.x), for modern clients:

    python tests/modern_child.py --stdio LEDGER
    python tests/modern_child.py --http LEDGER      # prints "ready http://127.0.0.1:PORT/mcp"

It writes to the ledger, a line each: when it began, and what became of calls of `slow`.
"""

from __future__ import annotations

import logging
import os
import socket
import sys

import anyio
import uvicorn
from mcp.server.mcpserver import Context, MCPServer

server = MCPServer("modern", version="1.0")
ledger = open(sys.argv[2], "a", buffering=1)  # noqa: SIM115


@server.tool()
async def echo(text: str, ctx: Context) -> str:
    """Say it again, with two steps of progress."""
    await ctx.report_progress(0.5, 1.0)
    await ctx.report_progress(1.0, 1.0)
    return text


@server.tool()
async def slow(ctx: Context) -> str:
    """Take a minute, unless it is cancelled."""
    print("slow began", file=ledger)
    await ctx.report_progress(0.0, 1.0)
    try:
        await anyio.sleep(60.0)
    except BaseException:
        print("slow cancelled", file=ledger)
        raise
    print("slow ended", file=ledger)
    return "slept"


@server.tool()
async def change(ctx: Context) -> str:
    """Tell who listens that the tools changed."""
    await ctx.notify_tools_changed()
    return "changed"


@server.tool()
async def die() -> str:
    """Exit."""
    os._exit(3)


async def overHTTP() -> None:
    listening = socket.socket()
    listening.bind(("127.0.0.1", 0))
    app = server.streamable_http_app()
    serving = uvicorn.Server(
        uvicorn.Config(app, log_level="critical", timeout_graceful_shutdown=1, lifespan="on")
    )
    print(f"ready http://127.0.0.1:{listening.getsockname()[1]}/mcp", flush=True)
    await serving.serve([listening])


if __name__ == "__main__":
    logging.disable(logging.CRITICAL)
    print(f"began {os.getpid()}", file=ledger)
    if sys.argv[1] == "--http":
        anyio.run(overHTTP)
    else:
        server.run("stdio")
