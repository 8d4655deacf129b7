"""What was asked and how it ended, and whether that is as promised."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Container, Iterable
from pathlib import Path

from attrs import define, field

from .faults import HARMLESS, Fault

__all__ = ["Asked", "Book", "Wrong"]

_KEPT = 40
"""Broken promises that are told one by one."""
_STUCK = 4
"""Answered calls of one client that timed out, with which it counts as stuck."""
_REFUSED = ("never sent", "not taken", "unknown server")
"""Outcomes after which a call must not have been executed."""
_TOLD = 5
"""Tokens that are kept of each kind and outcome."""


class Wrong(Exception):
    """A promise that was broken; the text says which, and with which token."""


@define(eq=False)
class Asked:
    """One call that is under way. token: names it everywhere. session: that it is made in."""

    token: str
    fault: Fault
    id: object
    began: float
    session: str = ""

    def judge(self, messages: Iterable[dict]) -> str:
        """
        Judge what came to its caller on its stream; returns the outcome.

        Raises: Wrong.
        """
        answer = None
        for message in messages:
            if "method" in message:
                if message["method"] == "notifications/progress":
                    said = message["params"].get("message")
                    if said != self.token:
                        raise Wrong(f"{self.token}: crossed, progress of {said}")
            elif answer is not None:
                raise Wrong(f"{self.token}: answered twice, {answer}, {message}")
            else:
                answer = message
        if answer is None:
            raise Wrong(f"{self.token}: not answered")
        if type(answer.get("id")) is not type(self.id) or answer["id"] != self.id:
            raise Wrong(f"{self.token}: another's id, {answer}")
        if "result" in answer:
            said = (answer["result"].get("structuredContent") or {}).get("token")
            if said != self.token:
                raise Wrong(f"{self.token}: crossed, {str(answer)[:300]}")
            return "result"
        data = answer["error"].get("data") or {}
        if data.get("token", self.token) != self.token:
            raise Wrong(f"{self.token}: crossed, {answer}")
        reason = "its own error" if "token" in data else data.get("reason")
        return str(reason or f"error {answer['error']['code']}")


@define(eq=False)
class Book:
    """
    The ledger of one run.

    promptly: seconds in which each call must end. outcomes: how many of each kind ended how.
    questions: how many were asked of clients. wrong: the promises that were broken. slowest:
    seconds, of each kind. tokens: some of each kind and outcome.
    """

    promptly: float
    outcomes: dict[str, Counter[str]] = field(factory=lambda: defaultdict(Counter))
    openings: Counter[str] = field(factory=Counter)
    wrong: list[str] = field(factory=list)
    broken: int = 0
    asked: int = 0
    ended: int = 0
    questions: int = 0
    slowest: dict[str, float] = field(factory=lambda: defaultdict(float))
    tokens: dict[tuple[str, str], list[str]] = field(factory=lambda: defaultdict(list))
    _served: set[str] = field(factory=set)
    _refused: set[str] = field(factory=set)
    _open: set[str] = field(factory=set)
    _stuck: Counter[str] = field(factory=Counter)

    def ask(self, asked: Asked) -> None:
        if asked.token in self._open:
            raise AssertionError(asked.token)
        self.asked += 1
        self._open.add(asked.token)

    def end(self, asked: Asked, outcome: str, now: float) -> None:
        """A call ended. An outcome is told once."""
        if asked.token not in self._open:
            self.blame(f"{asked.token}: ended twice, {outcome}")
            return
        self._open.remove(asked.token)
        self.ended += 1
        verb = asked.fault.verb
        self.outcomes[verb][outcome] += 1
        if len(told := self.tokens[verb, outcome]) < _TOLD:
            told.append(asked.token)
        took = now - asked.began
        self.slowest[verb] = max(self.slowest[verb], took)
        if took > self.promptly:
            self.blame(f"{asked.token}: {verb} took {took:.1f} s, {outcome}")
        if outcome == "timeout" and asked.fault in HARMLESS:
            # Once or twice, a machine may be too busy; a stream that is stuck goes on to be.
            who = asked.token.rpartition(":")[0]
            self._stuck[who] += 1
            if self._stuck[who] == _STUCK:
                self.blame(f"{asked.token}: {verb} timed out again, though its server answered")
        if outcome == "result":
            self._served.add(asked.token)
        if outcome in _REFUSED or not asked.fault.runs:
            self._refused.add(asked.token)

    def blame(self, text: str) -> None:
        self.broken += 1
        if len(self.wrong) < _KEPT:
            self.wrong.append(text)

    def check(self, ledger: Path, shared: Container[str]) -> Counter[str]:
        """
        Compare with what the servers wrote down; what is wrong is added.

        ledger: lines of a token, a process, and the conversation in which it executed the call, "-"
        if there are none. The token of an answer to a question ends in "?". shared: the servers
        whose conversations are everybody's.
        Returns: how many calls were asked, answered and executed, in how many processes; and how
        many answers to questions came.
        """
        executed: set[str] = set()
        pids: set[str] = set()
        owners: dict[str, str] = {}
        if ledger.exists():
            with ledger.open(encoding="ascii") as lines:
                for line in lines:
                    token, pid, conversation = line.split()
                    if token in executed:
                        self.blame(f"{token}: executed twice, or answered what was asked once")
                    executed.add(token)
                    pids.add(pid)
                    _, server, _, principal, _ = token.split(":")
                    if conversation != "-" and server not in shared:
                        owner = owners.setdefault(f"{server} {conversation}", principal)
                        if owner != principal:
                            self.blame(f"{token}: executed in what is {owner or 'nobody'}'s")
        for token in self._open:
            self.blame(f"{token}: never ended")
        for token in self._served - executed:
            self.blame(f"{token}: answered, never executed")
        for token in self._refused & executed:
            self.blame(f"{token}: executed, though it was refused or never came whole")
        return Counter(
            calls=self.asked,
            answered=self.ended,
            executed=sum(not token.endswith("?") for token in executed),
            replies=sum(token.endswith("?") for token in executed),
            processes=len(pids),
        )
