"""
The stdin of a child: lines go in, and what it does not read waits in a bounded queue.

A line goes into the pipe at once where there is room, for the way through the transport costs a
turn of the reactor. What is over the bound is refused, not kept: who asks hears it now.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable
from typing import Any

from twisted.internet.interfaces import IPullProducer
from zope.interface import implementer

from gateway.guard.limits import Limits

__all__ = ["Stdin"]

_PIPE = 64 * 1024
"""Bytes that a pipe takes at once, at most."""
_NOTHING = memoryview(b"")


@implementer(IPullProducer)
class Stdin:
    """
    One child's stdin. Life: made → `opened` with its pipe → lines → `end`, or closed by the child.

    full: the name of the limit for which `write` refused last; "" where it was ending.
    """

    full = ""

    def __init__(self, limits: Limits, drained: Callable[[], None]) -> None:
        """drained: called when there is room again after `write` refused a line."""
        self._limits = limits
        self._drained = drained
        self._pipe: Any = None  # twisted's ProcessWriter
        self._ending = self._refused = False
        self._queue: deque[bytes] = deque()
        self._queued = 0
        self._writing = 0
        self._rest = _NOTHING

    def opened(self, pipe: Any) -> None:
        """The child was started; pipe: Twisted's end of the pipe."""
        self._pipe = pipe
        pipe.registerProducer(self, False)

    def write(self, line: bytes) -> bool:
        """
        Write a line.

        Returns: False, and keeps nothing, where the queue is full or the child is ending. A line
        larger than the queue is taken when the queue is empty.
        """
        if self._ending:
            self.full = ""
            return False
        if self._writing:
            return self._enqueue(line)
        if self._pipe is None:
            return True  # It closed its stdin, which ends it: about to be reported.
        try:
            written = os.write(self._pipe.fileno(), line)
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
        # An empty view of a line would keep all of it.
        self._writing, self._rest = len(data), data[_PIPE:] if len(data) > _PIPE else _NOTHING
        self._pipe.write(bytes(data[:_PIPE]))

    def end(self) -> None:
        """Write the line that the child has begun to read, and close it."""
        if self._ending:
            return
        self._ending = True
        pipe, rest = self._pipe, self._rest
        self.stopProducing()
        if pipe is not None:
            if rest:
                pipe.write(bytes(rest))
            # A producer keeps the pipe from being closed.
            pipe.unregisterProducer()
            pipe.loseConnection()

    # twisted's IPullProducer

    def resumeProducing(self) -> None:
        """The transport has written what it had."""
        self._writing = 0
        if self._rest:
            self._handOver(self._rest)
            return
        if self._queue:
            batch = [self._queue.popleft()]
            size = len(batch[0])
            while self._queue and size + len(self._queue[0]) <= _PIPE:
                batch.append(self._queue.popleft())
                size += len(batch[-1])
            self._queued -= size
            self._handOver(memoryview(b"".join(batch)))
        if self._refused and self._writing + self._queued <= self._limits.max_stdin_bytes // 2:
            self._refused = False
            self._drained()

    def stopProducing(self) -> None:
        """The pipe is closed."""
        self._pipe = None
        self._writing = 0
        self._queue.clear()
        self._queued = 0
        self._rest = _NOTHING
