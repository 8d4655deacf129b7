"""
What was found of the eras of servers, kept across reloads and restarts of the service. Pure.

MCP 2026-07-28, basic/versioning, Backward Compatibility: the era is a property of the server, and
is asked anew when what was remembered fails.
"""

from __future__ import annotations

import secrets
from hashlib import blake2b

import msgspec
from attrs import define, evolve, field, frozen
from twisted.internet.interfaces import IReactorTime

from gateway.guard.limits import Limits
from gateway.observe.observer import BoundReached, EraFound, IObserver
from gateway.settings import ServerSettings, StdioSettings

__all__ = ["Verdict", "Verdicts"]


@frozen
class Verdict:
    """
    Which eras a server speaks; None where that is not known.

    at: when it was found, in seconds of the gateway's clock.
    firm: whether the server said so; else it kept silent, or exited.
    identities: the name and version that the server gave in a handshake of either era.
    """

    modern: bool | None = None
    legacy: bool | None = None
    at: float = 0.0
    firm: bool = False
    identities: dict[str, tuple[str, str]] = field(factory=dict)

    @property
    def onlyModern(self) -> bool:
        """Whether legacy clients need a bridge."""
        return self.modern is True and self.legacy is False


_OPEN = Verdict()


@define(eq=False, repr=False)
class Verdicts:
    """
    The verdicts of one gateway, by what makes a server the same: its program, or its URL.

    At most `max_eras`; each for `era_verdict` seconds. Kept are salted hashes of the settings, for
    those hold secrets.
    """

    limits: Limits
    clock: IReactorTime
    observer: IObserver
    _salt: bytes = field(factory=lambda: secrets.token_bytes(16), init=False)
    _kept: dict[bytes, Verdict] = field(factory=dict, init=False)

    def keyOf(self, settings: ServerSettings) -> bytes:
        """What the verdict of a server is kept under."""
        if isinstance(settings, StdioSettings):
            env = sorted(settings.env.items())
            what: list[object] = ["stdio", settings.command, settings.args, env, settings.cwd]
        else:
            what = ["http", settings.url]
        return blake2b(msgspec.json.encode(what), key=self._salt, digest_size=16).digest()

    def of(self, key: bytes) -> Verdict:
        """What is known; an open verdict where nothing is, or not any more."""
        verdict = self._kept.get(key)
        if verdict is None:
            return _OPEN
        if self.clock.seconds() - verdict.at >= self.limits.era_verdict:
            del self._kept[key]
            return _OPEN
        return verdict

    def found(
        self,
        key: bytes,
        name: str,
        *,
        modern: bool | None = None,
        legacy: bool | None = None,
        firm: bool = True,
        identity: tuple[str, str] | None = None,
    ) -> Verdict:
        """
        Take in what was found of a server; the observer hears of it where it is new.

        identity: the name and version it gave in the handshake that told, of the modern era where
            modern is told. Where it gave another one before, what is None is not known any more;
            else it is left as it was.
        """
        before = self.of(key)
        era = "legacy" if modern is None else "modern"
        another = identity is not None and before.identities.get(era, identity) != identity
        old = _OPEN if another else before
        identities = dict(old.identities)
        if identity is not None:
            identities[era] = identity
        now = self.clock.seconds()
        verdict = Verdict(
            old.modern if modern is None else modern,
            old.legacy if legacy is None else legacy,
            now if old is _OPEN else old.at,
            firm or (old.firm and modern is None),
            identities,
        )
        if (verdict.modern, verdict.legacy) != (old.modern, old.legacy):
            verdict = evolve(verdict, at=now)
        if (verdict.modern, verdict.legacy) != (before.modern, before.legacy):
            self.observer.observed(EraFound(name, verdict.modern, verdict.legacy))
        self._keep(key, verdict, name)
        return verdict

    def drop(self, key: bytes) -> None:
        """It proved wrong."""
        self._kept.pop(key, None)

    def _keep(self, key: bytes, verdict: Verdict, name: str) -> None:
        self._kept[key] = verdict
        if len(self._kept) > self.limits.max_eras:
            del self._kept[next(iter(self._kept))]
            self.observer.observed(BoundReached("max_eras", name))
