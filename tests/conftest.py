"""What every test is held to: nothing unhandled, nothing left behind."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from twisted.logger import globalLogPublisher

ROOT = Path(__file__).resolve().parent.parent

# How long an example takes is the machine's affair, not a test's.
hypothesis.settings.register_profile("gateway", deadline=None)
hypothesis.settings.load_profile("gateway")

# Helper modules of the tests import each other by name.
sys.path.insert(0, str(Path(__file__).resolve().parent))


def pytest_collection_finish(session: pytest.Session) -> None:
    # What was imported and collected need not be looked at after every test.
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def nothingUnhandled(request: pytest.FixtureRequest) -> Iterator[None]:
    """
    Fail a test that leaves a logged failure, an unhandled Deferred or a timer behind.

    A test that provokes a logged failure asks for the `expectedFailures` fixture.
    """
    failures: list[dict[str, Any]] = []
    # Asked for here, it is not torn down before it is filled.
    expected = "expectedFailures" in request.fixturenames
    given = request.getfixturevalue("expectedFailures") if expected else []

    def observer(event: dict[str, Any]) -> None:
        if event.get("log_failure") is not None:
            failures.append(event)

    globalLogPublisher.addObserver(observer)
    yield
    gc.collect()
    # What is left is there for good, and would be looked at after each of thousands of tests.
    gc.freeze()
    globalLogPublisher.removeObserver(observer)
    given.extend(failures)
    if not expected:
        texts = [event["log_failure"].getTraceback() for event in failures]
        assert not texts, "unhandled:\n" + "\n".join(texts)
    reactor = sys.modules.get("twisted.internet.reactor")
    if reactor is not None:
        left = [call for call in reactor.getDelayedCalls() if call.active()]  # type: ignore[attr-defined]
        for call in left:
            call.cancel()
        assert not left, f"timers left: {left}"


@pytest.fixture
def expectedFailures() -> list[dict[str, Any]]:
    """Lets a test provoke logged failures; after the test they are in here."""
    return []


@pytest.fixture
def childEnviron() -> dict[str, str]:
    """The environment for processes that import this checkout."""
    return {**os.environ, "PYTHONPATH": str(ROOT)}
