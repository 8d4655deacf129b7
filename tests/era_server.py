"""
A scripted stdio server of either era, or of both. Standard library only.

    python tests/era_server.py HOW [--ledger FILE] [--slow SECONDS]

HOW
  modern         answers modern requests; refuses `initialize` with -32601
  dual           both; the first request of a process decides, as in the SDK
  exits          a legacy server that exits at a request before `initialize`
  exits-legacy   a modern server that exits at `initialize`
  exits-always   exits at any request
  silent         a legacy server that keeps silent at a request before `initialize`
  strict         a legacy server that refuses every `initialize`, and what comes before it
  future         a modern server of another revision
  refuses CODE   answers `server/discover` with that error; to -32022 goes `supported`
  result JSON    answers `server/discover` with that result
  line TEXT      answers `server/discover` with that line
  asks           modern; asks and tells before each answer

Each process writes one line to the ledger: its first method.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

VERSION = "io.modelcontextprotocol/protocolVersion"
DISCOVERED = {
    "resultType": "complete",
    "supportedVersions": ["2026-07-28"],
    "capabilities": {"tools": {}},
    "_meta": {"io.modelcontextprotocol/serverInfo": {"name": "era", "version": "1"}},
    "ttlMs": 0,
    "cacheScope": "private",
}


def say(message: dict[str, Any]) -> None:
    print(json.dumps({"jsonrpc": "2.0", **message}), flush=True)


def modern(message: dict[str, Any]) -> dict[str, Any]:
    """The result or error of a modern request."""
    method, params = message["method"], message.get("params", {})
    if method == "initialize":
        return {"error": {"code": -32601, "message": "2026-07-28 only"}}
    if VERSION not in params.get("_meta", {}):
        return {"error": {"code": -32602, "message": "no _meta"}}
    if method == "server/discover":
        return {"result": DISCOVERED}
    if method == "tools/call":
        return {"result": {"resultType": "complete", "content": [], "structuredContent": params}}
    return {"error": {"code": -32601, "message": "Method not found"}}


def legacy(message: dict[str, Any]) -> dict[str, Any]:
    """The result or error of a legacy request."""
    method, params = message["method"], message.get("params", {})
    if method == "initialize":
        version = params.get("protocolVersion")
        info = {"name": "era", "version": "1"}
        return {"result": {"protocolVersion": version, "capabilities": {}, "serverInfo": info}}
    return (
        {"result": params} if method == "tools/call" else {"error": {"code": -32601, "message": ""}}
    )


def main(how: str, *rest: str) -> None:
    words = list(rest)
    ledger = words[words.index("--ledger") + 1] if "--ledger" in words else None
    slow = float(words[words.index("--slow") + 1]) if "--slow" in words else 0.0
    era = None
    for line in sys.stdin:
        message = json.loads(line)
        if "id" not in message:
            continue
        method = message["method"]
        if era is None:
            if ledger is not None:
                with open(ledger, "a", encoding="utf-8") as file:
                    file.write(method + "\n")
            era = "legacy" if method == "initialize" else "modern"
            time.sleep(slow)
        if how == "exits-always" or (how == "exits" and era == "modern"):
            return
        if how == "exits-legacy" and era == "legacy":
            return
        if how == "silent" and era == "modern":
            continue
        if how == "line" and method == "server/discover":
            print(rest[0], flush=True)
            continue
        if how == "strict":
            answer: dict[str, Any] = {"error": {"code": -32600, "message": "no"}}
        elif how == "refuses" and method == "server/discover":
            error: dict[str, Any] = {"code": int(rest[0]), "message": "no"}
            if error["code"] == -32022:
                error["data"] = {"supported": ["2027-01-01", "x y"], "requested": "2026-07-28"}
            answer = {"error": error}
        elif how == "result" and method == "server/discover":
            answer = {"result": json.loads(rest[0])}
        elif how == "future":
            answer = modern(message)
            if method == "server/discover":
                answer = {"result": {**DISCOVERED, "supportedVersions": ["2027-01-01"]}}
        elif how in ("modern", "asks", "exits-legacy") or (how == "dual" and era == "modern"):
            answer = modern(message)
        else:
            answer = legacy(message)
        if how == "asks":
            say({"id": "s", "method": "roots/list"})
            say({"id": "p", "method": "ping"})
            say({"method": "notifications/message", "params": {"level": "info", "data": 1}})
        say({"id": message["id"], **answer})


if __name__ == "__main__":
    main(*sys.argv[1:])
