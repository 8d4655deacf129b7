"""
How short memory is, and what is done about it: in three stages, before the system does worse.

 | of `memory_limit` | stage | |
 |---|---|---|
 | 85 % | 1 | no new session |
 | 92 % | 2 | and idle sessions end, the longest unused first, a tenth at each look |
 | 95 % | 3 | and no new call; half of the idle sessions at each look |

 1. What counts is what the gateway itself has in memory (`/proc/self/statm`), not its children.
 2. It is looked at once in LOOK seconds; between two looks it costs nothing.
 3. A stage is left EASE of the limit below where it began, so that it does not come and go.
 4. In every stage what is free goes back to the system, where the C library can do that, and every
    COLLECT seconds garbage is looked for, which else goes by numbers and not by size: what is
    merely free inside the process would keep a stage for ever.

Where memory is not short, what a burst left free goes back, too, but seldom (`FreedMemory`).
"""

from __future__ import annotations

import ctypes
import gc
import os
from collections.abc import Callable
from pathlib import Path

from attrs import define, field
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger

from gateway.guard.load import Load, Stage
from gateway.observe.observer import IObserver, MemoryPressed

__all__ = [
    "EASE",
    "KEPT",
    "LOOK",
    "REVIEW",
    "STAGES",
    "FreedMemory",
    "MemoryWatch",
    "limitOfCgroup",
    "resident",
    "stageOf",
]

_log = Logger()

STAGES = ((Stage.REFUSE_CALLS, 0.95), (Stage.CLOSE_IDLE, 0.92), (Stage.NO_SESSIONS, 0.85))
"""Each stage, and the part of the limit at which it begins."""

EASE = 0.03
"""The part of the limit by which memory must fall below that before the stage ends."""

LOOK = 0.25
"""Seconds between two looks."""

COLLECT = 5.0
"""Seconds between two looks for garbage while memory is short."""

KEPT = 64 * 1024 * 1024
"""Bytes that a gateway may have over what it began with before what is free of it is given back."""

REVIEW = 30.0
"""Seconds between two looks for such; twice as many after one that was in vain, up to _SELDOM."""

_SELDOM = 480.0
_PAGE = os.sysconf("SC_PAGE_SIZE")


def stageOf(used: int, limit: int, before: int) -> int:
    """
    The stage for so many bytes of a limit.

    before: the stage at the last look; it is left only EASE below where it begins.
    """
    for stage, part in STAGES:
        if used >= limit * (part - EASE if stage <= before else part):
            return stage
    return Stage.CALM


def resident(statm: Path = Path("/proc/self/statm")) -> int:
    """Bytes that this process has in memory; 0 where the system does not say."""
    try:
        return int(statm.read_text().split()[1]) * _PAGE
    except (OSError, ValueError, IndexError):
        return 0


def limitOfCgroup(
    root: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")
) -> int:
    """The least `memory.max` (cgroup v2) that holds for this process, in bytes; 0 without one."""
    try:
        lines = own.read_text().splitlines()
    except OSError:
        return 0
    path = next((line[3:] for line in lines if line.startswith("0::")), "/")
    place = root.joinpath(path.lstrip("/"))
    limits = []
    for directory in (place, *place.parents):
        if not directory.is_relative_to(root):
            break
        try:
            said = (directory / "memory.max").read_text().strip()
        except OSError:
            continue
        if said.isdigit():
            limits.append(int(said))
    return min(limits, default=0)


def _trimmer() -> Callable[[], object]:
    """What gives free memory back to the system; nothing but in glibc."""
    try:
        trim = ctypes.CDLL(None).malloc_trim
    except (OSError, AttributeError):
        return lambda: None
    return lambda: trim(0)


@define(eq=False)
class MemoryWatch:
    """
    Looks at memory, and tells the Load its stage. Life: made → `start` → `stop`.

    limit: bytes. closeIdle: ends this part of the idle sessions. used: bytes now. trim,
    collect: see rule 4.
    """

    clock: IReactorTime
    observer: IObserver
    load: Load
    limit: int
    closeIdle: Callable[[float], int]
    used: Callable[[], int] = resident
    trim: Callable[[], object] = field(factory=_trimmer)
    collect: Callable[[], object] = gc.collect
    _collectAt: float = field(default=0.0, init=False)
    _timer: IDelayedCall | None = field(default=None, init=False)

    def start(self) -> None:
        """Look now, and then every LOOK seconds; not at all without a limit."""
        if self.limit:
            self._look()

    def stop(self) -> None:
        """Look no more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look(self) -> None:
        self._timer = self.clock.callLater(LOOK, self._look)
        before, used = self.load.stage, self.used()
        stage = stageOf(used, self.limit, before)
        if stage != before:
            self.load.pressed(stage)
            self.observer.observed(MemoryPressed(stage, used, self.limit))
            _log.warn(
                "memory: {used} of {limit} bytes, stage {stage}",
                used=used,
                limit=self.limit,
                stage=stage,
            )
        if stage >= Stage.CLOSE_IDLE:
            self.closeIdle(0.5 if stage >= Stage.REFUSE_CALLS else 0.1)
        if stage > Stage.CALM:
            self._free()

    def _free(self) -> None:
        now = self.clock.seconds()
        if now >= self._collectAt:
            self._collectAt = now + COLLECT
            self.collect()
        self.trim()


@define(eq=False)
class FreedMemory:
    """
    Gives back to the system what a burst of large bodies left free.

    The C library does that by itself with what lies above all that is in use, and with nothing
    below: 60 calls of 3.9 MB at once left 400 MB resident, all of it free. Life: made → `start` →
    `stop`. used, trim: as of MemoryWatch. (To give back 300 MB takes 25 ms.)
    """

    clock: IReactorTime
    used: Callable[[], int] = resident
    trim: Callable[[], object] = field(factory=_trimmer)
    _least: int = field(default=0, init=False)
    _delay: float = field(default=REVIEW, init=False)
    _timer: IDelayedCall | None = field(default=None, init=False)

    def start(self) -> None:
        """Look from now on."""
        self._least = self.used()
        self._timer = self.clock.callLater(self._delay, self._look)

    def stop(self) -> None:
        """Look no more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look(self) -> None:
        used, self._delay = self.used(), min(2 * self._delay, _SELDOM)
        if used < self._least + KEPT:
            self._delay = REVIEW
        else:
            self.trim()
            if self.used() <= used - KEPT // 2:
                self._delay = REVIEW
        self._timer = self.clock.callLater(self._delay, self._look)
