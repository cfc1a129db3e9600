"""What is published: an sdist, the wheel that is built from it, and what an environment gets that has nothing else."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest

import resfx

from .borrowed import SOURCE

ROOT = SOURCE.parents[1]
GROWN = {"build", "dist", "demo", "site"}  # at the root; deeper down, the source has folders of such names
CACHES = shutil.ignore_patterns(".*", "__pycache__", "*.egg-info")
BUILD = "from setuptools import build_meta; print(build_meta.build_{kind}({to!r}))"


def call(*command: object, cwd: Path, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, *map(str, command)], cwd=cwd, env={**os.environ, **environment}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def built(kind: str, source: Path, to: Path) -> Path:
    return to / call("-c", BUILD.format(kind=kind, to=str(to)), cwd=source).splitlines()[-1]


@pytest.fixture(scope="module")
def dist(tmp_path_factory) -> dict[str, Path]:
    """The sdist of a copy of the tree, and the wheel of what the sdist holds, as an index would serve them."""
    to = tmp_path_factory.mktemp("dist")
    ignore = lambda folder, names: CACHES(folder, names) | (GROWN if Path(folder) == ROOT else set())
    tree = shutil.copytree(ROOT, to / "tree", ignore=ignore)
    sdist = built("sdist", tree, to)
    with tarfile.open(sdist) as archive:
        archive.extractall(to / "unpacked", filter="data")
    (unpacked,) = (to / "unpacked").iterdir()
    return {"sdist": sdist, "unpacked": unpacked, "wheel": built("wheel", unpacked, to)}


def sources() -> set[str]:
    """All files of the package, as it stands in the tree."""
    files = (p for p in SOURCE.rglob("*") if p.is_file() and "__pycache__" not in p.parts)
    return {p.relative_to(SOURCE.parent).as_posix() for p in files}


def test_the_wheel_holds_the_package_and_nothing_else(dist):
    with zipfile.ZipFile(dist["wheel"]) as wheel:
        names = set(wheel.namelist())
        info = {n for n in names if ".dist-info/" in n}
        (licence,) = (n for n in info if n.endswith("licenses/LICENSE"))
        assert wheel.read(licence) == (ROOT / "LICENSE").read_bytes()
        (metadata,) = (wheel.read(n).decode() for n in info if n.endswith("/METADATA"))
    assert names - info == sources()
    assert {"resfx/py.typed", "resfx/ops/cpp/kernels.cpp", "resfx/ops/delta/kernel.h"} <= names
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    lines = metadata.splitlines()
    assert {f"Provides-Extra: {name}" for name in extras} <= set(lines)
    assert f"Version: {resfx.__version__}" in lines and "License-Expression: Apache-2.0" in lines
    assert dist["wheel"].name == f"resfx-{resfx.__version__}-py3-none-any.whl"


def test_the_sdist_holds_what_a_build_needs(dist):
    top = {p.name for p in dist["unpacked"].iterdir()}
    assert {"LICENSE", "README.md", "CHANGELOG.md", "pyproject.toml", "src"} <= top
    assert not top & {"tests", "docs", "benchmarks", "examples"}


def test_the_wheel_works_where_nothing_else_of_ours_is(dist, tmp_path):
    place = tmp_path / "place"
    install = ["install", "-q", "--no-deps", "--no-index", "--no-compile", "--target", place, dist["wheel"]]
    call("-m", "pip", "--disable-pip-version-check", *install, cwd=tmp_path)
    code = """
import json, resfx
from resfx.cli import main
from resfx.ops.library import operator_sources

main(["doctor", "--json"])
print(json.dumps([resfx.__file__, [str(p) for p in operator_sources()[0]], sorted(resfx.methods.base.methods())]))
"""
    out = call("-c", code, cwd=tmp_path, PYTHONPATH=str(place)).splitlines()
    diagnosis, (file, headers, methods) = json.loads("".join(out[:-1])), json.loads(out[-1])
    assert Path(file) == place / "resfx" / "__init__.py"
    assert headers and all(Path(h).is_relative_to(place) and Path(h).is_file() for h in headers)
    assert "ddl" in methods and len(methods) > 10
    assert diagnosis["resfx"] == resfx.__version__ and diagnosis["healthy"]
    assert (place / "bin" / "resfx").is_file()
