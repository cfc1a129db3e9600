"""``make versions`` writes ``docs/versions.md``: the sets of versions, and the borrowed names that each has.

``python -m tests.versions floor=.venv-floor tested=.venv newest=.venv-newest``, with an environment for each set.
"""

from __future__ import annotations

import importlib.metadata
import json
import subprocess
import sys
from pathlib import Path

from .borrowed import TABLE

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "versions.md"
PACKAGES = [
    "torch",
    "numpy",
    "safetensors",
    "transformers",
    "timm",
    "onnx",
    "onnx-ir",
    "onnxscript",
    "onnxruntime",
    "triton",
]

HEAD = """# Versions

The tests run on three sets of versions: the oldest that `pyproject.toml` allows, those that `make test` installs, and
the newest torch with what goes with it: its triton may be older than that of the set before.
`make test-versions SET=floor` (`tested`, `newest`) makes an environment of the set in `constraints/` and
runs them there; `make versions` writes this page.

| | {sets} |
|---|{rules}|
{versions}

## Borrowed names

Names that torch and transformers do not promise. Each is reached through one function, of `src/resfx/_torch` or
`src/resfx/runtime/huggingface.py`; `tests/test_borrowed.py` fails where the installed versions lack one, and says what
uses it.

| name | through | without it breaks | {sets} |
|---|---|---|{rules}|
{names}
"""


def facts() -> dict[str, dict[str, object]]:
    """Of the environment that this runs in: versions, and which borrowed names are there."""
    versions = {name: importlib.metadata.version(name).split("+")[0] for name in PACKAGES}
    return {"versions": versions, "there": {one.name: one.there() for one in TABLE}}


def facts_of(environment: str) -> dict[str, dict[str, object]]:
    """The same of another environment."""
    command = [f"{environment}/bin/python", "-m", "tests.versions"]
    done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def page(found: dict[str, dict[str, dict[str, object]]]) -> str:
    """The page, from the facts by set."""
    row = lambda *cells: "| " + " | ".join(map(str, cells)) + " |"
    versions = [row(name, *(of["versions"][name] for of in found.values())) for name in PACKAGES]
    yes = lambda of, one: "yes" if of["there"][one.name] else "**no**"
    names = [
        row(f"`{one.name}`", f"`{one.through}`", one.breaks, *(yes(of, one) for of in found.values())) for one in TABLE
    ]
    sets, rules = " | ".join(found), "|".join(["---"] * len(found))
    return HEAD.format(sets=sets, rules=rules, versions="\n".join(versions), names="\n".join(names))


if __name__ == "__main__":
    if sys.argv[1:]:
        PAGE.write_text(page({name: facts_of(path) for name, path in (a.split("=", 1) for a in sys.argv[1:])}))
        print(f"wrote {PAGE.relative_to(ROOT)}")
    else:
        print(json.dumps(facts()))
