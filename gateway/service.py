"""
A gateway as a Twisted service: its servers, its one registry, its proxies and its listeners.

States: stopped → starting → ready → draining → stopped. While it is ready it may be given another
configuration. How it does both is told in `gateway.running`.
"""

# Twisted is annotated in part only.
# mypy: allow-untyped-calls

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from functools import partial
from typing import Any

import attrs
from twisted.application.service import Service
from twisted.internet.defer import Deferred, DeferredLock, succeed
from twisted.internet.interfaces import IListeningPort, IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web.resource import IResource

from gateway.clock import MonotonicClock
from gateway.config import Configuration, ConfigurationError, Problem
from gateway.doors.resource import Door, MountedDoor
from gateway.guard.authentication import AnonymousAuthenticator, IAuthenticator
from gateway.guard.hosts import HostGuard
from gateway.guard.load import Stage
from gateway.guard.memory import MemoryWatch, limitOfCgroup
from gateway.guard.policy import AllowAll, IPolicy
from gateway.links.interfaces import IServer, ITwoEraServer
from gateway.links.process import Reaper
from gateway.observe.observer import (
    ConfigurationReloaded,
    IObserver,
    NullObserver,
    ReloadRefused,
)
from gateway.proxies.shared import Shared
from gateway.running import Running
from gateway.servers.eras import EraServer
from gateway.servers.http import HTTPServer
from gateway.servers.shared import SharedServer
from gateway.servers.stdio import StdioServer
from gateway.servers.verdicts import Verdicts
from gateway.sessions.registry import SessionRegistry
from gateway.sessions.store import ISessionStore, MemoryStore
from gateway.settings import ServerSettings, StdioSettings

__all__ = ["GatewayService", "State"]


class State(Enum):
    """What a gateway does."""

    STOPPED = "stopped"
    STARTING = "starting"
    READY = "ready"
    DRAINING = "draining"


class GatewayService(Service):
    """
    One gateway.

    Life: made → `startService` listens and is ready → `stopService` drains and waits; may be
    started again. Nothing global is touched; several live in one process.

    configuration: what to serve. reactor: the host's. listen: whether it listens by itself; not
    where it is only a resource of a host's Site. authenticator, policy, observer, store:
    anonymous, allowing, silent and in memory by default. clock: measures every time; a monotonic
    one over the reactor's by default. servers: makes a server from its settings, in place of what
    the gateway would make; another one each time, whose `generation` is then set.
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
        # A table of its own, which a reload writes to.
        self._limits = attrs.evolve(configuration.gateway.limits)
        self._verdicts = Verdicts(self._limits, self._clock, self._observer)
        self._run: Running | None = None
        self._memory: MemoryWatch | None = None
        self._generation = 0
        self._reloads = DeferredLock()
        self._hosted = False
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
        self._generation += 1
        self._limits.adopt(self.configuration.gateway.limits)
        run = self._assemble()
        try:
            run.endpoints.listen(self._listen(self.configuration))
        except BaseException:
            self.state = State.STOPPED
            raise
        self._run = run
        self._watchMemory(run)

    def _watchMemory(self, run: Running) -> None:
        """Watch memory by the limit that is in force, from now on."""
        self._stopWatching()
        limit, shared = self.configuration.gateway.memory_limit, run.shared
        limit = limitOfCgroup() if limit is None else limit
        self._memory = MemoryWatch(self._clock, self._observer, shared.load, limit, run.endIdle)
        self._memory.start()

    def _stopWatching(self) -> None:
        if self._memory is not None:
            self._memory.stop()
            self._memory = None

    def _listen(self, configuration: Configuration) -> tuple[str, ...]:
        return configuration.gateway.listen if self._listens else ()

    def _assemble(self) -> Running:
        settings, limits = self.configuration.gateway, self._limits
        shared = Shared(
            registry=SessionRegistry(self._clock, limits, self._store, self._observer),
            guard=HostGuard(settings.allowed_hosts, settings.allowed_origins),
            authenticator=self._authenticator,
            policy=self._policy,
            limits=limits,
            clock=self._clock,
            observer=self._observer,
        )
        reaper = Reaper(self._reactor)
        return Running(
            self.configuration,
            self._generation,
            limits,
            self._reactor,
            shared,
            reaper,
            partial(self._server, reaper),
            lambda: self.state is State.READY,
        )

    def _server(self, reaper: Reaper, settings: ServerSettings, generation: int) -> IServer:
        """A server, and what stands before it."""
        limits, clock, observer = self._limits, self._clock, self._observer
        server: IServer
        if self._servers is not None:
            server = self._servers(settings)
            server.generation = generation
        elif isinstance(settings, StdioSettings):
            server = StdioServer(
                settings, limits, self._reactor, clock, observer, reaper, generation
            )
        else:
            server = HTTPServer(
                settings, limits, self._reactor, clock, observer, generation=generation
            )
        if ITwoEraServer.providedBy(server):
            server = EraServer(server, limits, clock, observer, self._verdicts)
        if settings.isolation == "shared":
            server = SharedServer(server, limits, clock, observer)
        return server

    # While it runs.

    @property
    def ports(self) -> list[IListeningPort]:
        """The listening ports; empty unless started, and while it drains."""
        return (
            [] if self._run is None or self.state is State.DRAINING else self._run.endpoints.ports
        )

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
        self._hosted = True
        return MountedDoor(self._mounted, self.configuration.gateway.limits.retry_after)

    def _mounted(self) -> Door | None:
        return None if self._run is None else self._run.mounted

    def _started(self) -> Running:
        if self._run is None:
            raise RuntimeError("the gateway is not started")
        return self._run

    # Reloading.

    def reload(self, configuration: Configuration) -> Deferred[None]:
        """
        Put another configuration in force: all of it, or nothing.

        Servers whose settings are the same go on untouched, with their sessions, links and
        children; what is removed or changed is retired (`gateway.generation`). One reload at a
        time; others wait for their turn.

        Fires when it is in force, while what was retired may still finish. Fails with
        ConfigurationError, which has every mistake, or with RuntimeError where the gateway is not
        started or drains; then nothing has changed. Cancelling gives up one that waits.
        """
        return self._reloads.run(lambda: Deferred.fromCoroutine(self._reload(configuration)))

    async def _reload(self, configuration: Configuration) -> None:
        run = self._run
        try:
            if run is None or self.state is State.DRAINING:
                drains = self.state is State.DRAINING
                why = "the gateway drains" if drains else "the gateway is not started"
                raise RuntimeError(f"{why}: it takes no other configuration")
            if self._hosted and not configuration.gateway.allowed_hosts:
                raise ConfigurationError([_hostsNeeded(configuration.source)])
            self._generation += 1
            change = await run.change(configuration, self._generation, self._listen(configuration))
        except (ConfigurationError, RuntimeError) as error:
            self.reloadRefused(error)
            raise
        before, self.configuration = self.configuration, configuration
        if before.gateway.memory_limit != configuration.gateway.memory_limit:
            run.shared.load.pressed(Stage.CALM)
            self._watchMemory(run)
        self._log.info("{source}: in force: {change}", source=configuration.source, change=change)
        for notice in configuration.notices:
            self._log.info("note: {notice}", notice=notice)
        if change.limits:
            self._log.info(
                "of the limits, those of heads hold for new connections, those of the event log "
                "for new sessions, max_upstream_connections, max_upstream_streams and "
                "max_tool_headers for servers that change or come; all others hold at once"
            )
        self._observer.observed(ConfigurationReloaded(change.added, change.changed, change.removed))

    def reloadRefused(self, error: ConfigurationError | RuntimeError) -> None:
        """A configuration was not taken, by `reload` or by whoever could not even read it."""
        self._log.error("the configuration is not taken, nothing changed: {error}", error=error)
        if isinstance(error, ConfigurationError):
            self._observer.observed(ReloadRefused("mistakes", len(error.problems)))
        else:
            draining = self.state is State.DRAINING
            self._observer.observed(ReloadRefused("draining" if draining else "stopped"))

    # Stopping.

    def stopService(self) -> Deferred[None]:
        """
        Drain and stop. May be called again meanwhile.

        Fires when no child and no connection of it is left.
        """
        run = self._run
        if run is not None and self.state is not State.DRAINING:
            super().stopService()
            self.state = State.DRAINING
            draining = Deferred.fromCoroutine(run.drain())
            draining.addBoth(self._drained)
        if self.state is not State.DRAINING:
            return succeed(None)
        stopped: Deferred[None] = Deferred()
        self._stopped.append(stopped)
        return stopped

    def _drained(self, result: object) -> None:
        # Until here: the answers of calls that still ran are kept, too.
        self._stopWatching()
        self._run = None
        self.state = State.STOPPED
        if isinstance(result, Failure):
            self._log.failure("while the gateway stopped", result)
        stopped, self._stopped = self._stopped, []
        for waiting in stopped:
            waiting.callback(None)


def _hostsNeeded(source: str) -> Problem:
    return Problem(
        source, "gateway.allowed_hosts", "none", "the names by which clients reach the host's Site"
    )
