"""Installed from a wheel, and as a default editable install: the script and twistd both find it."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest
import pytest_twisted
from processes import ROOT, start


def environment(where: Path) -> Path:
    """A virtual environment that has the dependencies of this one, and not the gateway."""
    venv.create(where, with_pip=False, symlinks=True)
    (site,) = where.glob("lib/python*/site-packages")
    here = Path(sysconfig.get_paths()["purelib"])
    for package in here.iterdir():
        ours = package.name.startswith(("gateway", "mcp_gateway", "__editable__"))
        if not ours and package.suffix != ".pth" and package.name != "twisted":
            (site / package.name).symlink_to(package)
    # twisted/plugins is shared by every distribution with a plugin, so it is a folder of its own.
    (site / "twisted").mkdir()
    for part in (here / "twisted").iterdir():
        if part.name != "plugins":
            (site / "twisted" / part.name).symlink_to(part)
    (site / "twisted" / "plugins").mkdir()
    for plugin in (here / "twisted" / "plugins").glob("*.py"):
        if plugin.name != "mcp_gateway.py":
            (site / "twisted" / "plugins" / plugin.name).symlink_to(plugin)
    return where / "bin" / "python"


def install(python: Path, *words: str) -> None:
    """pip of this environment installs into that one; only the build's own needs are fetched."""
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "-q", "--no-deps"]
    done = subprocess.run([*pip, *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """The files git knows, in a folder of their own, so that the checkout stays clean."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=False,
    )
    if listed.returncode != 0:
        pytest.skip("not a git checkout")
    for name in filter(None, listed.stdout.decode().split("\0")):
        if (ROOT / name).is_file():
            copy = tmp_path / "source" / name
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes((ROOT / name).read_bytes())
    return tmp_path / "source"


@pytest.mark.parametrize("editable", [False, True], ids=["wheel", "editable"])
@pytest_twisted.ensureDeferred
async def test_the_script_and_twistd_run(editable: bool, source: Path, tmp_path: Path) -> None:
    python = environment(tmp_path / "venv")
    install(python, *(["-e"] if editable else []), str(source))
    listen = ["--listen", "tcp:0:interface=127.0.0.1"]
    twistd = "from twisted.scripts.twistd import run; run()"
    for argv in (
        [str(python.with_name("mcp-gateway")), *listen],
        [str(python), "-c", twistd, "-n", "--pidfile=", "mcp-gateway", *listen],
    ):
        process = start(argv, {"PYTHONPATH": ""}, cwd=str(tmp_path))
        await process.line("is ready")
        process.kill()
        await process.ended
