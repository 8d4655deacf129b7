"""The suite's end of a load client's pipe."""

from __future__ import annotations

import json
import math
import selectors
import subprocess
import sys
from types import TracebackType
from typing import Any

from attrs import define, field, frozen

from benchmarks.process import ROOT

__all__ = ["Client", "LoadFailed", "Report"]


class LoadFailed(Exception):
    """The load client could not do what it was asked."""


@frozen
class Report:
    """
    What came of a round; `benchmarks.load.rounds.Outcome` tells the fields. Times in ms.
    """

    done: int
    errors: int
    first: str
    seconds: float
    p50: float
    p99: float
    longest: float

    @property
    def rate(self) -> float:
        """Calls, or sessions, a second."""
        return self.done / self.seconds if self.seconds else math.nan


@define(eq=False)
class Client:
    """
    A load client, `python -m benchmarks.load`.

    A context manager: it runs within.
    """

    patience: float = 240.0
    _process: subprocess.Popen[str] = field(init=False)

    def __enter__(self) -> Client:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.load"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            start_new_session=True,
        )
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._process.kill()
        self._process.communicate()

    def begin(self, do: str, **arguments: Any) -> None:
        """Give it a command, and do not wait."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"do": do, **arguments}) + "\n")
        self._process.stdin.flush()

    def answer(self) -> dict[str, Any]:
        """Wait for the answer to the command. Raises: LoadFailed."""
        stdout = self._process.stdout
        assert stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(stdout, selectors.EVENT_READ)
            if not selector.select(self.patience):
                raise LoadFailed(f"nothing came of it within {self.patience:.0f} s")
        line = stdout.readline()
        if not line:
            raise LoadFailed("the load client ended")
        answer: dict[str, Any] = json.loads(line)
        if "failed" in answer:
            raise LoadFailed(answer["failed"])
        return answer

    def do(self, do: str, **arguments: Any) -> dict[str, Any]:
        """Give it a command and wait for the answer. Raises: LoadFailed."""
        self.begin(do, **arguments)
        return self.answer()

    def run(self, do: str, name: str, **plan: Any) -> Report:
        """A round of `calls` or `churn`. Raises: LoadFailed."""
        return Report(**self.do(do, name=name, plan=plan))
