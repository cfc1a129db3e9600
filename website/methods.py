"""A page for each method, from its class: what its file says, its options with their defaults, how to use it.

``python -m website.methods`` writes them into ``docs/methods``.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import json
import re
import sys
from pathlib import Path
from typing import Any

from resfx.methods.base import Method, methods
from resfx.studies.results import Row, rows_of

from .text import linked, plain

ROOT = Path(__file__).parents[1]
PAGES = ROOT / "docs" / "methods"
STUDY = ROOT / "docs" / "study" / "results.json"
SETTINGS = {"scratch": "from scratch", "graft": "grafted"}
SCOPES = {
    "site": "replaces a residual add",
    "depth": "reads over the depth axis",
    "wide": "widens the stream to several channels",
    "sequence": "mixes neighbouring positions",
    "route": "hands a projection what earlier layers computed",
}


def main() -> None:
    """Write all pages; those of methods that are gone go."""
    PAGES.mkdir(exist_ok=True)
    made = method_pages()
    for path in PAGES.glob("*.md"):
        if path.stem not in made:
            path.unlink()
    for name, text in made.items():
        (PAGES / f"{name}.md").write_text(text, encoding="utf-8")


def method_pages() -> dict[str, str]:
    """Markdown by the method's name."""
    return {name: method_page(name, cls) for name, cls in methods().items()}


def method_page(name: str, cls: type[Method]) -> str:
    """The page of one method."""
    summary, text = described(cls)
    scope = cls().scope
    options = "\n".join(f"| `{f}` | `{default}` | {what} |" for f, default, what in options_of(cls))
    drawn = (ROOT / "docs" / "pictures" / f"{scope}.svg").is_file()
    picture = f"![A stream with a method of this scope](../pictures/{scope}.svg)\n\n" if drawn else ""
    source = Path(inspect.getfile(cls)).relative_to(ROOT).as_posix()
    return f"""# {cls.__name__}

{linked(summary)}

Scope `{scope}`: it {SCOPES.get(scope, "acts on the stream")}. Source: `{source}`.

{picture}```python
new = resfx.rewrite(model, "{name}", args=(ids,))  # or resfx.{cls.__name__}(...)
```

```
resfx rewrite my_package.models:make --method {name} --out folder
```

## What it computes

{text}

## Options

All are keywords of `resfx.{cls.__name__}`, and `--set NAME=VALUE` on the command line{unset(cls)}.

| option | default | what it is |
|---|---|---|
{options}

## In the study

{studied(name)}

Measured and tried: [what it costs](../costs.md) for the methods that were timed,
[the matrix](../matrix.md), [first use](../first_use.md);
when to take it: [which method when](../which.md).
"""


def described(cls: type[Method]) -> tuple[str, str]:
    """The first line of the file, and the class's words without its list of options."""
    summary = (sys.modules[cls.__module__].__doc__ or "").strip().split("\n")[0]
    text = re.split(r"^(?:Attributes|Args):$", inspect.cleandoc(cls.__doc__ or ""), flags=re.MULTILINE)[0]
    return summary, plain(text).strip()


def studied(name: str) -> str:
    """The method's rows of the committed study, each form's difference to the plain model; or that it has none."""
    study = _study()
    found = [row for setting in SETTINGS for row in rows_of(study["runs"], setting) if _is_of(row, name)]
    if not found:
        return "Not in [the study](../study.md)."
    lines = [f"| {r.label} | {SETTINGS[r.setting]} | {_difference(r)} | {len(r.results)} |" for r in found]
    return "\n".join([
        f"[At {study['size']} size](../study.md): the held-out loss less the plain model's, nats per token, with the",
        "95 % interval over seeds. Below zero is better; an interval that contains zero leaves it open.", "",
        "| form | trained | difference to plain | seeds |", "|---|---|---|---|", *lines,
    ])  # fmt: skip


def _is_of(row: Row, name: str) -> bool:
    config = row.any["method"]
    return config is not None and config["method"] == name


@functools.cache
def _study() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(STUDY.read_text(encoding="utf-8"))
    return found


def _difference(row: Row) -> str:
    """With its interval; one seed has none."""
    difference = row.difference
    if difference is None:
        return "no plain model of these seeds yet"
    return str(difference) if difference.seeds > 1 else f"{difference}, no interval"


def options_of(cls: type[Method]) -> list[tuple[str, str, str]]:
    """Name, default and description of each option; those of base classes after the method's own."""
    said: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        said.update(attributes_of(base.__dict__.get("__doc__") or ""))
    own = [f for f in dataclasses.fields(cls) if f.name in inspect.get_annotations(cls)]
    fields = own + [f for f in dataclasses.fields(cls) if f not in own]
    return [(f.name, repr(f.default).replace("|", "\\|"), said.get(f.name, "").replace("|", "\\|")) for f in fields]


def unset(cls: type[Method]) -> str:
    """Which options the command line has no text for: those of pairs."""
    found = ", ".join(f"`{f.name}`" for f in dataclasses.fields(cls) if "tuple[tuple" in str(f.type))
    return f" (but {found}: from Python alone)" if found else ""


def attributes_of(doc: str) -> dict[str, str]:
    """The ``Attributes:`` of a docstring by name; ``a, b: text`` describes both."""
    match = re.search(r"^(?:Attributes|Args):\n((?:    .*\n?|\n)+)", inspect.cleandoc(doc) + "\n", re.MULTILINE)
    found: dict[str, str] = {}
    for entry in re.split(r"\n(?=    \S)", match[1].rstrip()) if match else []:
        names, _, text = entry.partition(":")
        for name in names.split(","):
            found[name.strip()] = plain(" ".join(text.split()))
    return found


if __name__ == "__main__":
    main()
