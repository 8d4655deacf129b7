"""A room imports only from rooms below it, and a lost session is answered in one place."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import gateway

ROOT = Path(gateway.__file__).parent
MODULES = {
    ".".join(("gateway", *path.relative_to(ROOT).with_suffix("").parts)).removesuffix(
        ".__init__"
    ): path
    for path in sorted(ROOT.rglob("*.py"))
}

ROOMS = [
    {"wire"},
    {"bridge"},
    {"observe"},
    {"guard"},
    {"http1", "sessions"},
    {"links"},
    {"servers"},
    {"relay"},
    {"proxies"},
    {"doors"},
    {"app"},
    {"config", "generation"},
    {"endpoints"},
    {"running"},
    {"service"},
    {"banner", "reloading", "testing"},
    {"own"},
    {"tap"},
]
"""From the bottom to the top."""

LEAVES = {"gateway", "gateway.clock", "gateway.settings", "gateway.guard.limits"}
"""What anybody may import; they import nothing of ours but each other."""

APART = {"demo"}
"""Programs of their own: they import no room and no room imports them."""

HEIGHT = {room: height for height, rooms in enumerate(ROOMS) for room in rooms}


def roomOf(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


def importsOf(path: Path) -> set[str]:
    """The modules of ours that a module imports, wherever in it."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            module = node.module or ""
            for alias in node.names:
                inner = f"{module}.{alias.name}"
                found.add(inner if inner in MODULES else module)
    return {name for name in found if name.split(".")[0] == "gateway"}


def test_every_module_has_a_room() -> None:
    homeless = {
        module
        for module in MODULES
        if module not in LEAVES and roomOf(module) not in HEIGHT.keys() | APART
    }
    assert not homeless


@pytest.mark.parametrize("module", [name for name in MODULES if name not in LEAVES])
def test_imports_only_go_down(module: str) -> None:
    room = roomOf(module)
    for imported in importsOf(MODULES[module]) - LEAVES:
        other = roomOf(imported)
        if room in APART or other in APART:
            assert room == other, f"{module} imports {imported}"
        elif room != other:
            assert HEIGHT[other] < HEIGHT[room], f"{module} imports {imported}"


# The package itself offers `listen`, whose imports wait until it is called.
@pytest.mark.parametrize("module", sorted(LEAVES - {"gateway"}))
def test_leaves_import_nothing_of_ours(module: str) -> None:
    assert importsOf(MODULES[module]) <= LEAVES


def test_the_map_of_the_rooms_names_every_module() -> None:
    page = (ROOT.parent / "docs" / "architecture.md").read_text()
    drawing = page.partition("## The rooms")[2].partition("\n## ")[0]
    files = {path.name for path in MODULES.values()} - {"__init__.py"}
    rooms = {path.parent.name for path in MODULES.values()} - {"gateway"}
    assert {file for file in files if file not in drawing} == set()
    assert {room for room in rooms if f"  {room}/" not in drawing} == set()


def test_no_two_modules_import_each_other() -> None:
    graph = {name: importsOf(path) & MODULES.keys() for name, path in MODULES.items()}
    done: set[str] = set()

    def walk(name: str, above: tuple[str, ...]) -> None:
        assert name not in above, " -> ".join((*above, name))
        if name not in done:
            for other in sorted(graph[name] - {name}):
                walk(other, (*above, name))
            done.add(name)

    for name in graph:
        walk(name, ())


@pytest.mark.parametrize("module", [name for name in MODULES if roomOf(name) in ("wire", "relay")])
def test_no_module_has_a_reactor_of_its_own(module: str) -> None:
    tree = ast.parse(MODULES[module].read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            assert "reactor" not in {alias.name for alias in node.names}
            if roomOf(module) == "wire":
                assert not (node.module or "").startswith("twisted")
        elif isinstance(node, ast.Import):
            assert "twisted.internet.reactor" not in {alias.name for alias in node.names}


def constructions(tree: ast.AST, found: list[str], function: str = "") -> list[str]:
    """The functions in which the code or the text of a lost session stands, outside docstrings."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            continue
        inner = function
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            inner = f"{function}.{node.name}".lstrip(".")
        if isinstance(node, ast.Constant):
            value = node.value
            if isinstance(value, bytes):
                value = value.decode("latin-1")
            isText = isinstance(value, str) and (
                "session not found" in value.lower() or ("code" in value and "-32001" in value)
            )
            if isText or (isinstance(value, int) and value == 32001):
                found.append(function)
        constructions(node, found, inner)
    return found


@pytest.mark.acceptance(35)
def test_acceptance_35_one_function_builds_the_answer_to_a_lost_session() -> None:
    places = {
        (module, function)
        for module, path in MODULES.items()
        for function in constructions(ast.parse(path.read_text()), [])
    }
    assert places == {("gateway.wire.refusals", "sessionNotFound")}
