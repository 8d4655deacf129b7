"""
Clients of both eras at one stateful stdio server at once; afterwards what was asked, executed and
answered must agree.

Each of two principals has a legacy client, with a session, and a modern one, without. Each call
has a token of its own, and everything else that names a call is equal on purpose: everybody counts
ids and progress tokens from 1, and begins again. The server writes down what it executed, and in
which process; the elicitations and the progress of a call name its token, too. So what is crossed,
doubled or lost, and state that two principals share, cannot hide.
"""

from __future__ import annotations

import json
import random
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from attrs import define, field
from live import Live, startLive
from posting import connected
from processes import ROOT
from raw import NamedInHeader, RawClient
from twisted.internet.defer import ensureDeferred, gatherResults

from gateway.settings import StdioSettings

__all__ = ["SERVES", "MixedEras", "twoEras"]

ERAS = ("legacy", "modern")

SERVES = ("both", "legacy", "modern")
"""What the server speaks."""

MODERN = "2026-07-28"
PATH = "/servers/two-eras/mcp"
PRINCIPALS = ("ann", "bob")
LANES = 3
"""Calls that one client has in flight at once."""

# What a call does, and how often of a hundred.
_VERBS = (("echo", 60), ("sleep", 15), ("progress", 15), ("ask", 10))
_FAULTS = (("exit", 2),)

JSON = dict[str, Any]


def twoEras(serves: str, ledger: Path) -> StdioSettings:
    """The server, as configured."""
    script = str(ROOT / "tests" / "two_era_server.py")
    args = (script, "--era", serves, "--ledger", str(ledger))
    return StdioSettings(name="two-eras", command=sys.executable, args=args)


@define(eq=False)
class Caller:
    """A client: whose it is, what it speaks, and its session if it has one."""

    who: str
    era: str
    session: str = ""

    @property
    def name(self) -> str:
        return f"{self.who}-{self.era}"

    def posted(self, base: str, message: JSON, method: str = "POST") -> bytes:
        """The bytes of a request."""
        body = json.dumps(message).encode() if message else b""
        fields = {
            "Host": base.removeprefix("http://"),
            "Accept": "application/json, text/event-stream",
            "X-Who": self.who,
            "Content-Type": "application/json",
            "Content-Length": str(len(body)),
        }
        if self.era == "modern":
            fields |= {"MCP-Protocol-Version": MODERN, "Mcp-Method": message["method"]}
            fields["Mcp-Name"] = message["params"]["name"]
        elif self.session:
            fields["Mcp-Session-Id"] = self.session
        lines = [f"{method} {PATH} HTTP/1.1", *(f"{key}: {one}" for key, one in fields.items())]
        return "\r\n".join([*lines, "", ""]).encode() + body


@define(eq=False)
class MixedEras:
    """
    One run.

    serves: what the server speaks. seed: of everything that is random. calls: how many in all.
    faults: whether some calls make the server exit; then calls may fail, but once and by name.
    """

    serves: str
    seed: int
    calls: int
    file: Path
    faults: bool = False
    asked: dict[str, Caller] = field(factory=dict, init=False)
    answered: Counter[str] = field(factory=Counter, init=False)
    verbs: Counter[str] = field(factory=Counter, init=False)
    served: set[str] = field(factory=set, init=False)
    failed: Counter[str] = field(factory=Counter, init=False)
    _open: dict[Caller, set[str]] = field(factory=lambda: defaultdict(set), init=False)
    processes: dict[int, set[str]] = field(factory=lambda: defaultdict(set), init=False)
    _random: random.Random = field(init=False)

    async def run(self) -> None:
        """Start a gateway, call, stop it."""
        self._random = random.Random(self.seed)
        limits = {"respawn_first": 0.01, "respawn_last": 0.05, "circuit_failures": 10_000}
        front = await startLive(
            twoEras(self.serves, self.file), authenticator=NamedInHeader(), **limits
        )
        try:
            callers = [Caller(who, era) for who in PRINCIPALS for era in ERAS]
            flows = [ensureDeferred(self._client(front, caller)) for caller in callers]
            await gatherResults(flows, consumeErrors=True)
        finally:
            await front.stop()

    async def _client(self, front: Live, caller: Caller) -> None:
        if caller.era == "legacy":
            await self._initialize(front, caller)
        calls = self._calls(caller)
        lanes = [ensureDeferred(self._lane(front, caller, calls)) for _ in range(LANES)]
        await gatherResults(lanes, consumeErrors=True)
        if caller.session:
            client = await connected(front)
            client.send(caller.posted(front.base, {}, "DELETE"))
            assert (await client.response()).status == 204
            client.close()
            await client.ended

    async def _initialize(self, front: Live, caller: Caller) -> None:
        client = await connected(front)
        params = {
            "protocolVersion": "2025-11-25",
            "capabilities": {"elicitation": {"form": {}}},
            "clientInfo": {"name": caller.name, "version": "1"},
        }
        hello = {"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": params}
        client.send(caller.posted(front.base, hello))
        answer = await client.response()
        assert answer.status == 200, answer
        session = answer.header(b"mcp-session-id")
        assert session is not None, answer
        caller.session = session.decode()
        told = {"jsonrpc": "2.0", "method": "notifications/initialized"}
        client.send(caller.posted(front.base, told))
        assert (await client.response()).status == 202
        client.close()
        await client.ended

    def _calls(self, caller: Caller) -> Iterator[tuple[str, JSON]]:
        """The calls of one client: token and message."""
        fates = (*_VERBS, *_FAULTS) if self.faults else _VERBS
        verbs, weights = zip(*fates, strict=True)
        for number in range(self.calls // (2 * len(PRINCIPALS))):
            token = f"{caller.name}-{number}"
            (verb,) = self._random.choices(verbs, weights)
            arguments: JSON = {"token": token, "who": caller.who, "verb": verb}
            if verb == "sleep":
                arguments["seconds"] = self._random.random() / 50
            # Ids in flight meet: within a client, between clients, between principals and eras.
            meta: JSON = {"progressToken": number % 2 + 1}
            if caller.era == "modern":
                meta |= {
                    "io.modelcontextprotocol/protocolVersion": MODERN,
                    "io.modelcontextprotocol/clientInfo": {"name": caller.name, "version": "1"},
                    "io.modelcontextprotocol/clientCapabilities": {"elicitation": {"form": {}}},
                }
            params = {"name": "do", "arguments": arguments, "_meta": meta}
            id = number % 2 + 1 if caller.era == "modern" else number % 7 + 1
            self.asked[token] = caller
            self.verbs[verb] += 1
            yield (
                token,
                {"jsonrpc": "2.0", "id": id, "method": "tools/call", "params": params},
            )

    async def _lane(self, front: Live, caller: Caller, calls: Iterator[tuple[str, JSON]]) -> None:
        client, other = await connected(front), await connected(front)
        for token, message in calls:
            self._open[caller].add(token)
            answer = await self._exchange(front, caller, (client, other), token, message)
            while caller.era == "modern" and answer.get("resultType") == "input_required":
                (key,) = answer["inputRequests"]
                asked = answer["inputRequests"][key]
                params = {**message["params"], "inputResponses": {key: said(token, asked)}}
                if "requestState" in answer:
                    params["requestState"] = answer["requestState"]
                again = {**message, "params": params}
                answer = await self._exchange(front, caller, (client, other), token, again)
            self._open[caller].remove(token)
            self.answered[token] += 1
            if "failed" in answer:
                self.failed[answer["failed"]] += 1
            else:
                self._judge(caller, token, message, answer)
        for one in (client, other):
            one.close()
            await one.ended

    async def _exchange(
        self,
        front: Live,
        caller: Caller,
        connections: tuple[RawClient, RawClient],
        token: str,
        message: JSON,
    ) -> JSON:
        """Call; returns the result, and judges what came before it."""
        client, other = connections
        client.send(caller.posted(front.base, message))
        head = await client.head()
        if head.header(b"content-type") != b"text/event-stream":
            await client.body(head)
            assert head.status == 200 or self.faults, (token, head)
            messages = [head.json]
        else:
            messages = []
            while (event := await client.event()) is not None:
                if event.data:
                    messages.append(json.loads(event.data))
                    if messages[-1].get("method") == "elicitation/create":
                        await self._answer(front, caller, other, messages[-1])
        *before, answer = messages
        # What a server that exited asked is taken back.
        session = ("elicitation/create", *(("notifications/cancelled",) if self.faults else ()))
        told = [one["params"] for one in before if one["method"] not in session]
        meant = {"progressToken": message["params"]["_meta"]["progressToken"], "message": token}
        steps = (1, 2) if message["params"]["arguments"]["verb"] == "progress" else ()
        wanted = [{**meant, "progress": step, "total": 2} for step in steps]
        assert answer["id"] == message["id"], (token, messages)
        if "error" in answer and self.faults:
            assert told == wanted[: len(told)], (token, messages)
            data = answer["error"].get("data", {})
            return {"failed": data.get("reason") or answer["error"]["message"]}
        assert told == wanted, (token, messages)
        result: JSON = answer["result"]
        return result

    async def _answer(self, front: Live, caller: Caller, other: RawClient, asked: JSON) -> None:
        # A child does not say which call it asks for, so it may come on any stream of the
        # session; whose it is, the server knows by the id of the answer.
        meant = asked["params"]["message"]
        # Where its server exited, the call may have ended on its own stream before this came.
        runs = meant in self._open[caller] or (self.faults and self.asked[meant] is caller)
        assert caller.era == "legacy" and runs, (caller, asked)
        answered = {"jsonrpc": "2.0", "id": asked["id"], "result": said(meant, asked)}
        other.send(caller.posted(front.base, answered))
        assert (await other.response()).status == 202 or self.faults

    def _judge(self, caller: Caller, token: str, message: JSON, result: JSON) -> None:
        seen = result["structuredContent"]
        assert seen["token"] == token, (token, result)
        asks = message["params"]["arguments"]["verb"] == "ask"
        assert seen["answered"] == (f"{token}!" if asks else None), (token, result)
        native = caller.era if self.serves == "both" else self.serves
        assert seen["era"] == native, (token, result)
        self.served.add(token)

    def check(self) -> None:
        """Everything asked was executed and answered once, and state was kept apart."""
        entries = [json.loads(line) for line in self.file.read_text().splitlines()]
        executed = Counter(entry["token"] for entry in entries)
        twice = [token for token, times in executed.items() if times > 1]
        assert not twice, f"executed twice: {twice}"
        assert set(self.asked) == set(self.answered) and set(self.answered.values()) == {1}
        assert self.served <= set(executed)
        assert self.faults or self.served == set(executed) == set(self.asked)
        eras: dict[int, set[str]] = defaultdict(set)
        for entry in entries:
            caller = self.asked[entry["token"]]
            assert entry["who"] == caller.who, entry
            self.processes[entry["pid"]].add(caller.name)
            eras[entry["pid"]].add(entry["era"])
        for pid, names in self.processes.items():
            (era,) = eras[pid]
            # A session has a process of its own, whatever the server speaks; so has a modern
            # principal where that has state. What is modern on both sides has none: it shares.
            if era == "legacy" or any(name.endswith("-legacy") for name in names):
                assert len(names) == 1, (pid, names)

    def __str__(self) -> str:
        verbs = ", ".join(f"{name} {count}" for name, count in self.verbs.most_common())
        return (
            f"mixed eras, seed {self.seed}, a child that speaks {self.serves}: {len(self.asked)} "
            f"calls of {2 * len(PRINCIPALS)} clients in {len(self.processes)} processes: {verbs}"
            + (f"; failed: {dict(self.failed)}" if self.faults else "")
        )


def said(token: str, asked: JSON) -> JSON:
    """What a client answers to the elicitation of a call; it must be that call's."""
    assert asked["params"]["message"] == token, (token, asked)
    return {"action": "accept", "content": {"said": f"{token}!"}}
