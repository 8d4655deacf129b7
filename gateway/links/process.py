"""
A server's process: its group, its three pipes, its end.

Rules:

 1. It leads a session and process group of its own (`launcher`), which a reaper outlives the
    gateway to end (`Reaper`).
 2. Its stdin has a bounded queue; what is over the bound is refused, not kept.
 3. Its stdout can be paused alone; its stderr is always read.
 4. It has ended when it exited, whoever else holds its pipes: what it wrote before is read, what
    it left running is killed.
 5. Ending it: end of its stdin; after `eof_wait` SIGTERM to the group; after `term_wait` SIGKILL.
"""

from __future__ import annotations

import os
import signal
import sys
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from attrs import frozen
from twisted.internet.defer import Deferred, succeed
from twisted.internet.error import ConnectionDone, ProcessTerminated
from twisted.internet.interfaces import IDelayedCall, IPullProducer, IReactorProcess, IReactorTime
from twisted.internet.protocol import ProcessProtocol
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from gateway.guard.limits import Limits
from gateway.links.orphans import Reaper, isolatedPython

__all__ = ["Child", "IChildOwner", "Program", "Reaper"]

_log = Logger()

_LAUNCHER = str(Path(__file__).with_name("launcher.py"))
_CHUNK = 64 * 1024
_LAST_CHUNKS = 16
"""Of _CHUNK bytes: what is read at most of what a child left in a pipe."""
_NOTHING = memoryview(b"")
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
    """Whom a child reports to. Nothing is called from within `Child.write`."""

    def stdoutReceived(self, data: bytes) -> None:
        """Bytes came on its stdout."""

    def stderrReceived(self, data: bytes) -> None:
        """Bytes came on its stderr."""

    def stdinDrained(self) -> None:
        """There is room again after `Child.write` refused a line."""

    def exited(self, status: int | None) -> None:
        """It exited; nothing is received any more. status: None where a signal ended it."""

    def outlived(self, limit: str) -> None:
        """It did not end within this wait; harsher means are next."""

    def vanished(self) -> None:
        """Nothing is left of it or its group."""


@implementer(IPullProducer)
class Child(ProcessProtocol):
    """
    One child process.

    Begins with `spawn`; ends by itself (`IChildOwner.exited`), with `end`, or with `kill`. Its
    owner ends it.

    full: the name of the limit for which `write` refused last; "" where it was ending.
    """

    full: str = ""
    transport: Any = None  # twisted's Process; IProcessTransport does not tell of its pipes

    def __init__(
        self,
        owner: IChildOwner,
        limits: Limits,
        reactor: IReactorProcess,
        clock: IReactorTime,
        reaper: Reaper,
    ) -> None:
        self._owner = owner
        self._limits = limits
        self._reactor = reactor
        self._clock = clock
        self._reaper = reaper
        self._pid = 0
        self._ending = self._wanted = self._termed = self._killed = False
        self._exited = self._gone = self._refused = False
        self._queue: deque[bytes] = deque()
        self._queued = 0
        self._writing = 0
        self._rest = _NOTHING
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

    # stdin

    def write(self, line: bytes) -> bool:
        """
        Write a line to its stdin.

        Returns: False, and keeps nothing, where the queue is full or the child is ending. A line
        larger than the queue is taken when the queue is empty.
        """
        if self._ending:
            self.full = ""
            return False
        if self._writing:
            return self._enqueue(line)
        stdin = self.transport.pipes.get(0)
        if stdin is None:
            return True  # It closed its stdin, which ends it: about to be reported.
        try:
            written = os.write(stdin.fileno(), line)
        except (BlockingIOError, InterruptedError):
            written = 0
        except OSError:
            return True  # As above; the reactor will notice, too.
        if written < len(line):
            self._handOver(memoryview(line)[written:])
        return True

    def _enqueue(self, line: bytes) -> bool:
        if len(self._queue) + 1 >= self._limits.max_stdin_messages:
            self.full = "max_stdin_messages"
        elif self._writing + self._queued + len(line) > self._limits.max_stdin_bytes:
            self.full = "max_stdin_bytes"
        else:
            self._queue.append(line)
            self._queued += len(line)
            return True
        self._refused = True
        return False

    def _handOver(self, data: memoryview) -> None:
        """
        Give the transport what it writes next, and keep the rest.

        It would copy all of it twice, and a pipe takes no more at once anyway.
        """
        self._writing, self._rest = len(data), data[_CHUNK:]
        self.transport.write(bytes(data[:_CHUNK]))

    def resumeProducing(self) -> None:
        """The transport has written what it had (twisted's IPullProducer)."""
        self._writing = 0
        if self._rest:
            self._handOver(self._rest)
            return
        if self._queue:
            batch = [self._queue.popleft()]
            size = len(batch[0])
            while self._queue and size + len(self._queue[0]) <= _CHUNK:
                batch.append(self._queue.popleft())
                size += len(batch[-1])
            self._queued -= size
            self._handOver(memoryview(b"".join(batch)))
        if self._refused and self._writing + self._queued <= self._limits.max_stdin_bytes // 2:
            self._refused = False
            self._owner.stdinDrained()

    def stopProducing(self) -> None:
        """The pipe is closed (twisted's IPullProducer)."""
        self._queue.clear()
        self._queued = 0
        self._rest = _NOTHING

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
        if self._rest:
            # The line that it has begun to read.
            self.transport.write(bytes(self._rest))
        self.stopProducing()
        # Unless it is read, a child may block on its last words; and a producer keeps the
        # pipe from being closed.
        self.resume()
        self.transport.unregisterProducer()
        self.transport.closeStdin()
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
        self.transport.registerProducer(self, False)

    def childDataReceived(self, childFD: int, data: bytes) -> None:
        if childFD == 1:
            self._owner.stdoutReceived(data)
        else:
            self._owner.stderrReceived(data)

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
