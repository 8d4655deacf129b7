"""What the clients on both Python SDKs share: how they answer a server, how they are watched."""

from __future__ import annotations

from typing import Any

import mcp.types as types
from mcp.shared._httpx_utils import create_mcp_http_client
from steps import Heard


def callbacks(heard: Heard) -> dict[str, Any]:
    """A session's callbacks."""

    async def sampling(_: Any, params: Any) -> types.CreateMessageResult:
        text = types.TextContent(type="text", text=heard.sampling(params))
        return types.CreateMessageResult(role="assistant", content=text, model="m")

    async def elicitation(_: Any, params: Any) -> types.ElicitResult:
        return types.ElicitResult(action="accept", content=heard.elicitation(params))

    async def message(received: Any) -> None:
        # 1.x wraps a notification, 2.x does not.
        inner = getattr(received, "root", received)
        if isinstance(inner, types.ResourceUpdatedNotification):
            heard.update(str(inner.params.uri))
        elif isinstance(inner, types.ToolListChangedNotification):
            heard.changed.set()

    return {
        "sampling_callback": sampling,
        "elicitation_callback": elicitation,
        "message_handler": message,
    }


def http(heard: Heard) -> Any:
    """Makes the SDK's own HTTP client, which tells what it sends."""

    def make(*arguments: Any, **named: Any) -> Any:
        client = create_mcp_http_client(*arguments, **named)
        client.event_hooks = {"request": [heard.sent]}
        return client

    return make
