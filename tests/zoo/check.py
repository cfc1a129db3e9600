"""What is asked of one architecture: captured, the right adds found, an exact start after Deep Delta Learning."""

from __future__ import annotations

import time
import warnings
from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

import resfx
from resfx.errors import CaptureError, NoSitesError, ResfxError
from resfx.passes.check import same, tensors_of

from .entry import Entry, expected


@dataclass
class Result:
    """One line of the coverage table.

    Attributes:
        built: the model was made and ran in eager mode.
        captured: it was captured.
        want, found: residual adds by form.
        streams_want, streams: residual streams.
        rewritten: adds that DDL took over, with the default forms.
        exact: the rewritten model starts bit for bit where the original stands, and every new parameter learns;
            ``None`` where there was nothing to rewrite.
        compiled, exported: through ``torch.compile(backend="aot_eager")`` and to ONNX, where asked for.
        error: what went wrong.
    """

    name: str
    source: str
    blocks: str
    built: bool = False
    captured: bool = False
    want: dict[str, int] = field(default_factory=dict)
    found: dict[str, int] = field(default_factory=dict)
    streams_want: int | None = None
    streams: int | None = None
    rewritten: int = 0
    exact: bool | None = None
    compiled: bool | None = None
    nodes: int = 0
    seconds: float = 0.0
    error: str = ""

    @property
    def right(self) -> bool:
        """Whether the adds and streams found are those of the source."""
        return self.captured and self.want == self.found and self.streams_want in (None, self.streams)

    @property
    def passed(self) -> bool:
        return self.right and self.exact is not False and self.compiled is not False

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def check(entry: Entry, compile: bool = False) -> Result:
    """Build, capture, rewrite and compare one architecture. Never raises for what the model does."""
    result = Result(entry.name, entry.source, entry.blocks, streams_want=entry.streams)
    start = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            _check(entry, result, compile)
        except Exception as error:
            lines = [line for line in str(error).splitlines() if line.strip()]
            result.error = result.error or f"{type(error).__name__}: {' '.join(lines[:2])}"[:400]
    result.seconds = round(time.perf_counter() - start, 1)
    return result


def _check(entry: Entry, result: Result, compile: bool) -> None:
    torch.backends.mha.set_fastpath_enabled(False)  # it rounds otherwise than the same layers in training
    model, call = entry.make()
    args, kwargs = ((call["input"],), {}) if set(call) == {"input"} else ((), call)
    torch.manual_seed(0)
    with torch.no_grad():
        before = tensors_of(model(*args, **kwargs))
    result.built, result.want = True, dict(sorted(expected(model, entry.blocks).items()))
    try:
        new = resfx.rewrite(model, "ddl", args, kwargs)
    except NoSitesError:
        new = None
        report = resfx.scan(model, args, kwargs)
    except CaptureError:
        raise
    except ResfxError as error:
        result.exact, result.error = False, f"{type(error).__name__}: {error}"[:400]
        new = None
        report = resfx.scan(model, args, kwargs)
    else:
        report = new.report
    result.captured, result.nodes = True, report.nodes
    result.found = dict(sorted(Counter(s.form for s in report.sites).items()))
    result.streams = len(report.streams)
    if new is None:
        return
    result.rewritten = len(report.changed)
    torch.manual_seed(0)
    with torch.no_grad():
        after = tensors_of(new(*args, **kwargs))
    result.exact = len(before) == len(after) and all(same(a, b) for a, b in zip(before, after, strict=True))
    if compile:
        torch._dynamo.reset()
        with torch.no_grad():
            compiled = tensors_of(torch.compile(new, backend="aot_eager", fullgraph=True)(*args, **kwargs))
        result.compiled = all(torch.allclose(a.float(), b.float(), atol=1e-4, rtol=1e-4, equal_nan=True)
                              for a, b in zip(after, compiled, strict=True))  # fmt: skip
