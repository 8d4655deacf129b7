"""
The SDK's own client (PyPI `mcp` 2.x) of the legacy era, as a process: drives an endpoint before
`modern_server.py` and prints what it saw.

    python bridged_client.py (http | sse) URL NAME

NAME: something no other run has.
"""

from __future__ import annotations

import asyncio
import json
import sys
import warnings
from typing import Any

import mcp.types as types
from mcp import Client
from mcp.client.sse import sse_client
from mcp.client.streamable_http import streamable_http_client
from mcp.shared.exceptions import MCPError

warnings.simplefilter("ignore")


async def drive(transport: Any, name: str) -> dict[str, Any]:
    """Use everything the server has; returns what came of it."""
    logged: list[Any] = []
    progress: list[float] = []
    changed: list[str] = []
    asked: list[str] = []
    news = asyncio.Event()

    async def sampling(context: Any, params: Any) -> types.CreateMessageResult:
        asked.append("sampling")
        text = types.TextContent(type="text", text=f"[{params.messages[0].content.text}]")
        return types.CreateMessageResult(role="assistant", content=text, model="m")

    async def elicitation(context: Any, params: Any) -> types.ElicitResult:
        asked.append("elicitation")
        return types.ElicitResult(action="accept", content={"who": "\u00e9va"})

    async def roots(context: Any) -> types.ListRootsResult:
        asked.append("roots")
        return types.ListRootsResult(roots=[types.Root(uri="file:///here")])

    async def logging(params: Any) -> None:
        logged.append(params.data)

    async def message(received: Any) -> None:
        if isinstance(received, types.ResourceUpdatedNotification):
            changed.append(str(received.params.uri))
        if isinstance(received, types.ToolListChangedNotification):
            changed.append("tools")
        if len(changed) >= 2:
            news.set()

    async def advance(done: float, total: float | None, text: str | None) -> None:
        progress.append(done)

    client = Client(
        transport,
        mode="legacy",
        sampling_callback=sampling,
        elicitation_callback=elicitation,
        list_roots_callback=roots,
        logging_callback=logging,
        message_handler=message,
    )
    async with client:
        seen: dict[str, Any] = {
            "revision": client.protocol_version,
            "server": client.server_info.name,
        }
        tools = await client.list_tools()
        seen["tools"] = len(tools.tools)
        seen["echo"] = (await client.call_tool("echo", {"said": "\U0001f600"})).content[0].text
        await client.call_tool("progress", {}, progress_callback=advance)
        await client.call_tool("talk", {})
        await client.set_logging_level("info")
        await client.call_tool("talk", {})
        seen["asked for"] = (await client.call_tool("ask", {})).content[0].text
        await client.subscribe_resource("test://watched")
        await client.call_tool("touch", {})
        await asyncio.wait_for(news.wait(), 10)
        await client.unsubscribe_resource("test://watched")
        seen["read"] = (await client.read_resource("test://watched")).contents[0].text
        prompt = await client.get_prompt("greet", {"name": "you"})
        seen["prompt"] = prompt.messages[0].content.text
        many = await asyncio.gather(
            *(client.call_tool("echo", {"said": str(n)}) for n in range(20))
        )
        seen["together"] = sorted(int(one.content[0].text) for one in many)[-1]
        seen["broken"] = (await client.call_tool("broken", {})).is_error
        try:
            await client.read_resource("test://none")
        except MCPError as error:
            seen["missing"] = error.error.code
        try:
            await client.call_tool("slow", {"name": name}, read_timeout_seconds=0.3)
        except MCPError as error:
            seen["slow"] = error.error.code
        for _ in range(100):
            given = (await client.call_tool("gaveUp", {})).structured_content["result"]
            if name in given:
                break
            await asyncio.sleep(0.05)
        seen["cancelled"] = name in given
        await client.send_ping()
    seen.update(progress=progress, logged=logged, asked=sorted(asked), changed=sorted(changed))
    return seen


async def main() -> None:
    kind, url, name = sys.argv[1:4]
    transport = streamable_http_client(url) if kind == "http" else sse_client(url)
    print(json.dumps(await asyncio.wait_for(drive(transport, name), 50)))


if __name__ == "__main__":
    asyncio.run(main())
