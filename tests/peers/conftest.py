"""Prints the matrix of real clients that ran."""

from __future__ import annotations

import pytest

WORDS = {"passed": "ok", "failed": "FAILED", "error": "ERROR", "skipped": "skipped"}


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    outcomes: dict[str, str] = {}
    for outcome, word in WORDS.items():
        for report in terminalreporter.stats.get(outcome, []):
            properties = dict(getattr(report, "user_properties", ()))
            if "cell" in properties:
                outcomes[properties["cell"]] = word
    if not outcomes:
        return
    # The tests beside this file have made it importable by now.
    from matrix import CELLS, CLIENTS, ROUTES, SERVERS, Cell

    terminalreporter.section("matrix of real clients")
    terminalreporter.line(f"{'':<30}" + "".join(f"{client:<16}" for client in CLIENTS))
    for server in SERVERS:
        for route in ROUTES:
            cells = [Cell(client, route, server) for client in CLIENTS]
            if any(cell in CELLS for cell in cells):
                said = [
                    outcomes.get(str(cell), "not run") if cell in CELLS else "-" for cell in cells
                ]
                words = "".join(f"{word:<16}" for word in said)
                terminalreporter.line(f"{server:<12}{route:<18}{words}")
