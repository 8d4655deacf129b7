"""
A gateway between its start and its end: what it is assembled of, how it changes while it runs, and
how it drains.

A change is prepared whole before anything of it is in force: the servers are made, which starts
nothing, and the new endpoints listen. If any of that fails, it is undone and every mistake is told.
Then the change is made in one turn of the reactor:

 1. the limits and the Host guard are the new ones;
 2. servers whose settings are the same are the same, with all they have; the others are new;
 3. the URL map leads to them, also on connections that are open;
 4. what was replaced or removed is retired (`gateway.generation`), endpoints that are not
    configured any more are closed.

Draining, in order:

 1. the endpoints are closed; answers are the last of their connections, but for those of
    `/healthz` and `/readyz`, so that who watches over an open connection can go on asking;
 2. connections that were accepted have FIRST seconds for their first request, as if it had come
    before: who connected is not refused;
 3. nothing new is taken; what runs, or waits for its turn, has `drain_grace` seconds;
 4. the rest is told `shutting_down`, event streams end with `retry`, children and links end;
 5. connections are closed once their answers are out.
"""

# Twisted is annotated in part only.
# mypy: allow-untyped-calls

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import attrs
from attrs import define, field, frozen
from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater
from twisted.logger import Logger

from gateway.app import GatewayApp
from gateway.config import Configuration, ConfigurationError, Problem
from gateway.doors.listener import Listener
from gateway.doors.resource import Door
from gateway.doors.site import GatewaySite
from gateway.endpoints import Endpoint, Endpoints
from gateway.generation import LOOK, Generation, gathered
from gateway.guard.hosts import HostGuard
from gateway.guard.limits import Limits
from gateway.links.interfaces import IServer
from gateway.links.process import Reaper
from gateway.observe.observer import BoundReached
from gateway.proxies.ladder import Ladder
from gateway.proxies.shared import Shared
from gateway.settings import ServerSettings

__all__ = ["Change", "Running"]

FIRST = 1.0
"""Seconds that a connection accepted before the end has for its first request."""

_log = Logger()


@frozen
class Change:
    """What a reload changed, by the names of the servers; `limits` by theirs."""

    added: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    kept: tuple[str, ...] = ()
    limits: tuple[str, ...] = ()
    opened: tuple[str, ...] = ()
    closed: tuple[str, ...] = ()
    hosts: bool = False

    def __str__(self) -> str:
        parts = [
            f"{what} {', '.join(names)}"
            for what in ("added", "changed", "removed", "opened", "closed", "limits")
            if (names := getattr(self, what))
        ]
        if self.hosts:
            parts.append("allowed hosts or origins")
        return "; ".join(parts) or "nothing changed"


@define(eq=False)
class Running:
    """
    A gateway that runs.

    Life: made → `endpoints.listen` → `change` → `drain`.

    configuration: what is in force. number: of the generation that it brought. limits: a table of
    its own. make: makes a server of a generation. ready: whether new sessions are taken.
    """

    configuration: Configuration
    number: int
    limits: Limits
    reactor: Any
    shared: Shared
    reaper: Reaper
    make: Callable[[ServerSettings, int], IServer]
    ready: Callable[[], bool]
    ladder: Ladder = field(init=False)
    app: GatewayApp = field(init=False)
    door: Door = field(init=False)
    mounted: Door = field(init=False)
    generations: dict[str, Generation] = field(factory=dict, init=False)
    _retiring: dict[Generation, Deferred[None]] = field(factory=dict, init=False)
    endpoints: Endpoints = field(init=False)
    _draining: bool = field(default=False, init=False)

    def __attrs_post_init__(self) -> None:
        self.ladder = Ladder(self.shared)
        self.app = GatewayApp(self.ladder, {}, None, self.ready)
        root = self.app.app.resource()
        self.door, self.mounted = (
            Door(self.ladder, root, mounted=mounted) for mounted in (False, True)
        )
        self.endpoints = Endpoints(self.reactor, self._listener)
        self.generations = {
            settings.name: self._generation(settings, self.number)
            for settings in self.configuration.servers
        }
        self._route()

    def _generation(self, settings: ServerSettings, number: int) -> Generation:
        return Generation(settings, self.make(settings, number), self.shared, self.ladder)

    def _route(self) -> None:
        """Have the URL map, and every open connection, lead to what is served now."""
        leaving = {one.name: one.mount for one in self._retiring}
        default = next((one.name for one in self.configuration.servers if one.default), None)
        if default is None and len(self.configuration.servers) == 1:
            default = self.configuration.servers[0].name
        before = self.app.default
        if default is None and before in leaving and before not in self.generations:
            # Its last calls may have been made there.
            default = before
        served = {name: one.mount for name, one in self.generations.items()}
        self.app.mounts = {**leaving, **served}
        self.app.default = default
        routes = self.app.routes()
        for listener in self.endpoints.listeners:
            listener.serve(routes)

    def _listener(self) -> Listener:
        site, shared = GatewaySite(self.door, self.reactor), self.shared
        return Listener(site, self.limits, shared.clock, shared.observer, routes=self.app.routes())

    # Changing.

    async def change(
        self, configuration: Configuration, number: int, listen: Sequence[str]
    ) -> Change:
        """
        Put another configuration in force.

        number: of what it brings. listen: where it listens.
        Raises: ConfigurationError with every mistake; RuntimeError where it began to drain
            meanwhile. Nothing has changed then.
        """
        problems = _mistakes(configuration)
        made: dict[str, Generation] = {}
        for settings in configuration.servers:
            old = self.generations.get(settings.name)
            if settings.name in made or (old is not None and old.serves(settings)):
                continue
            try:
                made[settings.name] = self._generation(settings, number)
            except ValueError:
                # What it says may hold a secret of the settings.
                problems.append(
                    Problem(
                        configuration.source,
                        f"mcpServers.{settings.name}",
                        "a server that cannot be made",
                        "settings that can be used",
                    )
                )
        before, after = self.endpoints.texts, Counter(listen)
        more = list((after - before).elements())
        opened = await self.endpoints.prepare(more, configuration.source, problems)
        if problems or self._draining:
            await self._undo(made, opened)
            if problems:
                raise ConfigurationError(problems)
            raise RuntimeError("the gateway drains: it takes no other configuration")
        # From here on nothing fails and nothing waits.
        return self._changed(configuration, made, opened, before - after)

    async def _undo(self, made: dict[str, Generation], opened: list[Endpoint]) -> None:
        await gathered([endpoint.port.stopListening() for endpoint in opened])
        await gathered([one.server.drain() for one in made.values()])

    def _changed(
        self,
        configuration: Configuration,
        made: dict[str, Generation],
        opened: list[Endpoint],
        surplus: Counter[str],
    ) -> Change:
        before = self.generations
        self.generations = {
            settings.name: made.get(settings.name) or before[settings.name]
            for settings in configuration.servers
        }
        closed = self.endpoints.close(surplus)
        change = Change(
            added=tuple(name for name in made if name not in before),
            changed=tuple(name for name in made if name in before),
            removed=tuple(name for name in before if name not in self.generations),
            kept=tuple(name for name in self.generations if name not in made),
            limits=_differing(self.limits, configuration.gateway.limits),
            opened=tuple(endpoint.text for endpoint in opened),
            closed=tuple(closed),
            hosts=self._guard(configuration),
        )
        self.endpoints.add(opened)
        self.configuration = configuration
        self.limits.adopt(configuration.gateway.limits)
        self.shared.load.adopted()
        for name in (*change.changed, *change.removed):
            self._retire(before[name])
        for name in change.added:
            self._cameBack(self.generations[name])
        self._route()
        return change

    def _guard(self, configuration: Configuration) -> bool:
        old, new = self.configuration.gateway, configuration.gateway
        if (old.allowed_hosts, old.allowed_origins) == (new.allowed_hosts, new.allowed_origins):
            return False
        self.shared.guard = HostGuard(new.allowed_hosts, new.allowed_origins)
        return True

    def _retire(self, old: Generation) -> None:
        retiring = self._retiring[old] = old.retire(self.generations.get(old.name))
        retiring.addErrback(lambda failure: _log.failure("while a server retired", failure))
        retiring.addCallback(lambda _: self._retired(old))

    def _cameBack(self, new: Generation) -> None:
        """Have calls continued that still wait where a server of this name was removed before."""
        for old in self._retiring:
            if old.name == new.name:
                new.mount.http.modern.follows(old.mount.http.modern)

    def _retired(self, old: Generation) -> None:
        del self._retiring[old]
        if old.name not in self.generations and not self._draining:
            self._route()

    def endIdle(self, part: float) -> int:
        """Memory is short: end this part of the idle sessions. Returns how many."""
        generations = (*self.generations.values(), *self._retiring)
        pooled = sum(one.mount.http.modern.shed(part) for one in generations)
        return pooled + self.shared.registry.endIdle(part)

    # The end.

    def busy(self) -> bool:
        """Whether a call or a handshake runs."""
        if any(session.busy for session in self.shared.registry):
            return True
        return any(one.running() for one in self.generations.values())

    async def drain(self) -> None:
        """End. Returns when no child and no connection is left."""
        shared, clock, limits = self.shared, self.shared.clock, self.limits
        self._draining = True
        until = clock.seconds() + limits.drain_grace
        await gathered(self.endpoints.closeAll())
        await self._settle()
        shared.accepting = False
        while self.busy():
            if clock.seconds() >= until:
                shared.observer.observed(BoundReached("drain_grace"))
                break
            await deferLater(clock, LOOK)
        # What still waits for its turn begins no more.
        shared.load.suspend()
        stopping = [one.stop("shutdown") for one in self.generations.values()]
        await gathered([Deferred.fromCoroutine(one) for one in stopping])
        await gathered(
            [_waited(one) for one in (*self._retiring.values(), *self.endpoints.closing)]
        )
        await gathered([shared.registry.end(one, "shutdown") for one in shared.registry])
        await self.reaper.close()
        reached = BoundReached("hang_up_wait")
        hangingUp = [
            listener.hangUp(limits.hang_up_wait, lambda: shared.observer.observed(reached))
            for listener in self.endpoints.listeners
        ]
        await gathered(hangingUp)
        shared.pulse.stop()

    async def _settle(self) -> None:
        """Wait for the first requests of connections that were accepted before the end."""
        clock = self.shared.clock
        until = clock.seconds() + FIRST
        while clock.seconds() < until and any(one.unheard for one in self.endpoints.listeners):
            await deferLater(clock, LOOK)


def _waited(deferred: Deferred[None]) -> Deferred[None]:
    """Another Deferred that fires with one; both have users of their own."""
    waiting: Deferred[None] = Deferred()

    def fired(result: None) -> None:
        waiting.callback(None)
        return result

    deferred.addBoth(fired)
    return waiting


def _differing(old: Limits, new: Limits) -> tuple[str, ...]:
    names = [one.name for one in attrs.fields(Limits)]
    return tuple(name for name in names if getattr(old, name) != getattr(new, name))


def _mistakes(configuration: Configuration) -> list[Problem]:
    """What a file cannot hold, but a Configuration that somebody else made can."""
    source, servers = configuration.source, configuration.servers
    problems = []
    counted = Counter(one.name for one in servers)
    for name in [name for name, times in counted.items() if times > 1]:
        problems.append(Problem(source, f"mcpServers.{name}", "two servers", "each name once"))
    if sum(one.default for one in servers) > 1:
        problems.append(Problem(source, "mcpServers", "two default servers", "one"))
    return problems
