"""
The ledger for ten minutes and the soak of an hour:

    pytest -m soak -s tests/soak/test_ledger_soak.py

GATEWAY_SOAK_SECONDS: for how long, either; 120 is the short form. GATEWAY_SOAK_SEED: replays one.
`python -m tests.lab.ledger` and `python -m tests.lab.soak` do the same, and more of it.
"""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest
import pytest_twisted
from lab.ledger import Ledger
from lab.soak import Soak

pytestmark = pytest.mark.soak


def asked(seconds: float) -> tuple[int, float]:
    """The seed and the seconds of a run; seconds: if nobody says otherwise."""
    seed = int(os.environ.get("GATEWAY_SOAK_SEED", random.randrange(10**9)))
    seconds = float(os.environ.get("GATEWAY_SOAK_SECONDS", seconds))
    print(f"\nGATEWAY_SOAK_SEED={seed} GATEWAY_SOAK_SECONDS={seconds:.0f}")
    return seed, seconds


@pytest.mark.acceptance(24, 25, 46, 64, 69, 70, 78)
@pytest_twisted.ensureDeferred
async def test_the_ledger(tmp_path: Path) -> None:
    """Both eras and all proxies at once, servers, wires and clients failing; every call judged."""
    seed, seconds = asked(600)
    run = Ledger(seed=seed, calls=1 << 40, seconds=seconds, place=tmp_path, every=30, tell=print)
    await run.run()
    print(run.table())
    print(run)
    assert not run.book.broken, run.wrong
    # What memory there was after the first quarter is what there is.
    later = [sample.rss for sample in run.samples if sample.at > seconds / 4]
    if seconds >= 300:
        assert later[-1] - later[0] < 8 * 1024, later


@pytest.mark.acceptance(24, 25, 78)
@pytest_twisted.ensureDeferred
async def test_the_soak(tmp_path: Path) -> None:
    """A fault every five seconds: memory, files, timers and processes stay as they are."""
    seed, seconds = asked(3600)
    soak = Soak(seed, seconds, tmp_path)
    soak.ledger.tell = print
    await soak.run()
    print(soak.ledger.table())
    print(soak)
    assert not soak.wrong, soak.wrong
