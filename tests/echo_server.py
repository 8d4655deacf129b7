"""A stdio server that answers each request with its own params, out of order: in pairs."""

import json
import sys

held = None
for line in sys.stdin.buffer:
    message = json.loads(line)
    if "id" not in message:
        continue
    answer = {"jsonrpc": "2.0", "id": message["id"], "result": message.get("params", {})}
    if message["method"] == "initialize":
        answer["result"] = {
            "protocolVersion": "2025-11-25",
            "capabilities": {},
            "serverInfo": {"name": "echo", "version": "1"},
        }
        print(json.dumps(answer), flush=True)
    elif held is None:
        held = answer
    else:
        print(json.dumps(answer))
        print(json.dumps(held), flush=True)
        held = None
