"""
The commands of a load client, JSON objects with a key `do`, and what they answer.

 - `open`: name, port, path, sse, revision, sessions, streams. Opens sessions under a name.
 - `calls`: name, plan (shape, seconds, calls, …): a closed loop over them.
 - `churn`: name, plan: sessions come and go beside them.
 - `announce`: name, wait: an event to all of them. `{"seconds": …, "missing": …}`.
 - `close`: name. Hangs up.

What fails is answered with `{"failed": "why"}`.
"""

from __future__ import annotations

import asyncio
import gc
import json
import sys
from typing import Any

from benchmarks.load.calls import Shape
from benchmarks.load.connection import Gone
from benchmarks.load.group import Group
from benchmarks.load.rounds import Churn, Closed, Plan
from benchmarks.load.sessions import Broken

__all__ = ["serve"]

JSON = dict[str, Any]


def _plan(given: JSON) -> Plan:
    return Plan(shape=Shape(**given.pop("shape", {})), **given)


class _Client:
    """Does the commands, one after the other."""

    def __init__(self) -> None:
        self._groups: dict[str, Group] = {}

    async def do(self, command: JSON) -> JSON:
        """Do one. Raises: Broken, Gone, TimeoutError."""
        do = getattr(self, "_" + command.pop("do"))
        answer: JSON = await do(**command)
        return answer

    async def _open(
        self,
        name: str,
        port: int,
        path: str,
        sse: bool,
        revision: str,
        sessions: int,
        streams: bool,
    ) -> JSON:
        group = self._groups.get(name)
        if group is None:
            group = self._groups[name] = Group(port, path, sse, revision)
        await group.open(sessions, streams)
        return {}

    async def _calls(self, name: str, plan: JSON) -> JSON:
        return (await Closed(self._groups[name], _plan(plan)).run()).report()

    async def _churn(self, name: str, plan: JSON) -> JSON:
        return (await Churn(self._groups[name], _plan(plan)).run()).report()

    async def _announce(self, name: str, wait: float) -> JSON:
        group = self._groups[name]
        seconds, missing = await group.announce(wait)
        return {"seconds": seconds, "missing": missing, "lost": group.lost}

    async def _close(self, name: str) -> JSON:
        group = self._groups.pop(name, None)
        if group is not None:
            group.close()
        return {}


def _why(error: BaseException) -> str:
    if isinstance(error, BaseExceptionGroup):
        return _why(error.exceptions[0])
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


async def serve() -> None:
    """Do what comes on stdin until its end."""
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader(limit=1 << 20)
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    client = _Client()
    gc.collect()
    gc.freeze()
    while line := await reader.readline():
        try:
            answer = await client.do(json.loads(line))
        except (Broken, Gone, TimeoutError, ExceptionGroup) as error:
            answer = {"failed": _why(error)}
        # What is collected during a round delays answers.
        gc.collect()
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()
