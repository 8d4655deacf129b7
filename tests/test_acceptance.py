"""Each behaviour the gateway promises by number has a test that names it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

HELD = (
    1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 22, 23, 24, 25, 26, 27,
    28, 29, 30, 31, 32, 34, 35, 36, 37, 38, 39, 40, 41, 42, 43, 44, 45, 46, 47, 48, 49, 50, 51, 52,
    53, 54, 55, 56, 57, 58, 59, 60, 61, 62, 63, 64, 65, 66, 67, 68, 69, 70, 71, 72, 73, 74, 75, 76,
    77, 78, 79, 80, 81, 82, 92, 93, 94, 95, 96, 97, 98, 100, 104, 107, 108, 109, 110,
)  # fmt: skip

_MARK = re.compile(r"mark\.acceptance\(([0-9, ]+)\)")


@pytest.fixture(scope="module")
def marked() -> set[int]:
    numbers: set[int] = set()
    for path in Path(__file__).parent.rglob("test_*.py"):
        for found in _MARK.findall(path.read_text()):
            numbers.update(int(number) for number in found.split(",") if number.strip())
    return numbers


@pytest.mark.parametrize("number", HELD)
def test_it_is_held_by_a_test(number: int, marked: set[int]) -> None:
    assert number in marked
