"""docs/parity.md is true: each row is there once, and names tests that exist or says why not."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
from attrs import frozen

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs" / "parity.md").read_text()

ROWS = {
    "A": 5, "B": 23, "C": 33, "D": 19, "E": 6, "F": 44,
    "G": 32, "H": 64, "I": 33, "J": 35, "K": 29, "L": 19,
}  # fmt: skip
"""How many tests of the reference each group has."""

KINDS = ("held", "differs", "in part", "not yet", "not ours")

_GROUP = re.compile(r"## ([A-Z])\. ")
_CITED = re.compile(r"`(tests/[\w/]+\.py)::(\w+)`")


@frozen
class Row:
    """A row of the page. cited: the tests it names, as path and function. why: the rest of it."""

    group: str
    test: str
    pins: str
    kind: str
    cited: tuple[tuple[str, str], ...]
    why: str


def rowsOf(page: str) -> list[Row]:
    rows: list[Row] = []
    group = ""
    for line in page.splitlines():
        if heading := _GROUP.match(line):
            group = heading[1]
        elif line.startswith("| `"):
            test, pins, kind, holds = (cell.strip() for cell in line.strip("|").split("|"))
            why = _CITED.sub("", holds).replace("<br>", "").strip()
            cited = tuple((path, name) for path, name in _CITED.findall(holds))
            rows.append(Row(group, test.strip("`"), pins, kind, cited, why))
    return rows


ALL = rowsOf(PAGE)


@cache
def functionsIn(path: str) -> dict[str, list[str]]:
    """The test functions of a file: name to decorators, as they are written."""
    return {
        node.name: [ast.unparse(decorator) for decorator in node.decorator_list]
        for node in ast.parse((ROOT / path).read_text()).body
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and node.name.startswith("test_")
    }


def test_every_test_of_the_reference_has_one_row() -> None:
    for group, count in ROWS.items():
        tests = [row.test for row in ALL if row.group == group]
        assert (group, len(tests), len(set(tests))) == (group, count, count)
        assert all(re.fullmatch(r"Test\w+", test) for test in tests)
    assert {row.group for row in ALL} == set(ROWS)
    assert len(ALL) == PAGE.count("\n| `Test") == sum(ROWS.values())


@pytest.mark.parametrize("group", ROWS)
def test_a_row_names_tests_that_are_there_or_says_why_not(group: str) -> None:
    wrong = {row.test: list(mistakesIn(row)) for row in ALL if row.group == group}
    assert not {test: mistakes for test, mistakes in wrong.items() if mistakes}


def mistakesIn(row: Row) -> Iterator[str]:
    if row.kind not in KINDS:
        yield f"{row.kind} is no kind"
    if not row.pins:
        yield "it does not say what the reference pins"
    if row.kind in ("held", "differs", "in part") and not row.cited:
        yield "what is held, if otherwise or in part, is held by a test"
    if row.kind != "held" and not (len(row.why) > 10 and row.why.endswith(".")):
        yield "a reason is a sentence"
    for path, name in row.cited:
        marks = functionsIn(path).get(name)
        if marks is None:
            yield f"{path}::{name} is not there"
        elif "pytest.mark.soak" in marks or "pytest.mark.peers" in marks:
            yield f"{path}::{name} is not in the default suite"
    # Nothing that looks like a test was read as none.
    spoken = re.findall(r"`(tests/\w+\.py)`", row.why)
    if "::" in row.why or row.why.count("tests/") != len(spoken):
        yield "it names a test in another way"
    for path in spoken:
        if not (ROOT / path).is_file():
            yield f"{path} is not there"


def test_the_summary_counts_the_rows() -> None:
    for group in [*ROWS, "all"]:
        rows = [row for row in ALL if group in (row.group, "all")]
        counts = [sum(row.kind == kind for row in rows) for kind in KINDS]
        name = "all" if group == "all" else rf"\[{group}\. [^|]*\]\([^|]*\)"
        line = re.search(rf"^\| {name} \| (.*) \|$", PAGE, re.MULTILINE)
        assert line is not None, group
        assert line[1] == " | ".join(map(str, [len(rows), *counts]))
