"""Pages that are made, not written: of the methods from their classes, and of files that live elsewhere in the tree."""

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

from website.methods import method_pages

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
        return [{name: f"methods/{name}.md"} for name in method_pages()]
    if entry == "benchmarks/":
        return [{"Benchmarks": [{p.stem: f"benchmarks/{p.name}"} for p in results()]}]
    return [entry]


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the made pages."""
    for name, text in method_pages().items():
        files.append(File.generated(config, f"methods/{name}.md", content=text))
    for path, page in CARRIED.items():
        files.append(File.generated(config, page, content=carried((ROOT / path).read_text(encoding="utf-8"))))
    for path in results():
        files.append(File.generated(config, f"benchmarks/{path.name}", content=path.read_text(encoding="utf-8")))
    return files


def on_page_markdown(markdown: str, **about: Any) -> str:
    """Fill in what the command line says of itself."""
    return markdown.replace("<!-- commands -->", commands())


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
