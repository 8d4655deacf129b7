"""The arithmetic of results: medians over rounds, and how far the rounds lie apart."""

from __future__ import annotations

import math
from collections.abc import Iterable
from statistics import median

__all__ = ["middle", "ratio", "spread"]


def _numbers(values: Iterable[float]) -> list[float]:
    return [value for value in values if not math.isnan(value)]


def middle(values: Iterable[float]) -> float:
    """The median of what was measured; NaN where nothing was."""
    numbers = _numbers(values)
    return median(numbers) if numbers else math.nan


def spread(values: Iterable[float]) -> float:
    """Half the way from the least to the greatest, as a part of the median; NaN of none."""
    numbers = _numbers(values)
    if not numbers:
        return math.nan
    centre = median(numbers)
    return (max(numbers) - min(numbers)) / 2 / centre if centre else math.nan


def ratio(one: Iterable[float], other: Iterable[float]) -> float:
    """
    The median of one over that of the other; NaN where one of them has none.

    Not the median of the ratios of each round: a disturbance hits one of two neighbours.
    """
    below = middle(other)
    return middle(one) / below if below else math.nan
