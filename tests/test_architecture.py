"""What the house promises about its own structure, beside the layers that import-linter checks."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import metalearn
from metalearn import trainers
from metalearn.trainers import Trainer

LIBRARY = Path(metalearn.__file__).parent
FILES = sorted(LIBRARY.rglob("*.py"))

LONGEST_FILE, LONGEST_FUNCTION = 300, 60


@cache
def trees() -> dict[Path, ast.Module]:
    """What each file says, read by the first test that asks and not by whoever collects tests."""
    return {file: ast.parse(file.read_text(encoding="utf-8")) for file in FILES}


def short(file: Path) -> str:
    return file.relative_to(LIBRARY).as_posix()


def test_one_file_knows_the_private_names_of_functorch() -> None:
    private = re.compile(
        r"torch\._functorch|torch\._C\._functorch|_are_functorch_transforms_active"
    )
    knowing = [short(f) for f in FILES if private.search(f.read_text(encoding="utf-8"))]
    assert knowing == ["core/_functorch.py"]


def test_no_file_is_too_long() -> None:
    lines = {short(file): len(file.read_text(encoding="utf-8").splitlines()) for file in FILES}
    long = {name: count for name, count in lines.items() if count > LONGEST_FILE}
    assert not long


def test_no_function_is_too_long() -> None:
    long = {
        f"{short(file)}:{node.name}": length
        for file, tree in trees().items()
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (length := (node.end_lineno or 0) - node.lineno + 1) > LONGEST_FUNCTION
    }
    assert not long


def test_trainers_are_assembled_and_not_inherited() -> None:
    ours = [kind for kind in Trainer.__subclasses__() if kind.__module__.startswith("metalearn.")]
    named = {getattr(trainers, name) for name in trainers.__all__ if name.endswith("Trainer")}
    assert named - {Trainer} == set(ours)
    for kind in ours:
        assert kind.__mro__ == (kind, Trainer, object)
        below = [sub for sub in kind.__subclasses__() if sub.__module__.startswith("metalearn.")]
        assert not below


def test_no_room_asks_which_trainer_it_has() -> None:
    """A single module is a population of one, and commands ask a trainer what it can do."""
    named = {name for name in trainers.__all__ if name.endswith("Trainer")}
    asked = [
        f"{short(file)}:{node.lineno}"
        for file, tree in trees().items()
        for node in ast.walk(tree)
        if (
            (isinstance(node, ast.Call) and ast.unparse(node.func) in ("isinstance", "issubclass"))
            and named & {ast.unparse(part).split(".")[-1] for part in ast.walk(node.args[1])}
        )
        or (
            (isinstance(node, ast.Compare) and ast.unparse(node.left).endswith("ensemble"))
            and any(ast.unparse(other) == "None" for other in node.comparators)
        )
    ]
    assert not asked


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def test_no_file_asks_isinstance_whether_a_protocol_is_met() -> None:
    """It does not see what `__getattr__` hands on from Python 3.12 on; `types.offers` does."""
    protocols = {
        node.name
        for tree in trees().values()
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef)
        and any(isinstance(base, ast.Name) and base.id == "Protocol" for base in node.bases)
    }
    assert {"TaskDistribution", "AdaptsParameters"} <= protocols
    asked = [
        f"{short(file)}:{node.lineno}"
        for file, tree in trees().items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id == "isinstance"
        and protocols & {n.id for n in ast.walk(node.args[1]) if isinstance(n, ast.Name)}
    ]
    assert not asked


def test_no_file_takes_a_private_name_of_another() -> None:
    taken = [
        f"{short(file)}: {module}.{name}"
        for file, tree in trees().items()
        for module, name in imported(file, tree)
        if is_private(name) and f"{module}.{name}" not in MODULES
    ]
    assert not taken


# --- no file imports what imports it ------------------------------------------------------------


def module_name(file: Path) -> str:
    parts = file.relative_to(LIBRARY.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(file): file for file in FILES}


def imported(file: Path, tree: ast.AST) -> Iterator[tuple[str, str]]:
    """Modules of ours and what is taken from each, wherever the statement stands.

    Imports in functions and under ``TYPE_CHECKING`` count as any other.
    """
    package = module_name(file) if file.name == "__init__.py" else module_name(file.parent)
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [(alias.name, "") for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - max(node.level - 1, 0)]
            base = [*(above if node.level else []), *([node.module] if node.module else [])]
            names = [(".".join(base), alias.name) for alias in node.names]
        else:
            continue
        yield from (pair for pair in names if pair[0].split(".")[0] == "metalearn")


def graph_of(files: dict[str, tuple[Path, ast.AST]]) -> dict[str, set[str]]:
    """Which module imports which; of a package and its module of one name, the module.

    That a module runs the faces of the packages around it is no import of theirs.
    """
    graph: dict[str, set[str]] = {}
    for name, (file, tree) in files.items():
        found = {
            inner if (inner := f"{module}.{taken}") in files else module
            for module, taken in imported(file, tree)
        }
        graph[name] = found - {name}
    return graph


def test_no_import_cycle() -> None:
    graph = graph_of({name: (file, trees()[file]) for name, file in MODULES.items()})
    assert sum(map(len, graph.values())) > len(graph)  # that imports are found at all
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"imports in a circle: {' → '.join(error.args[1])}")


@pytest.mark.parametrize(
    "back",
    [
        "import metalearn.a",
        "from metalearn import a",
        "from metalearn.a import x",
        "from . import a",
        "from .a import x",
        "def f():\n    from metalearn.a import x",
        "if TYPE_CHECKING:\n    from metalearn.a import x",
    ],
)
def test_a_cycle_would_be_found(back: str) -> None:
    a, b = LIBRARY / "a.py", LIBRARY / "b.py"
    files: dict[str, tuple[Path, ast.AST]] = {
        "metalearn.a": (a, ast.parse("from metalearn.b import y")),
        "metalearn.b": (b, ast.parse(back)),
    }
    with pytest.raises(CycleError):
        TopologicalSorter(graph_of(files)).prepare()
