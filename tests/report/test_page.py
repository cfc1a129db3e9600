"""The page of a report: it loads nothing, and tells what the report and the model hold."""

from __future__ import annotations

import json
import os
import re
from html.parser import HTMLParser

import pytest
import torch
from hosts.made import rewritten
from torch import nn

import resfx
from resfx.comparison.result import Comparison, Measured, Row
from resfx.errors import OptionError, ResfxError
from resfx.report.page.charts import charts_of
from resfx.report.page.page import plain_figure


class Reader(HTMLParser):
    """What a browser would load, the scripts, and the words beside them."""

    def __init__(self, text):
        super().__init__()
        self.loads, self.scripts, self.words, self.tag, self.policy = [], [], [], "", ""
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        self.tag = tag
        self.loads += [(tag, k) for k in ("src", "href", "srcset", "data", "action", "poster") if k in given]
        if given.get("http-equiv") == "Content-Security-Policy":
            self.policy = given["content"]

    def handle_data(self, data):
        if self.tag in ("script", "style"):
            self.scripts.append(data)
        else:
            self.words.append(data)

    @property
    def data(self):
        return json.loads(next(s for s in self.scripts if s.startswith('{"charts')))


@pytest.fixture(scope="module")
def new():
    return rewritten("gpt2")[1]


@pytest.fixture(scope="module")
def read(new, tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "report.html"
    resfx.page(new, path)
    return Reader(path.read_text())


def test_it_loads_nothing(read):
    assert not read.loads, "all that it needs is in it"
    assert read.policy.startswith("default-src 'none'"), "and the browser is told to load nothing"
    assert not re.search(r"url\(|@import|\bfetch\(|XMLHttpRequest|importScripts", "".join(read.scripts))


def test_every_add_is_told_with_its_parameters_and_its_line(read, new):
    report, sites = new.report, read.data["sites"]
    told = [one for alike in sites.values() for one in alike]
    assert sorted(one["name"] for one in told) == sorted(s.name for s in report.sites)
    drawn = {alike[0]["name"] for alike in sites.values()}
    assert drawn == set(sites) and len(drawn) < len(told), "blocks that are drawn once stand under the first"
    parameters = {f"resfx.{n}": shape for one in told for n, shape in one["parameters"].items()}
    assert parameters == {n: list(p.shape) for n, p in new.new_parameters().items()}
    for one in told:
        (line,) = (text for _, text, here in one["source"] if here)
        assert "+" in line and one["acting"] == {"replaced": ["ddl"]}
        assert one["code"] == resfx.of(new).code(one["owner"]) != "" and one["runs"] == one["owner"]


def test_an_add_whose_module_is_opened_tells_the_code_around_it(tmp_path):
    new = rewritten("t5", "mhc")[1]
    resfx.page(new, tmp_path / "t5.html")
    for one in (one for alike in Reader((tmp_path / "t5.html").read_text()).data["sites"].values() for one in alike):
        around = "" if one["runs"] == "(root)" else one["runs"]
        assert one["owner"].startswith(around) and one["code"] == resfx.of(new).code(around) != ""


def test_what_was_left_alone_says_why_and_where(read, new):
    words = " ".join(read.words)
    assert new.report.skips
    for skip in new.report.skips:
        assert skip.reason in words and skip.remedy in words
    assert "beta_init" in words, "the method's options"


def test_the_page_of_a_scan_and_text_that_looks_like_markup(tmp_path):
    class Odd(nn.Module):
        def forward(self, x):
            return x + self.get_submodule("a</script><b>")(x)

    odd = Odd()
    odd.add_module("a</script><b>", nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 8)))
    report = resfx.scan(odd, (torch.randn(2, 3, 8),))
    resfx.page(report, tmp_path / "scan.html")
    read = Reader((tmp_path / "scan.html").read_text())
    ((site,),) = read.data["sites"].values()
    assert site["parameters"] == {} and site["code"] == "" and "get_submodule" in str(site["source"])
    assert not read.loads


def comparison():
    fast, slow = Measured([0.001] * 5, 0.1, 2**20, 7), Measured([0.002] * 5, 0.1, 2**21, 9)
    rows = [Row("eager", "forward", fast, slow), Row("onnxruntime", "forward", reason="not installed")]
    setting = {"device": "cpu", "threads": 1, "torch": "2", "inputs": ["ids"], "memory": "bytes"}
    return Comparison(("a", "b"), (1, 2), None, rows, setting)


def test_figures_become_charts(new, tmp_path):
    latency, memory = charts_of(comparison())
    before, after = latency["data"]
    assert (before["name"], before["x"], after["x"]) == ("before", [1.0], [2.0]) and after["text"] == ["2.00"]
    assert [bars["x"] for bars in memory["data"]] == [[1.0], [2.0]]
    assert charts_of(None) == [] and charts_of(Comparison(("a", "b"), (1, 1), None, [])) == []
    own = {"data": [{"type": "heatmap", "z": [[1]]}], "layout": {"title": {"text": "where reads look"}}}
    assert plain_figure(own) == {"title": "where reads look", "data": own["data"], "layout": {}}
    pytest.importorskip("plotly")
    path = tmp_path / "report.html"
    resfx.page(new, path, comparison=comparison(), figures=[own])
    read = Reader(path.read_text())
    assert [c["title"] for c in read.data["charts"]] == [latency["title"], memory["title"], "where reads look"]
    assert not read.loads and "not installed" in " ".join(read.words) and path.stat().st_size > 10**6


def test_what_cannot_be_shown_or_written_is_refused(new, tmp_path):
    with pytest.raises(OptionError, match=r"report\.html"):
        resfx.page(new, tmp_path / "report.svg")
    with pytest.raises(ResfxError, match="not a rewritten module"):
        resfx.page(nn.Linear(2, 2), tmp_path / "report.html")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("width", "scheme"), [(1200, "light"), (390, "dark")])
def test_in_a_browser_a_click_tells_of_an_add(new, tmp_path, width, scheme):
    browser = os.environ.get("RESFX_CHROMIUM") or pytest.skip("RESFX_CHROMIUM names no browser")
    pytest.importorskip("plotly")
    api = pytest.importorskip("playwright.sync_api")
    resfx.page(new, tmp_path / "report.html", comparison=comparison())
    with api.sync_playwright() as play:
        chromium = play.chromium.launch(executable_path=browser, args=["--no-sandbox", "--no-zygote"])
        tab = chromium.new_page(viewport={"width": width, "height": 800}, color_scheme=scheme)
        faults, asked = [], []
        tab.on("console", lambda message: faults.append(message.text))
        tab.on("pageerror", lambda error: faults.append(str(error)))
        tab.on("request", lambda request: asked.append(request.url))
        tab.goto((tmp_path / "report.html").as_uri())
        site = next(s for s in new.report.sites if s.kind == "mlp")
        tab.locator(f'[data-site="{site.name}"]').click()
        assert site.name in tab.locator("#details h2").inner_text()
        tab.locator("#details select").select_option(index=1)
        assert site.name not in tab.locator("#details h2").inner_text()
        assert tab.locator(".chart svg.main-svg").count() >= 2
        before = tab.locator("#picture svg").first.bounding_box()["width"]
        tab.locator("#closer").click()
        tab.wait_for_timeout(400)
        assert tab.locator("#picture svg").first.bounding_box()["width"] > before
        assert tab.evaluate("document.documentElement.scrollWidth <= innerWidth"), "nothing runs over the side"
        chromium.close()
    assert not faults and len(asked) == 1
