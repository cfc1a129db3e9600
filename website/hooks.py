"""Pages whose text lives elsewhere: in the root of the tree, in the committed tables, in the command line's help."""

from __future__ import annotations

import argparse
import os
import re
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "src")]

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

CARRIED = {"README.md": "index.md", "CHANGELOG.md": "changelog.md", "CONTRIBUTING.md": "contributing.md"}


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Put the made pages into the navigation: where it says ``methods/`` and ``benchmarks/``."""
    for section in config.nav or []:
        for title, entries in section.items():
            if isinstance(entries, list):
                section[title] = [page for entry in entries for page in expanded(entry)]
    return config


def expanded(entry: Any) -> list[Any]:
    """The pages of a folder that is made; any other entry as it is."""
    if entry == "methods/":
        return [{path.stem: f"methods/{path.name}"} for path in sorted((ROOT / "docs" / "methods").glob("*.md"))]
    if entry == "benchmarks/":
        return [{"Benchmarks": [{path.stem: f"benchmarks/{path.name}"} for path in results()]}]
    return [entry]


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the made pages."""
    for name, page in CARRIED.items():
        files.append(File.generated(config, page, content=carried((ROOT / name).read_text(encoding="utf-8"))))
    for path in results():
        files.append(File.generated(config, f"benchmarks/{path.name}", content=path.read_text(encoding="utf-8")))
    return files


def on_page_markdown(markdown: str, **about: Any) -> str:
    """Fill in what the command line says of itself; link to the tables where the site has them."""
    if "<!-- commands -->" in markdown:
        markdown = markdown.replace("<!-- commands -->", commands())
    return re.sub(r"\]\(\.\./((?:\.\./)*)benchmarks/results/", r"](\1benchmarks/", markdown)


def commands() -> str:
    """The help of every command."""
    from resfx.cli.cli import make_parser

    os.environ["COLUMNS"] = "100"
    (choices,) = (a.choices for a in make_parser()._actions if isinstance(a, argparse._SubParsersAction))
    parts = [f"## {name}\n\n```text\n{command.format_help()}```\n" for name, command in choices.items()]
    return f"```text\n{make_parser().format_help()}```\n\n" + "\n".join(parts)


def results() -> list[Path]:
    """The committed tables of the benchmarks."""
    return sorted((ROOT / "benchmarks" / "results").glob("*.md"))


def carried(text: str) -> str:
    """A page from the root of the tree, with its links as the site has them."""
    text = re.sub(r"\]\(docs/", "](", text)
    text = re.sub(r"\]\(benchmarks/results/(\S+?\.md)\)", r"](benchmarks/\1)", text)
    text = re.sub(r'src="docs/', 'src="', text)
    for path, page in CARRIED.items():
        text = text.replace(f"]({path})", f"]({page})")
    return re.sub(r"\[([^\]]+)\]\((?:src|examples|LICENSE|benchmarks/results)\b[^)]*\)", r"\1", text)
