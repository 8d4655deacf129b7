"""No process that a long run started outlives it, whatever became of the run."""

from __future__ import annotations

from collections.abc import AsyncIterator

import processes
import pytest_twisted


@pytest_twisted.async_yield_fixture(autouse=True)
async def nobodyLeft() -> AsyncIterator[None]:
    started: list[processes.Process] = []
    made = processes.Process.__init__

    def noted(self: processes.Process) -> None:
        made(self)
        started.append(self)

    processes.Process.__init__ = noted  # type: ignore[method-assign]
    yield
    processes.Process.__init__ = made  # type: ignore[method-assign]
    for process in started:
        if not process.ended.called and process.transport is not None:
            process.kill(9)
            await process.ended
