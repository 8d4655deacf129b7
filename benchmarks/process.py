"""The processes of a run: started in the background, ended with all that they started."""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO

from attrs import define, field

from benchmarks.procfs import Process, commandLine, processes, tree

__all__ = ["ROOT", "Background", "NotStarted", "freePort"]

ROOT = Path(__file__).resolve().parent.parent
_LOW, _HIGH = 20_000, 32_000
"""Below the ports that the kernel gives to outgoing connections."""
_TERM_WAIT = 8.0
_KILL_WAIT = 2.0


class NotStarted(Exception):
    """A program does not serve; the text says why, with the end of what it printed."""


def freePort() -> int:
    """A port of loopback that nobody listens at."""
    while True:
        port = random.randrange(_LOW, _HIGH)  # noqa: S311 - no secret
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port


@define(eq=False)
class Background:
    """
    A program that serves a port.

    Starts when it is made; `close` ends it and whatever it started.

    servers: a part of the command lines of the MCP servers it may start, which are not its own.
    """

    argv: Sequence[str]
    port: int
    servers: str = ""
    cwd: str = ""
    environ: Mapping[str, str] = field(factory=dict)
    began: float = field(init=False)
    _process: subprocess.Popen[bytes] = field(init=False)
    _log: IO[bytes] = field(init=False)

    def __attrs_post_init__(self) -> None:
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - `close` closes it
        self.began = time.perf_counter()
        try:
            self._process = subprocess.Popen(
                self.argv,
                stdin=subprocess.DEVNULL,
                stdout=self._log,
                stderr=subprocess.STDOUT,
                cwd=self.cwd or ROOT,
                env={**os.environ, **self.environ},
                # Ctrl-C is ours to hear: we end them in order.
                start_new_session=True,
            )
        except OSError as error:
            self._log.close()
            raise NotStarted(f"{self.argv[0]}: {error.strerror}") from error

    @property
    def pid(self) -> int:
        return self._process.pid

    def waitUntilItListens(self, seconds: float = 30.0) -> float:
        """
        Wait until its port takes connections.

        Returns: seconds since it was started. Raises: NotStarted.
        """
        end = self.began + seconds
        while time.perf_counter() < end:
            if self._process.poll() is not None:
                raise NotStarted(f"it exited with {self._process.returncode}: {self.output()}")
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    return time.perf_counter() - self.began
            time.sleep(0.005)
        raise NotStarted(f"it does not listen after {seconds:.0f} s: {self.output()}")

    def output(self, size: int = 800) -> str:
        """The end of what it printed."""
        self._log.flush()
        length = os.fstat(self._log.fileno()).st_size
        data = os.pread(self._log.fileno(), size, max(0, length - size))
        return data.decode(errors="replace").strip()

    def own(self) -> list[int]:
        """The pids that are its own: it and its descendants without the MCP servers."""
        mark = self.servers.encode()
        return tree(processes(), self.pid, lambda pid: bool(mark) and mark in commandLine(pid))

    def close(self) -> None:
        """SIGTERM, then SIGKILL to it and to what it left behind."""
        table = processes()
        family = [table[pid] for pid in tree(table, self.pid)]
        self._process.terminate()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(_TERM_WAIT)
        left = _living(family)
        for process in left:
            with suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGKILL)
        self._process.wait()
        end = time.perf_counter() + _KILL_WAIT
        while _living(left) and time.perf_counter() < end:
            time.sleep(0.005)
        self._log.close()


def _living(family: list[Process]) -> list[Process]:
    """Those that are still there, and not others with their pids."""
    table = processes()

    def lives(process: Process) -> bool:
        now = table.get(process.pid)
        return now is not None and now.started == process.started and now.state != "Z"

    return [process for process in family if lives(process)]
