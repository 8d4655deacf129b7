"""
The demo server, driven as the child process it is.

Every message it sends is checked against the schema of the newest legacy revision.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from functools import cache
from itertools import count
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import pytest

import gateway

DEMO = Path(gateway.__file__).with_name("demo.py")
SCHEMA = Path(__file__).with_name("schemas") / "schema-2025-11-25.json"
PATIENCE = 30.0  # seconds before a test gives up on a child that says nothing

RESULTS = {
    "initialize": "InitializeResult",
    "ping": "EmptyResult",
    "logging/setLevel": "EmptyResult",
    "tools/list": "ListToolsResult",
    "tools/call": "CallToolResult",
    "resources/list": "ListResourcesResult",
    "resources/templates/list": "ListResourceTemplatesResult",
    "resources/read": "ReadResourceResult",
    "resources/subscribe": "EmptyResult",
    "resources/unsubscribe": "EmptyResult",
    "prompts/list": "ListPromptsResult",
    "prompts/get": "GetPromptResult",
    "completion/complete": "CompleteResult",
}


@cache
def validator(definition: str) -> Any:
    jsonschema = pytest.importorskip("jsonschema")
    schema = json.loads(SCHEMA.read_text())
    return jsonschema.Draft202012Validator(
        {"$ref": f"#/$defs/{definition}", "$defs": schema["$defs"]}
    )


def conforms(value: Any, definition: str) -> None:
    validator(definition).validate(value)


class Child:
    """A demo server and its client's end of the pipes; `close` ends it."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-I", str(DEMO)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        self.lines: SimpleQueue[bytes] = SimpleQueue()
        self.reader = threading.Thread(target=self._read)
        self.reader.start()
        self.ids = count(1)

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.put(line)

    def write(self, line: bytes) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(line + b"\n")
        self.process.stdin.flush()

    def send(self, message: Any) -> None:
        self.write(json.dumps(message).encode())

    def notify(self, method: str, **params: Any) -> None:
        self.send({"jsonrpc": "2.0", "method": method, "params": params})

    def request(self, method: str, id: Any = None, **params: Any) -> Any:
        id = f"t{next(self.ids)}" if id is None else id
        self.send({"jsonrpc": "2.0", "id": id, "method": method, "params": params})
        return id

    def receive(self) -> dict[str, Any]:
        message: dict[str, Any] = json.loads(self.lines.get(timeout=PATIENCE))
        conforms(message, "JSONRPCMessage")
        if "method" in message:
            conforms(message, "ServerRequest" if "id" in message else "ServerNotification")
        return message

    def ask(self, method: str, **params: Any) -> dict[str, Any]:
        """One request whose answer is the next message."""
        id = self.request(method, **params)
        answer = self.receive()
        assert answer["id"] == id
        if "result" in answer:
            conforms(answer["result"], RESULTS[method])
        return answer

    def result(self, method: str, **params: Any) -> dict[str, Any]:
        result: dict[str, Any] = self.ask(method, **params)["result"]
        return result

    def error(self, method: str, **params: Any) -> int:
        code: int = self.ask(method, **params)["error"]["code"]
        return code

    def tool(self, name: str, **arguments: Any) -> dict[str, Any]:
        return self.result("tools/call", name=name, arguments=arguments)

    def start(self, revision: str = "2025-11-25", **capabilities: Any) -> dict[str, Any]:
        info = {"name": "test", "version": "1"}
        result = self.result(
            "initialize", protocolVersion=revision, capabilities=capabilities, clientInfo=info
        )
        self.notify("notifications/initialized")
        return result

    def close(self) -> str:
        """End stdin; the child ends by itself, with nothing unread. Returns its stderr."""
        assert self.process.stdin and self.process.stdout and self.process.stderr
        self.process.stdin.close()
        try:
            assert self.process.wait(PATIENCE) == 0
            said = self.process.stderr.read().decode()
        finally:
            self.process.kill()
            self.process.wait()
            self.reader.join()
            self.process.stdout.close()
            self.process.stderr.close()
        assert self.lines.empty()
        return said


@pytest.fixture
def child() -> Iterator[Child]:
    child = Child()
    try:
        yield child
    finally:
        stderr = child.close()
    assert stderr == ""


def said(result: dict[str, Any]) -> str:
    [block] = result["content"]
    text: str = block["text"]
    return text


@pytest.mark.parametrize(
    ("asked", "answered"),
    [
        ("2024-11-05", "2024-11-05"),
        ("2025-03-26", "2025-03-26"),
        ("2025-06-18", "2025-06-18"),
        ("2025-11-25", "2025-11-25"),
        ("2026-07-28", "2025-11-25"),
        ("1999-01-01", "2025-11-25"),
    ],
)
def test_negotiates(child: Child, asked: str, answered: str) -> None:
    """A known revision is echoed; any other is answered with the newest legacy one."""
    result = child.start(asked)
    assert result["protocolVersion"] == answered
    assert set(result["capabilities"]) == {
        "tools",
        "resources",
        "prompts",
        "completions",
        "logging",
    }


def test_before_initialize(child: Child) -> None:
    """Only `ping` and `initialize` are served; the modern probe is an unknown method."""
    assert child.result("ping") == {}
    assert child.error("tools/list") == -32600
    assert child.error("server/discover") == -32601
    assert child.error("initialize") == -32602
    child.start()
    assert child.error("initialize", protocolVersion="2025-11-25", capabilities={}) == -32602


def test_lists(child: Child) -> None:
    child.start()
    tools = [tool["name"] for tool in child.result("tools/list")["tools"]]
    assert tools == [
        "echo",
        "add",
        "countdown",
        "ask_model",
        "ask_user",
        "list_roots",
        "log",
        "bump_counter",
    ]
    assert len(child.result("resources/list")["resources"]) == 3
    assert len(child.result("resources/templates/list")["resourceTemplates"]) == 1
    assert len(child.result("prompts/list")["prompts"]) == 2
    assert child.error("tools/list", cursor="next") == -32602


def test_simple_tools(child: Child) -> None:
    child.start()
    text = "\u2028 \ud800 \U0001f600 \n\r\0"
    assert said(child.tool("echo", text=text)) == text
    assert said(child.tool("add", a=2, b=3)) == "5"
    assert said(child.tool("add", a=0.5, b=-1)) == "-0.5"


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("echo", {}),
        ("echo", {"text": 1}),
        ("add", {"a": True, "b": 1}),
        ("add", {"a": 1e308, "b": 1e308}),
        ("countdown", {"start": 0}),
        ("countdown", {"interval": "1"}),
        ("log", {"message": "x", "level": "loud"}),
    ],
)
def test_arguments_that_break_the_schema(
    child: Child, name: str, arguments: dict[str, Any]
) -> None:
    """They are for the model to mend: a result with isError."""
    child.start()
    result = child.tool(name, **arguments)
    assert result["isError"] is True
    assert "must be" in said(result)


def test_errors(child: Child) -> None:
    child.start()
    assert child.error("no/such") == -32601
    assert child.error("tools/call", name="nothing") == -32602
    assert child.error("tools/call") == -32602
    assert child.error("tools/call", name=["echo"]) == -32602
    assert child.error("tools/call", name="echo", arguments=[]) == -32602
    assert child.error("resources/read", uri="demo://nothing") == -32002
    assert child.error("resources/read", uri="demo://greeting/latin") == -32002
    assert child.error("resources/subscribe", uri="demo://nothing") == -32002
    assert child.error("prompts/get", name="nothing") == -32602
    assert child.error("prompts/get", name="greet") == -32602
    assert child.error("prompts/get", name="greet", arguments={"name": "A", "language": []}) == (
        -32602
    )
    assert child.error("logging/setLevel", level="loud") == -32602
    assert child.error("completion/complete", ref={"type": "ref/prompt", "name": "x"}) == -32602
    assert child.result("ping") == {}


@pytest.mark.parametrize(
    ("line", "code", "id"),
    [
        (b"{", -32700, None),
        (b"\xff\xfe", -32700, None),
        (b'{"jsonrpc":"2.0","id":NaN,"method":"ping"}', -32700, None),
        (b"[" * 100_000, -32700, None),
        (b"9" * 10_000, -32700, None),
        (b"x" * (16 * 1024 * 1024 + 100), -32700, None),
        (b"[]", -32600, None),
        (b"1", -32600, None),
        (b'{"id":1,"method":"ping"}', -32600, 1),
        (b'{"jsonrpc":"2.0","id":null,"method":"ping"}', -32600, None),
        (b'{"jsonrpc":"2.0","id":1e999,"method":"ping"}', -32600, None),
        (b'{"jsonrpc":"2.0","id":"a","method":5}', -32600, "a"),
        (b'{"jsonrpc":"2.0","id":"a","method":"ping","params":[]}', -32602, "a"),
        (b'[{"jsonrpc":"2.0","id":1,"method":"ping"}]', -32600, None),
    ],
)
def test_bad_lines(child: Child, line: bytes, code: int, id: object) -> None:
    """Each gets one error, without an id where none is known, and the server goes on."""
    child.write(line)
    answer = child.receive()
    assert answer["error"]["code"] == code
    assert answer.get("id") == id
    assert ("id" in answer) is (id is not None)
    assert child.result("ping") == {}


def test_lines_that_get_no_answer(child: Child) -> None:
    child.start()
    child.write(b"  \r")
    child.notify("notifications/nothing")
    child.notify("notifications/cancelled", requestId="unknown")
    child.send({"jsonrpc": "2.0", "id": "demo-99", "result": {}})
    child.send({"jsonrpc": "2.0", "id": [], "result": {}})
    assert child.result("ping") == {}


def test_ids_come_back_as_they_went(child: Child) -> None:
    for id in (0, -5, 2**70, "1"):
        child.request("ping", id=id)
        assert child.receive() == {"jsonrpc": "2.0", "id": id, "result": {}}


def test_batch(child: Child) -> None:
    """2025-03-26 alone has batches; members are answered one by one."""
    child.start("2025-03-26")
    child.send([{"jsonrpc": "2.0", "id": id, "method": "ping"} for id in (1, 2)] + [5])
    assert [child.receive().get("id") for _ in range(3)] == [1, 2, None]


def test_countdown_reports_progress(child: Child) -> None:
    child.start()
    arguments = {"start": 3, "interval": 0}
    child.request(
        "tools/call", id=7, name="countdown", arguments=arguments, _meta={"progressToken": "p"}
    )
    steps = [child.receive()["params"] for _ in range(3)]
    assert steps == [{"progressToken": "p", "progress": n, "total": 3} for n in (1, 2, 3)]
    answer = child.receive()
    assert answer["id"] == 7
    assert said(answer["result"]) == "Counted down from 3."


def test_countdown_without_a_token_is_quiet(child: Child) -> None:
    child.start()
    assert said(child.tool("countdown", start=2, interval=0)) == "Counted down from 2."


def test_other_calls_run_beside_a_countdown_and_a_cancelled_one_is_not_answered(
    child: Child,
) -> None:
    child.start()
    arguments = {"start": 3600, "interval": 60}
    for id in (1, "1"):
        child.request("tools/call", id=id, name="countdown", arguments=arguments)
    child.request("tools/call", id=1, name="countdown", arguments=arguments)
    answer = child.receive()
    assert answer["error"]["code"] == -32600
    assert said(child.tool("echo", text="meanwhile")) == "meanwhile"
    child.notify("notifications/cancelled", requestId=1)
    assert said(child.tool("countdown", start=1, interval=0)) == "Counted down from 1."
    # `close` sees that neither was answered and that the other one ends with stdin.


def test_too_many_calls(child: Child) -> None:
    child.start()
    for id in range(65):
        arguments = {"start": 1, "interval": 60}
        child.request("tools/call", id=id, name="countdown", arguments=arguments)
    answer = child.receive()
    assert answer["id"] == 64
    assert answer["error"]["code"] == -32000


Asked = Callable[[dict[str, Any]], dict[str, Any]]


def answered(child: Child, name: str, asked: Asked, **arguments: Any) -> dict[str, Any]:
    """Call a tool that asks the client once, and give the client's answer."""
    id = child.request("tools/call", name=name, arguments=arguments)
    question = child.receive()
    child.send({"jsonrpc": "2.0", "id": question["id"], **asked(question)})
    answer = child.receive()
    assert answer["id"] == id
    conforms(answer["result"], "CallToolResult")
    result: dict[str, Any] = answer["result"]
    return result


def test_ask_model(child: Child) -> None:
    child.start(sampling={})

    def one(question: dict[str, Any]) -> dict[str, Any]:
        assert question["method"] == "sampling/createMessage"
        [message] = question["params"]["messages"]
        assert message["content"]["text"] == "Why?"
        content = {"type": "text", "text": "Because."}
        return {"result": {"role": "assistant", "content": content, "model": "m"}}

    def many(question: dict[str, Any]) -> dict[str, Any]:
        content = [{"type": "text", "text": "a"}, {"type": "image", "data": "", "mimeType": "x/y"}]
        return {"result": {"role": "assistant", "content": content, "model": "m"}}

    assert said(answered(child, "ask_model", one, prompt="Why?")) == "Because."
    assert said(answered(child, "ask_model", many, prompt="Why?")) == "a\n[image]"


def test_ask_user(child: Child) -> None:
    child.start(elicitation={})

    def accepts(question: dict[str, Any]) -> dict[str, Any]:
        assert question["method"] == "elicitation/create"
        assert question["params"]["message"] == "Who?"
        return {"result": {"action": "accept", "content": {"answer": "Ada"}}}

    result = answered(child, "ask_user", accepts, question="Who?")
    assert said(result) == "The user answered: Ada"
    result = answered(child, "ask_user", lambda _: {"result": {"action": "decline"}})
    assert said(result) == "The user did not answer: decline"


def test_list_roots(child: Child) -> None:
    child.start(roots={"listChanged": True})
    roots = [{"uri": "file:///a"}, {"uri": "file:///b", "name": "b"}]
    result = answered(child, "list_roots", lambda _: {"result": {"roots": roots}})
    assert said(result) == "file:///a\nfile:///b"
    result = answered(child, "list_roots", lambda _: {"result": {"roots": []}})
    assert said(result) == "The client has no roots."


def test_a_client_that_refuses(child: Child) -> None:
    child.start(sampling={})
    error = {"error": {"code": -1, "message": "No, thank you"}}
    result = answered(child, "ask_model", lambda _: error, prompt="x")
    assert result["isError"] is True
    assert "No, thank you" in said(result)


def test_a_client_that_answers_nonsense() -> None:
    """It fails that call, and the log says why."""
    child = Child()
    try:
        child.start(roots={})
        result = answered(child, "list_roots", lambda _: {"result": {"roots": [1]}})
        assert result["isError"] is True
        assert child.result("ping") == {}
    finally:
        stderr = child.close()
    assert "Traceback" in stderr


@pytest.mark.parametrize(
    ("name", "arguments", "capabilities"),
    [
        ("ask_model", {"prompt": "x"}, {}),
        ("ask_user", {}, {}),
        ("ask_user", {}, {"elicitation": {"url": {}}}),
        ("list_roots", {}, {"sampling": {}}),
    ],
)
def test_capabilities_the_client_lacks(
    child: Child, name: str, arguments: dict[str, Any], capabilities: dict[str, Any]
) -> None:
    child.start(**capabilities)
    result = child.tool(name, **arguments)
    assert result["isError"] is True
    assert "did not declare" in said(result)


def test_cancelled_call_withdraws_what_it_asked(child: Child) -> None:
    child.start(roots={})
    child.request("tools/call", id="c", name="list_roots")
    asked = child.receive()
    child.notify("notifications/cancelled", requestId="c")
    withdrawn = child.receive()
    assert withdrawn["method"] == "notifications/cancelled"
    assert withdrawn["params"] == {"requestId": asked["id"]}
    child.send({"jsonrpc": "2.0", "id": asked["id"], "result": {"roots": []}})
    assert child.result("ping") == {}


def test_log_respects_the_level(child: Child) -> None:
    child.start()
    assert said(child.tool("log", message="x", level="debug")).startswith("Not sent")
    assert child.result("logging/setLevel", level="error") == {}
    assert said(child.tool("log", message="x", level="warning")).startswith("Not sent")
    child.request("tools/call", id=1, name="log", arguments={"message": "x", "level": "alert"})
    entry = child.receive()
    assert entry["method"] == "notifications/message"
    assert entry["params"] == {"level": "alert", "logger": "demo", "data": "x"}
    assert child.receive()["id"] == 1


def test_resources(child: Child) -> None:
    child.start()
    for resource in child.result("resources/list")["resources"]:
        [contents] = child.result("resources/read", uri=resource["uri"])["contents"]
        assert contents["uri"] == resource["uri"]
    [contents] = child.result("resources/read", uri="demo://greeting/german")["contents"]
    assert contents["text"] == "Hallo"


def test_subscription(child: Child) -> None:
    child.start()
    counter = "demo://counter"
    assert said(child.tool("bump_counter")) == "1"
    child.result("resources/subscribe", uri=counter)
    child.request("tools/call", id=1, name="bump_counter", arguments={"by": 2})
    update = child.receive()
    assert update["method"] == "notifications/resources/updated"
    assert update["params"] == {"uri": counter}
    assert said(child.receive()["result"]) == "3"
    [contents] = child.result("resources/read", uri=counter)["contents"]
    assert contents["text"] == "3"
    child.result("resources/unsubscribe", uri=counter)
    assert said(child.tool("bump_counter")) == "4"


def test_prompts(child: Child) -> None:
    child.start()
    assert child.result("prompts/get", name="tour")["messages"]
    result = child.result("prompts/get", name="greet", arguments={"name": "Ada"})
    assert result["messages"][0]["content"]["text"] == "Greet Ada in english: Hello."


@pytest.mark.parametrize(
    "ref",
    [
        {"type": "ref/prompt", "name": "greet"},
        {"type": "ref/resource", "uri": "demo://greeting/{language}"},
    ],
)
def test_completion(child: Child, ref: dict[str, str]) -> None:
    child.start()
    argument = {"name": "language", "value": "G"}
    completion = child.result("completion/complete", ref=ref, argument=argument)["completion"]
    assert completion["values"] == ["german"]
    argument = {"name": "name", "value": ""}
    completion = child.result("completion/complete", ref=ref, argument=argument)["completion"]
    assert completion["values"] == []
