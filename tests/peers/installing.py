"""What the tests with real peers install, once, under build/peers, and to what they are pinned."""

from __future__ import annotations

import shutil
import subprocess
import sys
import venv
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CACHE = ROOT / "build" / "peers"

CONFORMANCE = "@modelcontextprotocol/conformance@0.2.0-alpha.12"
NODE = "node@22"
SDK_1 = "@modelcontextprotocol/sdk@1.32.2"
CLIENT_2 = "@modelcontextprotocol/client@2.4.0"
SERVER_2 = "@modelcontextprotocol/server@2.4.0"
EVERYTHING = "@modelcontextprotocol/server-everything@2026.8.31"
NODE_PACKAGES = (CONFORMANCE, NODE, SDK_1, CLIENT_2, SERVER_2, EVERYTHING)
"""From npm. The suite needs Node 22, so it brings one, and the others run on that, too."""
MCP_1 = "mcp==1.30.0"
"""From PyPI, in an environment of its own; the tests' own has `mcp` 2.x."""

INSTALL_SECONDS = 300.0


class NotInstalled(Exception):
    """Something is not here and could not be installed; the message says why."""


def nodeModules(given: str | None = None, wanted: Sequence[str] = NODE_PACKAGES) -> Path:
    """
    The node_modules folder with these packages: the `given` one, else installed if need be.

    Raises NotInstalled.
    """
    if given is not None:
        modules = Path(given).resolve()
        if missing := absent(modules, wanted):
            raise NotInstalled(f"{modules} has no {', '.join(missing)}")
        return modules
    pins = " ".join(NODE_PACKAGES)
    stamp, modules = CACHE / "installed.txt", CACHE / "node_modules"
    if stamp.is_file() and stamp.read_text() == pins and not absent(modules, NODE_PACKAGES):
        return modules
    npm = shutil.which("npm")
    if npm is None:
        raise NotInstalled("npm is not on the PATH, and no node_modules was given")
    CACHE.mkdir(parents=True, exist_ok=True)
    (CACHE / "package.json").write_text('{"name": "gateway-peers", "private": true}\n')
    run([npm, "install", "--no-audit", "--no-fund", *NODE_PACKAGES])
    if missing := absent(modules, NODE_PACKAGES):
        raise NotInstalled(f"npm install brought no {', '.join(missing)}")
    stamp.write_text(pins)
    return modules


def absent(modules: Path, wanted: Sequence[str]) -> list[str]:
    """Which of these packages are not in a node_modules folder. Versions are not looked at."""
    # Where npm runs no install scripts the package of Node comes without Node.
    files = {"node": modules / ".bin" / "node"}
    names = [package.rpartition("@")[0] for package in wanted]
    return [n for n in names if not files.get(n, modules / n / "package.json").is_file()]


def node(modules: Path) -> str:
    """The Node of a node_modules folder."""
    return str(modules / ".bin" / "node")


def mcp1() -> str:
    """
    A Python that has PyPI `mcp` 1.x, installed if need be.

    Raises NotInstalled.
    """
    folder = CACHE / "mcp1"
    python, stamp = folder / "bin" / "python", folder / "installed.txt"
    pins = f"{MCP_1} {sys.version}"
    if stamp.is_file() and stamp.read_text() == pins:
        return str(python)
    venv.create(folder, clear=True, symlinks=True, with_pip=True)
    run([str(python), "-m", "pip", "install", "-q", "--disable-pip-version-check", MCP_1])
    stamp.write_text(pins)
    return str(python)


def run(arguments: list[str]) -> None:
    """Run an installer in the cache; raises NotInstalled with what it said."""
    tool = " ".join(arguments[:4])
    try:
        done = subprocess.run(
            arguments, cwd=CACHE, capture_output=True, text=True, timeout=INSTALL_SECONDS
        )
    except subprocess.TimeoutExpired:
        raise NotInstalled(f"{tool} took too long") from None
    if done.returncode:
        raise NotInstalled(f"{tool} failed:\n{done.stderr.strip()}")
