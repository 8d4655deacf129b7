"""
How much runs at once, in the whole gateway and for each principal and address, and what is turned
away. Pure.

 1. Whoever lets a call in counts it, in its principal's Account and in the total; whoever ends it
    counts it out. A session does so for its calls (`gateway.sessions.registry`).
 2. A call is let in while the total is below `room` and its account below `each`. Where memory is
    short `room` is 0 (`gateway.guard.memory`), so that this is one look for both.
 3. Beyond `each`, `max_waiting_per_principal` more of a principal's calls wait for their turn
    (`gateway.guard.turns`).
 4. A call that is turned away fails at once, with when to come again.
"""

from __future__ import annotations

from attrs import define, field

from gateway.guard.limits import Limits
from gateway.guard.turns import Queue, Turn
from gateway.observe.observer import BoundReached, IObserver
from gateway.wire.context import Principal
from gateway.wire.refusals import Reason

__all__ = ["MEMORY", "Account", "Load", "Stage"]

MEMORY = "memory_limit"
"""The setting, and the name of the bound in events."""


class Stage:
    """How short memory is."""

    CALM = 0
    NO_SESSIONS = 1
    CLOSE_IDLE = 2
    REFUSE_CALLS = 3


@define(eq=False)
class Account:
    """
    What of one principal is there now: sessions, and calls.

    calls: those that run, and those that wait. queue: of these; None where none do.
    """

    sessions: int = 0
    calls: int = 0
    queue: Queue | None = None

    def left(self) -> None:
        """A call ended."""
        self.calls -= 1
        if self.queue is not None:
            self.serve()

    def serve(self) -> None:
        """Begin what waits, where there is room."""
        queue = self.queue
        if queue is not None:
            queue.serve()
            # Not from within: who joins meanwhile is to find this one.
            if not queue and not queue.serving:
                self.queue = None


@define(eq=False)
class Load:
    """
    What a gateway carries.

    total: all running calls. room: how many may run, of all. each: how many of one principal.
    stage: of Stage. suspended: how many have suspended the turns.
    """

    limits: Limits
    observer: IObserver
    total: Account = field(factory=Account, init=False)
    room: int = field(init=False)
    each: int = field(init=False)
    stage: int = field(default=Stage.CALM, init=False)
    suspended: int = field(default=0, init=False)
    _accounts: dict[Principal, Account] = field(factory=dict, init=False)
    _addresses: dict[str, int] = field(factory=dict, init=False)

    def __attrs_post_init__(self) -> None:
        self.adopted()

    def adopted(self) -> None:
        """The limits have changed."""
        self.each = self.limits.max_calls_per_principal
        self.pressed(self.stage)
        self._serveAll()

    def _serveAll(self) -> None:
        for account in list(self._accounts.values()):
            account.serve()

    def suspend(self) -> None:
        """
        No turn comes until `resume`. For whoever ends many calls at once: what one of them makes
        room for may be among those that end next, and must not begin before.
        """
        self.suspended += 1

    def resume(self) -> None:
        """Turns come again."""
        self.suspended -= 1
        if not self.suspended:
            self._serveAll()

    def pressed(self, stage: int) -> None:
        """Memory is this short now."""
        self.stage = stage
        self.room = 0 if stage >= Stage.REFUSE_CALLS else self.limits.max_calls_total

    # Accounts.

    def accountOf(self, principal: Principal) -> Account:
        """The account of a principal; `forget` it when nothing is in it any more."""
        account = self._accounts.get(principal)
        if account is None:
            account = self._accounts[principal] = Account()
        return account

    def forget(self, principal: Principal) -> None:
        """Something of a principal's is over: keep no empty account."""
        account = self._accounts.get(principal)
        if account is not None and not (account.sessions or account.calls):
            del self._accounts[principal]

    def __len__(self) -> int:
        return len(self._accounts) + len(self._addresses)

    # Calls.

    def has(self, principal: Principal) -> bool:
        """Whether there is room for one more call of a principal's."""
        return self.total.calls < self.room and self._callsOf(principal) < self.each

    def mayWait(self, account: Account) -> bool:
        """Whether one more call may wait for its turn, where there is no room for it now."""
        each, more = self.each, self.limits.max_waiting_per_principal
        return self.total.calls < self.room and each <= account.calls < each + more

    def wait(self, account: Account, turn: Turn) -> None:
        """Have a call wait, which is counted in the account already."""
        if account.queue is None:
            account.queue = Queue(account, self)
        account.queue.join(turn)

    def _callsOf(self, principal: Principal) -> int:
        # Whoever has none gets no account by being asked for.
        account = self._accounts.get(principal)
        return 0 if account is None else account.calls

    def refused(self, principal: Principal, server: str) -> tuple[Reason, str]:
        """Why a call is turned away, for which there is no room."""
        if self._callsOf(principal) >= self.each and self.stage < Stage.REFUSE_CALLS:
            waits = self.limits.max_waiting_per_principal > 0
            bound = "max_waiting_per_principal" if waits else "max_calls_per_principal"
            self.observer.observed(BoundReached(bound, server))
            return Reason.RATE_LIMITED, "too many calls of yours run"
        short = self.stage >= Stage.REFUSE_CALLS
        self.observer.observed(BoundReached(MEMORY if short else "max_calls_total", server))
        return Reason.OVERLOADED, "the gateway has too much to do"

    # Sessions.

    def hasRoom(self, sessions: int, principal: Principal, address: str) -> bool:
        """Whether there is room for one more session, with so many there; says so if not."""
        limits = self.limits
        account = self._accounts.get(principal)
        bound = ""
        if self.stage >= Stage.NO_SESSIONS:
            bound = MEMORY
        elif sessions >= limits.max_sessions:
            bound = "max_sessions"
        elif account is not None and account.sessions >= limits.max_sessions_per_principal:
            bound = "max_sessions_per_principal"
        elif self._addresses.get(address, 0) >= limits.max_sessions_per_address:
            bound = "max_sessions_per_address"
        if bound:
            self.observer.observed(BoundReached(bound))
        return not bound

    def sessionOpened(self, principal: Principal, address: str) -> Account:
        """One more session; address: its client's, "" where there is none. Its account."""
        account = self.accountOf(principal)
        account.sessions += 1
        if address:
            self._addresses[address] = self._addresses.get(address, 0) + 1
        return account

    def sessionClosed(self, account: Account, address: str) -> None:
        """One session less."""
        account.sessions -= 1
        if address:
            left = self._addresses[address] - 1
            if left:
                self._addresses[address] = left
            else:
                del self._addresses[address]
