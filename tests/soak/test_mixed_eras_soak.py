"""
Clients of both eras at one server, for long: `pytest -m soak -s tests/soak/test_mixed_eras_soak.py`

GATEWAY_SOAK_CALLS: calls of each run. GATEWAY_SOAK_SEED: replays one.
"""

from __future__ import annotations

import os
import random
import time
from pathlib import Path

import pytest
import pytest_twisted
from mixed_eras import SERVES, MixedEras

pytestmark = pytest.mark.soak


@pytest.mark.parametrize("faults", (False, True), ids=("well", "exiting"))
@pytest.mark.parametrize("serves", SERVES)
@pytest_twisted.ensureDeferred
async def test_mixed_eras(serves: str, faults: bool, tmp_path: Path) -> None:
    """Thousands of calls: none crossed, none lost, each executed once, state kept apart."""
    seed = int(os.environ.get("GATEWAY_SOAK_SEED", random.randrange(10**9)))
    calls = int(os.environ.get("GATEWAY_SOAK_CALLS", 10_000))
    print(f"\nmixed eras: GATEWAY_SOAK_SEED={seed} GATEWAY_SOAK_CALLS={calls}")
    began = time.monotonic()
    run = MixedEras(serves=serves, seed=seed, calls=calls, file=tmp_path / "ledger", faults=faults)
    await run.run()
    run.check()
    print(f"{run}; {time.monotonic() - began:.1f} s")
