"""
A server of revision 2026-07-28 made from the SDK (PyPI `mcp` 2.x), as a process.

    python modern_server.py (--stdio | --http PORT)

It refuses `initialize`, so that nobody takes it for one of the legacy era.
"""

from __future__ import annotations

import logging
import os
import sys
import warnings
from typing import Any

import anyio
import mcp.types as types
import uvicorn
from mcp.server.mcpserver import Context, MCPServer
from mcp.shared.exceptions import MCPError

warnings.simplefilter("ignore")
logging.disable(logging.CRITICAL)

WATCHED = "test://watched"
FORM: Any = {"type": "object", "properties": {"who": {"type": "string"}}, "required": ["who"]}


async def onlyModern(context: Any, goesOn: Any) -> Any:
    """Refuse the handshake of the legacy era."""
    if context.method == "initialize":
        raise MCPError(
            code=-32022,
            message="Unsupported protocol version",
            data={"supported": ["2026-07-28"], "requested": "legacy"},
        )
    return await goesOn(context)


server = MCPServer("modern", version="1.0", instructions="modern only", middleware=[onlyModern])
cancelled: list[str] = []


@server.tool()
async def echo(said: str) -> str:
    return said


@server.tool()
async def progress(ctx: Context) -> str:
    for done in (1, 2, 3):
        await ctx.report_progress(done, 3)
        await anyio.sleep(0.02)
    return "done"


@server.tool()
async def talk(ctx: Context) -> str:
    await ctx.info("heard")
    await anyio.sleep(0.02)
    return "said"


@server.tool()
async def ask(ctx: Context) -> types.CallToolResult | types.InputRequiredResult:
    given = ctx.input_responses
    if given is None:
        form = types.ElicitRequestFormParams(message="who?", requested_schema=FORM)
        return types.InputRequiredResult(
            input_requests={
                "who": types.ElicitRequest(params=form),
                "where": types.ListRootsRequest(),
            },
            request_state="one",
        )
    if ctx.request_state == "one":
        answers = given["who"].content, str(given["where"].roots[0].uri)
        asked = types.CreateMessageRequestParams(
            messages=[
                types.SamplingMessage(
                    role="user", content=types.TextContent(type="text", text=repr(answers))
                )
            ],
            max_tokens=9,
        )
        return types.InputRequiredResult(
            input_requests={"model": types.CreateMessageRequest(params=asked)}, request_state="two"
        )
    said = f"{ctx.request_state}: {given['model'].content.text}"
    return types.CallToolResult(content=[types.TextContent(type="text", text=said)])


@server.tool()
async def touch(ctx: Context) -> str:
    await ctx.notify_resource_updated(WATCHED)
    await ctx.notify_tools_changed()
    return "touched"


@server.tool()
async def slow(name: str) -> str:
    try:
        await anyio.sleep(60)
    except anyio.get_cancelled_exc_class():
        cancelled.append(name)
        raise
    return "slept"


@server.tool()
async def gaveUp() -> list[str]:
    return cancelled


@server.tool()
async def broken() -> str:
    raise ValueError("broken")


@server.tool()
async def die() -> str:
    os._exit(3)


@server.resource(WATCHED)
async def watched() -> str:
    return "seen"


@server.prompt()
async def greet(name: str) -> str:
    return f"hello {name}"


async def overHTTP(port: int) -> None:
    app = server.streamable_http_app()
    running = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=port, log_level="critical"))
    async with anyio.create_task_group() as group:
        group.start_soon(running.serve)
        while not running.started:  # noqa: ASYNC110 - it tells nobody
            await anyio.sleep(0.01)
        (socket,) = running.servers[0].sockets
        print(f"ready http://127.0.0.1:{socket.getsockname()[1]}/mcp", flush=True)


if __name__ == "__main__":
    if sys.argv[1] == "--stdio":
        server.run("stdio")
    else:
        anyio.run(overHTTP, int(sys.argv[2]))
