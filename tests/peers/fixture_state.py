"""
What the fixture server remembers, in files, so that any process of it can tell: behind a gateway
the calls of one client may reach several.

The names in here are made up by a client for one run, so that the runs do not meet.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path

import anyio

__all__ = [
    "cancelled", "changes", "keepIn", "noteCancelled", "subscribed", "subscription", "touch",
    "watch",
]  # fmt: skip

LOOK_SECONDS = 0.05
PATIENCE_SECONDS = 20
"""How long it is waited for what another process does."""

_numbers = count()
_own = tempfile.TemporaryDirectory(prefix="fixture-")
_folder = Path(_own.name)


def keepIn(folder: str) -> None:
    """Remember together with whoever uses this folder; at first this process is alone."""
    global _folder
    _folder = Path(folder)


def _file(kind: str, name: str) -> Path:
    return _folder / f"{kind}-{hashlib.sha256(name.encode()).hexdigest()[:24]}"


async def _until(true: Callable[[], bool]) -> bool:
    """Whether it is so before long."""
    with anyio.move_on_after(PATIENCE_SECONDS):
        # Nothing but the files tells of another process.
        while not true():  # noqa: ASYNC110
            await anyio.sleep(LOOK_SECONDS)
        return True
    return False


def noteCancelled(name: str) -> None:
    _file("cancelled", name).touch()


async def cancelled(name: str) -> bool:
    """Whether a call of this name was cancelled; waits for it."""
    return await _until(_file("cancelled", name).exists)


@contextmanager
def subscription(uri: str) -> Iterator[None]:
    """While this is open somebody is subscribed."""
    held = _file("subscribed", uri).with_suffix(f".{os.getpid()}-{next(_numbers)}")
    held.touch()
    try:
        yield
    finally:
        held.unlink(missing_ok=True)


def _alive(held: Path) -> bool:
    """Whether the process that holds a subscription is; one that was killed leaves its file."""
    return Path("/proc", held.suffix[1:].partition("-")[0]).exists()


def _holds(uri: str) -> bool:
    mark = _file("subscribed", uri)
    return any(_alive(held) for held in mark.parent.glob(f"{mark.name}.*"))


async def subscribed(uri: str, *, waits: bool) -> bool:
    """Whether anybody is subscribed; waits: until nobody is."""
    if waits:
        return not await _until(lambda: not _holds(uri))
    return _holds(uri)


def touch(uri: str) -> None:
    """Change a resource."""
    with _file("touched", uri).open("ab") as file:
        file.write(b".")


def changes(uri: str) -> int:
    """How often a resource was changed."""
    file = _file("touched", uri)
    return file.stat().st_size if file.exists() else 0


async def watch(uri: str, before: int, tell: Callable[[], Awaitable[None]]) -> None:
    """Tell of each change after so many, until it is cancelled."""
    while True:
        await anyio.sleep(LOOK_SECONDS)
        if (now := changes(uri)) != before:
            before = now
            await tell()
