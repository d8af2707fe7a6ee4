"""The structure of the package, read from its imports: layers, cycles, and unambiguous names."""

from __future__ import annotations

import ast
import functools
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

import forgetting

PACKAGE = Path(forgetting.__file__).parent

# From the bottom up: a package imports from itself and from packages before it.
ORDER = (
    "errors",
    "console",
    "escaping",
    "registry",
    "method",
    "turns",
    "formats",
    "config",
    "rundir",
    "demo",
    "data",
    "models",
    "scoring",
    "training",
    "evaluation",
    "inspector",
    "report",
    "stages",
    "pipeline",
    "estimates",
    "launch",
    "inspecting",
    "chatting",
    "auditing",
    "export",
    "studies",
    "doctor",
    "cli",
)
# The public interface, and `python -m forgetting`.
OUTSIDE = ("__init__", "__main__")


@functools.cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def files(root: Path) -> dict[str, Path]:
    """Every module of a package by its full name."""
    found = {}
    for path in sorted(root.rglob("*.py")):
        parts = [root.name, *path.relative_to(root).with_suffix("").parts]
        if parts[-1] == "__init__" and len(parts) > 2:
            parts.pop()
        found[".".join(parts)] = path
    return found


def imports(path: Path, names: set[str]) -> Iterator[str]:
    """The modules of the package that a module imports, anywhere in it.

    `from a import b` is an import of `a.b` if that is a module, else of `a`.
    """
    top = min(names, key=len).split(".")[0]
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.split(".")[0] == top)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            module = node.module or ""
            if module.split(".")[0] == top:
                for alias in node.names:
                    inner = f"{module}.{alias.name}"
                    yield inner if inner in names else module


def part(module: str) -> str:
    """The package or top-level module that a module belongs to."""
    return module.split(".")[1] if "." in module else "__init__"


def edges(root: Path) -> set[tuple[str, str]]:
    """(importing module, imported module) for each import between parts of the package."""
    modules = files(root)
    return {
        (module, imported)
        for module, path in modules.items()
        if part(module) not in OUTSIDE
        for imported in imports(path, set(modules))
        if part(imported) not in (part(module), *OUTSIDE)
    }


def upward(root: Path, order: tuple[str, ...]) -> set[tuple[str, str]]:
    """Imports from a part that is listed later."""
    place = {name: index for index, name in enumerate(order)}
    return {
        (module, imported)
        for module, imported in edges(root)
        if place.get(part(imported), len(order)) > place.get(part(module), len(order))
    }


def cycles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Paths in a graph that lead back to their start, at least one for each cycle."""
    found = []
    state: dict[str, int] = {}

    def visit(node: str, path: list[str]) -> None:
        state[node] = 1
        for other in sorted(graph.get(node, ())):
            if state.get(other) == 1:
                found.append([*path[path.index(other) :], other])
            elif other not in state:
                visit(other, [*path, other])
        state[node] = 2

    for node in sorted(graph):
        if node not in state:
            visit(node, [node])
    return found


def repeated(names: dict[str, list[str]]) -> dict[str, list[str]]:
    return {name: places for name, places in names.items() if len(places) > 1}


def module_names(root: Path) -> dict[str, list[str]]:
    """Modules by their last name."""
    found = defaultdict(list)
    for module, path in files(root).items():
        if path.stem not in OUTSIDE:
            found[path.stem].append(module)
    return found


def class_names(root: Path) -> dict[str, list[str]]:
    """Modules that define a public class, by its name."""
    found = defaultdict(list)
    for module, path in files(root).items():
        for node in parsed(path).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                found[node.name].append(module)
    return found


def test_every_part_has_its_place():
    parts = {part(module) for module in files(PACKAGE)} - set(OUTSIDE)
    assert parts == set(ORDER)


def test_no_import_leads_upward():
    assert upward(PACKAGE, ORDER) == set()


def test_no_packages_import_each_other():
    graph = defaultdict(set)
    for module, imported in edges(PACKAGE):
        graph[part(module)].add(part(imported))
    assert cycles(graph) == []


def test_no_modules_import_each_other():
    modules = files(PACKAGE)
    graph = {
        module: {other for other in imports(path, set(modules)) if other != module}
        for module, path in modules.items()
        if part(module) not in OUTSIDE
    }
    # A package may gather in its `__init__` what its modules define.
    gathers = {module for module, path in modules.items() if path.stem == "__init__"}
    graph = {module: others - gathers for module, others in graph.items() if module not in gathers}
    assert cycles(graph) == []


def test_no_two_modules_have_the_same_name():
    assert repeated(module_names(PACKAGE)) == {}


def test_no_two_public_classes_have_the_same_name():
    assert repeated(class_names(PACKAGE)) == {}


@pytest.fixture
def small(tmp_path):
    """Writes a package of modules; gives its folder."""

    def write(**modules: str) -> Path:
        root = tmp_path / "forgetting"
        for name, code in {"__init__": "", **modules}.items():
            path = root / f"{name.replace('__in__', '/')}.py"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(code)
        return root

    return write


@pytest.mark.parametrize(
    "code",
    [
        "from forgetting.high import x",
        "from forgetting import high",
        "import forgetting.high",
        "def f():\n    from forgetting.high import x",
        "if TYPE_CHECKING:\n    import forgetting.high as h",
    ],
)
def test_an_upward_import_is_found_wherever_it_is(small, code):
    root = small(low=code, high="x = 1")
    assert upward(root, ("low", "high")) == {("forgetting.low", "forgetting.high")}
    assert upward(root, ("high", "low")) == set()


def test_a_cycle_is_found(small):
    root = small(a="import forgetting.b", b="import forgetting.c", c="import forgetting.a")
    graph = defaultdict(set)
    for module, imported in edges(root):
        graph[part(module)].add(part(imported))
    assert cycles(graph) == [["a", "b", "c", "a"]]


def test_equal_names_are_found(small):
    root = small(a__in__same="class X: ...", b__in__same="class X: ...\nclass _Y: ...")
    assert repeated(module_names(root)) == {"same": ["forgetting.a.same", "forgetting.b.same"]}
    assert set(repeated(class_names(root))) == {"X"}
