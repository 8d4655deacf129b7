"""
A small stdio MCP server that can speak either era, and writes down what it executed. Standard
library only.

    python tests/two_era_server.py --era (both | legacy | modern) --ledger FILE

It has one tool, `do`, with arguments `token`, `who` and `verb`:

  echo        answer at once
  sleep       answer after a moment; other calls go on
  progress    two notifications/progress that name the token, then the answer
  exit        no answer: the process ends
  ask         an elicitation that names the token, then the answer: of a legacy client it is asked
              while the call runs, towards a modern one the call ends with input_required

The answer's structuredContent has the token, the era the call was made in, the process, how many
calls that process executed so far, and what the client answered. Before it answers, it appends
{"pid", "era", "who", "token"} to the ledger.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import threading
from collections.abc import Callable
from itertools import count
from typing import Any

JSON = dict[str, Any]
MODERN = "2026-07-28"
CLAIM = "io.modelcontextprotocol/protocolVersion"
CAPABILITIES: JSON = {"tools": {}}
INFO = {"name": "two-eras", "version": "1"}
TOOL = {"name": "do", "description": "do it", "inputSchema": {"type": "object"}}
FRESH = {"ttlMs": 0, "cacheScope": "private"}


class Server:
    def __init__(self, era: str, ledger: str) -> None:
        self.era, self.ledger = era, ledger
        self.executed = count(1)
        self.asked = count(1)
        self.waiting: dict[int, Callable[[JSON], None]] = {}
        self.lock = threading.Lock()

    def say(self, message: JSON) -> None:
        line = json.dumps({"jsonrpc": "2.0", **message}) + "\n"
        with self.lock:
            sys.stdout.write(line)
            sys.stdout.flush()

    def fail(self, id: object, code: int, message: str, data: object = None) -> None:
        error: JSON = {"code": code, "message": message}
        self.say({"id": id, "error": error if data is None else {**error, "data": data}})

    def received(self, message: JSON) -> None:
        id, method, params = message.get("id"), message.get("method"), message.get("params") or {}
        if method is None:
            then = self.waiting.pop(id, None)
            if then is not None:
                then(message)
        elif id is not None:
            modern = CLAIM in params.get("_meta", {})
            if modern and self.era == "legacy":
                self.fail(id, -32601, "Method not found")
            elif not modern and self.era == "modern":
                data = {"supported": [MODERN], "requested": params.get("protocolVersion", "")}
                self.fail(id, -32022, "Unsupported protocol version", data)
            else:
                self.requested(id, method, params, modern)

    def requested(self, id: object, method: str, params: JSON, modern: bool) -> None:
        complete: JSON = {"resultType": "complete"} if modern else {}
        if method == "server/discover" and modern:
            found: JSON = {"supportedVersions": [MODERN], "capabilities": CAPABILITIES, **FRESH}
            found["_meta"] = {"io.modelcontextprotocol/serverInfo": INFO}
        elif method == "initialize" and not modern:
            revision = params["protocolVersion"]
            found = {
                "protocolVersion": revision,
                "capabilities": CAPABILITIES,
                "serverInfo": INFO,
            }
        elif method == "ping" and not modern:
            found = {}
        elif method == "tools/list":
            found = {"tools": [TOOL], **(FRESH if modern else {})}
        elif method == "tools/call" and params.get("name") == "do":
            self.called(id, params, modern)
            return
        else:
            self.fail(id, -32601, "Method not found")
            return
        self.say({"id": id, "result": {**complete, **found}})

    def called(self, id: object, params: JSON, modern: bool) -> None:
        arguments = params["arguments"]
        token, verb = arguments["token"], arguments["verb"]

        def done(answered: object = None) -> None:
            era = "modern" if modern else "legacy"
            entry = {"pid": os.getpid(), "era": era, "who": arguments["who"], "token": token}
            with open(self.ledger, "ab", buffering=0) as ledger:
                ledger.write(json.dumps(entry).encode() + b"\n")
            seen = {**entry, "count": next(self.executed), "answered": answered}
            complete = {"resultType": "complete"} if modern else {}
            self.say({"id": id, "result": {**complete, "content": [], "structuredContent": seen}})

        if verb == "exit":
            os._exit(3)
        if verb == "sleep":
            timer = threading.Timer(arguments["seconds"], done)
            timer.daemon = True
            timer.start()
        elif verb == "progress":
            named = params["_meta"]["progressToken"]
            for step in (1, 2):
                told = {"progressToken": named, "progress": step, "total": 2, "message": token}
                self.say({"method": "notifications/progress", "params": told})
            done()
        elif verb == "ask":
            self.ask(id, params, token, modern, done)
        else:
            done()

    def ask(
        self, id: object, params: JSON, token: str, modern: bool, done: Callable[[object], None]
    ) -> None:
        schema = {"type": "object", "properties": {"said": {"type": "string"}}}
        asked = {"mode": "form", "message": token, "requestedSchema": schema}
        question: JSON = {"method": "elicitation/create", "params": asked}
        if not modern:
            number = next(self.asked)
            self.waiting[number] = lambda answer: done(answer["result"]["content"]["said"])
            self.say({"id": number, **question})
        elif "inputResponses" not in params:
            needed = {"inputRequests": {"q": question}, "requestState": f"state of {token}"}
            self.say({"id": id, "result": {"resultType": "input_required", **needed}})
        elif params.get("requestState") != f"state of {token}":
            self.fail(id, -32602, "this is another call's state")
        else:
            done(params["inputResponses"]["q"]["content"]["said"])


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--era", choices=("both", "legacy", "modern"), default="both")
    parser.add_argument("--ledger", required=True)
    options = parser.parse_args()
    server = Server(options.era, options.ledger)
    for line in sys.stdin:
        server.received(json.loads(line))


if __name__ == "__main__":
    main()
