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
 3. nothing new is taken; what runs has `drain_grace` seconds;
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
from twisted.internet.endpoints import serverFromString
from twisted.internet.error import CannotListenError
from twisted.internet.interfaces import IListeningPort
from twisted.internet.task import deferLater
from twisted.logger import Logger
from twisted.python.failure import Failure

from gateway.app import GatewayApp
from gateway.config import Configuration, ConfigurationError, Problem
from gateway.doors.listener import Listener
from gateway.doors.resource import Door
from gateway.doors.site import GatewaySite
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
class _Endpoint:
    """An endpoint that listens; text: its description."""

    text: str
    listener: Listener
    port: IListeningPort


@define(eq=False)
class Running:
    """
    A gateway that runs.

    Life: made → `listen` → `change` → `drain`.

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
    _endpoints: list[_Endpoint] = field(factory=list, init=False)
    _closed: list[Listener] = field(factory=list, init=False)
    """Of endpoints that do not listen any more; connections of theirs may be open."""
    _closing: list[Deferred[None]] = field(factory=list, init=False)
    """The ports that have yet to be closed."""
    _draining: bool = field(default=False, init=False)

    def __attrs_post_init__(self) -> None:
        self.ladder = Ladder(self.shared)
        self.app = GatewayApp(self.ladder, {}, None, self.ready)
        root = self.app.app.resource()
        self.door, self.mounted = (
            Door(self.ladder, root, mounted=mounted) for mounted in (False, True)
        )
        self.generations = {
            settings.name: self._generation(settings, self.number)
            for settings in self.configuration.servers
        }
        self._route()

    @property
    def ports(self) -> list[IListeningPort]:
        """The ports that listen."""
        return [endpoint.port for endpoint in self._endpoints]

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
        for listener in self.listeners:
            listener.serve(routes)

    @property
    def listeners(self) -> list[Listener]:
        """The listeners of its endpoints, and those that still have connections of closed ones."""
        self._closed = [listener for listener in self._closed if len(listener)]
        return [*(endpoint.listener for endpoint in self._endpoints), *self._closed]

    # Listening.

    def listen(self, listen: Sequence[str]) -> None:
        """
        Listen at the start: on all of these, or on none.

        Raises: what an endpoint fails with at once, most often CannotListenError.
        """
        endpoints = [serverFromString(self.reactor, text) for text in listen]
        try:
            for text, endpoint in zip(listen, endpoints, strict=True):
                listener = self._listener()
                problems: list[Failure] = []
                made: list[IListeningPort] = []
                listener.listen(endpoint).addCallbacks(made.append, problems.append)
                for problem in problems:
                    problem.raiseException()
                self._endpoints += [_Endpoint(text, listener, port) for port in made]
        except BaseException:
            for one in self._endpoints:
                one.port.stopListening()
            raise

    def _listener(self) -> Listener:
        site, shared = GatewaySite(self.door, self.reactor), self.shared
        return Listener(site, self.limits, shared.clock, shared.observer, routes=self.app.routes())

    async def _open(self, listen: Sequence[str], problems: list[Problem]) -> list[_Endpoint]:
        """Listen on further endpoints; what cannot be is noted."""
        opened: list[_Endpoint] = []
        for text in listen:
            listener = self._listener()
            try:
                endpoint = serverFromString(self.reactor, text)
                port = await listener.listen(endpoint)
            except Exception as error:
                problems.append(_cannotListen(self.configuration.source, text, error))
            else:
                opened.append(_Endpoint(text, listener, port))
        return opened

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
        before, after = Counter(one.text for one in self._endpoints), Counter(listen)
        opened = await self._open(list((after - before).elements()), problems)
        if problems or self._draining:
            await self._undo(made, opened)
            if problems:
                raise ConfigurationError(problems)
            raise RuntimeError("the gateway drains: it takes no other configuration")
        # From here on nothing fails and nothing waits.
        return self._changed(configuration, made, opened, before - after)

    async def _undo(self, made: dict[str, Generation], opened: list[_Endpoint]) -> None:
        await gathered([endpoint.port.stopListening() for endpoint in opened])
        await gathered([one.server.drain() for one in made.values()])

    def _changed(
        self,
        configuration: Configuration,
        made: dict[str, Generation],
        opened: list[_Endpoint],
        surplus: Counter[str],
    ) -> Change:
        before = self.generations
        self.generations = {
            settings.name: made.get(settings.name) or before[settings.name]
            for settings in configuration.servers
        }
        closed = self._close(surplus)
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
        self._endpoints += opened
        self.configuration = configuration
        self.limits.adopt(configuration.gateway.limits)
        self.shared.load.adopted()
        for name in (*change.changed, *change.removed):
            self._retire(before[name])
        self._route()
        return change

    def _guard(self, configuration: Configuration) -> bool:
        old, new = self.configuration.gateway, configuration.gateway
        if (old.allowed_hosts, old.allowed_origins) == (new.allowed_hosts, new.allowed_origins):
            return False
        self.shared.guard = HostGuard(new.allowed_hosts, new.allowed_origins)
        return True

    def _close(self, surplus: Counter[str]) -> list[str]:
        """Close endpoints; what is asked on their connections is still answered, once each."""
        left = Counter(surplus)
        self._closing = [closing for closing in self._closing if not closing.called]
        closed: list[str] = []
        for endpoint in list(self._endpoints):
            if left[endpoint.text] <= 0:
                continue
            left[endpoint.text] -= 1
            self._endpoints.remove(endpoint)
            endpoint.listener.closing = True
            self._closed.append(endpoint.listener)
            closed.append(endpoint.text)
            closing = endpoint.listener.stopListening()
            if closing is not None:
                closing.addErrback(lambda failure: _log.failure("a port did not close", failure))
                self._closing.append(closing)
        return closed

    def _retire(self, old: Generation) -> None:
        retiring = self._retiring[old] = old.retire(self.generations.get(old.name))
        retiring.addErrback(lambda failure: _log.failure("while a server retired", failure))
        retiring.addCallback(lambda _: self._retired(old))

    def _retired(self, old: Generation) -> None:
        del self._retiring[old]
        if old.name not in self.generations and not self._draining:
            self._route()

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
        for listener in self.listeners:
            listener.closing = True
        await gathered([endpoint.listener.stopListening() for endpoint in self._endpoints])
        await self._settle()
        shared.accepting = False
        while self.busy():
            if clock.seconds() >= until:
                shared.observer.observed(BoundReached("drain_grace"))
                break
            await deferLater(clock, LOOK)
        stopping = [one.stop("shutdown") for one in self.generations.values()]
        await gathered([Deferred.fromCoroutine(one) for one in stopping])
        await gathered([_waited(one) for one in (*self._retiring.values(), *self._closing)])
        await gathered([shared.registry.end(one, "shutdown") for one in shared.registry])
        await self.reaper.close()
        reached = BoundReached("hang_up_wait")
        hangingUp = [
            listener.hangUp(limits.hang_up_wait, lambda: shared.observer.observed(reached))
            for listener in self.listeners
        ]
        await gathered(hangingUp)
        shared.pulse.stop()

    async def _settle(self) -> None:
        """Wait for the first requests of connections that were accepted before the end."""
        clock = self.shared.clock
        until = clock.seconds() + FIRST
        while clock.seconds() < until and any(one.unheard for one in self.listeners):
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


def _cannotListen(source: str, text: str, error: Exception) -> Problem:
    why = str(error.socketError) if isinstance(error, CannotListenError) else type(error).__name__
    hint = "an address that overlaps one in use, its own included, needs a restart"
    return Problem(source, "gateway.listen", f"{text}: {why}", "an endpoint to listen on", hint)
