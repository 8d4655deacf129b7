"""
The demo server: what `mcp-gateway` serves when it is given no server.

A stdio MCP server of the legacy era (2024-11-05 to 2025-11-25) on the standard library alone. It
runs as a bare script, `python -I gateway/demo.py`, so it imports nothing of this package. It ends
when its stdin does.

1. The main thread reads stdin and answers at once what can be answered at once.
2. A tool that waits, for time or for the client, runs on a thread of its own. All it waits on is
   its inbox: the client's answer arrives there, and so does the end of the call.
3. A call that was cancelled is not answered.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import traceback
from collections.abc import Callable, Container
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from queue import Empty, SimpleQueue
from typing import Any, BinaryIO

__all__ = ["Session", "main"]

REVISIONS = ("2024-11-05", "2025-03-26", "2025-06-18", "2025-11-25")
LEVELS = ("debug", "info", "notice", "warning", "error", "critical", "alert", "emergency")
LANGUAGES = {"english": "Hello", "french": "Bonjour", "german": "Hallo", "spanish": "Hola"}
MAX_LINE = 16 * 1024 * 1024  # bytes of one message
MAX_CALLS = 64  # tools that wait at the same time
ANSWER_SECONDS = 300.0  # for the client to answer a request of ours

NOT_JSON, NOT_A_REQUEST, NO_SUCH_METHOD, BAD_PARAMS = -32700, -32600, -32601, -32602
INTERNAL, BUSY, NO_SUCH_RESOURCE = -32603, -32000, -32002

JSON = dict[str, Any]


class Refusal(Exception):
    """A request that gets a JSON-RPC error: its code and its message."""


class ToolFailed(Exception):
    """A tool call that gets a result with `isError`, which the model sees."""


class Cancelled(BaseException):
    """The call ended while its tool still ran; nobody waits for the result."""


@dataclass(eq=False)
class Call:
    """One running `tools/call`. It ends with its tool, a cancellation, or stdin."""

    session: Session
    token: object
    inbox: SimpleQueue[JSON | None] = field(default_factory=SimpleQueue)

    def wait(self, seconds: float) -> JSON | None:
        """Wait for the client's answer; None after `seconds`. Raises Cancelled."""
        try:
            answer = self.inbox.get(timeout=seconds)
        except Empty:
            return None
        if answer is None:
            raise Cancelled
        return answer

    def ask(self, capability: str, method: str, params: JSON) -> JSON:
        """Send the client a request and return its result. Raises ToolFailed, Cancelled."""
        declared = self.session.capabilities.get(capability)
        # An elicitation capability that names modes must name the form.
        if declared is None or (
            capability == "elicitation" and declared and "form" not in declared
        ):
            raise ToolFailed(f"This client did not declare the capability {capability}.")
        id, answer = f"demo-{next(self.session.ids)}", None
        self.session.asked[id] = self
        self.session.send({"id": id, "method": method, "params": params})
        try:
            answer = self.wait(ANSWER_SECONDS)
        finally:
            if self.session.asked.pop(id, None):
                self.session.notify("notifications/cancelled", {"requestId": id})
        if answer is None or "result" not in answer:
            reason = (answer or {"error": "no answer in time"}).get("error")
            raise ToolFailed(f"The client failed {method}: {json.dumps(reason)}")
        return dict(answer["result"])


@dataclass(frozen=True)
class Tool:
    """A function that returns a text, the JSON Schema of what it takes, and if it waits."""

    run: Callable[..., str]
    takes: dict[str, JSON]
    waits: bool

    def described(self) -> JSON:
        required = [name for name, rule in self.takes.items() if "default" not in rule]
        schema = {"type": "object", "properties": self.takes, "required": required}
        about = self.run.__doc__
        return {"name": self.run.__name__, "description": about, "inputSchema": schema}

    def result(self, call: Call, arguments: JSON) -> JSON:
        """Run it. Raises Cancelled."""
        wrong = True
        try:
            text, wrong = self.run(call, **self.checked(arguments)), False
        except ToolFailed as failure:
            text = str(failure)
        except Exception:
            traceback.print_exc()
            text = "The tool failed; its log says more."
        return {"content": [{"type": "text", "text": text}], "isError": wrong}

    def checked(self, arguments: JSON) -> JSON:
        """The arguments with their defaults. Raises ToolFailed where they break the schema."""
        taken = {}
        for name, rule in self.takes.items():
            value = taken[name] = arguments.get(name, rule.get("default"))
            right = isinstance(value, KINDS[rule["type"]]) and not isinstance(value, bool)
            right = right and value in rule.get("enum", [value])
            if right and "minimum" in rule:
                right = rule["minimum"] <= value <= rule["maximum"]
            if not right:
                raise ToolFailed(f"`{name}` must be: {json.dumps(rule)}")
        return taken


KINDS: dict[str, Any] = {"string": str, "integer": int, "number": int | float}
TEXT: JSON = {"type": "string"}
TOOLS: dict[str, Tool] = {}


def ranged(kind: str, low: float, high: float, **more: object) -> JSON:
    return {"type": kind, "minimum": low, "maximum": high, **more}


def tool(waits: bool = False, **takes: JSON) -> Callable[[Callable[..., str]], None]:
    """Serve a function as a tool, with its name and its docstring."""
    return lambda run: TOOLS.update({run.__name__: Tool(run, takes, waits)})


@tool(text=TEXT)
def echo(call: Call, text: str) -> str:
    """Give a text back."""
    return text


@tool(a=ranged("number", -1e300, 1e300), b=ranged("number", -1e300, 1e300))
def add(call: Call, a: float, b: float) -> str:
    """Add two numbers."""
    return str(a + b)


STEPS, SECONDS = ranged("integer", 1, 3600, default=5), ranged("number", 0, 60, default=1)


@tool(waits=True, start=STEPS, interval=SECONDS)
def countdown(call: Call, start: int, interval: float) -> str:
    """Count down, with a progress notification at each step."""
    for step in range(1, start + 1):
        call.wait(interval)
        if call.token is not None:
            progress = {"progressToken": call.token, "progress": step, "total": start}
            call.session.notify("notifications/progress", progress)
    return f"Counted down from {start}."


@tool(waits=True, prompt=TEXT, max_tokens=ranged("integer", 1, 100_000, default=200))
def ask_model(call: Call, prompt: str, max_tokens: int) -> str:
    """Ask the client's model (sampling)."""
    message = {"role": "user", "content": {"type": "text", "text": prompt}}
    params = {"messages": [message], "maxTokens": max_tokens}
    answer = call.ask("sampling", "sampling/createMessage", params)["content"]
    blocks = answer if isinstance(answer, list) else [answer]
    return "\n".join(block.get("text", f"[{block['type']}]") for block in blocks)


@tool(waits=True, question=TEXT | {"default": "What is your name?"})
def ask_user(call: Call, question: str) -> str:
    """Ask the user with a form (elicitation)."""
    fields = {"answer": {"type": "string", "title": "Answer", "minLength": 1}}
    form = {"type": "object", "properties": fields, "required": ["answer"]}
    params = {"message": question, "requestedSchema": form}
    reply = call.ask("elicitation", "elicitation/create", params)
    if reply["action"] == "accept":
        return f"The user answered: {reply['content']['answer']}"
    return f"The user did not answer: {reply['action']}"


@tool(waits=True)
def list_roots(call: Call) -> str:
    """List the client's roots."""
    roots = call.ask("roots", "roots/list", {})["roots"]
    return "\n".join(str(root["uri"]) for root in roots) or "The client has no roots."


@tool(message=TEXT, level=TEXT | {"enum": LEVELS, "default": "info"})
def log(call: Call, message: str, level: str) -> str:
    """Send the client a log message."""
    if LEVELS.index(level) < LEVELS.index(call.session.level):
        return f"Not sent: the client asked for {call.session.level} and above."
    entry = {"level": level, "logger": "demo", "data": message}
    call.session.notify("notifications/message", entry)
    return f"Sent at level {level}."


@tool(by=ranged("integer", -1000, 1000, default=1))
def bump_counter(call: Call, by: int) -> str:
    """Change the counter resource."""
    call.session.counter += by
    if COUNTER in call.session.subscriptions:
        call.session.notify("notifications/resources/updated", {"uri": COUNTER})
    return str(call.session.counter)


README, PIXEL, COUNTER = "demo://readme", "demo://pixel.gif", "demo://counter"
GREETING = "demo://greeting/{language}"
PIXEL_BYTES = "R0lGODlhAQABAAAAACH5BAEKAAEALAAAAAABAAEAAAICTAEAOw=="
CONTENTS: dict[str, JSON] = {
    README: {"mimeType": "text/markdown", "text": "# Demo\n\nThis came through the gateway."},
    PIXEL: {"mimeType": "image/gif", "blob": PIXEL_BYTES},
    COUNTER: {"mimeType": "text/plain"},
}
GREET = {"name": "greet", "arguments": [{"name": "name", "required": True}, {"name": "language"}]}
TEMPLATE = {"uriTemplate": GREETING, "name": "greeting"}
LISTS: dict[str, JSON] = {
    "tools/list": {"tools": [one.described() for one in TOOLS.values()]},
    "resources/list": {"resources": [{"uri": uri, "name": uri[7:]} for uri in CONTENTS]},
    "resources/templates/list": {"resourceTemplates": [TEMPLATE]},
    "prompts/list": {"prompts": [{"name": "tour"}, GREET]},
}
CONTENTS |= {GREETING.format(language=name): {"text": word} for name, word in LANGUAGES.items()}


class Session:
    """One client's session, writing to `out`; it begins and ends with the process."""

    def __init__(self, out: BinaryIO) -> None:
        self.out = out
        self.revision = ""
        self.capabilities: JSON = {}
        self.level = "info"
        self.counter = 0
        self.subscriptions: set[str] = set()
        self.running: dict[str, Call] = {}
        self.asked: dict[object, Call] = {}
        self.ids = count(1)
        self.lock = threading.RLock()  # of `running` and `out`
        self.methods: dict[str, Callable[[Any, JSON], JSON | None]] = {
            "initialize": self._initialize,
            "ping": lambda id, params: {},
            "logging/setLevel": self._setLevel,
            "tools/call": self._callTool,
            "resources/read": self._readResource,
            "resources/subscribe": partial(self._subscribe, self.subscriptions.add),
            "resources/unsubscribe": partial(self._subscribe, self.subscriptions.discard),
            "prompts/get": self._getPrompt,
            "completion/complete": self._complete,
        }

    def send(self, message: JSON) -> None:
        """Write one message, a line of JSON."""
        line = json.dumps({"jsonrpc": "2.0", **message}, separators=(",", ":")).encode() + b"\n"
        with self.lock:
            try:
                self.out.write(line)
                self.out.flush()
            except OSError:
                os._exit(0)  # Nobody reads any more, and threads may still wait.

    def notify(self, method: str, params: JSON) -> None:
        self.send({"method": method, "params": params})

    def fail(self, id: Any, code: int, message: str) -> None:
        # MCP has no null id: an error without a known id carries none.
        answers = {} if id is None else {"id": id}
        self.send({**answers, "error": {"code": code, "message": message}})

    def lineReceived(self, line: bytes) -> None:
        """Act on one line of stdin."""
        try:
            message = json.loads(line, parse_constant=int)  # NaN is not JSON
        except (ValueError, RecursionError):
            self.fail(None, NOT_JSON, "Not JSON")
        else:
            batched = self.revision == "2025-03-26" and isinstance(message, list) and message
            for member in message if batched else [message]:
                self._received(member)

    def ended(self) -> None:
        """Stdin ended: end every call."""
        for key in list(self.running):
            self._cancel(key)

    def _cancel(self, key: str) -> None:
        with self.lock:
            call = self.running.pop(key, None)
        if call is not None:
            call.inbox.put(None)

    def _received(self, message: Any) -> None:
        id = message.get("id") if isinstance(message, dict) else None
        known = id if _isId(id) else None
        try:
            if not isinstance(message, dict) or message.get("jsonrpc") != "2.0":
                raise Refusal(NOT_A_REQUEST, "Not a JSON-RPC 2.0 message")
            method, params = message.get("method"), message.get("params", {})
            if method is None and ("result" in message or "error" in message):
                if call := self.asked.pop(known, None):
                    call.inbox.put(message)
            elif not isinstance(method, str) or ("id" in message and known is None):
                raise Refusal(NOT_A_REQUEST, "Not a JSON-RPC 2.0 request")
            elif "id" not in message:
                if method == "notifications/cancelled" and isinstance(params, dict):
                    self._cancel(_key(params.get("requestId")))
            elif not isinstance(params, dict):
                raise Refusal(BAD_PARAMS, "`params` must be an object")
            elif (result := self._answer(id, method, params)) is not None:
                self.send({"id": id, "result": result})
        except Refusal as refusal:
            self.fail(known, *refusal.args)
        except Exception:
            traceback.print_exc()
            self.fail(known, INTERNAL, "Internal error")

    def _answer(self, id: Any, method: str, params: JSON) -> JSON | None:
        """The result; None if it comes later. Raises Refusal."""
        if method not in self.methods and method not in LISTS:
            raise Refusal(NO_SUCH_METHOD, "Method not found")
        if not self.revision and method not in ("initialize", "ping"):
            raise Refusal(NOT_A_REQUEST, "`initialize` comes first")
        if method in self.methods:
            return self.methods[method](id, params)
        if params.get("cursor") is not None:
            raise Refusal(BAD_PARAMS, "Unknown cursor")
        return LISTS[method]

    def _initialize(self, id: Any, params: JSON) -> JSON:
        wanted, capabilities = params.get("protocolVersion"), params.get("capabilities")
        if self.revision or not isinstance(wanted, str) or not isinstance(capabilities, dict):
            raise Refusal(BAD_PARAMS, "Once, with `protocolVersion` and `capabilities`")
        self.revision = wanted if wanted in REVISIONS else REVISIONS[-1]
        self.capabilities = capabilities
        served: JSON = {"tools": {}, "prompts": {}, "completions": {}, "logging": {}}
        return {
            "protocolVersion": self.revision,
            "capabilities": served | {"resources": {"subscribe": True}},
            "serverInfo": {"name": "mcp-gateway-demo", "version": "1.0.0"},
        }

    def _setLevel(self, id: Any, params: JSON) -> JSON:
        self.level = _oneOf(LEVELS, params.get("level"), "Level")
        return {}

    def _callTool(self, id: Any, params: JSON) -> JSON | None:
        tool = TOOLS[_oneOf(TOOLS, params.get("name"), "Tool")]
        arguments, meta = _object(params.get("arguments", {})), _object(params.get("_meta", {}))
        token = meta.get("progressToken")
        call = Call(self, token if _isId(token) else None)
        if not tool.waits:
            return tool.result(call, arguments)
        if len(self.running) >= MAX_CALLS:
            raise Refusal(BUSY, "Too many calls are running")
        if self.running.setdefault(_key(id), call) is not call:
            raise Refusal(NOT_A_REQUEST, "A call with this id is running")
        threading.Thread(target=self._runWaiting, args=(id, tool, call, arguments)).start()
        return None

    def _runWaiting(self, id: Any, tool: Tool, call: Call, arguments: JSON) -> None:
        try:
            result = tool.result(call, arguments)
        except Cancelled:
            return
        with self.lock:
            if self.running.get(_key(id)) is call:
                del self.running[_key(id)]
                self.send({"id": id, "result": result})

    def _readResource(self, id: Any, params: JSON) -> JSON:
        contents = CONTENTS | {COUNTER: CONTENTS[COUNTER] | {"text": str(self.counter)}}
        uri = _oneOf(contents, params.get("uri"), "Resource", NO_SUCH_RESOURCE)
        return {"contents": [{"uri": uri, **contents[uri]}]}

    def _subscribe(self, act: Callable[[str], None], id: Any, params: JSON) -> JSON:
        act(_oneOf(CONTENTS, params.get("uri"), "Resource", NO_SUCH_RESOURCE))
        return {}

    def _getPrompt(self, id: Any, params: JSON) -> JSON:
        arguments = _object(params.get("arguments", {}))
        text = "Call each tool of this server once and say what came back."
        if _oneOf(("tour", "greet"), params.get("name"), "Prompt") == "greet":
            language = _oneOf(LANGUAGES, arguments.get("language", "english"), "Language")
            if not isinstance(who := arguments.get("name"), str):
                raise Refusal(BAD_PARAMS, "The argument `name` is required")
            text = f"Greet {who} in {language}: {LANGUAGES[language]}."
        return {"messages": [{"role": "user", "content": {"type": "text", "text": text}}]}

    def _complete(self, id: Any, params: JSON) -> JSON:
        ref, argument = _object(params.get("ref")), _object(params.get("argument"))
        subject = ref.get("name" if ref.get("type") == "ref/prompt" else "uri")
        about = _oneOf(("tour", "greet", GREETING), subject, "Reference")
        start, values = str(argument.get("value")).lower(), []
        if about != "tour" and argument.get("name") == "language":
            values = [one for one in LANGUAGES if one.startswith(start)]
        return {"completion": {"values": values, "total": len(values), "hasMore": False}}


def _oneOf(known: Container[str], value: object, what: str, code: int = BAD_PARAMS) -> str:
    if not isinstance(value, str) or value not in known:
        raise Refusal(code, f"{what} not found")
    return value


def _object(value: object) -> JSON:
    if not isinstance(value, dict):
        raise Refusal(BAD_PARAMS, "An object is required")
    return value


def _isId(value: object) -> bool:
    if isinstance(value, int | float):
        return not isinstance(value, bool) and abs(value) < float("inf")
    return isinstance(value, str)


def _key(id: object) -> str:
    # As JSON: 1, 1.0 and "1" are three ids, but 1 == 1.0 as keys of a dict.
    return json.dumps(id)


def main() -> None:
    """Serve one client over stdin and stdout until stdin ends."""
    session, fresh = Session(sys.stdout.buffer), True
    try:
        while line := sys.stdin.buffer.readline(MAX_LINE):
            ended = line.endswith(b"\n")
            # A line past the bound is refused once, at its first piece.
            if fresh and len(line) == MAX_LINE and not ended:
                session.fail(None, NOT_JSON, "The message is too long")
            elif fresh and line.strip():
                session.lineReceived(line)
            fresh = ended
    except KeyboardInterrupt:
        pass
    finally:
        session.ended()


if __name__ == "__main__":
    main()
