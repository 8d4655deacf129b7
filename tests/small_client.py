"""
The SDK's own client (PyPI `mcp` 2.x) in the legacy era: python small_client.py (http | sse) URL

Drives tests/sdk_server.py and prints what it saw as one JSON object.
"""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

from mcp import Client
from mcp.client.sse import sse_client
from mcp.client.streamable_http import streamable_http_client


async def drive(transport: Any) -> dict[str, Any]:
    progress: list[float] = []

    async def advance(done: float, total: float | None, text: str | None) -> None:
        progress.append(done)

    async with Client(transport, mode="legacy") as client:
        tools = await client.list_tools()
        said = await client.call_tool("echo", {"text": "hé"}, progress_callback=advance)
        routed = await client.call_tool("routed", {"region": "é"})
        return {
            "revision": client.protocol_version,
            "tools": sorted(tool.name for tool in tools.tools),
            "said": said.content[0].text,
            "routed": routed.content[0].text,
            "progress": progress,
        }


async def main() -> None:
    kind, url = sys.argv[1:3]
    transport = streamable_http_client(url) if kind == "http" else sse_client(url)
    print(json.dumps(await asyncio.wait_for(drive(transport), 30)))


if __name__ == "__main__":
    asyncio.run(main())
