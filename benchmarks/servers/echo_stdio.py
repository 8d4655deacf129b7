"""
The MCP server over stdio behind everything that is measured: it echoes, and costs little.

A bare script on the standard library, `python -I -S echo_stdio.py`. Tools:

 - `echo {text, progress}`: the text; before that `progress` notifications for the caller's token.
 - `announce {}`: tells every session that the list of tools changed, then answers.
"""

from __future__ import annotations

import json
import sys
from typing import Any

__all__ = ["main"]

_TOOLS = [{"name": name, "inputSchema": {"type": "object"}} for name in ("echo", "announce")]


def _initialized(params: dict[str, Any]) -> dict[str, Any]:
    return {
        "protocolVersion": params["protocolVersion"],
        "capabilities": {"tools": {"listChanged": True}},
        "serverInfo": {"name": "echo", "version": "1"},
    }


def _text(text: str) -> dict[str, Any]:
    return {"content": [{"type": "text", "text": text}]}


def _told(method: str, **params: object) -> dict[str, Any]:
    return {"jsonrpc": "2.0", "method": method, "params": params}


def _called(params: dict[str, Any], out: list[dict[str, Any]]) -> dict[str, Any]:
    arguments = params.get("arguments", {})
    if params["name"] == "announce":
        out.append({"jsonrpc": "2.0", "method": "notifications/tools/list_changed"})
        return _text("announced")
    for number in range(1, arguments.get("progress", 0) + 1):
        token = params["_meta"]["progressToken"]
        out.append(_told("notifications/progress", progressToken=token, progress=number))
    return _text(arguments["text"])


def _answered(message: dict[str, Any]) -> list[dict[str, Any]]:
    out: list[dict[str, Any]] = []
    answer: dict[str, Any] = {"jsonrpc": "2.0", "id": message["id"]}
    method, params = message["method"], message.get("params", {})
    if method == "tools/call":
        answer["result"] = _called(params, out)
    elif method == "initialize":
        answer["result"] = _initialized(params)
    elif method == "tools/list":
        answer["result"] = {"tools": _TOOLS}
    elif method == "ping":
        answer["result"] = {}
    else:
        answer["error"] = {"code": -32601, "message": "Method not found"}
    out.append(answer)
    return out


def main() -> None:
    """Serve until the end of stdin."""
    out = sys.stdout.buffer
    for line in sys.stdin.buffer:
        message = json.loads(line)
        if "id" not in message or "method" not in message:
            continue
        for each in _answered(message):
            out.write(json.dumps(each, separators=(",", ":")).encode() + b"\n")
            # As servers do: a message is not kept back for the next.
            out.flush()


if __name__ == "__main__":
    main()
