"""What processes cost, from `/proc` and their CPU clocks. Linux only."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from pathlib import Path

from attrs import frozen

__all__ = ["Process", "Usage", "cpuSeconds", "memory", "parseStat", "processes", "tree", "usage"]

_PROC = Path("/proc")


@frozen
class Process:
    """
    One line of the process table.

    started: clock ticks after boot; with the pid it names a process for good.
    """

    pid: int
    parent: int
    state: str
    started: int


def parseStat(text: str) -> Process:
    """Read `/proc/PID/stat`; the program's name in it may hold anything, also parentheses."""
    pid, _, rest = text.partition(" (")
    fields = rest.rpartition(") ")[2].split()
    return Process(int(pid), int(fields[1]), fields[0], int(fields[19]))


def processes() -> dict[int, Process]:
    """The process table."""
    found = {}
    for entry in _PROC.iterdir():
        if entry.name.isdigit():
            try:
                found[int(entry.name)] = parseStat((entry / "stat").read_text())
            except OSError:
                continue  # it has ended
    return found


def tree(
    table: dict[int, Process], root: int, without: Callable[[int], bool] = lambda pid: False
) -> list[int]:
    """
    A process and its descendants.

    without: says of a descendant that it and its own do not belong to it.
    """
    children: dict[int, list[int]] = {}
    for process in table.values():
        children.setdefault(process.parent, []).append(process.pid)
    found, look = [], [root] if root in table else []
    while look:
        pid = look.pop()
        if pid != root and without(pid):
            continue
        found.append(pid)
        look += children.get(pid, [])
    return found


def commandLine(pid: int) -> bytes:
    """Its command line; b"" where it has ended."""
    try:
        return (_PROC / str(pid) / "cmdline").read_bytes()
    except OSError:
        return b""


def cpuSeconds(pid: int) -> float:
    """
    CPU seconds of all threads of a process, ended ones too, to the nanosecond.

    Its CPU clock: the kernel makes the id of that from the pid (`clock_getcpuclockid`, which
    Python does not have). `utime` and `stime` of `/proc/PID/stat` count in steps of 10 ms.
    """
    return time.clock_gettime((~pid << 3) | 2)


def parseRollup(text: str) -> tuple[int, int]:
    """`Rss` and `Pss` of `/proc/PID/smaps_rollup`, in bytes."""
    values = {}
    for line in text.splitlines():
        name, _, value = line.partition(":")
        if name in ("Rss", "Pss"):
            values[name] = int(value.split()[0]) * 1024
    return values["Rss"], values["Pss"]


def memory(pid: int) -> tuple[int, int]:
    """
    Resident and proportional bytes of a process.

    Counted page by page: `VmRSS` may be off by some pages for each thread.
    """
    return parseRollup((_PROC / str(pid) / "smaps_rollup").read_text())


@frozen
class Usage:
    """What a gateway's own processes have used, each by its pid. `cpu` in seconds."""

    cpu: dict[int, float]

    def since(self, before: Usage) -> float:
        """CPU seconds since then. What ended meanwhile is not in it."""
        return sum(cpu - before.cpu.get(pid, 0.0) for pid, cpu in self.cpu.items())


def usage(pids: Iterable[int]) -> Usage:
    """The CPU that these have used."""
    found = {}
    for pid in pids:
        try:
            found[pid] = cpuSeconds(pid)
        except OSError:
            continue  # it has ended
    return Usage(found)
