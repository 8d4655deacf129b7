"""
A scripted stdio MCP server with faults on demand. Standard library only.

    python tests/faulty_server.py [--flag ...]

Without flags it is a good server: it echoes the client's protocolVersion and answers
`initialize`, `ping`, `tools/list`, `tools/call`, `resources/list`, `resources/templates/list`,
`resources/read`, `resources/subscribe`, `resources/unsubscribe`, `prompts/list`, `prompts/get`,
`completion/complete` and `logging/setLevel`; other requests get -32601. Ids and tool arguments
come back as spelled.

Flags
  --handshake HOW      ok | error | nonsense | wrong-json | not-object | no-version | silent |
                       exit | fake-id (a line that breaks the rules with id 0) |
                       neither (a response with neither result nor error)
  --exit CODE          exit at once
  --protocol VERSION   answer this protocolVersion instead of the client's
  --capabilities JSON  the capabilities to answer
  --name NAME          serverInfo.name
  --chatty             before its answer to initialize: noise, a log message, a ping whose answer
                       it waits for, and a request roots/list
  --noise              noise before every answer
  --stubborn           ignore the end of stdin, SIGTERM, SIGINT and SIGHUP
  --grandchild         start a grandchild that holds stdin, stdout and stderr and ignores SIGTERM
  --pids FILE          write own pid and those of grandchildren there, one a line
  --ledger FILE        append a line {"pid", "verb", "token"} for every call before it is executed
                       (token: the argument of that name), and {"pid", "method"} for everything
                       else that comes in
  --stderr BYTES       write so much to stderr at once
  --slow SECONDS       wait before the answer to initialize

Verbs: `tools/call` with name=verb, arguments={...}
  echo ANY             structuredContent: the arguments as spelled; text: the same
  self                 structuredContent: {"pid", "pgid", "sid", "fds", "env", "cwd", "argv"}
  sleep seconds        answer later; other calls go on
  hang                 never answer
  error code message data    a JSON-RPC error
  tool_error           a result with isError
  exit code            exit without an answer (default 3)
  last_words code      answer and exit at once
  crash_at pending code      never answer; exit when so many of these calls are pending
  orphan code          start a grandchild that holds stdout, then exit without an answer
  grandchild polite    start one, structuredContent: {"pid"}; polite: it does not ignore SIGTERM
  pieces size          answer in writes of so many bytes
  noise count          so many lines of noise of each kind, then the answer
  noise_kinds          structuredContent: {"count": how many kinds of noise there are}
  double               answer twice
  unknown              answer an unknown id first
  after_cancel         answer only when notifications/cancelled names this call
  bad_answer how       an answer with this id that breaks a rule: json | utf8 | both | twice
  ask method params id       send that request, structuredContent: the whole answer to it
  ask_later method params id send that request, do not wait for the answer
  progress count       so many notifications/progress with the call's token, then the answer
  notify method params count       so many notifications before the answer
  notify_after method params count after the answer
  log count level      so many notifications/message before the answer
  list_changed what    tools | prompts | resources
  raw line             write that line ($ID: this call's id) and nothing else
  batch                the answer in a batch with a notification
  long bytes           an answer with so much text
  flood bytes          so many bytes without a newline and no answer
  deaf                 answer, then never read stdin again
  close_stdin, close_stdout    answer, close it, live on
  stderr bytes         write so much to stderr, then answer
  stubborn             from now on as with --stubborn
  seen                 structuredContent: {"messages": every message received so far, decoded}
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

NOISE = (
    b"Server listening on stdio",
    b"",
    b"   \r",
    b"\x1b[32mINFO\x1b[0m ready \x07",
    b'{"level":"info","msg":"started","id":1}',
    b"[1,2,3]",
    b"42",
    b'"a string"',
    b"null",
    b'{"jsonrpc":"2.0","method":"notifications/mess',
    b"\xff\xfe\xfa bad \xc3\x28",
    b"NUL \x00 byte",
    b'DEBUG sent {"jsonrpc":"2.0","id":1,"result":{}}',
    b'{"jsonrpc":"1.0","method":"x"}',
)

GRANDCHILD = """
import os, signal, sys, time
if sys.argv[1] == "rude":
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
os.close(int(sys.argv[2]))  # tells that all is set up
time.sleep(600)
"""

_decoder = json.JSONDecoder()
_lock = threading.Lock()


def spelled(text: str) -> dict[str, str]:
    """The members of a JSON object, as spelled."""
    out: dict[str, str] = {}
    at = _skip(text, text.index("{") + 1)
    while at < len(text) and text[at] != "}":
        key, at = _decoder.raw_decode(text, at)
        at = _skip(text, _skip(text, at) + 1)
        start = at
        _, at = _decoder.raw_decode(text, at)
        out[key] = text[start:at]
        at = _skip(text, at)
        if at < len(text) and text[at] == ",":
            at = _skip(text, at + 1)
    return out


def _skip(text: str, at: int) -> int:
    while at < len(text) and text[at] in " \t\r\n":
        at += 1
    return at


def write(data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(1, view) :]


def say(line: bytes) -> None:
    with _lock:
        write(line + b"\n")


def dumps(value: object) -> str:
    return json.dumps(value, separators=(",", ":"))


class Server:
    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.waiting: dict[str, Callable[[str], None]] = {}
        self.after_cancel: dict[str, Callable[[], None]] = {}
        self.crashing = 0
        self.asked = 0
        self.deaf = False
        self.messages: list[Any] = []

    # output

    def answer(self, id: str, result: str) -> None:
        if self.options.noise:
            for line in NOISE:
                say(line)
        say(self.answered(id, result))

    def answered(self, id: str, result: str) -> bytes:
        return f'{{"jsonrpc":"2.0","id":{id},"result":{result}}}'.encode(errors="surrogatepass")

    def fail(self, id: str, code: int, message: str, data: object = None) -> None:
        error: dict[str, object] = {"code": code, "message": message}
        if data is not None:
            error["data"] = data
        say(f'{{"jsonrpc":"2.0","id":{id},"error":{dumps(error)}}}'.encode())

    def notify(self, method: str, params: object = None) -> None:
        message: dict[str, object] = {"jsonrpc": "2.0", "method": method}
        if params is not None:
            message["params"] = params
        say(dumps(message).encode())

    def ask(self, method: str, params: object, id: object, then: Callable[[str], None]) -> None:
        self.asked += 1
        if id is None:
            id = f"ask-{self.asked}"
        self.waiting[dumps(id)] = then
        request: dict[str, object] = {"jsonrpc": "2.0", "id": id, "method": method}
        if params is not None:
            request["params"] = params
        say(dumps(request).encode())

    # input

    def run(self) -> None:
        rest = b""
        while not self.deaf:
            data = os.read(0, 65536)
            if not data:
                break
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                if line.strip():
                    self.received(line.decode())
                if self.deaf:
                    break
        while self.deaf or self.options.stubborn:
            time.sleep(600)

    def received(self, line: str) -> None:
        fields = spelled(line)
        self.messages.append(json.loads(line))
        id = fields.get("id")
        method = json.loads(fields["method"]) if "method" in fields else None
        params = spelled(fields["params"]) if fields.get("params", "")[:1] == "{" else {}
        if method == "tools/call" and id is not None:
            self.called(id, params)
            return
        self.record(method=method)
        if method is None:
            then = self.waiting.pop(id or "", None)
            if then is not None:
                then(line)
        elif id is None:
            if method == "notifications/cancelled":
                late = self.after_cancel.pop(params.get("requestId", ""), None)
                if late is not None:
                    late()
        else:
            self.requested(id, method, params)

    def record(self, **entry: object) -> None:
        if self.options.ledger:
            data = dumps({"pid": os.getpid(), **entry}).encode() + b"\n"
            with open(self.options.ledger, "ab", buffering=0) as ledger:
                ledger.write(data)

    def requested(self, id: str, method: str, params: dict[str, str]) -> None:
        if method == "initialize":
            self.shake(id, params)
        elif method == "tools/list":
            tools = [
                {"name": name, "description": name, "inputSchema": {"type": "object"}}
                for name in sorted(VERBS)
            ]
            self.answer(id, dumps({"tools": tools}))
        elif method == "resources/read":
            uri = json.loads(params.get("uri", '""'))
            self.answer(id, dumps({"contents": [{"uri": uri, "text": "content of " + uri}]}))
        elif method == "prompts/get":
            message = {"role": "user", "content": {"type": "text", "text": "hello"}}
            self.answer(id, dumps({"messages": [message]}))
        elif method in ANSWERS:
            self.answer(id, ANSWERS[method])
        else:
            self.fail(id, -32601, "Method not found")

    def shake(self, id: str, params: dict[str, str]) -> None:
        options = self.options
        time.sleep(options.slow)
        version = dumps(options.protocol) if options.protocol else params["protocolVersion"]
        info = dumps({"name": options.name, "version": "1"})
        result = (
            f'{{"protocolVersion":{version},"capabilities":{options.capabilities},'
            f'"serverInfo":{info}}}'
        )
        how = options.handshake
        if options.chatty:
            for line in NOISE:
                say(line)
            self.notify("notifications/message", {"level": "info", "data": "starting"})
            self.ask("roots/list", None, "early", lambda _: None)
            self.ask("ping", None, "early-ping", lambda _: self.answer(id, result))
        elif how == "ok":
            self.answer(id, result)
        elif how == "error":
            self.fail(id, -32602, "Unsupported protocol version", {"supported": ["1.0"]})
        elif how == "nonsense":
            say(b"HTTP/1.1 400 Bad Request")
            os._exit(0)
        elif how == "wrong-json":
            say(dumps({"jsonrpc": "2.0", "id": 0, "result": {"hello": "world"}}).encode())
        elif how == "not-object":
            self.answer(id, '"fine"')
        elif how == "no-version":
            self.answer(id, '{"capabilities":{}}')
        elif how == "fake-id":
            say(b'{"jsonrpc":"2.0","id":0,"result":{},"error":{}}')
        elif how == "neither":
            say(b'{"jsonrpc":"2.0","id":0}')
        elif how == "exit":
            os._exit(9)

    def called(self, id: str, params: dict[str, str]) -> None:
        verb = json.loads(params["name"])
        raw = params.get("arguments", "{}")
        arguments = json.loads(raw)
        self.record(verb=verb, token=arguments.get("token"))
        act = VERBS.get(verb)
        if act is None:
            self.fail(id, -32602, f"Unknown tool: {verb}")
        else:
            act(self, Call(self, id, params, raw, arguments))


class Call:
    """One tools/call."""

    def __init__(
        self, server: Server, id: str, params: dict[str, str], raw: str, arguments: dict[str, Any]
    ) -> None:
        self.server = server
        self.id = id
        self.params = params
        self.raw = raw
        self.arguments = arguments

    def get(self, name: str, default: Any = None) -> Any:
        return self.arguments.get(name, default)

    def result(self, structured: str = "{}") -> str:
        content = dumps([{"type": "text", "text": structured}])
        return f'{{"content":{content},"structuredContent":{structured}}}'

    def done(self, structured: str = "{}") -> None:
        self.server.answer(self.id, self.result(structured))

    @property
    def line(self) -> bytes:
        return self.server.answered(self.id, self.result(self.raw))


VERBS: dict[str, Callable[[Server, Call], None]] = {}

ANSWERS = {
    "ping": "{}",
    "logging/setLevel": "{}",
    "resources/subscribe": "{}",
    "resources/unsubscribe": "{}",
    "resources/list": '{"resources":[{"uri":"test://one","name":"one"}]}',
    "resources/templates/list": '{"resourceTemplates":[]}',
    "prompts/list": '{"prompts":[{"name":"hello"}]}',
    "completion/complete": '{"completion":{"values":[]}}',
}


def verb(act: Callable[[Server, Call], None]) -> Callable[[Server, Call], None]:
    VERBS[act.__name__.strip("_")] = act
    return act


@verb
def echo(server: Server, call: Call) -> None:
    call.done(call.raw)


@verb
def self_(server: Server, call: Call) -> None:
    fds: list[int] = []
    for name in os.listdir("/proc/self/fd"):
        try:
            os.fstat(int(name))
        except OSError:
            continue  # the descriptor of the listing itself
        fds.append(int(name))
    environ = Path("/proc/self/environ").read_bytes().split(b"\0")
    pairs = [entry.decode(errors="replace").partition("=") for entry in environ if entry]
    seen = {
        "pid": os.getpid(),
        "pgid": os.getpgid(0),
        "sid": os.getsid(0),
        "fds": sorted(fds),
        "env": {name: value for name, _, value in pairs},
        "cwd": os.getcwd(),
        "argv": sys.orig_argv,
    }
    call.done(dumps(seen))


@verb
def sleep(server: Server, call: Call) -> None:
    timer = threading.Timer(call.get("seconds", 0.1), call.done, (call.raw,))
    timer.daemon = True
    timer.start()


@verb
def hang(server: Server, call: Call) -> None:
    pass


@verb
def error(server: Server, call: Call) -> None:
    server.fail(call.id, call.get("code", -32050), call.get("message", "no"), call.get("data"))


@verb
def tool_error(server: Server, call: Call) -> None:
    content = [{"type": "text", "text": "it failed"}]
    server.answer(call.id, dumps({"content": content, "isError": True}))


@verb
def exit_(server: Server, call: Call) -> None:
    os._exit(call.get("code", 3))


@verb
def last_words(server: Server, call: Call) -> None:
    call.done(call.raw)
    os._exit(call.get("code", 0))


@verb
def crash_at(server: Server, call: Call) -> None:
    server.crashing += 1
    if server.crashing >= call.get("pending", 1):
        os._exit(call.get("code", 3))


@verb
def orphan(server: Server, call: Call) -> None:
    spawn_grandchild(server.options, polite=False)
    os._exit(call.get("code", 3))


@verb
def grandchild(server: Server, call: Call) -> None:
    pid = spawn_grandchild(server.options, polite=call.get("polite", False))
    call.done(dumps({"pid": pid}))


@verb
def pieces(server: Server, call: Call) -> None:
    line = call.line + b"\n"
    size = call.get("size", 1)
    with _lock:
        for start in range(0, len(line), size):
            write(line[start : start + size])


@verb
def noise(server: Server, call: Call) -> None:
    with _lock:
        for _ in range(call.get("count", 1)):
            write(b"\r\n".join(NOISE) + b"\n")
    call.done(call.raw)


@verb
def noise_kinds(server: Server, call: Call) -> None:
    call.done(dumps({"count": sum(1 for line in NOISE if line.strip())}))


@verb
def double(server: Server, call: Call) -> None:
    call.done(call.raw)
    call.done(call.raw)


@verb
def unknown(server: Server, call: Call) -> None:
    server.answer("987654321", "{}")
    server.answer('"no-such"', "{}")
    call.done(call.raw)


@verb
def after_cancel(server: Server, call: Call) -> None:
    server.after_cancel[call.id] = call.done


@verb
def bad_answer(server: Server, call: Call) -> None:
    id = call.id.encode()
    how = call.get("how", "json")
    start = b'{"jsonrpc":"2.0","id":' + id
    if how == "json":
        say(start + b',"result":{"a":}}')
    elif how == "utf8":
        say(start + b',"result":{"text":"\xff"}}')
    elif how == "both":
        say(start + b',"result":{},"error":{"code":1,"message":"x"}}')
    else:
        say(start + b',"result":{},"result":{}}')


@verb
def ask(server: Server, call: Call) -> None:
    server.ask(call.get("method", "ping"), call.get("params"), call.get("id"), call.done)


@verb
def ask_later(server: Server, call: Call) -> None:
    server.ask(call.get("method", "ping"), call.get("params"), call.get("id"), lambda _: None)
    call.done()


@verb
def progress(server: Server, call: Call) -> None:
    token = json.loads(spelled(call.params.get("_meta", "{}")).get("progressToken", "null"))
    count = call.get("count", 3)
    for step in range(1, count + 1):
        params = {"progressToken": token, "progress": step, "total": count}
        server.notify("notifications/progress", params)
    call.done()


@verb
def notify(server: Server, call: Call) -> None:
    for _ in range(call.get("count", 1)):
        server.notify(call.get("method", "notifications/test"), call.get("params"))
    call.done()


@verb
def notify_after(server: Server, call: Call) -> None:
    call.done()
    for _ in range(call.get("count", 1)):
        server.notify(call.get("method", "notifications/test"), call.get("params"))


@verb
def log(server: Server, call: Call) -> None:
    for step in range(call.get("count", 1)):
        params = {"level": call.get("level", "info"), "data": {"step": step}}
        server.notify("notifications/message", params)
    call.done()


@verb
def list_changed(server: Server, call: Call) -> None:
    server.notify(f"notifications/{call.get('what', 'tools')}/list_changed")
    call.done()


@verb
def raw(server: Server, call: Call) -> None:
    say(call.get("line", "").replace("$ID", call.id).encode())


@verb
def batch(server: Server, call: Call) -> None:
    say(b'[{"jsonrpc":"2.0","method":"notifications/test"},' + call.line + b"]")


@verb
def long(server: Server, call: Call) -> None:
    content = dumps([{"type": "text", "text": "x" * call.get("bytes", 1000)}])
    server.answer(call.id, f'{{"content":{content}}}')


@verb
def flood(server: Server, call: Call) -> None:
    left = call.get("bytes", 1 << 20)
    block = b"x" * 65536
    while left > 0:
        write(block[:left])
        left -= len(block)


@verb
def deaf(server: Server, call: Call) -> None:
    server.deaf = True
    call.done()


@verb
def close_stdin(server: Server, call: Call) -> None:
    call.done()
    os.close(0)
    server.deaf = True


@verb
def close_stdout(server: Server, call: Call) -> None:
    call.done()
    os.close(1)
    server.deaf = True


@verb
def stderr(server: Server, call: Call) -> None:
    flood_stderr(call.get("bytes", 1000))
    call.done()


@verb
def stubborn(server: Server, call: Call) -> None:
    be_stubborn(server.options)
    call.done()


@verb
def seen(server: Server, call: Call) -> None:
    call.done(dumps({"messages": server.messages}))


def flood_stderr(size: int) -> None:
    line = b"warning: \x1b[31msomething\x1b[0m happened again, and again, and again\n"
    block = line * (1 + 65536 // len(line))
    while size > 0:
        size -= os.write(2, block[:size])


def be_stubborn(options: argparse.Namespace) -> None:
    options.stubborn = True
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)


def spawn_grandchild(options: argparse.Namespace, polite: bool) -> int:
    """Start it, and wait until it does what it shall."""
    ready, begun = os.pipe()
    os.set_inheritable(begun, True)
    process = subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", GRANDCHILD, "polite" if polite else "rude", str(begun)],
        close_fds=False,
    )
    os.close(begun)
    os.read(ready, 1)
    os.close(ready)
    if options.pids:
        with open(options.pids, "a") as file:
            file.write(f"{process.pid}\n")
    return process.pid


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--handshake", default="ok")
    parser.add_argument("--exit", type=int)
    parser.add_argument("--protocol")
    parser.add_argument(
        "--capabilities",
        default='{"tools":{"listChanged":true},"resources":{"subscribe":true},"prompts":{},'
        '"logging":{}}',
    )
    parser.add_argument("--name", default="faulty")
    parser.add_argument("--chatty", action="store_true")
    parser.add_argument("--noise", action="store_true")
    parser.add_argument("--stubborn", action="store_true")
    parser.add_argument("--grandchild", action="store_true")
    parser.add_argument("--pids")
    parser.add_argument("--ledger")
    parser.add_argument("--stderr", type=int, default=0)
    parser.add_argument("--slow", type=float, default=0.0)
    options = parser.parse_args()
    if options.pids:
        with open(options.pids, "a") as file:
            file.write(f"{os.getpid()}\n")
    if options.stubborn:
        be_stubborn(options)
    if options.grandchild:
        spawn_grandchild(options, polite=False)
    flood_stderr(options.stderr)
    if options.exit is not None:
        os._exit(options.exit)
    Server(options).run()


if __name__ == "__main__":
    main()
