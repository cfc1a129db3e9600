"""Write the page: a picture to click through, what was left alone and why, figures where there are some."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from resfx.comparison.result import Comparison
from resfx.errors import OptionError, require
from resfx.methods.options import refuse_wrong_arguments
from resfx.report.facts import Facts
from resfx.report.picture import picture
from resfx.report.text import headline
from resfx.runtime.module import Handle, of, rewriting_of
from resfx.runtime.saved.folder import refuse_unwritable

from .charts import charts_of
from .contents import left_out, sites_of

HERE = Path(__file__).parent


def page(
    model: Any,
    path: str | os.PathLike[str],
    *,
    comparison: Comparison | None = None,
    figures: Sequence[Any] = (),
) -> None:
    """Write one HTML file that shows a rewritten model, or what a scan found. It loads nothing, and needs no network.

    The picture of :meth:`resfx.Report.draw` can be zoomed and moved; a click on an add shows its source lines, form,
    method with options, new parameters, and the generated code that it runs in.

    Args:
        model: what :func:`resfx.rewrite` returned, or a report of :func:`resfx.scan`.
        path: the file, ``.html``; it is overwritten.
        comparison: the result of :func:`resfx.compare`, shown as charts and as its table.
        figures: further charts below: plotly figures, or dictionaries with ``data`` and ``layout`` as plotly takes
            them. Their ``layout.title.text`` is the heading.

    Raises:
        OptionError: for a path that does not end in ``.html``, or that cannot be written; for what is no chart.
        ResfxError: for a module that was not rewritten.
        MissingPackageError: for charts without plotly.
    """
    refuse_wrong_arguments(page, path=path, comparison=comparison, figures=figures)
    if Path(path).suffix.lower() != ".html":
        raise OptionError("a page is written as .html", f"{os.fspath(path)!r}", "page(model, 'report.html')")
    refuse_unwritable(path)
    handle = None if isinstance(model, Facts) else of(model)
    report = model if handle is None else handle.report
    charts = [*charts_of(comparison), *map(plain_figure, figures)]
    text = _template().render(
        report=report,
        headline=headline(report),
        picture=picture(report).svg(),
        methods=_methods(handle),
        skips=left_out(report),
        comparison=comparison,
        titles=[chart["title"] for chart in charts],
        data={"sites": sites_of(report, handle), "charts": charts},
        style=_asset("page.css"),
        scripts=[*_plotly(charts), _asset("panzoom.min.js"), _asset("page.js")],
    )
    Path(path).write_text(text, encoding="utf-8")


def plain_figure(figure: Any) -> dict[str, Any]:
    """A figure as plain data, its title apart."""
    data = figure.to_plotly_json() if hasattr(figure, "to_plotly_json") else figure
    if not isinstance(data, Mapping) or "data" not in data:
        raise OptionError("page: figures must be charts", f"a {type(figure).__name__}: {figure!r:.60}",
                          "plotly figures, or dictionaries with data and layout")  # fmt: skip
    layout = dict(data.get("layout", {}))
    title = layout.pop("title", "")
    return {"title": title.get("text", "") if isinstance(title, dict) else title, "data": data["data"],
            "layout": layout}  # fmt: skip


def _template() -> Any:
    jinja2 = require("jinja2", "html", "a page")
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template("page.html")


def _asset(name: str) -> str:
    return (HERE / name).read_text(encoding="utf-8")


def _plotly(charts: Sequence[Any]) -> list[str]:
    """The library that draws charts, where there are any: it is most of the file."""
    return [require("plotly.offline", "html", "a chart").get_plotlyjs()] if charts else []


def _methods(handle: Handle | None) -> list[tuple[str, dict[str, Any]]]:
    """Each method that acts, with its options."""
    if handle is None:
        return []
    configs = [a.method for a in rewriting_of(handle.module).applications]
    return [(c.label, {k: v for k, v in c.to_dict().items() if k != "method"}) for c in configs]
