"""The official conformance suite through the gateway: `pytest -m peers tests/peers`."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conformance import ROUTES

SCRIPT = Path(__file__).with_name("conformance.py")
NOT_INSTALLED = 2


@pytest.mark.peers
@pytest.mark.acceptance(33)
def test_acceptance_33_no_check_passes_directly_and_fails_through_the_gateway() -> None:
    """MCP_NODE_MODULES names an installed suite; without it npm installs one."""
    arguments = [sys.executable, str(SCRIPT)]
    if modules := os.environ.get("MCP_NODE_MODULES"):
        arguments += ["--node-modules", modules]
    elif shutil.which("npm") is None:
        pytest.skip("npm is not on the PATH and MCP_NODE_MODULES is not set")
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=1500)
    if done.returncode == NOT_INSTALLED:
        pytest.skip(f"the suite could not be installed: {done.stderr.strip()}")
    assert done.returncode == 0, done.stdout + done.stderr
    for requirements, routes in ROUTES.items():
        said = done.stdout.partition(f"requirements {requirements}\n")[2]
        assert all(f"\n{route}  " in f"\n{said}" for route in ("direct", *routes)), done.stdout
