"""
A server that floods: before its answer a call of `flood` sends `count` notifications of progress,
each with `size` bytes beside its number. Any other tool answers at once. Standard library only.

    python -I -S tests/flood_server.py ERA stdio WRITTEN
    python -I tests/flood_server.py ERA http WRITTEN     # prints "ready PORT"

ERA: legacy or modern. Over HTTP a legacy one speaks Streamable HTTP at /mcp and HTTP+SSE at /sse.
WRITTEN: a file in which stands how many notifications of the last flood were written so far, for
writes block like those of any server. `"rate"` in the arguments: at most so many a second.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

JSON = dict[str, Any]
ERA, BEHIND, WRITTEN = sys.argv[1:4]
MODERN = "2026-07-28"
CAPABILITIES: JSON = {"tools": {}}
INFO: JSON = {"name": "flood", "version": "1"}
_written = os.open(WRITTEN, os.O_WRONLY | os.O_CREAT)


def encoded(message: JSON) -> bytes:
    return json.dumps({"jsonrpc": "2.0", **message}, separators=(",", ":")).encode()


def answered(request: JSON) -> JSON:
    """The answer to what is no flood."""
    id, method, params = request["id"], request["method"], request.get("params", {})
    complete = {"resultType": "complete"} if ERA == "modern" else {}
    if method == "server/discover" and ERA == "modern":
        about = {"supportedVersions": [MODERN], "capabilities": CAPABILITIES, "ttlMs": 0}
        named = {"io.modelcontextprotocol/serverInfo": INFO}
        return {"id": id, "result": {**complete, **about, "cacheScope": "private", "_meta": named}}
    if method == "initialize" and ERA == "legacy":
        about = {"protocolVersion": params["protocolVersion"], "capabilities": CAPABILITIES}
        return {"id": id, "result": {**about, "serverInfo": INFO}}
    if method == "tools/call":
        return {"id": id, "result": {**complete, "content": []}}
    return {"id": id, "error": {"code": -32601, "message": "Method not found"}}


def served(request: JSON, say: Callable[[bytes], None]) -> None:
    """Answer a request, with its flood before that if it is one."""
    params = request.get("params", {})
    if request["method"] == "tools/call" and params["name"] == "flood":
        flooded(params["_meta"]["progressToken"], params["arguments"], say)
    say(encoded(answered(request)))


def flooded(token: object, arguments: JSON, say: Callable[[bytes], None]) -> None:
    head = b'{"jsonrpc":"2.0","method":"notifications/progress","params":{"progressToken":%b,'
    head %= json.dumps(token).encode()
    tail = b'"message":"%b"}}' % (b"x" * arguments["size"])
    began, rate = time.monotonic(), arguments.get("rate", 0)
    for step in range(1, arguments["count"] + 1):
        say(b'%b"progress":%d,%b' % (head, step, tail))
        os.pwrite(_written, b"%9d" % step, 0)
        if rate and step % 100 == 0:
            time.sleep(max(0.0, began + step / rate - time.monotonic()))


def overStdio() -> None:
    def say(line: bytes) -> None:
        view = memoryview(line + b"\n")
        while view:
            view = view[os.write(1, view) :]

    rest = b""
    while data := os.read(0, 65536):
        *lines, rest = (rest + data).split(b"\n")
        for line in lines:
            request = json.loads(line)
            if "id" in request and "method" in request:
                served(request, say)


def overHTTP() -> None:
    from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

    streams: dict[str, Any] = {}

    class Answering(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def setup(self) -> None:
            super().setup()
            self.lock = threading.Lock()

        def log_message(self, *args: object) -> None:
            pass

        def begin(self, status: int, type: str = "", **fields: str) -> None:
            self.send_response(status)
            if type:
                self.send_header("Content-Type", type)
            for name, value in fields.items():
                self.send_header(name.replace("_", "-"), value)
            self.end_headers()

        def chunk(self, data: bytes) -> None:
            with self.lock:
                self.wfile.write(b"%x\r\n%b\r\n" % (len(data), data))

        def event(self, data: bytes, name: bytes = b"message") -> None:
            self.chunk(b"event: %b\ndata: %b\n\n" % (name, data))

        def whole(self, status: int, body: bytes = b"", **fields: str) -> None:
            self.begin(status, "application/json", Content_Length=str(len(body)), **fields)
            self.wfile.write(body)

        def do_GET(self) -> None:
            if self.path != "/sse":
                self.whole(405)
                return
            name, over = str(len(streams)), threading.Event()
            self.begin(200, "text/event-stream", Transfer_Encoding="chunked")
            self.event(b"/messages?s=" + name.encode(), b"endpoint")
            streams[name] = self
            over.wait()

        def do_POST(self) -> None:
            request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            asks = "id" in request and "method" in request
            if self.path.startswith("/messages"):
                self.whole(202)
                if asks:
                    stream = streams[self.path.rpartition("=")[2]]
                    threading.Thread(target=served, args=(request, stream.event)).start()
            elif self.path == "/sse":
                self.whole(405)
            elif not asks:
                self.whole(202)
            elif request["method"] != "tools/call" or request["params"]["name"] != "flood":
                named = {"Mcp_Session_Id": "s-1"} if request["method"] == "initialize" else {}
                self.whole(200, encoded(answered(request)), **named)
            else:
                self.begin(200, "text/event-stream", Transfer_Encoding="chunked")
                served(request, self.event)
                self.chunk(b"")

        def do_DELETE(self) -> None:
            self.whole(200)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Answering)
    server.daemon_threads = True
    print(f"ready {server.server_port}", flush=True)
    server.serve_forever()


if __name__ == "__main__":
    overStdio() if BEHIND == "stdio" else overHTTP()
