"""
Finding out which eras a server speaks, and what becomes of the verdict.

 1. What is configured (`era`) or known is not asked for. Else the server is asked
    `server/discover`, once for all who wait for it.
 2. A server that fails `initialize` as one of the modern era alone does (its own error, a refusal
    by HTTP below 500, silence or an exit of a child) is asked for its era, unless that is known.
    A server that knows both had its reasons: the client gets its error.
 3. A verdict that fails is dropped and found anew; so not more often than every DOUBT_WAIT.
 4. What all are told of a server never rests on a request of one client's alone, whose header or
    parameters may be what was refused: the gateway asks in its own name, too.

To find out whether a server is modern takes a link of the modern era; who needs one next gets it.
"""

from __future__ import annotations

from attrs import define, field
from twisted.internet.defer import CancelledError, Deferred, succeed
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from gateway.links.handover import Handover
from gateway.links.hello import ownHello
from gateway.links.interfaces import (
    ILink,
    ILinkListener,
    ITwoEraServer,
    LinkFailed,
    NotModern,
    Reason,
)
from gateway.links.opening import SAYS_NOTHING, saysModern
from gateway.observe.observer import IObserver
from gateway.servers.verdicts import Verdict, Verdicts
from gateway.settings import HTTPSettings
from gateway.wire.context import CallContext
from gateway.wire.envelope import Message, members, text
from gateway.wire.modern import SERVER_INFO, errorCode
from gateway.wire.revisions import LEGACY

__all__ = ["DOUBT_WAIT", "SPARE_WAIT", "EraFinder", "letGo"]

DOUBT_WAIT = 30.0
"""Seconds for which a verdict that was found anew is not doubted again."""
SPARE_WAIT = 5.0
"""Seconds for which a link that was made to find out is kept for who needs one."""

_SET = {
    "modern": Verdict(modern=True, legacy=False, firm=True),
    "legacy": Verdict(modern=False, legacy=True, firm=True),
}
_NO_ANSWER = (Reason.SERVER_EXITED, Reason.TIMEOUT)
_CREDENTIALS_REFUSED = (401, 403)

_log = Logger()


@define(eq=False, repr=False)
class EraFinder:
    """
    What is known of one server's eras, and how that is found. Life: its EraServer's.

    inner: the server that is asked. verdicts: the gateway's; what is found is kept there.
    """

    inner: ITwoEraServer
    clock: IReactorTime
    observer: IObserver
    verdicts: Verdicts
    _key: bytes = field(init=False)
    _set: Verdict | None = field(init=False)
    _finding: Deferred[bool] | None = field(default=None, init=False)
    _waiters: dict[Deferred[bool], CallContext] = field(factory=dict, init=False)
    _spare: _Spare | None = field(default=None, init=False)
    _doubtAgain: float = field(default=float("-inf"), init=False)
    _stopped: bool = field(default=False, init=False)

    def __attrs_post_init__(self) -> None:
        settings = self.inner.settings
        self._key = self.verdicts.keyOf(settings)
        self._set = _SET.get(settings.era)

    @property
    def verdict(self) -> Verdict:
        """What is known of the server, or configured."""
        return self._set or self.verdicts.of(self._key)

    @property
    def name(self) -> str:
        """The server's."""
        return self.inner.name

    @property
    def http(self) -> bool:
        """Whether it is reached over HTTP."""
        return isinstance(self.inner.settings, HTTPSettings)

    # By a handshake of the legacy era.

    def spokeLegacy(self, answer: Message) -> None:
        """It answered `initialize`."""
        self._found(answer, legacy=True)

    async def onlyModern(self, failed: LinkFailed, context: CallContext) -> bool:
        """
        Whether `initialize` failed because the server is modern only.

        Raises: LinkFailed, where the server turns out to be modern, but there is no link.
        """
        if not self._couldBeModern(failed):
            return False
        verdict = self.verdict
        refusal = saysModern(failed) or (
            failed.answer is not None and errorCode(failed.answer) == -32601
        )
        if verdict.modern is False or verdict.legacy:
            # A server's own error contradicts what its silence seemed to say.
            answered = failed.answer is not None or failed.status > 0
            contradicted = refusal or (answered and not verdict.firm)
            if not contradicted or not self.doubt():
                return False
        try:
            if not await self.findModern(context):
                return False
        except LinkFailed as error:
            if error.reason is not Reason.BAD_ANSWER or _saysNothing(error):
                return False
            raise
        legacy = await self._speaksLegacy(context)
        if legacy is not None:
            self._found(None, legacy=legacy)
        return legacy is False

    def _couldBeModern(self, failed: LinkFailed) -> bool:
        if failed.retryAfter or _saysNothing(failed):
            return False
        if failed.answer is not None or failed.reason is Reason.BAD_ANSWER:
            return True
        return failed.reason in _NO_ANSWER and not self.http

    async def _speaksLegacy(self, context: CallContext) -> bool | None:
        """
        Whether a modern server answers an `initialize` of ours: then a client's was at fault. None
        where that could not be found out.
        """
        for asking in self._askings(context):
            listener = Handover(self.name, self.observer)
            try:
                link = await self.inner.link(ownHello(LEGACY[0]), listener, asking)
            except LinkFailed as failed:
                if self._couldBeModern(failed):
                    return False
            else:
                letGo(link)
                return True
        return None

    def _askings(self, context: CallContext) -> list[CallContext]:
        """
        In which contexts to ask for what everybody is told: first in one of nobody, since a client
        could bring a header for which a server refuses it whatever it speaks; then in the client's,
        whose credentials may be needed for an answer.
        """
        bare = CallContext(self.name)
        return [bare, context] if self.http and context.headers else [bare]

    # By one of the modern era.

    def modernLink(self, listener: ILinkListener, context: CallContext) -> Deferred[ILink]:
        """See ITwoEraServer. Keeps the verdict by what becomes of it."""
        spare = self._spare
        if spare is not None and spare.fits(context):
            self._spare = None
            return succeed(spare.take(listener))
        return Deferred.fromCoroutine(self._modernLink(listener, context))

    async def _modernLink(self, listener: ILinkListener, context: CallContext) -> ILink:
        try:
            link = await self.inner.modernLink(listener, context)
        except NotModern as failed:
            firm = failed.reason not in _NO_ANSWER or self.verdict.legacy is True
            if self._set is None and len(self._askings(context)) > 1:
                told = await self._speaksModern()
                if told:
                    why = "the server refused what its client sent"
                    raise LinkFailed(failed.reason, why, failed.answer, failed.status) from failed
                firm = firm and (told is False or failed.answer is not None)
            self._found(failed.answer, modern=False, firm=firm)
            raise
        self._found(link.answer, modern=True)
        return link

    async def _speaksModern(self) -> bool | None:
        """Whether an HTTP server is modern to one who sends no header; None: it does not say."""
        try:
            link = await self.inner.modernLink(
                Handover(self.name, self.observer), CallContext(self.name)
            )
        except NotModern:
            return False
        except LinkFailed:
            return None
        self._found(link.answer, modern=True)
        letGo(link)
        return True

    def findModern(self, context: CallContext) -> Deferred[bool]:
        """
        Whether the server speaks the modern era; asks it where that is not known.

        Fails with LinkFailed where it could not be asked, or is modern but speaks no revision of
        ours. Cancelling stops the wait, and not what others wait for.
        """
        modern = self.verdict.modern
        if modern is not None:
            return succeed(modern)
        waiter: Deferred[bool] = Deferred(self._gaveUp)
        self._waiters[waiter] = context
        if self._finding is None:
            self._find(context)
        return waiter

    def _gaveUp(self, waiter: Deferred[bool]) -> None:
        self._waiters.pop(waiter, None)

    def doubt(self) -> bool:
        """
        What is known proved wrong: ask anew, the next time it matters.

        Returns: whether that is so: not where it is configured, nor soon after the last doubt.
        """
        now = self.clock.seconds()
        if self._set is not None or now < self._doubtAgain:
            return False
        self._doubtAgain = now + DOUBT_WAIT
        self.verdicts.drop(self._key)
        return True

    def _saysOtherwise(self, failed: LinkFailed) -> bool:
        """Whether it failed as a legacy server does."""
        if isinstance(failed, NotModern):
            return True
        return failed.reason in _NO_ANSWER and not self.http

    def doubted(self, failed: LinkFailed) -> bool:
        """A server known to be modern failed: whether it may be a legacy one, and is asked anew."""
        known = self.verdict
        if not self._saysOtherwise(failed) or not self.doubt():
            return False
        if known.modern is False:
            # It has just said so.
            self._found(failed.answer, modern=False, firm=known.firm)
        return True

    # Finding out.

    def _find(self, context: CallContext) -> None:
        finding = self._finding = Deferred.fromCoroutine(self._probe(context))
        finding.addBoth(self._answered, context)

    async def _probe(self, context: CallContext) -> bool:
        handover = Handover(self.name, self.observer)
        try:
            link = await self._modernLink(handover, context)
        except NotModern:
            return False
        except LinkFailed:
            if self.verdict.modern:
                # Only who asked is refused; the server says by itself why.
                return True
            raise
        if self._stopped or handover.over:
            letGo(link)
        else:
            self._spare = _Spare(self, link, handover, context)
        return True

    def _answered(self, result: bool | Failure, context: CallContext) -> None:
        self._finding = None
        waiters, self._waiters = self._waiters, {}
        error = result.value if isinstance(result, Failure) else None
        others: dict[Deferred[bool], CallContext] = {}
        if isinstance(error, LinkFailed) and error.status in _CREDENTIALS_REFUSED:
            # Others wait, too, and theirs may be better.
            others = {w: c for w, c in waiters.items() if c.headers != context.headers}
        if others:
            self._waiters = others
            self._find(next(iter(others.values())))
        for waiter in waiters:
            if waiter in others or waiter.called:
                continue
            if isinstance(error, CancelledError):
                waiter.errback(LinkFailed(Reason.SHUTTING_DOWN, "the server is being shut down"))
            elif error is not None:
                waiter.errback(error)
            else:
                waiter.callback(result is True)

    def _found(
        self,
        answer: Message | None,
        modern: bool | None = None,
        legacy: bool | None = None,
        firm: bool = True,
    ) -> None:
        if self._set is None:
            identity = None if answer is None else _identity(answer)
            self.verdicts.found(
                self._key, self.name, modern=modern, legacy=legacy, firm=firm, identity=identity
            )

    def spareLeft(self, spare: _Spare) -> None:
        """Nobody needed it."""
        if self._spare is spare:
            self._spare = None

    def stop(self) -> None:
        """Ask no more, and keep nothing."""
        self._stopped = True
        if self._finding is not None:
            self._finding.cancel()
        if self._spare is not None:
            self._spare.close()


@define(eq=False, repr=False)
class _Spare:
    """
    A link that was made to find out about its server, for SPARE_WAIT seconds.

    One to a child fits everybody; one over HTTP only who asks with the same header, for what it
    was told may be that one's.
    """

    _finder: EraFinder
    _link: ILink
    _handover: Handover
    _context: CallContext
    _timer: IDelayedCall = field(init=False)

    def __attrs_post_init__(self) -> None:
        self._timer = self._finder.clock.callLater(SPARE_WAIT, self._unused)

    def fits(self, context: CallContext) -> bool:
        """Whether it may be given to who asks in this context."""
        if self._handover.over:
            self.close()
            return False
        http = self._finder.http
        return not http or context == self._context

    def take(self, listener: ILinkListener) -> ILink:
        """Give it away."""
        self._timer.cancel()
        self._handover.to(listener)
        return self._link

    def close(self) -> None:
        """Nobody needs it any more."""
        if self._timer.active():
            self._timer.cancel()
        self._unused()

    def _unused(self) -> None:
        self._finder.spareLeft(self)
        letGo(self._link)


def _saysNothing(failed: LinkFailed) -> bool:
    """Whether an HTTP status came from who would not say what the server speaks."""
    return failed.status in SAYS_NOTHING or failed.status >= 500


def letGo(link: ILink) -> None:
    """Close a link that nobody needs."""
    link.close().addErrback(lambda failure: _log.failure("a link closed", failure))


def _identity(answer: Message) -> tuple[str, str] | None:
    """The name and version that a server gives in its answer to a handshake of either era."""
    result = members(answer.fields.get("result"))
    info = members(result.get("serverInfo") or members(result.get("_meta")).get(SERVER_INFO))
    said = [text(bytes(info.get(name, b""))) for name in ("name", "version")]
    name, version = said
    if name is None or version is None:
        return None
    return name[:256], version[:256]
