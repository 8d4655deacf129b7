"""A configured server that is a child process: one child for each link."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from functools import partial

from twisted.internet.defer import Deferred, fail, gatherResults
from twisted.internet.interfaces import IReactorProcess, IReactorTime
from twisted.logger import Logger
from zope.interface import implementer

from gateway.guard.limits import Limits
from gateway.links.handover import Handover
from gateway.links.interfaces import (
    Health,
    Hello,
    ILink,
    ILinkListener,
    ITwoEraServer,
    LinkFailed,
    NotModern,
    Reason,
)
from gateway.links.opening import Discover, Initialize, Opening
from gateway.links.process import Program, Reaper
from gateway.links.serverlog import ServerLog
from gateway.links.stdio import StdioLink, StdioParts
from gateway.observe.observer import BoundReached, CircuitClosed, CircuitOpened, IObserver
from gateway.servers.breaker import Attempt, Breaker
from gateway.servers.warm import WarmPool
from gateway.settings import StdioSettings
from gateway.wire.context import CallContext

__all__ = ["INHERITED", "StdioServer", "childEnvironment"]

_log = Logger()

INHERITED = frozenset(
    {
        # who and where the user is
        "HOME",
        "LOGNAME",
        "PATH",
        "SHELL",
        "TERM",
        "USER",
        # how text and time look; with these, every LC_* variable
        "LANG",
        "TZ",
        # where files go; uvx, npx and their like keep what they fetched there
        "TMPDIR",
        "XDG_CACHE_HOME",
        "XDG_CONFIG_HOME",
        "XDG_DATA_HOME",
        "XDG_RUNTIME_DIR",
        "XDG_STATE_HOME",
        # which certificates to trust
        "SSL_CERT_DIR",
        "SSL_CERT_FILE",
    }
)
"""The variables of the gateway's environment that a child gets; with them every LC_*."""


def childEnvironment(environ: Mapping[str, str], env: Mapping[str, str]) -> dict[str, str]:
    """
    The whole environment of a child.

    environ: the gateway's; of it, only what INHERITED allows, and no exported shell functions.
    env: what is configured for the server; wins.
    """
    inherited = {
        name: value
        for name, value in environ.items()
        if (name in INHERITED or name.startswith("LC_")) and not value.startswith("()")
    }
    return {**inherited, **env}


def _found(command: str, path: str, cwd: str) -> str:
    """
    The absolute path of a command, as execvp would find it from a directory.

    Raises: LinkFailed.
    """
    if "/" in command:
        candidates = [os.path.join(cwd, command)]
    else:
        candidates = [os.path.join(cwd, place, command) for place in path.split(os.pathsep)]
    files = [candidate for candidate in candidates if os.path.isfile(candidate)]
    for file in files:
        if os.access(file, os.X_OK):
            return file
    why = "command not executable" if files else "command not found"
    raise LinkFailed(Reason.UPSTREAM_UNREACHABLE, f"the server could not be started: {why}")


@implementer(ITwoEraServer)
class StdioServer:
    """
    A server reached over stdio; each link has a child of its own, so sessions are isolated.

    settings: the only source of the child's command, arguments, environment and directory.
    reaper: the gateway's; whoever made it closes it, after `drain`.
    environ: of the gateway; its own without.

    Whoever asked for a link closes it; `drain` closes all, and no further one is given. A child
    that cannot be started, gives no handshake or exits soon after it without having been asked
    anything is a failure for the Breaker; the server's own error to `initialize` is not, since
    the fault may be its client's, nor is what a legacy server does when it is asked whether it is
    modern. Servers over HTTP have no breaker: those refuse fast already.
    """

    def __init__(
        self,
        settings: StdioSettings,
        limits: Limits,
        reactor: IReactorProcess,
        clock: IReactorTime,
        observer: IObserver,
        reaper: Reaper,
        generation: int = 1,
        environ: Mapping[str, str] | None = None,
    ) -> None:
        self.name = settings.name
        self.generation = generation
        self.settings = settings
        log = ServerLog(settings.name, limits, clock, observer)
        self._parts = StdioParts(log, limits, reactor, clock, observer, reaper)
        self._environ = os.environ if environ is None else environ
        self._links: set[StdioLink] = set()
        self._health = Health.UNKNOWN
        self._drained = False
        self._provedModern = False
        self._breaker = Breaker(limits)
        self._warm: WarmPool | None = None
        if settings.warm:
            self._warm = WarmPool(settings.warm, limits, clock, self._started, self._failed)

    def link(
        self, hello: Hello, listener: ILinkListener, context: CallContext, ownStreams: bool = False
    ) -> Deferred[ILink]:
        """See IServer. Starts a child; nothing of `hello` or `context` shapes how."""
        return self._linked(listener, Initialize(hello.params), self.settings.handshake_timeout)

    def modernLink(self, listener: ILinkListener, context: CallContext) -> Deferred[ILink]:
        """
        See ITwoEraServer. Starts a child.

        Until the server proved to be modern, or is configured to be, it has `era_probe` seconds to
        answer.
        """
        limits, settings = self._parts.limits, self.settings
        patient = self._provedModern or settings.era == "modern"
        probe = min(limits.era_probe, settings.handshake_timeout)
        timeout = settings.handshake_timeout if patient else probe
        return self._linked(listener, Discover(http=False, patient=patient), timeout)

    def _linked(self, listener: ILinkListener, opening: Opening, timeout: float) -> Deferred[ILink]:
        if self._drained:
            return fail(LinkFailed(Reason.SHUTTING_DOWN, "the server is being shut down"))
        return Deferred.fromCoroutine(self._link(listener, opening, timeout))

    async def _link(self, listener: ILinkListener, opening: Opening, timeout: float) -> ILink:
        warm = None if self._warm is None else self._warm.take()
        if warm is not None:
            link, attempt = warm
            link.adopt(listener, partial(self._died, attempt))
            try:
                return await self._opened(link, attempt, None, opening, timeout)
            except NotModern:
                raise
            except LinkFailed as failed:
                if failed.reason is not Reason.SERVER_EXITED:
                    raise
                # It may have ended while it waited: one that was started for this may not.
        attempt = self._begun()
        link = StdioLink(self._parts, listener, partial(self._died, attempt))
        return await self._opened(link, attempt, self._program, opening, timeout)

    def _begun(self) -> Attempt:
        attempt = self._breaker.begin(self._now)
        if attempt is None:
            why = "the server keeps failing and is left alone for a while"
            wait = self._breaker.wait(self._now)
            raise LinkFailed(Reason.UPSTREAM_UNREACHABLE, why, retryAfter=wait)
        return attempt

    async def _opened(
        self,
        link: StdioLink,
        attempt: Attempt,
        program: Callable[[], Program] | None,
        opening: Opening,
        timeout: float,
    ) -> ILink:
        """A link whose handshake is made; program: what to start, None where it runs."""
        try:
            found = None if program is None else program()
            self._holds(link)
            await link.open(found, opening, timeout)
        except NotModern as failed:
            if failed.reason is Reason.TIMEOUT:
                self._parts.observer.observed(BoundReached("era_probe", self.name))
            self._breaker.abandoned(attempt)
            raise
        except LinkFailed as failed:
            self._failed(attempt, failed)
            raise
        except BaseException:
            self._breaker.abandoned(attempt)
            raise
        self._provedModern = opening.modern or self._provedModern
        self._health = Health.UP
        self._works(attempt)
        return link

    def _holds(self, link: StdioLink) -> None:
        if link not in self._links:
            self._links.add(link)
            link.gone.addCallback(lambda _: self._links.discard(link))

    def _started(self, spoilt: Callable[[StdioLink], None]) -> tuple[StdioLink, Attempt] | None:
        """One more warm child; None while the circuit is open, or where it could not be started."""
        if self._breaker.isOpen:
            return None
        attempt = self._begun()
        link = StdioLink(self._parts, Handover(self.name, self._parts.observer))
        try:
            program = self._program()
        except LinkFailed as failed:
            self._failed(attempt, failed)
            raise
        self._holds(link)
        if link.warm(program, spoilt):
            return link, attempt
        self._breaker.abandoned(attempt)
        return None

    @property
    def _now(self) -> float:
        return self._parts.clock.seconds()

    def _failed(self, attempt: Attempt, failed: LinkFailed) -> None:
        if failed.reason is Reason.SHUTTING_DOWN:
            self._breaker.abandoned(attempt)
            return
        if failed.reason is Reason.OVERLOADED:
            # The machine had no process, descriptor or memory to spare: no fault of the server's.
            self._breaker.abandoned(attempt)
            failed.retryAfter = 0.0
            return
        self._health = Health.DOWN
        _log.warn(
            "{server}: no handshake ({reason}): {message}",
            server=self.name,
            reason=failed.reason.value,
            message=failed.message,
        )
        if failed.answer is not None:
            self._works(attempt)
        elif self._breaker.failed(attempt, self._now):
            self._tellOpened()
        failed.retryAfter = self._breaker.wait(self._now)

    def _works(self, attempt: Attempt) -> None:
        if self._breaker.succeeded(attempt, self._now):
            _log.info("{server}: works again", server=self.name)
            self._parts.observer.observed(CircuitClosed(self.name))

    def _died(self, attempt: Attempt, calls: int) -> None:
        # Where a call ran, it may be its client's doing; others shall not pay for it.
        if not calls and self._breaker.died(attempt, self._now):
            self._tellOpened()
        elif not any(link.isOpen for link in self._links):
            # Whether it can be had again, the next handshake shows.
            self._health = Health.UNKNOWN

    def _tellOpened(self) -> None:
        wait = self._breaker.wait(self._now)
        _log.error("{server}: keeps failing, left alone for {wait} s", server=self.name, wait=wait)
        self._parts.observer.observed(BoundReached("circuit_failures", self.name))
        self._parts.observer.observed(CircuitOpened(self.name, wait))

    def _program(self) -> Program:
        settings = self.settings
        env = childEnvironment(self._environ, settings.env)
        cwd = os.path.abspath(settings.cwd) if settings.cwd else ""
        try:
            if cwd and not os.path.isdir(cwd):
                raise LinkFailed(
                    Reason.UPSTREAM_UNREACHABLE,
                    "the server could not be started: no working directory",
                )
            found = _found(settings.command, env.get("PATH", os.defpath), cwd or os.getcwd())
        except (LinkFailed, OSError, ValueError) as error:
            _log.warn(
                "{server}: cannot start {command!r} in {cwd!r}: {error}",
                server=self.name,
                command=settings.command,
                cwd=cwd,
                error=error,
            )
            if isinstance(error, LinkFailed):
                raise
            raise LinkFailed(
                Reason.UPSTREAM_UNREACHABLE, "the server could not be started"
            ) from error
        return Program(found, (settings.command, *settings.args), env, cwd)

    def health(self) -> Health:
        """See IServer: what the last handshake showed; down while the circuit is open."""
        return Health.DOWN if self._breaker.isOpen else self._health

    def drain(self) -> Deferred[None]:
        """See IServer."""
        self._drained = True
        if self._warm is not None:
            self._warm.stop()
        closing = [link.close() for link in self._links]
        return gatherResults(closing).addCallback(lambda _: None)
