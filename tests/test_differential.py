"""A slice of the differential run: mutated streams through a whole gateway. All: tests/soak."""

from __future__ import annotations

from random import Random

import pytest
from differential import Differential

SLICE = 1000


@pytest.mark.acceptance(17)
def test_acceptance_17_nothing_reaches_a_server_that_h11_does_not_see() -> None:
    seed = Random().randrange(2**32)
    print(f"differential seed {seed}")
    run = Differential()
    for number in range(SLICE):
        run.one(seed + number)
    run.stop()
    # Otherwise nothing was compared.
    assert run.counts["received"] > SLICE / 2
    assert run.counts["refused"] > SLICE / 4
    assert run.counts["unharmed"] > SLICE / 20
    assert len(run.rules) > 5
