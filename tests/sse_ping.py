"""The SDK's own client over HTTP+SSE, as a process: python sse_ping.py URL."""

from __future__ import annotations

import asyncio
import json
import sys
import warnings

from mcp import Client
from mcp.client.sse import sse_client

warnings.simplefilter("ignore")


async def main() -> None:
    async with Client(sse_client(sys.argv[1]), mode="legacy") as client:
        await client.send_ping()
        tools = await client.list_tools()
        print(json.dumps({"tools": bool(tools.tools)}))


asyncio.run(asyncio.wait_for(main(), 30))
