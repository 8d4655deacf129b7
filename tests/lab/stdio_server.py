"""
A scripted stdio server of either era that fails on demand. Standard library only, quick to start.

    python -I -S stdio_server.py ERA LEDGER

ERA: legacy, modern or both. It has one tool, `do`, whose arguments are `token`, `verb`, `place` (a
number from which the verb takes whatever it needs) and what tests/lab/faults.py says. Before a
call is executed a line `TOKEN PID CONVERSATION` goes to the ledger; the answer to a question that
was asked in it is `TOKEN? PID CONVERSATION`. The conversation of a legacy child is the child.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time

MODERN = "2026-07-28"
CLAIM = "io.modelcontextprotocol/protocolVersion"
INFO = {"name": "lab", "version": "1"}
TOOL = {"name": "do", "description": "do it", "inputSchema": {"type": "object"}}
FRESH = {"ttlMs": 0, "cacheScope": "private"}
CAPABILITIES = {"tools": {}, "logging": {}}
NOISE = (
    b"Server listening on stdio\n\n   \r\n\x1b[32mINFO\x1b[0m ready \x07\n[1,2,3]\nnull\n"
    b'{"level":"info","id":1}\n{"jsonrpc":"2.0","method":"notifications/mess\n'
    b"\xff\xfe\xfa bad \xc3\x28\nNUL \x00 byte\n"
    b'{"jsonrpc":"1.0","method":"x"}\n'
)

_ME = os.urandom(8).hex()
"""Names this child; a process id may be another's later."""

_lock = threading.Lock()
_late: dict = {}
_asked: list = []
"""The calls in which something was asked; the id of a question is how many there were."""


def write(data: bytes) -> None:
    with _lock:
        view = memoryview(data)
        try:
            while view:
                view = view[os.write(1, view) :]
        except OSError:
            os._exit(7)  # a verb closed it, or the gateway did


def line(message: dict) -> bytes:
    return json.dumps({"jsonrpc": "2.0", **message}, separators=(",", ":")).encode() + b"\n"


def say(message: dict) -> None:
    write(line(message))


def later(seconds: float, act, *args) -> None:
    timer = threading.Timer(seconds, act, args)
    timer.daemon = True
    timer.start()


class Call:
    """One call: what is asked, and its answer."""

    def __init__(self, id: object, params: dict, modern: bool, ledger: int) -> None:
        self.id = id
        self.modern = modern
        self.arguments = params["arguments"]
        self.token = self.arguments["token"]
        self.place = self.arguments.get("place", 0)
        self.progress = params.get("_meta", {}).get("progressToken")
        self.responses = params.get("inputResponses")
        self.ledger = ledger

    def executed(self, mark: str = "") -> None:
        pid = os.getpid()
        conversation = "-" if self.modern else _ME
        os.write(self.ledger, f"{self.token}{mark} {pid} {conversation}\n".encode())

    def result(self, **more: object) -> dict:
        complete = {"resultType": "complete"} if self.modern else {}
        seen = {"token": self.token}
        return {
            "id": self.id,
            "result": {**complete, "content": [], "structuredContent": seen} | more,
        }

    @property
    def line(self) -> bytes:
        return line(self.result())

    def done(self) -> None:
        say(self.result())

    def advanced(self, step: int) -> None:
        told = {"progressToken": self.progress, "progress": step, "message": self.token}
        say({"method": "notifications/progress", "params": told})


def question(token: str, place: int) -> dict:
    """Method and params of a question in the call of that token. place: says which it is."""
    content = {"type": "text", "text": token}
    form = {"type": "object", "properties": {"token": {"type": "string"}}}
    asked = (
        ("sampling/createMessage", {"messages": [{"role": "user", "content": content}]}),
        ("elicitation/create", {"message": token, "requestedSchema": form}),
        ("roots/list", {"_meta": {"lab/token": token}}),
    )
    method, params = asked[place % len(asked)]
    return {"method": method, "params": {**params, **({"maxTokens": 9} if place % 3 == 0 else {})}}


def isAnswered(token: str, answer: object) -> bool:
    """Whether that is the answer to the question of that token."""
    return f'{token}"' in json.dumps(answer)


def asks(call: Call) -> None:
    """Ask the client in a call; in the modern era the call comes again with the answer."""
    if not call.modern:
        call.executed()
        _asked.append(call)
        say({"id": len(_asked), **question(call.token, call.place)})
    elif call.responses is None:
        asked = {"it": question(call.token, call.place)}
        told = {"resultType": "input_required", "inputRequests": asked, "requestState": call.token}
        say({"id": call.id, "result": told})
    else:
        call.executed("?")
        call.executed()
        heard(call, call.responses)


def heard(call: Call, answer: object) -> None:
    """The answer to a question came, or an error, where nobody may be asked."""
    said = {} if isAnswered(call.token, answer) else {"structuredContent": {"token": str(answer)}}
    say(call.result(**said))


def do(call: Call, verb: str) -> None:
    if verb == "exit-before":
        os._exit(3)
    if verb == "asks":
        asks(call)
        return
    call.executed()
    if verb == "answer":
        call.done()
    elif verb == "slow":
        later(0.005 + call.place % 60 / 1000, call.done)
    elif verb == "progress":
        for step in (1, 2, 3):
            call.advanced(step)
        call.done()
    elif verb == "error":
        error = {"code": -32050, "message": "no", "data": {"token": call.token}}
        say({"id": call.id, "error": error})
    elif verb == "tool-error":
        say(call.result(isError=True))
    elif verb == "double":
        write(call.line * 2)
    elif verb == "wrong-id":
        say({"id": 987654321, "result": {}})
        say({"id": "no-such", "result": {}})
        call.done()
    elif verb == "garbage":
        write(b"} this is no JSON {\n" + call.line)
    elif verb == "bad-answer":
        write(b'{"jsonrpc":"2.0","id":%b,"result":{"a":}}\n' % json.dumps(call.id).encode())
    elif verb == "bad-utf8":
        write(b'{"jsonrpc":"2.0","id":%b,"result":{"a":"\xff"}}\n' % json.dumps(call.id).encode())
    elif verb == "both":
        say({"id": call.id, "result": {}, "error": {"code": 1, "message": "x"}})
    elif verb == "flood":
        told = {"method": "notifications/message", "params": {"level": "info", "data": "x" * 200}}
        write(line(told) * 200 + call.line)
    elif verb == "big":
        say(call.result(content=[{"type": "text", "text": "x" * (200_000 + call.place)}]))
    elif verb == "late":
        _late[json.dumps(call.id)] = call.done
    elif verb == "truncated":
        write(call.line[: 1 + call.place % 20] + b"\n" + call.line)
    elif verb == "noise":
        write(NOISE + call.line + NOISE)
    elif verb == "crlf":
        write(b"\r\n" + call.line[:-1] + b"\r\n\r\n")
    elif verb == "pieces":
        size = 1 + call.place % 9
        with _lock:
            data = call.line
            for start in range(0, len(data), size):
                os.write(1, data[start : start + size])
    elif verb == "stderr":
        os.write(2, b"warning: \x1b[31magain and again\x1b[0m\n" * 1000)
        call.done()
    elif verb == "deaf":
        call.done()
        time.sleep(0.8)
    elif verb == "exit-after":
        os._exit(4)
    elif verb == "exit-mid":
        data = call.line
        write(data[: 1 + call.place % (len(data) - 2)])
        os._exit(5)
    elif verb == "last-words":
        call.done()
        os._exit(0)
    elif verb == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif verb == "orphan":
        if os.fork() == 0:
            # It has no interpreter of its own to start, and holds our pipes.
            os.execv("/bin/sleep", ["sleep", "600"])  # noqa: S606
        os._exit(6)
    elif verb == "close-stdout":
        os.close(1)
    elif verb != "hang":
        raise AssertionError(verb)


def received(message: dict, era: str, ledger: int) -> None:
    id, method, params = message.get("id"), message.get("method"), message.get("params") or {}
    if id is None:
        if method == "notifications/cancelled":
            late = _late.pop(json.dumps(params.get("requestId")), None)
            if late is not None:
                late()
        return
    if method is None:
        call = _asked[id - 1]
        call.executed("?")
        if "error" in message:
            call.done()
        else:
            heard(call, message["result"])
        return
    modern = CLAIM in params.get("_meta", {})
    if modern and era == "legacy":
        say({"id": id, "error": {"code": -32601, "message": "Method not found"}})
    elif not modern and era == "modern":
        data = {"supported": [MODERN], "requested": params.get("protocolVersion", "")}
        say({"id": id, "error": {"code": -32022, "message": "Unsupported version", "data": data}})
    elif method == "tools/call":
        do(Call(id, params, modern, ledger), params["arguments"]["verb"])
    else:
        say({"id": id, **other(method, params, modern)})


def other(method: str, params: dict, modern: bool) -> dict:
    """What is answered to everything that is no call; the HTTP server has it, too."""
    complete = {"resultType": "complete"} if modern else {}
    if method == "server/discover" and modern:
        about = {"supportedVersions": [MODERN], "capabilities": CAPABILITIES, **FRESH}
        named = {"_meta": {"io.modelcontextprotocol/serverInfo": INFO}}
        return {"result": {**complete, **about, **named}}
    if method == "initialize" and not modern:
        about = {"protocolVersion": params["protocolVersion"], "capabilities": CAPABILITIES}
        return {"result": {**about, "serverInfo": INFO}}
    if method == "tools/list":
        return {"result": {**complete, "tools": [TOOL], **(FRESH if modern else {})}}
    if method in ("ping", "logging/setLevel") and not modern:
        return {"result": {}}
    return {"error": {"code": -32601, "message": "Method not found"}}


def main() -> None:
    era, path = sys.argv[1:3]
    ledger = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    rest = b""
    while data := os.read(0, 65536):
        *lines, rest = (rest + data).split(b"\n")
        for one in lines:
            if one.strip():
                received(json.loads(one), era, ledger)


if __name__ == "__main__":
    main()
