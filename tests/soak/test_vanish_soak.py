"""
Sessions by the hundred thousand: opened and left, opened and deleted. Each run prints its figures.

GATEWAY_SOAK_VANISH: how many `initialize` and vanish. GATEWAY_SOAK_SESSIONS: how many come and go
in each cycle.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import pytest_twisted
from soaking import Watched, loaded, tiny, wait, watched

pytestmark = pytest.mark.soak

PATH = "/servers/tiny/mcp"


async def settled(
    gateway: Watched, right: Callable[[dict[str, int]], bool], within: float
) -> tuple[dict[str, int], float]:
    """What it holds once that is right, or after so many seconds; and how long that took."""
    began = time.monotonic()
    while True:
        now = await gateway.held()
        took = time.monotonic() - began
        if right(now) or took > within:
            return now, took
        await wait(1.0)


@pytest.mark.acceptance(42)
@pytest.mark.parametrize(
    ("most", "allocator"), [(10_000, "malloc"), (100_000, "malloc"), (10_000, "pymalloc")]
)
@pytest_twisted.ensureDeferred
async def test_acceptance_42_initialize_and_vanish(
    tmp_path: Path, most: int, allocator: str
) -> None:
    """
    By default 10,000 sessions are the most there are, and who never used one loses it after 60 s;
    the rest is told to come later. With 100,000 everybody gets one. The child, which all share,
    ends five seconds after the last (`idle_stop`).

    What is held is seen best with the C library's allocator, which gives back what is free.
    CPython's own, the default, gives an arena of a megabyte back when not one object is left in
    it; what stays is used again, so there a second wave must add nothing.
    """
    count = int(os.environ.get("GATEWAY_SOAK_VANISH", 100_000))
    server = tiny(isolation="shared", idle_stop=5)
    caps = ("max_sessions", "max_sessions_per_principal", "max_sessions_per_address")
    environ = ("/usr/bin/env", f"PYTHONMALLOC={allocator}")
    limits = dict.fromkeys(caps, most)
    gateway = await watched(tmp_path, {"tiny": server}, environ, limits=limits)
    flat = ("sessions", "children", "fds", "threads")
    # What is loaded and allocated with the first sessions is no session's.
    await loaded(gateway.port, "churn", path=PATH, count=200, lanes=8)
    await loaded(gateway.port, "vanish", path=PATH, count=1000, lanes=8)
    base, _ = await settled(gateway, lambda now: not now["sessions"] | now["children"], 90)
    grown: list[float] = []
    for _ in range(1 if allocator == "malloc" else 2):
        ran = await loaded(gateway.port, "vanish", path=PATH, count=count, lanes=16)
        full = await gateway.held()
        now, took = await settled(gateway, lambda now: all(now[it] == base[it] for it in flat), 90)
        grown.append((now["rss"] - base["rss"]) * 1024 / 1e6)
        print(
            f"\nvanish, {allocator}: {count} in {ran['seconds']:.0f} s, answers {ran['statuses']}, "
            f"at most {most} sessions; base {base}, full {full}, {took:.0f} s later {now}: "
            f"RSS {grown[-1]:+.1f} MB"
        )
        assert all(now[it] == base[it] for it in flat)
        assert now["timers"] <= base["timers"] + 1 and now["children"] == 0
    assert grown[0] < 20 and grown[-1] - grown[0] < 20
    await gateway.stop()


@pytest.mark.acceptance(44)
@pytest_twisted.ensureDeferred
async def test_acceptance_44_twenty_times_five_thousand(tmp_path: Path) -> None:
    """A third of the sessions have a stream; half have the newer revision, with its numbers."""
    count = int(os.environ.get("GATEWAY_SOAK_SESSIONS", 5_000))
    gateway = await watched(tmp_path, {"tiny": tiny(isolation="shared")})
    flat = ("sessions", "fds", "threads", "children")
    seen: list[dict[str, int]] = []
    for number in range(20):
        ran = await loaded(gateway.port, "churn", path=PATH, count=count, lanes=16)
        now, _ = await settled(
            gateway, lambda now: not seen or all(now[it] == seen[0][it] for it in flat), 20
        )
        seen.append(now)
        print(f"\nchurn {number + 1}: {count} sessions in {ran['seconds']:.1f} s, {now}", end="")
    after = [one["rss"] for one in seen[3:]]
    mean = (len(after) - 1) / 2
    squares = sum((at - mean) ** 2 for at in range(len(after)))
    slope = sum((at - mean) * rss for at, rss in enumerate(after)) / squares
    print(f"\nchurn: RSS slope after the third cycle {slope:+.1f} KiB a cycle")
    for now in seen:
        assert {it: now[it] for it in flat} == {it: seen[0][it] for it in flat}
    # One of them ticks, now and then.
    assert max(now["timers"] for now in seen) <= 2
    assert slope < 1000
    await gateway.stop()
