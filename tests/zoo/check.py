"""What is asked of one architecture: captured, the right adds found, an exact start after Deep Delta Learning."""

from __future__ import annotations

import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

import resfx
from resfx.errors import CaptureError, NoSitesError, ResfxError
from resfx.export import to_onnx
from resfx.passes.check import difference, same, tensors_of
from tests.digest import version

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
        compiled: ``torch.compile(backend="aot_eager", fullgraph=True)`` gives what the graph gives; ``None`` if not run.
        exported: ``to_onnx`` and ONNX Runtime give what eager mode gives; ``None`` if not run.
        compile_error, export_error: why not.
        seconds: CPU seconds, all in all.
        stage: what ran last.
        code: the version of the library, see :func:`tests.digest.version`.
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
    compile_error: str = ""
    exported: bool | None = None
    export_error: str = ""
    nodes: int = 0
    seconds: float = 0.0
    stage: str = "build"
    code: str = ""
    error: str = ""

    @property
    def right(self) -> bool:
        """Whether the adds and streams found are those of the source."""
        return self.captured and self.want == self.found and self.streams_want in (None, self.streams)

    @property
    def passed(self) -> bool:
        return self.right and self.exact is not False

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def check(entry: Entry, compile: bool = False, onnx: bool = False) -> Result:
    """Build, capture, rewrite and compare one architecture. Never raises for what the model does."""
    *_, result = stages(entry, compile, onnx)
    return result


def stages(entry: Entry, compile: bool = False, onnx: bool = False) -> Iterator[Result]:
    """The same, step by step: yields the result so far before each stage that may take long, and at the end."""
    result = Result(entry.name, entry.source, entry.blocks, streams_want=entry.streams, code=version())
    start = time.process_time()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        new, call, error = None, None, ""
        try:
            new, call = _check(entry, result)
        except Exception as caught:
            error = _text(caught)
        result.error = result.error or error
        for stage, asked, run in (("compile", compile, _compile), ("export", onnx, _export)):
            if not (asked and new is not None):
                continue
            result.seconds, result.stage = round(time.process_time() - start, 1), stage
            yield result
            try:
                good, why = run(new, call), ""
            except Exception as caught:
                good, why = False, _text(caught)
            setattr(result, {"compile": "compiled", "export": "exported"}[stage], good)
            setattr(result, f"{stage}_error", why or ("" if good else "other values"))
    result.seconds, result.stage = round(time.process_time() - start, 1), "done"
    yield result


def _text(error: BaseException) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {' '.join(lines[:2])}"[:400]


def _check(entry: Entry, result: Result) -> tuple[Any, Any]:
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
        return None, None
    result.rewritten = len(report.changed)
    torch.manual_seed(0)
    with torch.no_grad():
        after = tensors_of(new(*args, **kwargs))
    result.exact = len(before) == len(after) and all(same(a, b) for a, b in zip(before, after, strict=True))
    if not result.exact and len(before) == len(after):
        worst = max(difference(a, b) for a, b in zip(before, after, strict=True))
        result.error = f"outputs differ by up to {worst:.2g}: the captured graph rounds otherwise than eager mode"
    return new, (args, kwargs)


def _compile(new: Any, call: Any) -> bool:
    args, kwargs = call
    torch._dynamo.reset()
    with torch.no_grad():
        want = tensors_of(new(*args, **kwargs))
        got = tensors_of(torch.compile(new, backend="aot_eager", fullgraph=True)(*args, **kwargs))
    return all(torch.allclose(a.float(), b.float(), atol=1e-4, rtol=1e-4, equal_nan=True)
               for a, b in zip(want, got, strict=True))  # fmt: skip


def _export(new: Any, call: Any) -> bool:
    with tempfile.TemporaryDirectory() as folder:
        to_onnx(new, Path(folder) / "model.onnx", *call, check="onnxruntime")  # raises where values differ
    return True
