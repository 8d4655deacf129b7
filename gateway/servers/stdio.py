"""A configured server that is a child process: one child for each link."""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import partial

from twisted.internet.defer import Deferred, fail, gatherResults
from twisted.internet.interfaces import IReactorProcess, IReactorTime
from twisted.logger import Logger
from zope.interface import implementer

from gateway.guard.limits import Limits
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
        attempt = self._breaker.begin(self._now)
        if attempt is None:
            why = "the server keeps failing and is left alone for a while"
            wait = self._breaker.wait(self._now)
            raise LinkFailed(Reason.UPSTREAM_UNREACHABLE, why, retryAfter=wait)
        try:
            program = self._program()
            link = StdioLink(self._parts, listener, partial(self._died, attempt))
            self._links.add(link)
            link.gone.addCallback(lambda _: self._links.discard(link))
            await link.open(program, opening, timeout)
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

    @property
    def _now(self) -> float:
        return self._parts.clock.seconds()

    def _failed(self, attempt: Attempt, failed: LinkFailed) -> None:
        if failed.reason is Reason.SHUTTING_DOWN:
            self._breaker.abandoned(attempt)
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
            self._opened()
        failed.retryAfter = self._breaker.wait(self._now)

    def _works(self, attempt: Attempt) -> None:
        if self._breaker.succeeded(attempt, self._now):
            _log.info("{server}: works again", server=self.name)
            self._parts.observer.observed(CircuitClosed(self.name))

    def _died(self, attempt: Attempt, calls: int) -> None:
        # Where a call ran, it may be its client's doing; others shall not pay for it.
        if not calls and self._breaker.died(attempt, self._now):
            self._opened()

    def _opened(self) -> None:
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
        closing = [link.close() for link in self._links]
        return gatherResults(closing).addCallback(lambda _: None)
