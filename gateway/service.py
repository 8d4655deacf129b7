"""
A gateway as a Twisted service: its servers, its one registry, its proxies and its listeners.

States: stopped → starting → ready → draining → stopped. While it drains it takes no new session,
lets running calls finish for `drain_grace` seconds, answers the rest, ends every session, and
waits until no child and no connection is left.
"""

# Twisted is annotated in part only.
# mypy: allow-untyped-calls

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from enum import Enum
from functools import partial
from typing import Any

from attrs import define, field
from twisted.application.service import Service
from twisted.internet.defer import Deferred, DeferredList, succeed
from twisted.internet.endpoints import serverFromString
from twisted.internet.interfaces import IListeningPort, IReactorTime, IStreamServerEndpoint
from twisted.internet.task import deferLater
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web.resource import IResource

from gateway.app import GatewayApp, Mount
from gateway.clock import MonotonicClock
from gateway.config import Configuration
from gateway.doors.listener import Listener
from gateway.doors.resource import Door, MountedDoor
from gateway.doors.site import GatewaySite
from gateway.guard.authentication import AnonymousAuthenticator, IAuthenticator
from gateway.guard.hosts import HostGuard
from gateway.guard.memory import MemoryWatch, limitOfCgroup
from gateway.guard.policy import AllowAll, IPolicy
from gateway.links.interfaces import IServer, ITwoEraServer
from gateway.links.process import Reaper
from gateway.observe.observer import BoundReached, IObserver, NullObserver
from gateway.proxies.endpoint import StreamableEndpoint
from gateway.proxies.ladder import Ladder
from gateway.proxies.shared import Shared
from gateway.proxies.sse import SSEProxy
from gateway.proxies.streamable import StreamableProxy
from gateway.proxies.transparent import TransparentProxy
from gateway.servers.eras import EraServer, Verdicts
from gateway.servers.http import HTTPServer
from gateway.servers.shared import SharedServer
from gateway.servers.stdio import StdioServer
from gateway.sessions.registry import SessionRegistry
from gateway.sessions.store import ISessionStore, MemoryStore
from gateway.settings import HTTPSettings, ServerSettings, StdioSettings
from gateway.wire.exchange import Serve

__all__ = ["GatewayService", "State"]

_LOOK = 0.1
"""Seconds between two looks whether the last call has finished while draining."""


class State(Enum):
    """What a gateway does."""

    STOPPED = "stopped"
    STARTING = "starting"
    READY = "ready"
    DRAINING = "draining"


@define(eq=False)
class _Running:
    """What exists between a start and the stop that follows it."""

    shared: Shared
    servers: list[IServer]
    proxies: list[StreamableEndpoint]
    reaper: Reaper
    door: Door
    mounted: Door
    routes: Mapping[bytes, Serve]
    memory: MemoryWatch
    ports: list[IListeningPort] = field(factory=list)
    listeners: list[Listener] = field(factory=list)

    def busy(self) -> bool:
        """Whether a call runs."""
        sessions = any(session.running for session in self.shared.registry)
        return sessions or any(proxy.running() for proxy in self.proxies)


class GatewayService(Service):
    """
    One gateway.

    Life: made → `startService` listens and is ready → `stopService` drains and waits; may be
    started again. Nothing global is touched; several live in one process.

    configuration: what to serve. reactor: the host's. listen: whether it listens by itself; not
    where it is only a resource of a host's Site. authenticator, policy, observer, store:
    anonymous, allowing, silent and in memory by default. clock: measures every time; a monotonic
    one over the reactor's by default. servers: makes a server from its settings, in place of what
    the gateway would make.
    """

    def __init__(
        self,
        configuration: Configuration,
        reactor: Any,
        *,
        listen: bool = True,
        authenticator: IAuthenticator | None = None,
        policy: IPolicy | None = None,
        observer: IObserver | None = None,
        store: ISessionStore | None = None,
        clock: IReactorTime | None = None,
        servers: Callable[[ServerSettings], IServer] | None = None,
    ) -> None:
        self.configuration = configuration
        self.state = State.STOPPED
        self._reactor = reactor
        self._clock: IReactorTime = clock or MonotonicClock(reactor)
        self._servers = servers
        self._listens = listen
        self._authenticator = authenticator or AnonymousAuthenticator()
        self._policy = policy or AllowAll()
        self._observer = observer or NullObserver()
        self._store = store or MemoryStore()
        self._verdicts = Verdicts(configuration.gateway.limits, self._clock, self._observer)
        self._run: _Running | None = None
        self._stopped: list[Deferred[None]] = []
        self._log = Logger()

    # Starting.

    def privilegedStartService(self) -> None:
        """
        Listen, so that a taken port is known before anything else is started.

        Raises: twisted.internet.error.CannotListenError; RuntimeError while it still drains.
        """
        self._mayStart()
        super().privilegedStartService()
        if self._run is None:
            self._start()

    def startService(self) -> None:
        """Be ready. Raises as privilegedStartService, where that was not called."""
        self._mayStart()
        super().startService()
        if self._run is None:
            self._start()
        self.state = State.READY

    def _mayStart(self) -> None:
        if self.state is State.DRAINING:
            raise RuntimeError("the gateway still drains: start it when stopService has fired")

    def _start(self) -> None:
        self.state = State.STARTING
        run = self._assemble()
        listen = self.configuration.gateway.listen if self._listens else ()
        endpoints = [serverFromString(self._reactor, text) for text in listen]
        try:
            self._listen(run, endpoints)
        except BaseException:
            self.state = State.STOPPED
            for port in run.ports:
                port.stopListening()
            raise
        run.memory.start()
        self._run = run

    def _listen(self, run: _Running, endpoints: Sequence[IStreamServerEndpoint]) -> None:
        for endpoint in endpoints:
            shared = run.shared
            site = GatewaySite(run.door, self._reactor)
            listener = Listener(
                site, shared.limits, shared.clock, shared.observer, routes=run.routes
            )
            problems: list[Failure] = []
            listener.listen(endpoint).addCallbacks(run.ports.append, problems.append)
            run.listeners.append(listener)
            for problem in problems:
                problem.raiseException()

    def _assemble(self) -> _Running:
        settings = self.configuration.gateway
        limits, clock, observer = settings.limits, self._clock, self._observer
        shared = Shared(
            registry=SessionRegistry(clock, limits, self._store, observer),
            guard=HostGuard(settings.allowed_hosts, settings.allowed_origins),
            authenticator=self._authenticator,
            policy=self._policy,
            limits=limits,
            clock=clock,
            observer=observer,
        )
        ladder = Ladder(shared)
        reaper = Reaper(self._reactor)
        make = self._servers or partial(self._server, reaper=reaper)
        mounts: dict[str, Mount] = {}
        servers: list[IServer] = []
        default: str | None = None
        for configured in self.configuration.servers:
            server = make(configured)
            if ITwoEraServer.providedBy(server):
                server = EraServer(server, limits, clock, observer, self._verdicts)
            if configured.isolation == "shared":
                server = SharedServer(server, limits, self._clock, self._observer)
            servers.append(server)
            mounts[configured.name] = _mount(server, shared, ladder)
            if configured.default or len(self.configuration.servers) == 1:
                default = configured.name
        app = GatewayApp(ladder, mounts, default, lambda: self.state is State.READY)
        root = app.app.resource()
        door, mounted = (Door(ladder, root, mounted=mounted) for mounted in (False, True))
        proxies = [mount.http for mount in mounts.values()]
        limit = settings.memory_limit
        memory = MemoryWatch(
            clock,
            observer,
            shared.load,
            limitOfCgroup() if limit is None else limit,
            shared.registry.endIdle,
        )
        return _Running(shared, servers, proxies, reaper, door, mounted, app.routes(), memory)

    def _server(self, settings: ServerSettings, reaper: Reaper) -> IServer:
        limits = self.configuration.gateway.limits
        if isinstance(settings, StdioSettings):
            return StdioServer(settings, limits, self._reactor, self._clock, self._observer, reaper)
        return HTTPServer(settings, limits, self._reactor, self._clock, self._observer)

    # While it runs.

    @property
    def ports(self) -> list[IListeningPort]:
        """The listening ports; empty unless started."""
        return [] if self._run is None else list(self._run.ports)

    @property
    def registry(self) -> SessionRegistry:
        """The one session registry. Only while started."""
        return self._started().shared.registry

    def resource(self) -> IResource:
        """
        The gateway as a resource for somebody's Site, at any place in its tree.

        It can be had before the start and serves across starts and stops; meanwhile it answers 503.

        Raises: ValueError where no allowed hosts are configured: under which names a host's Site
            is reached, only the host knows.
        """
        if not self.configuration.gateway.allowed_hosts:
            raise ValueError(
                "a gateway under a Site needs gateway.allowed_hosts: the names by which clients "
                'reach the Site, such as ["mcp.example.com", "localhost:*"]'
            )
        return MountedDoor(self._mounted, self.configuration.gateway.limits.retry_after)

    def _mounted(self) -> Door | None:
        return None if self._run is None else self._run.mounted

    def _started(self) -> _Running:
        if self._run is None:
            raise RuntimeError("the gateway is not started")
        return self._run

    # Stopping.

    def stopService(self) -> Deferred[None]:
        """
        Drain and stop. May be called again meanwhile.

        Fires when no child and no connection of it is left.
        """
        run, self._run = self._run, None
        if run is not None:
            super().stopService()
            self.state = State.DRAINING
            draining = Deferred.fromCoroutine(self._drain(run))
            draining.addBoth(self._drained)
        if self.state is not State.DRAINING:
            return succeed(None)
        stopped: Deferred[None] = Deferred()
        self._stopped.append(stopped)
        return stopped

    def _drained(self, result: object) -> None:
        self.state = State.STOPPED
        if isinstance(result, Failure):
            self._log.failure("while the gateway stopped", result)
        stopped, self._stopped = self._stopped, []
        for waiting in stopped:
            waiting.callback(None)

    async def _drain(self, run: _Running) -> None:
        shared = run.shared
        shared.accepting = False
        run.memory.stop()
        for listener in run.listeners:
            listener.closing = True
        await _all([port.stopListening() for port in run.ports])
        until = self._clock.seconds() + shared.limits.drain_grace
        while run.busy():
            if self._clock.seconds() >= until:
                self._observer.observed(BoundReached("drain_grace"))
                break
            await deferLater(self._clock, _LOOK)
        await _all([shared.registry.end(session, "shutdown") for session in shared.registry])
        await _all([Deferred.fromCoroutine(proxy.stop()) for proxy in run.proxies])
        await _all([server.drain() for server in run.servers])
        await run.reaper.close()
        patience = shared.limits.hang_up_wait
        reached = BoundReached("hang_up_wait")
        await _all(
            [
                one.hangUp(patience, lambda: self._observer.observed(reached))
                for one in run.listeners
            ]
        )
        shared.pulse.stop()


def _mount(server: IServer, shared: Shared, ladder: Ladder) -> Mount:
    settings = server.settings
    passing = isinstance(settings, HTTPSettings) and settings.proxy == "transparent"
    kind = TransparentProxy if passing and settings.isolation == "session" else StreamableProxy
    return Mount(kind(server, shared, ladder), SSEProxy(server, shared, ladder))


async def _all(deferreds: Sequence[Deferred[None] | None]) -> None:
    """Wait for all, whatever becomes of each; a failure is logged."""
    log = Logger()
    for succeeded, result in await DeferredList([d for d in deferreds if d is not None]):
        if not succeeded:
            log.failure("while the gateway stopped", result)
