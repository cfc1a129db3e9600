"""All parts of a run, the most valuable first, each a process of its own."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

from . import checks, onnx, tables, tune, whole
from .operators import OPERATORS
from .record import Writer
from .settings import Settings


@dataclass(frozen=True)
class Part:
    """A part of a run.

    Attributes:
        run: makes its rows.
        minutes: what it is expected to take at most; with less time left it is not begun.
        limit: minutes after which it is ended.
    """

    name: str
    run: Callable[[Writer, Settings], None]
    minutes: float = 0.5
    limit: float = 6.0

    @property
    def is_check(self) -> bool:
        """Whether the exit status depends on it; such parts share the device."""
        return self.name.startswith("check/")


def parts() -> dict[str, Part]:
    """By name, in the order in which they are run."""
    names = list(OPERATORS)
    both = [name for name, o in OPERATORS.items() if len(o.types) > 1]
    made = [Part(f"check/{name}", functools.partial(checks.operator, name), limit=10) for name in names]
    made.append(Part("check/exact", checks.exact))
    made += [*map(_table, names[:4]), *(_models(*which) for which in MODELS[:3])]
    made += [*map(_table, names[4:]), *(_models(*which) for which in MODELS[3:])]
    made += [Part("models/generate", whole.generate, 1.0), Part("operators/site", tables.site, 0.7)]
    made.append(Part("onnxruntime/operators", onnx.operators))
    made += [Part(f"float32/{name}", functools.partial(tables.in_float32, name)) for name in both]
    made.append(Part("onnxruntime/models", onnx.models, 1.0))
    made += [Part(f"tune/{name}", functools.partial(tune.operator, name), 0.4) for name in names]
    return {part.name: part for part in made}


MODELS = (("eager", "train"), ("blocks", "train"), ("graphs", "forward"),
          ("eager", "forward"), ("graphs", "train"), ("blocks", "forward"))  # fmt: skip


def _table(name: str) -> Part:
    return Part(f"operators/{name}", functools.partial(tables.operator, name))


def _models(backend: str, mode: str) -> Part:
    minutes = 0.5 if backend == "eager" else 1.0
    return Part(f"models/{backend}-{mode}", functools.partial(whole.models, backend, mode), minutes, 8)
