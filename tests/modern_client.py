"""
The SDK's own modern client (PyPI `mcp` 2.x), as a process: drives an endpoint, prints what it saw.

    python tests/modern_client.py URL (auto | 2026-07-28) LEDGER
"""

from __future__ import annotations

import asyncio
import json
import sys
import warnings
from pathlib import Path
from typing import Any

from mcp import Client
from mcp.client.streamable_http import streamable_http_client

warnings.simplefilter("ignore")


async def until(ledger: Path, text: str) -> float:
    """Seconds until the ledger has a text."""
    began = asyncio.get_running_loop().time()
    while text not in ledger.read_text():  # noqa: ASYNC110, ASYNC240
        await asyncio.sleep(0.01)
    return asyncio.get_running_loop().time() - began


async def drive(url: str, mode: str, ledger: Path) -> dict[str, Any]:
    progress: list[float] = []

    async def advance(done: float, total: float | None, text: str | None) -> None:
        progress.append(done)

    async with Client(streamable_http_client(url), mode=mode) as client:
        seen: dict[str, Any] = {"revision": client.protocol_version}
        seen["tools"] = sorted(tool.name for tool in (await client.list_tools()).tools)
        answer = await client.call_tool("echo", {"text": "hé"}, progress_callback=advance)
        seen["text"] = answer.content[0].text  # type: ignore[union-attr]
        seen["progress"] = progress
        many = await asyncio.gather(
            *(client.call_tool("echo", {"text": str(n)}) for n in range(20))
        )
        seen["together"] = [one.content[0].text for one in many]  # type: ignore[union-attr]
        try:
            await client.read_resource("nothing:there")
        except Exception as error:
            seen["refused"] = type(error).__name__
        async with client.listen(tools_list_changed=True) as subscription:
            seen["honored"] = subscription.honored.tools_list_changed
            await client.call_tool("change", {})
            async for event in subscription:
                seen["event"] = type(event).__name__
                break
        call = asyncio.ensure_future(client.call_tool("slow", {}, progress_callback=advance))
        await until(ledger, "slow began")
        await asyncio.sleep(0.1)
        call.cancel()
        seen["cancelled"] = await until(ledger, "slow cancelled")
        seen["after"] = (await client.call_tool("echo", {"text": "on"})).content[0].text  # type: ignore[union-attr]
    return seen


async def main() -> None:
    url, mode, ledger = sys.argv[1:4]
    print(json.dumps(await asyncio.wait_for(drive(url, mode, Path(ledger)), 30)))


if __name__ == "__main__":
    asyncio.run(main())
