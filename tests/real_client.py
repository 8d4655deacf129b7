"""
The SDK's own client (PyPI `mcp` 2.x), as a process: drives an endpoint and prints what it saw.

    python real_client.py (http | sse) URL (legacy | auto)

Prints one JSON object; the tests compare it.
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

warnings.simplefilter("ignore")


async def drive(transport: Any, mode: str) -> dict[str, Any]:
    """Use everything the fixture serves; returns what came of it."""
    logged: list[Any] = []
    progress: list[float] = []
    updated: list[str] = []
    asked: list[str] = []

    async def sampling(context: Any, params: Any) -> types.CreateMessageResult:
        asked.append("sampling")
        text = types.TextContent(type="text", text="a model's words \U0001f600")
        return types.CreateMessageResult(role="assistant", content=text, model="m")

    async def elicitation(context: Any, params: Any) -> types.ElicitResult:
        asked.append("elicitation")
        return types.ElicitResult(action="accept", content={"response": "fine"})

    async def logging(params: Any) -> None:
        logged.append(params.data)

    async def message(received: Any) -> None:
        if isinstance(received, types.ResourceUpdatedNotification):
            updated.append(str(received.params.uri))

    async def advance(done: float, total: float | None, text: str | None) -> None:
        progress.append(done)

    client = Client(
        transport,
        mode=mode,
        sampling_callback=sampling,
        elicitation_callback=elicitation,
        logging_callback=logging,
        message_handler=message,
    )
    async with client:
        seen: dict[str, Any] = {"revision": client.protocol_version}
        tools = await client.list_tools()
        seen["tools"] = sorted(tool.name for tool in tools.tools)
        answer = await client.call_tool("test_simple_text", {})
        seen["text"] = answer.content[0].text
        await client.call_tool("test_tool_with_progress", {}, progress_callback=advance)
        await client.call_tool("test_tool_with_logging", {})
        answer = await client.call_tool("test_sampling", {"prompt": "say it"})
        seen["sampled"] = answer.content[0].text
        answer = await client.call_tool("test_elicitation", {"message": "well?"})
        seen["elicited"] = answer.content[0].text
        resources = await client.list_resources()
        seen["resources"] = len(resources.resources)
        prompts = await client.list_prompts()
        seen["prompts"] = len(prompts.prompts)
        many = await asyncio.gather(*(client.call_tool("test_simple_text", {}) for _ in range(20)))
        seen["together"] = len({one.content[0].text for one in many})
        seen["failed"] = (await client.call_tool("test_error_handling", {})).is_error
        if seen["revision"] < "2026":
            await client.send_ping()
    seen.update(progress=progress, logged=len(logged), asked=asked)
    return seen


async def main() -> None:
    kind, url, mode = sys.argv[1:4]
    transport = streamable_http_client(url) if kind == "http" else sse_client(url)
    print(json.dumps(await asyncio.wait_for(drive(transport, mode), 30)))


if __name__ == "__main__":
    asyncio.run(main())
