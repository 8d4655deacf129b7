"""Whatever happens while calls wait: each is answered, and what is counted comes to nothing."""

from __future__ import annotations

from typing import Any

import hypothesis
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from modern_support import ModernServer, enveloped, posted
from test_reload import CALL, Bench

from gateway.guard.limits import Limits
from gateway.testing import MemoryClient, ScriptedServer
from gateway.testing.memory import Exchanged


def bounds(each: int, more: int) -> dict[str, float]:
    return {
        "max_calls_per_principal": each,
        "max_waiting_per_principal": more,
        "drain_grace": 5.0,
    }


class WaitingCalls(RuleBasedStateMachine):
    """One principal's calls: in sessions, of the modern era, and to a server without sessions."""

    @initialize(
        exits=st.sampled_from(["recover", "lost"]), era=st.sampled_from(["modern", "legacy"])
    )
    def start(self, exits: str, era: str) -> None:
        self.exits, self.era = exits, era
        self.made = self.number = 0
        self.servers = self.fresh()
        self.all = list(self.servers)
        self.bench = Bench(*self.servers, **bounds(2, 3))
        self.clients: list[MemoryClient] = []
        self.asked: list[Exchanged] = []

    def fresh(self) -> list[ScriptedServer]:
        """The servers, each with settings that differ from those of the one before."""
        self.made += 1
        timeout = 20.0 + self.made % 2
        return [
            ScriptedServer("one", on_exit=self.exits, timeout=timeout),
            ModernServer("two", era=self.era, timeout=timeout),
            ScriptedServer("three", http=True, sessionless=True, timeout=timeout),
        ]

    @property
    def load(self) -> Any:
        return self.bench.gateway.service._started().shared.load

    @rule()
    def open(self) -> None:
        if len(self.clients) < 3:
            self.clients.append(self.bench.open("one"))

    @rule(data=st.data(), same=st.booleans())
    def ask(self, data: st.DataObject, same: bool) -> None:
        """same: under an id that others may have."""
        if self.clients:
            client = data.draw(st.sampled_from(self.clients))
            self.number += 1
            self.asked.append(client.post(client.request(0 if same else self.number, CALL)))

    @rule()
    def askModern(self) -> None:
        self.asked.append(posted(self.bench.gateway, enveloped(CALL, 1, name="x"), "two"))

    @rule()
    def askWithoutSession(self) -> None:
        client = self.bench.gateway.client("three")
        self.asked.append(client.post(client.request(1, CALL)))
        for link in self.servers[2].links:
            for sent in link.of("notifications/initialized"):
                link.accept(sent)

    @rule(data=st.data())
    def reply(self, data: st.DataObject) -> None:
        links = [link for server in self.all for link in server.links if link.alive]
        sent = [(link, one) for link in links for one in link.of(CALL)]
        if sent:
            link, one = data.draw(st.sampled_from(sent))
            link.reply(one)

    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        if self.clients:
            client = data.draw(st.sampled_from(self.clients))
            named = {"requestId": data.draw(st.integers(0, self.number))}
            told = {"jsonrpc": "2.0", "method": "notifications/cancelled", "params": named}
            client.post(told)

    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        waits = [one for one in self.asked if not one.ended]
        if waits:
            one = data.draw(st.sampled_from(waits))
            self.asked.remove(one)
            one.leave()

    @rule(data=st.data())
    def delete(self, data: st.DataObject) -> None:
        if self.clients:
            client = data.draw(st.sampled_from(self.clients))
            self.clients.remove(client)
            client.delete()

    @rule(data=st.data())
    def lose(self, data: st.DataObject) -> None:
        links = [link for server in self.all for link in server.links if link.alive]
        if links:
            data.draw(st.sampled_from(links)).lose()

    @rule(beats=st.sampled_from([1, 2, 12, 44]))
    def passes(self, beats: int) -> None:
        self.bench.gateway.clock.pump([0.5] * beats)

    @rule(each=st.integers(1, 4), more=st.sampled_from([0, 1, 3]))
    def bound(self, each: int, more: int) -> None:
        limits = Limits(**bounds(each, more))  # type: ignore[arg-type]
        self.bench.reload(*self.servers, limits=limits)

    @rule(which=st.sets(st.integers(0, 2), min_size=1))
    def replace(self, which: set[int]) -> None:
        new = self.fresh()
        for number in which:
            if new[number].settings == self.servers[number].settings:
                continue
            self.servers[number] = new[number]
            self.all.append(new[number])
        self.bench.reload(*self.servers, limits=self.bench.gateway.limits)

    @invariant()
    def isCounted(self) -> None:
        if not hasattr(self, "bench"):
            return
        accounts = list(self.load._accounts.values())
        assert self.load.total.calls == sum(account.calls for account in accounts)
        for account in accounts:
            waiting = 0 if account.queue is None else len(account.queue)
            assert account.calls >= waiting
            assert not waiting or account.calls - waiting >= self.load.each, "room for who waits"

    def teardown(self) -> None:
        if not hasattr(self, "bench"):
            return
        self.bench.gateway.clock.pump([0.5] * 100)
        assert all(one.started and one.ended for one in self.asked)
        assert self.load.total.calls == 0
        for client in self.clients:
            client.delete()
        assert len(self.load) == 0
        self.bench.end()


TestWaitingCalls = WaitingCalls.TestCase
TestWaitingCalls.settings = hypothesis.settings(max_examples=60, stateful_step_count=40)
