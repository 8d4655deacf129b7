"""
What a Python client of the matrix does, whatever its SDK; steps.cjs says the same in JavaScript.

A client program brings `connect`, which opens a connection with its SDK, and calls `main`:

    python CLIENT.py (http | sse) URL PROFILE (legacy | modern | auto)

It does each step with the tools that profiles.json names, and prints one JSON object: step → what
came of it, which is what this client saw, be it an error. A modern client has no session to end.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import sys
import time
import urllib.error
import urllib.request
import uuid
import warnings
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import anyio

warnings.simplefilter("ignore")

JSON = dict[str, Any]
STEP_SECONDS = 30
SILENCE_SECONDS = 5
"""How long it is waited for what may never come."""
SAMPLED, ELICITED = "a model's words \U0001f600", {"username": "me", "email": "me@example.org"}
FIELDS: dict[str, JSON] = {
    "fields": {**ELICITED, "name": "me"},
    "your name": {"name": "me"},
    "color": {"color": "grün"},
    "context": {"context": "tests"},
}
"""By a word of the question: what is answered in place of ELICITED."""
TOGETHER = 10


@dataclass
class Heard:
    """What the server said beside its answers, and how the last message reached it."""

    asked: list[Any] = field(default_factory=list)
    updated: list[str] = field(default_factory=list)
    changed: anyio.Event = field(default_factory=anyio.Event)
    target: str = ""
    session: str | None = None
    _changed: anyio.Event = field(default_factory=anyio.Event)

    def sampling(self, params: Any) -> str:
        """Note a sampling request; returns the words for it."""
        self.asked.append(without(dumped(params), "_meta"))
        return SAMPLED

    def elicitation(self, params: Any) -> JSON:
        """Note an elicitation; returns the content for it."""
        asked = without(dumped(params), "_meta")
        asked["requestedSchema"] = digest(asked["requestedSchema"])
        self.asked.append(asked)
        # Each asks for other fields; what it asks for is filled.
        fields = next((some for word, some in FIELDS.items() if word in asked["message"]), {})
        return fields or ELICITED

    def update(self, uri: str) -> None:
        self.updated.append(uri)
        self._changed.set()

    async def untilUpdated(self) -> None:
        if not self.updated:
            await self._changed.wait()

    async def sent(self, request: Any) -> None:
        """A hook for the HTTP client: where its messages go, and in which session."""
        if request.method == "POST":
            self.target = str(request.url)
            self.session = request.headers.get("mcp-session-id")


class Client(Protocol):
    """A connection of an SDK. Methods return what the SDK returns; models are dumped here."""

    async def about(self) -> tuple[str, Any]:
        """The revision, and the server's capabilities as JSON."""

    async def list(self, kind: str) -> Any: ...

    async def read(self, uri: str) -> Any: ...

    async def call(self, tool: str, arguments: JSON, progress: Any = None) -> Any: ...

    async def prompt(self, name: str) -> Any: ...

    async def cancelled(self, tool: str, arguments: JSON) -> Any:
        """Call, cancel as soon as there is progress; returns how the call ended."""

    def watching(self, uri: str) -> AbstractAsyncContextManager[Any]:
        """While this is open, the client hears that a resource or the list of tools changes."""


Connect = Callable[[str, str, Heard, str], AbstractAsyncContextManager[Client]]
"""Opens a connection by a transport to a URL, in a mode; what it hears goes to a Heard."""


def dumped(model: Any) -> Any:
    return model.model_dump(by_alias=True, mode="json", exclude_none=True)


def without(value: JSON, key: str) -> JSON:
    return {name: item for name, item in value.items() if name != key}


def digest(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def described(error: BaseException) -> JSON:
    """An error, as its user sees it."""
    if isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        return described(error.exceptions[0])
    inner = getattr(error, "error", error)
    found = {"error": type(error).__name__, "code": getattr(inner, "code", None)}
    return {**found, "message": str(error)}


async def tried(awaitable: Awaitable[Any]) -> Any:
    """What came of it."""
    try:
        with anyio.fail_after(STEP_SECONDS):
            return await awaitable
    except Exception as error:
        return described(error)


def words(result: Any) -> str:
    """The text of a tool's answer."""
    answer = dumped(result)
    text = "\n".join(item["text"] for item in answer["content"])
    return f"failed: {text}" if answer.get("isError") else text


async def said(client: Client, call: JSON, progress: Any = None) -> str:
    arguments = dict(call["arguments"])
    if "size" in call:
        arguments[call["fill"]] = "x" * call["size"]
    return words(await client.call(call["tool"], arguments, progress))


# --- the steps in a connection ---


async def initialize(client: Client, profile: JSON, heard: Heard) -> Any:
    revision, capabilities = await client.about()
    return {"revision": revision, "capabilities": capabilities}


async def lists(client: Client, profile: JSON, heard: Heard) -> Any:
    seen: JSON = {}
    for kind, key in (("tools", "name"), ("resources", "uri"), ("prompts", "name")):
        found = dumped(await client.list(kind))[kind]
        seen[kind] = sorted(item[key] for item in found)
        seen[f"{kind} digest"] = digest(found)
    return seen


async def read(client: Client, profile: JSON, heard: Heard) -> Any:
    found = dumped(await client.read(profile["read"]))
    return {"begins": found["contents"][0]["text"].split("\n")[0], "digest": digest(found)}


async def call(client: Client, profile: JSON, heard: Heard) -> Any:
    return await said(client, profile["text"])


async def together(client: Client, profile: JSON, heard: Heard) -> Any:
    """Many calls at once; how many got their own answer."""
    own: list[bool] = []

    async def one(n: int) -> None:
        message = f"number {n} of many"
        own.append(message in words(await client.call(tool, {fill: message})))

    tool, fill = profile["echo"]["tool"], profile["echo"]["fill"]
    async with anyio.create_task_group() as tasks:
        for n in range(TOGETHER):
            tasks.start_soon(one, n)
    return sum(own)


async def progress(client: Client, profile: JSON, heard: Heard) -> Any:
    seen: list[Any] = []

    async def note(done: float, total: float | None, text: str | None) -> None:
        seen.append([done, total])

    return {"said": await said(client, profile["progress"], note), "seen": seen}


async def sampling(client: Client, profile: JSON, heard: Heard) -> Any:
    return await asked(client, profile["sampling"], heard)


async def elicitation(client: Client, profile: JSON, heard: Heard) -> Any:
    return await asked(client, profile["elicitation"], heard)


async def rounds(client: Client, profile: JSON, heard: Heard) -> Any:
    """A tool that asks twice, the second time with what it heard."""
    return await asked(client, profile["rounds"], heard) if "rounds" in profile else None


async def prompt(client: Client, profile: JSON, heard: Heard) -> Any:
    """A prompt that asks."""
    if "prompt" not in profile:
        return None
    heard.asked.clear()
    found = dumped(await client.prompt(profile["prompt"]))
    return {"said": found["messages"][0]["content"]["text"], "asked": heard.asked[:]}


async def headers(client: Client, profile: JSON, heard: Heard) -> Any:
    """A tool with an argument that stands in a header field, too."""
    return await said(client, profile["headers"]) if "headers" in profile else None


async def asked(client: Client, call: JSON, heard: Heard) -> Any:
    heard.asked.clear()
    answer = await said(client, call)
    return {"said": answer, "asked": heard.asked[:]}


async def update(client: Client, profile: JSON, heard: Heard) -> Any:
    how = profile["update"]
    async with client.watching(how["uri"]):
        answers = [await said(client, how["on"])]
        await heard.untilUpdated()
        if not how["says"]:
            await said(client, how["off"])
    if how["says"]:
        answers.append(await said(client, how["off"]))
    return {"updated": sorted(set(heard.updated)), "said": answers if how["says"] else []}


async def changed(client: Client, profile: JSON, heard: Heard) -> Any:
    """Have the list of tools change, and hear it."""
    if "changed" not in profile:
        return None
    async with client.watching(profile["update"]["uri"]):
        answer = await said(client, profile["changed"])
        await heard.changed.wait()
    return answer


async def cancel(client: Client, profile: JSON, heard: Heard) -> Any:
    how = profile["cancel"]
    ended = await tried(client.cancelled(how["call"]["tool"], how["call"]["arguments"]))
    seen = await said(client, how["seen"]) if "seen" in how else None
    return {"ended": ended, "seen": seen, "after": await said(client, profile["text"])}


async def errors(client: Client, profile: JSON, heard: Heard) -> Any:
    unknown = {"tool": "no such tool", "arguments": {}}
    return {
        "tool": await tried(said(client, unknown)),
        "resource": await tried(client.read("test://no-such-resource")),
    }


async def large(client: Client, profile: JSON, heard: Heard) -> Any:
    seen = []
    for call in profile["large"]:
        answer = await tried(said(client, call))
        seen.append([len(answer), digest(answer)] if isinstance(answer, str) else answer)
    return seen


# The npm SDKs come back, after a while, for a stream whose answer was an error, and then
# server-everything repeats what it said since, on whatever stream. So errors come last.
STEPS = (
    initialize, lists, read, call, headers, together, progress, sampling, elicitation, rounds,
    prompt, update, changed, cancel, errors,
)  # fmt: skip


# --- the steps that end connections ---


def raw(method: str, url: str, session: str | None) -> list[Any]:
    """A bare request in a session: the status, and the code of the error."""
    fields = {"accept": "application/json, text/event-stream", "content-type": "application/json"}
    if session:
        fields["mcp-session-id"] = session
    body = b'{"jsonrpc":"2.0","id":"raw","method":"ping"}' if method == "POST" else None
    request = urllib.request.Request(url, body, fields, method=method)  # noqa: S310
    try:
        with urllib.request.urlopen(request, timeout=SILENCE_SECONDS) as answer:  # noqa: S310
            return [answer.status, None]
    except urllib.error.HTTPError as error:
        try:
            return [error.code, json.loads(error.read())["error"]["code"]]
        except ValueError:
            return [error.code, None]
    except TimeoutError:
        return ["no answer", None]


async def refused(heard: Heard) -> list[Any]:
    """What a session that was ended answers, once it is."""
    until = time.monotonic() + SILENCE_SECONDS
    while True:
        seen = await asyncio.to_thread(raw, "POST", heard.target, heard.session)
        if seen[0] not in (200, 202) or time.monotonic() > until:
            return seen
        await anyio.sleep(0.05)


async def within(
    connect: Connect,
    transport: str,
    url: str,
    heard: Heard,
    mode: str,
    use: Callable[[Client], Awaitable[Any]],
) -> Any:
    """What came of a connection's use; an error that ends the connection counts, too."""
    try:
        async with connect(transport, url, heard, mode) as client:
            result = await use(client)
    except Exception as error:
        return described(error)
    return result


async def run(connect: Connect, transport: str, url: str, profile: JSON, mode: str) -> JSON:
    """All the steps; what came of each."""
    seen: JSON = {}
    heard = Heard()

    async def most(client: Client) -> None:
        for step in STEPS:
            seen[step.__name__] = await tried(step(client, profile, heard))

    async def loss(client: Client) -> Any:
        """Have the session deleted behind the client's back, between two calls."""
        await said(client, profile["text"])
        status, _ = await asyncio.to_thread(raw, "DELETE", heard.target, heard.session)
        return {"deleted": status in (200, 204), "then": await tried(said(client, profile["text"]))}

    async def fresh(client: Client) -> None:
        seen["fresh"] = await tried(call(client, profile, heard))
        seen["large"] = await large(client, profile, heard)

    if broken := await within(connect, transport, url, heard, mode, most):
        seen["broken"] = broken
    if mode == "legacy":
        seen["delete"] = await refused(heard)
    if mode == "legacy" and transport == "http":
        heard = Heard()
        seen["loss"] = await within(connect, transport, url, heard, mode, loss)
    if broken := await within(connect, transport, url, Heard(), mode, fresh):
        seen["large"] = broken
    return seen


def main(connect: Connect) -> None:
    transport, url, name, mode = sys.argv[1:5]
    profiles = Path(__file__).with_name("profiles.json").read_text()
    unique = uuid.uuid4().hex
    profile = json.loads(profiles.replace("{unique}", unique))[name]
    seen = asyncio.run(run(connect, transport, url, profile, mode))
    print(json.dumps(seen).replace(unique, "{unique}"))
