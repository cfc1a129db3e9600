"""The text of a study: what ships with Python, or the user's own; training and held-out parts by document."""

from __future__ import annotations

import ast
import hashlib
import os
import platform
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from resfx.errors import InputError

Part = Literal["train", "tune", "held"]
PARTS: tuple[Part, ...] = ("train", "tune", "held")
OWN = (".txt", ".md", ".rst", ".py")
PIECE = 4000  # characters, at least, of what counts as a document where one file is all there is


@dataclass(frozen=True)
class Corpus:
    """Documents by name, and where they come from, in words."""

    source: str
    documents: dict[str, str]

    def part(self, which: Part) -> list[str]:
        """The documents of one part, in the order of their names.

        Raises:
            InputError: if there is none.
        """
        found = [text for name, text in sorted(self.documents.items()) if part_of(name) == which]
        if not found:
            raise InputError(
                "the text must divide into training, tuning and held-out documents",
                f"{len(self.documents)} documents, none of them for {which!r}", "give a text of more documents",
            )  # fmt: skip
        return found

    @property
    def digest(self) -> str:
        """SHA-256 of names and texts: two studies with one digest had one text."""
        hasher = hashlib.sha256()
        for name, text in sorted(self.documents.items()):
            hasher.update(f"{name}\0{text}\0".encode())
        return hasher.hexdigest()


def part_of(name: str) -> Part:
    """Where a document belongs, by a hash of its name: a twentieth is held out, another is for choosing rates."""
    number = int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big") % 20
    return "held" if number == 0 else "tune" if number == 1 else "train"


def corpus_of(text: Any = None) -> Corpus:
    """The documents that ``text`` means.

    Args:
        text: ``None`` for the documentation that ships with Python; the path of a folder (each ``.txt``, ``.md``,
            ``.rst`` or ``.py`` file in it is a document) or of one file (documents are runs of paragraphs); a Hugging
            Face dataset, or any sequence of rows that have ``"text"``.

    Raises:
        InputError: for anything else, or where there is no text.
    """
    if text is None:
        return python_documentation()
    if isinstance(text, (str, os.PathLike)):
        path = Path(text)
        documents = dict(_of_folder(path) if path.is_dir() else _pieces(path) if path.is_file() else ())
        source = f"the user's own text, {path.name}"
    else:
        try:
            documents = {f"row {i}": str(row["text"]) for i, row in enumerate(text)}
        except (TypeError, KeyError, IndexError) as error:
            raise InputError("text must be a path or rows with a column 'text'", f"{type(text).__name__}: {error!r}",
                             "text='folder', or text=dataset['train']") from error  # fmt: skip
        source = f"the user's own rows, {type(text).__name__}"
    documents = {name: t for name, t in documents.items() if t.strip()}
    if not documents:
        raise InputError("a study needs text", f"none in {text!r:.80}", f"a folder with {', '.join(OWN)} files")
    return Corpus(source, documents)


def python_documentation(root: Path | None = None) -> Corpus:
    """What ``help()`` shows: the topics of the language reference, and the docstrings of the standard library's
    modules, classes and functions; one document for each topic and each module. Tests are left out.

    Args:
        root: the folder of the standard library; by default this interpreter's.
    """
    from pydoc_data.topics import topics

    documents = {f"topics/{name}": text for name, text in topics.items()}
    root = root or Path(sysconfig.get_paths()["stdlib"])
    for path in sorted(root.rglob("*.py")):
        name = path.relative_to(root)
        if {"test", "tests", "idle_test", "site-packages", "dist-packages", "pydoc_data"}.isdisjoint(name.parts):
            text = "\n\n".join(_docstrings(path))
            if text:
                documents[name.as_posix()] = text
    return Corpus(
        f"the documentation that ships with Python {platform.python_version()}: the topics of help() and the docstrings"
        " of the standard library", documents
    )  # fmt: skip


def _docstrings(path: Path) -> Iterator[str]:
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"))
    except (SyntaxError, UnicodeDecodeError):  # the templates of lib2to3
        return
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            text = ast.get_docstring(node)
            if text:
                yield text if isinstance(node, ast.Module) else f"{node.name}: {text}"


def _of_folder(folder: Path) -> Iterator[tuple[str, str]]:
    for path in sorted(folder.rglob("*")):
        if path.suffix in OWN and path.is_file():
            yield path.relative_to(folder).as_posix(), path.read_text(encoding="utf-8", errors="replace")


def _pieces(path: Path) -> Iterator[tuple[str, str]]:
    piece: list[str] = []
    count = 0
    for paragraph in path.read_text(encoding="utf-8", errors="replace").split("\n\n"):
        piece.append(paragraph)
        if sum(map(len, piece)) >= PIECE:
            yield f"{path.name} {count}", "\n\n".join(piece)
            piece, count = [], count + 1
    yield f"{path.name} {count}", "\n\n".join(piece)
