"""
The ledger for ten minutes: `pytest -m soak -s tests/soak/test_ledger_soak.py`

GATEWAY_SOAK_SECONDS: for how long. GATEWAY_SOAK_SEED: replays one. `python -m tests.lab.ledger`
does the same, and more of it.
"""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest
import pytest_twisted
from lab.ledger import Ledger, Sample

pytestmark = pytest.mark.soak


@pytest.mark.acceptance(24, 25, 46, 64, 69, 70, 78)
@pytest_twisted.ensureDeferred
async def test_the_ledger(tmp_path: Path) -> None:
    """Both eras and all proxies at once, servers, wires and clients failing; every call judged."""
    seed = int(os.environ.get("GATEWAY_SOAK_SEED", random.randrange(10**9)))
    seconds = float(os.environ.get("GATEWAY_SOAK_SECONDS", 600))
    print(f"\nledger: GATEWAY_SOAK_SEED={seed} GATEWAY_SOAK_SECONDS={seconds:.0f}")

    def tell(sample: Sample) -> None:
        print(sample)

    run = Ledger(seed=seed, calls=1 << 40, seconds=seconds, place=tmp_path, every=30, tell=tell)
    await run.run()
    print(run.table())
    print(run)
    assert not run.book.broken, run.wrong
    # What memory there was after the first quarter is what there is.
    later = [sample.rss for sample in run.samples if sample.at > seconds / 4]
    if seconds >= 300:
        assert later[-1] - later[0] < 8 * 1024, later
