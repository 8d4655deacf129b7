"""
The ledger: many clients call through all three proxies at once, over servers that crash, garble
and hang at random; afterwards what was asked, executed and answered must agree.

Each call has a token of its own. A client knows what it asked on which connection, the servers
write down what they executed before they do, and so an answer that is crossed, doubled or lost,
and a call that is executed twice, cannot hide.
"""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from attrs import define, field
from live import Live, behind, faulty, startLive
from processes import Gateway
from raw import RawClient
from twisted.internet import reactor
from twisted.internet.defer import Deferred, ensureDeferred, gatherResults
from twisted.internet.endpoints import TCP4ClientEndpoint, connectProtocol

__all__ = ["Ledger", "connected", "posted"]

REVISIONS = ("2025-03-26", "2025-06-18", "2025-11-25")

# What a call does, and how often of a hundred.
_FATES = (("echo", 88), ("sleep", 5), ("garble", 3), ("cancel", 2), ("exit", 2))


def connected(gateway: Live | Gateway) -> Deferred[RawClient]:
    """A raw client of a gateway."""
    port = int(gateway.base.rpartition(":")[2])
    endpoint = TCP4ClientEndpoint(reactor, "127.0.0.1", port)
    return connectProtocol(endpoint, RawClient())


def posted(base: str, path: str, session: str, message: object, method: str = "POST") -> bytes:
    """The bytes of a request."""
    body = b"" if message is None else json.dumps(message).encode()
    lines = [
        f"{method} {path} HTTP/1.1",
        f"Host: {base.removeprefix('http://')}",
        "Accept: application/json, text/event-stream",
    ]
    if session:
        lines.append(f"Mcp-Session-Id: {session}")
    if message is not None:
        lines += ["Content-Type: application/json", f"Content-Length: {len(body)}"]
    return "\r\n".join([*lines, "", ""]).encode() + body


def _decoded(body: bytes) -> list[Any]:
    """The messages of a JSON body or of an event stream."""
    if body.startswith(b"{"):
        return [json.loads(body)]
    lines = [line[6:] for line in body.split(b"\n") if line.startswith(b"data: {")]
    return [json.loads(line) for line in lines]


@define(eq=False)
class Ledger:
    """
    One run.

    seed: of everything that is random. calls: how many in all. clients: how many per proxy.
    """

    seed: int
    calls: int
    clients: int
    file: Path
    asked: int = field(default=0, init=False)
    outcomes: Counter[str] = field(factory=Counter, init=False)
    answered: Counter[str] = field(factory=Counter, init=False)
    served: set[str] = field(factory=set, init=False)
    failed: set[str] = field(factory=set, init=False)
    _random: random.Random = field(init=False)

    async def run(self) -> None:
        """Start two gateways, the second before the first; call; stop them."""
        self._random = random.Random(self.seed)
        limits = {"respawn_first": 0.01, "respawn_last": 0.05}
        behindIt = await startLive(faulty("--ledger", str(self.file)), **limits)
        front = await startLive(
            faulty("--ledger", str(self.file)),
            behind(f"{behindIt.base}/servers/faulty/mcp"),
            **limits,
        )
        try:
            flows = []
            for number in range(self.clients):
                flows.append(ensureDeferred(self._http(front, "faulty", f"s{number}")))
                flows.append(ensureDeferred(self._http(front, "behind", f"t{number}")))
                flows.append(ensureDeferred(self._sse(front, f"e{number}")))
            await gatherResults(flows, consumeErrors=True)
        finally:
            await front.stop()
            await behindIt.stop()

    def _calls(self, who: str) -> Iterator[tuple[str, dict[str, Any], bool]]:
        """The calls of one client: token, message, and whether it is cancelled."""
        verbs, weights = zip(*_FATES, strict=True)
        for number in range(self.calls // (3 * self.clients)):
            token = f"{who}-{number}"
            verb = self._random.choices(verbs, weights)[0]
            cancels = verb == "cancel"
            arguments: dict[str, Any] = {"token": token}
            if verb == "sleep":
                arguments["seconds"] = self._random.random() / 20
            elif verb == "garble":
                verb, arguments["how"] = "bad_answer", self._random.choice(["json", "both"])
            elif cancels:
                verb = "hang"
            self.asked += 1
            # Ids meet on purpose: everybody counts from 1, and begins again.
            yield (
                token,
                {
                    "jsonrpc": "2.0",
                    "id": number % 7 + 1,
                    "method": "tools/call",
                    "params": {"name": verb, "arguments": arguments},
                },
                cancels,
            )

    def _judge(self, token: str, asked: dict[str, Any], messages: list[Any]) -> None:
        """One call's answer, where its caller waited for it."""
        answers = [one for one in messages if "result" in one or "error" in one]
        assert len(answers) == 1, (token, messages)
        (answer,) = answers
        assert answer["id"] == asked["id"], (token, answer)
        self.answered[token] += 1
        if "result" in answer:
            assert answer["result"]["structuredContent"]["token"] == token, (token, answer)
            self.served.add(token)
            self.outcomes["result"] += 1
        else:
            self.failed.add(token)
            self.outcomes[answer["error"].get("data", {}).get("reason", "error")] += 1

    def _hello(self, revision: str) -> dict[str, Any]:
        params = {"protocolVersion": revision, "capabilities": {}, "clientInfo": {"name": "l"}}
        return {"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": params}

    async def _http(self, front: Live, server: str, who: str) -> None:
        """A client of the streamable or the transparent proxy, four calls at a time."""
        path = f"/servers/{server}/mcp"
        client = await connected(front)
        client.send(posted(front.base, path, "", self._hello(self._random.choice(REVISIONS))))
        session = (await client.response()).header(b"mcp-session-id")
        assert session is not None
        id = session.decode()
        told = {"jsonrpc": "2.0", "method": "notifications/initialized"}
        client.send(posted(front.base, path, id, told))
        assert (await client.response()).status == 202
        calls = self._calls(who)
        lanes = [ensureDeferred(self._lane(front, path, id, calls)) for _ in range(4)]
        await gatherResults(lanes, consumeErrors=True)
        client.send(posted(front.base, path, id, None, "DELETE"))
        assert (await client.response()).status == 204
        client.close()
        await client.ended

    async def _lane(
        self, front: Live, path: str, session: str, calls: Iterator[tuple[str, Any, bool]]
    ) -> None:
        client, other = await connected(front), await connected(front)
        for token, message, cancels in calls:
            client.send(posted(front.base, path, session, message))
            if cancels:
                told = {
                    "jsonrpc": "2.0",
                    "method": "notifications/cancelled",
                    "params": {"requestId": message["id"]},
                }
                other.send(posted(front.base, path, session, told))
                assert (await other.response()).status == 202
                # It may have come before its call, or met another call of the same id.
                client.reset()
                await client.ended
                self.answered[token] += 1
                self.outcomes["left"] += 1
                client = await connected(front)
                continue
            response = await client.response()
            assert response.status == 200, (token, response)
            self._judge(token, message, _decoded(response.body))
        for one in (client, other):
            one.close()
            await one.ended

    async def _sse(self, front: Live, who: str) -> None:
        """A client of the SSE proxy, one call at a time: its ids would meet on one stream."""
        stream, client = await connected(front), await connected(front)
        stream.send(posted(front.base, "/servers/faulty/sse", "", None, "GET"))
        assert (await stream.head()).status == 200
        endpoint = await stream.event()
        assert endpoint is not None and endpoint.data is not None
        path = endpoint.data.decode()

        async def ask(message: dict[str, Any]) -> Any:
            client.send(posted(front.base, path, "", message))
            assert (await client.response()).status == 202
            while "method" in (said := await stream.message()):
                pass
            return said

        assert "result" in await ask(self._hello("2024-11-05"))
        client.send(
            posted(front.base, path, "", {"jsonrpc": "2.0", "method": "notifications/initialized"})
        )
        assert (await client.response()).status == 202
        for token, message, cancels in self._calls(who):
            if cancels:
                message["params"]["name"] = "echo"
            self._judge(token, message, [await ask(message)])
        for one in (stream, client):
            one.close()
            await one.ended

    def check(self) -> None:
        """Everything asked was answered once, and executed at most once."""
        executed: Counter[str] = Counter()
        for line in self.file.read_text().splitlines():
            token = json.loads(line).get("token")
            if token is not None:
                executed[token] += 1
        twice = [token for token, times in executed.items() if times > 1]
        assert not twice, f"executed twice: {twice}"
        assert len(self.answered) == self.asked
        assert set(self.answered.values()) == {1}
        # Nothing was answered that was not executed.
        assert self.served <= set(executed)

    def __str__(self) -> str:
        outcomes = ", ".join(f"{name} {count}" for name, count in self.outcomes.most_common())
        return (
            f"ledger seed {self.seed}: {self.asked} calls, {3 * self.clients} clients: {outcomes}"
        )
