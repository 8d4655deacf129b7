"""
A server's process: its group, its three pipes, its end.

Rules:

 1. It leads a session and process group of its own (`launcher`), which a reaper outlives the
    gateway to end (`Reaper`).
 2. Its stdin has a bounded queue (`Stdin`).
 3. Its stdout can be paused alone; its stderr is always read. A long line is read in few turns of
    the reactor, many short ones leave turns to others.
 4. It has ended when it exited, whoever else holds its pipes: what it wrote before is read, what
    it left running is killed.
 5. Ending it: end of its stdin; after `eof_wait` SIGTERM to the group; after `term_wait` SIGKILL.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from attrs import frozen
from twisted.internet.defer import Deferred, succeed
from twisted.internet.error import ConnectionDone, ProcessTerminated
from twisted.internet.interfaces import IDelayedCall, IReactorProcess, IReactorTime
from twisted.internet.protocol import ProcessProtocol
from twisted.logger import Logger
from twisted.python.failure import Failure

from gateway.guard.limits import Limits
from gateway.links.orphans import Reaper, isolatedPython
from gateway.links.stdin import Stdin

__all__ = ["Child", "IChildOwner", "Program", "Reaper"]

_log = Logger()

_LAUNCHER = str(Path(__file__).with_name("launcher.py"))
_READ = 8192
"""Bytes that Twisted reads of a pipe at once (`fdesc.readFromFD`)."""
_CHUNK = 64 * 1024
_TURN = 4 * _CHUNK
"""Bytes of a line that are read at most in one turn of the reactor, and a little more."""
_LAST_CHUNKS = 16
"""Of _CHUNK bytes: what is read at most of what a child left in a pipe."""
_KILLED_WAIT = 1.0
"""Seconds for a killed process to be reaped."""
_LEFT_WAIT = 0.25
"""Seconds for what it left in its group, killed too, to be reaped by whoever is its parent now."""
_FIRST_LOOK = 0.01
_LAST_LOOK = 0.25


@frozen
class Program:
    """
    What a child runs.

    executable: the absolute path of the program.
    argv: its arguments, the name it is called by first.
    env: its whole environment.
    cwd: its working directory; "" for the gateway's.
    """

    executable: str
    argv: Sequence[str]
    env: Mapping[str, str]
    cwd: str = ""


class IChildOwner(Protocol):
    """Whom a child reports to. Nothing is called from within `Stdin.write`."""

    def stdoutReceived(self, data: bytes) -> None:
        """Bytes came on its stdout."""

    def stderrReceived(self, data: bytes) -> None:
        """Bytes came on its stderr."""

    def stdinDrained(self) -> None:
        """There is room again after `Stdin.write` refused a line."""

    def exited(self, status: int | None) -> None:
        """It exited; nothing is received any more. status: None where a signal ended it."""

    def outlived(self, limit: str) -> None:
        """It did not end within this wait; harsher means are next."""

    def vanished(self) -> None:
        """Nothing is left of it or its group."""


class Child(ProcessProtocol):
    """
    One child process.

    Begins with `spawn`; ends by itself (`IChildOwner.exited`), with `end`, or with `kill`. Its
    owner ends it.

    stdin: takes lines for it.
    """

    transport: Any = None  # twisted's Process; IProcessTransport does not tell of its pipes

    def __init__(
        self,
        owner: IChildOwner,
        limits: Limits,
        reactor: IReactorProcess,
        clock: IReactorTime,
        reaper: Reaper,
    ) -> None:
        self.stdin = Stdin(limits, owner.stdinDrained)
        self._owner = owner
        self._limits = limits
        self._reactor = reactor
        self._clock = clock
        self._reaper = reaper
        self._pid = 0
        self._ending = self._wanted = self._termed = self._killed = False
        self._exited = self._gone = False
        self._stage: IDelayedCall | None = None
        self._look: IDelayedCall | None = None
        self._waiters: list[Deferred[None]] = []

    def spawn(self, program: Program) -> None:
        """
        Start it.

        Raises: OSError where the machine has no process, descriptor or memory to spare;
        ValueError where an argument or variable cannot be passed to a program.
        """
        self._reaper.start()
        ctype = "keep" if "LC_CTYPE" in program.env else "drop"
        launcher = [
            *isolatedPython(_LAUNCHER),
            str(os.getpid()),
            ctype,
            program.cwd,
            program.executable,
        ]
        # The launcher changes the directory: with a path, Twisted forks the whole gateway
        # instead of using posix_spawn.
        self._reactor.spawnProcess(
            self, sys.executable, [*launcher, *program.argv], env=dict(program.env)
        )

    # stdout

    def pause(self) -> None:
        """Stop reading its stdout, and that alone."""
        if not self._ending and 1 in self.transport.pipes:
            self.transport.pipes[1].pauseProducing()

    def resume(self) -> None:
        """Read its stdout on."""
        if not (self._exited or self._killed) and 1 in self.transport.pipes:
            self.transport.pipes[1].resumeProducing()

    # its end

    def end(self) -> Deferred[None]:
        """
        End it in order (rule 5). May be called again.

        Fires when it is reaped and nothing of its group is left, or was killed in vain.
        """
        self._wanted = True
        if not self._pid:
            return succeed(None)
        self._hangUp()
        return self._waited()

    def kill(self) -> Deferred[None]:
        """End it at once. Fires like `end`."""
        self._wanted = True
        if not self._pid:
            return succeed(None)
        if not self._gone:
            self._hangUp()
            if 1 in self.transport.pipes:
                self.transport.pipes[1].pauseProducing()
            self._kill()
        return self._waited()

    def _waited(self) -> Deferred[None]:
        if self._gone:
            return succeed(None)
        waiter: Deferred[None] = Deferred(self._waiters.remove)
        self._waiters.append(waiter)
        return waiter

    def _hangUp(self) -> None:
        if self._ending or self._exited:
            return
        self._ending = True
        # Unless it is read, a child may block on its last words.
        self.resume()
        self.stdin.end()
        self._stage = self._clock.callLater(self._limits.eof_wait, self._deaf)

    def _deaf(self) -> None:
        self._owner.outlived("eof_wait")
        self._terminate()

    def _terminate(self) -> None:
        self._cancelStage()
        self._termed = True
        self._signal(signal.SIGTERM)
        self._stage = self._clock.callLater(self._limits.term_wait, self._overdue)

    def _overdue(self) -> None:
        self._owner.outlived("term_wait")
        self._kill()

    def _kill(self) -> None:
        self._cancelStage()
        self._killed = True
        self._signal(signal.SIGKILL)
        wait = _LEFT_WAIT if self._exited else _KILLED_WAIT
        self._stage = self._clock.callLater(wait, self._giveUp)

    def _giveUp(self) -> None:
        # A process that cannot die (a hung disk), or zombies that their new parent is slow to reap.
        self._stage = None
        if not self._exited:
            _log.warn("process {pid} did not end when it was killed", pid=self._pid)
        self._vanish()

    def _cancelStage(self) -> None:
        stage, self._stage = self._stage, None
        if stage is not None and stage.active():
            stage.cancel()

    def _signal(self, number: int) -> bool:
        """Signal the group. Returns whether there is (still) something to signal."""
        try:
            os.killpg(self._pid, number)
        except ProcessLookupError:
            if self._exited:
                return False
            # The launcher is not yet a leader. It is not reaped, so the pid is still its own.
            os.kill(self._pid, number)
        except PermissionError:
            return not self._exited
        return True

    def _groupLeft(self) -> bool:
        try:
            # Where we are init or a subreaper, what the group left is ours to reap.
            while os.waitpid(-self._pid, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            pass
        return self._signal(0)

    def _watch(self, delay: float = _FIRST_LOOK) -> None:
        self._look = None
        if self._gone:
            return
        if self._groupLeft():
            self._look = self._clock.callLater(delay, self._watch, min(2 * delay, _LAST_LOOK))
        else:
            self._vanish()

    def _vanish(self) -> None:
        if self._gone:
            return
        self._gone = True
        self._cancelStage()
        if self._look is not None and self._look.active():
            self._look.cancel()
        if self._exited:
            self._reaper.remove(self._pid)
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            waiter.callback(None)
        self._owner.vanished()

    # twisted's ProcessProtocol

    def connectionMade(self) -> None:
        self._pid = self.transport.pid
        self._reaper.add(self._pid)
        self.stdin.opened(self.transport.pipes[0])

    def childDataReceived(self, childFD: int, data: bytes) -> None:
        if childFD == 1:
            if len(data) == _READ and b"\n" not in data and not self._exited:
                data = self._readOn(data)
            self._owner.stdoutReceived(data)
        else:
            self._owner.stderrReceived(data)

    def _readOn(self, data: bytes) -> bytes:
        """
        Read more of a long line, as far as it is there.

        Twisted reads 8 KiB in a turn. Where a turn is long since much is to do, an answer of
        200 KB took a second and more, and all that came after it from the same child waited.
        """
        pieces, size, fd = [data], len(data), self.transport.pipes[1].fileno()
        while size < _TURN and b"\n" not in pieces[-1]:
            try:
                more = os.read(fd, _CHUNK)
            except OSError:
                break
            if not more:
                break  # Its end, which is there to be read the next time, too.
            pieces.append(more)
            size += len(more)
        return b"".join(pieces)

    def childConnectionLost(self, childFD: int) -> None:
        # Without its stdin or stdout it can serve no more, even if it lives on.
        if childFD != 2:
            self._hangUp()

    def processExited(self, reason: Failure) -> None:
        self._exited = True
        wanted = self._wanted
        if not wanted:
            self._signal(signal.SIGKILL)
        self._readRest()
        for pipe in self.transport.pipes.values():
            pipe.stopReading()
            pipe.stopWriting()
        # Not closed yet: the reactor may know of their end already and tell it in this turn,
        # to whatever has their descriptors by then.
        IReactorTime(self._reactor).callLater(0, self._dropPipes)
        error = reason.value
        self._owner.exited(error.exitCode if isinstance(error, ProcessTerminated) else 0)
        if not wanted or self._killed:
            self._kill()
        elif not self._termed:
            self._terminate()

    def _readRest(self) -> None:
        # Whatever it wrote is in the pipes by now; their end may be far, with a grandchild.
        for childFD in (2, 1):
            pipe = self.transport.pipes.get(childFD)
            for _ in range(_LAST_CHUNKS if pipe is not None else 0):
                try:
                    data = os.read(pipe.fileno(), _CHUNK)
                except OSError:
                    break
                if not data:
                    break
                self.childDataReceived(childFD, data)

    def _dropPipes(self) -> None:
        for pipe in list(self.transport.pipes.values()):
            # Not loseConnection: it would wait until somebody has read what is still buffered.
            pipe.connectionLost(Failure(ConnectionDone()))
        self._watch()
