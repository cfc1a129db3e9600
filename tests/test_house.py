"""The house: what may import what, how large a file and a folder may be, and where borrowed names may stand.

Read from the source, imports inside functions included.
"""

from __future__ import annotations

import ast
import functools
import os
import re
import statistics
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from .borrowed import LENDERS, SOURCE, files_of

ROOT_FILES = {"__init__.py", "__main__.py", "api.py", "errors.py", "py.typed"}
BELOW = {"ops": {"ops", "errors", "_torch"}, "methods": {"methods", "ops", "errors", "_torch"}}
BESIDE = {"passes.find": {"report"}}
DRAWING = "comparison.plot"  # imported where a picture is asked for
FOREIGN = {
    "export/verify.py": {"_ortvalue"},  # of ONNX Runtime: the one way to a tensor of a type that NumPy lacks
    "runtime/parallel.py": {"_hf_hook"},  # of accelerate, on a module whose forward it has put its own around
    "methods/learned.py": {
        "_is_hf_initialized"
    },  # what a tensor says to transformers' initialisers: written, never read
}
PROMISED = {"_fields", "_getframe"}  # of Python's named tuples and of sys: documented

ASKING = {"getattr", "setattr", "hasattr", "delattr", "get", "pop", "import_module", "getLogger"}

FILES = sorted(SOURCE.rglob("*.py"))


@functools.cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def module_name(path: Path) -> str:
    """``passes.find.walk`` of its file; ``passes.find`` of a package."""
    parts = path.relative_to(SOURCE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in FILES}


def imported(path: Path) -> set[str]:
    """The modules of the package that a file imports by name."""
    found: set[str] = set()
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            names = [a.name.removeprefix("resfx").lstrip(".") for a in node.names if a.name.split(".")[0] == "resfx"]
            found.update(names)
        elif isinstance(node, ast.ImportFrom) and (base := base_of(node, path)) is not None:
            for alias in node.names:
                inner = f"{base}.{alias.name}".lstrip(".")
                found.add(inner if inner in MODULES else base)
    return found - {module_name(path)}


def base_of(node: ast.ImportFrom, path: Path) -> str | None:
    """What ``from ... import`` names, within the package; ``None`` if it is another's."""
    if not node.level:
        first, _, rest = (node.module or "").partition(".")
        return rest if first == "resfx" else None
    package = path.relative_to(SOURCE).parts[:-1]
    kept = package[: len(package) - node.level + 1]
    return ".".join([*kept, *(node.module.split(".") if node.module else [])])


def circles(edges: dict[str, set[str]]) -> list[list[str]]:
    """Groups of modules that reach each other."""
    reach = {name: reachable(name, edges) for name in edges}
    groups = {frozenset(o for o in reach[n] if n in reach.get(o, ())) for n in edges if n in reach[n]}
    return sorted(sorted(group) for group in groups)


def reachable(name: str, edges: dict[str, set[str]]) -> set[str]:
    seen: set[str] = set()
    todo = list(edges[name])
    while todo:
        if (other := todo.pop()) not in seen:
            seen.add(other)
            todo += edges.get(other, ())
    return seen


def test_circles_are_found():
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": {"a"}}) == [["b", "c"]]


def test_no_module_imports_itself_by_a_detour():
    edges = {name: imported(path) - {DRAWING} for name, path in MODULES.items()}
    assert set().union(*edges.values()) <= set(MODULES) | {""}
    assert not circles(edges)


@pytest.mark.parametrize("folder", BELOW)
def test_lower_floors_import_nothing_from_above(folder):
    inside = [(n, i) for n, p in MODULES.items() if n.split(".")[0] == folder for i in imported(p)]
    assert inside
    assert not [(n, i) for n, i in inside if i.split(".")[0] not in BELOW[folder]]


@pytest.mark.parametrize("folder", BESIDE)
def test_data_knows_no_text(folder):
    inside = [(n, i) for n, p in MODULES.items() if n.startswith(folder) for i in imported(p)]
    assert inside
    assert not [(n, i) for n, i in inside if i.split(".")[0] in BESIDE[folder]]


def test_the_root_has_no_more_than_it_should():
    assert {p.name for p in SOURCE.iterdir() if p.is_file()} == ROOT_FILES


def test_files_are_short():
    sizes = {p.relative_to(SOURCE).as_posix(): len(p.read_text().splitlines()) for p in FILES}
    assert not {name: size for name, size in sizes.items() if size > 360}
    assert statistics.median(size for name, size in sizes.items() if size > 1) < 130


def test_folders_are_small():
    assert not {str(f.relative_to(SOURCE)): n for f, n in Counter(p.parent for p in FILES).items() if n > 16}


def own_names() -> set[str]:
    """The attributes that classes of the package define."""
    found: set[str] = set()
    for node in (n for path in FILES for n in ast.walk(tree(path))):
        if isinstance(node, ast.ClassDef):
            found.update(*(names_of(item) for item in node.body))
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and ast.unparse(node.value) == "self":
            found.add(node.attr)
    return found


def names_of(item: ast.stmt) -> set[str]:
    """The names that a statement binds."""
    if isinstance(item, (ast.FunctionDef, ast.ClassDef)):
        return {item.name}
    return {n.id for n in ast.walk(item) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}


def private_uses(path: Path) -> set[str]:
    """Private attributes that a file reads or writes, by name or by a string, and private parts of what it imports."""
    found: set[str] = set()
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Attribute):
            found.add(node.attr)
        elif isinstance(node, ast.ImportFrom) and base_of(node, path) is None:
            found.update((node.module or "").split("."), (a.name for a in node.names))
        elif isinstance(node, ast.Import):
            found.update(part for a in node.names for part in a.name.split("."))
        elif isinstance(node, ast.Subscript):
            found.add(text(node.slice))
        elif isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] in ASKING:
            found.update(part for a in node.args for part in text(a).split("."))
    return (
        {n for n in found if n.startswith("_") and not n.startswith(("__", "_resfx")) and n.isidentifier()}
        - {"_"}
        - PROMISED
    )


def text(node: ast.expr) -> str:
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""


def test_borrowed_names_stay_where_they_are_borrowed():
    own, lent = own_names(), [path for lender in LENDERS for path in files_of(lender)]
    wrong = {}
    for path in FILES:
        file = path.relative_to(SOURCE).as_posix()
        if path not in lent and (used := private_uses(path) - own - FOREIGN.get(file, set())):
            wrong[file] = sorted(used)
    assert not wrong


def test_python_beside_a_clone_imports_the_installed_package(tmp_path):
    (tmp_path / "resfx").symlink_to(SOURCE.parents[1])
    code = "import resfx; print(resfx.__file__); resfx.scan"
    environment = {**os.environ, "PYTHONPATH": str(SOURCE.parent)}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    assert Path(done.stdout.strip()) == SOURCE / "__init__.py"


def test_the_contributors_page_names_what_there_is():
    root = SOURCE.parents[1]
    page, makefile = (root / "CONTRIBUTING.md").read_text(), (root / "Makefile").read_text()
    spans = [re.sub(r"<.*", "", s) for s in re.findall(r"`([^`\n]+)`", page) if "/" in s or s.endswith(".py")]
    files = {p.name for p in FILES}
    assert spans and not [s for s in spans if not any((at / s).exists() for at in (root, SOURCE)) and s not in files]
    commands = {word for line in re.findall(r"^make ([^#\n]*)", page, re.M) for word in line.split() if "=" not in word}
    assert commands and not [c for c in commands if not re.search(rf"^[^\n=]*\b{c}\b[^\n=]*:", makefile, re.M)]
