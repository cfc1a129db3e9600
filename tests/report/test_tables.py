"""What is printed and drawn: the aligned table, the report's text, its picture."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree

import pytest
import torch
from hosts.made import rewritten
from torch import nn

import resfx
from resfx.passes.find.site import Site, Skip, Stream
from resfx.passes.scopes.change import Change
from resfx.report.drawing import KINDS, MARK
from resfx.report.report import Report
from resfx.report.text import fold_names, folds, report_text, short_lines, table

SVG = "{http://www.w3.org/2000/svg}"
WORDS = ("reads over depth", "widened", "mixes positions", "projections read earlier layers")


def site(owner, order=0, *, block="", kind="mlp", form="identity", line="/a/b/model.py:7", **more):
    return Site(object(), object(), object(), object(), form, owner, line, order=order, kind=kind, block=block, **more)


def report_of(sites, skips=(), new=None, rewritten=(), changes=()):
    stream = Stream(0, tuple(sites), tuple(dict.fromkeys(s.block for s in sites)), 64)
    replaced = [Change(s.name, "ddl", "replaced") for s in rewritten]
    return Report("Model", sites, list(skips), [stream], 99, [*changes, *replaced], new or {})


def decoder(layers):
    sites = []
    for i in range(layers):
        sites.append(site(f"h.{i}", 0, block=f"h.{i}", kind="attention", line="/a/b/model.py:3"))
        sites.append(site(f"h.{i}.mlp", 0, block=f"h.{i}"))
    return sites


def test_table_aligns_and_leaves_empty_columns_out():
    text = table([("a", 1, None, "x"), ("bbb", 1000, None)], ("name", "n", "nothing", "end"), "<>", indent=1)
    assert text.splitlines() == [" name     n  end", " a        1  x", " bbb   1000"]
    assert table([]) == ""


def test_fold_names():
    assert fold_names(["h.0"]) == "h.0"
    assert fold_names(["a.h.0.x", "a.h.1.x", "a.h.2.x"]) == "a.h.{0..2}.x"
    assert fold_names(["a.0.1", "a.1.0"]) == "a.0.1 .. a.1.0"


def test_short_lines_keep_folders_only_where_names_clash():
    lines = ["/x/one/model.py:3", "/x/two/model.py:4", "/x/two/other.py:5", ""]
    assert list(short_lines(lines).values()) == ["one/model.py:3", "two/model.py:4", "other.py:5", ""]


def test_identical_blocks_are_folded_and_others_are_not():
    sites = decoder(12)
    text = report_text(report_of(sites, rewritten=sites))
    assert "x 12 blocks" in text and "h.{0..11}.mlp" in text
    assert sum("model.py" in line for line in text.splitlines()) == 2
    report = report_of(sites, rewritten=sites[:8] + sites[9:])  # all but the first of h.4: two runs around it
    groups = folds(report.streams[0], report)
    assert [len(g.blocks) for g in groups] == [4, 1, 7]
    assert sum(len(g.blocks) * len(g.sites) for g in groups) == len(sites)
    text = report_text(report)
    assert "h.{0..3}" in text and "h.4" in text and "h.{5..11}" in text and "23 rewritten by ddl" in text


def test_every_method_long_skip_and_nesting_is_named():
    outer = site("net", is_outer=True)
    inner = site("net.3", kind="attention", form="parallel", inside=outer)
    mixed = [Change(inner.name, "short_swa", "mixer")]
    new = {"resfx.a": 1000, "resfx.b": 24}
    report = report_of([outer, inner], new=new, rewritten=[inner], changes=mixed)
    text = report_text(report)
    assert "long skip" in text and "inside net:0" in text and "parallel" in text and "short_swa + ddl" in text
    assert "1 rewritten by short_swa, 1 rewritten by ddl, 1,024 new parameters in 2 tensors" in text
    entry = report.to_dict()["sites"][1]
    assert (entry["method"], entry["mixers"], entry["reads"], entry["inside"]) == ("ddl", ["short_swa"], "", "net:0")


def test_skips_are_counted_by_reason_with_a_place_and_the_remedy():
    sites = decoder(1)
    skips = [Skip(f"h.{i}.act", f"/a/act.py:{i}", "elementwise") for i in range(11)]
    skips.append(Skip("", "/a/b/model.py:9", "in place", "write x = x + f"))
    skips.append(Skip("h.0", "/a/b/model.py:3", "too narrow", node=sites[0].node))
    text = report_text(report_of(sites, skips))
    _, left, other = text.split("\n\n")[1:]
    assert left.splitlines() == ["left alone: 1 site", "  1  too narrow", "     at h.0, model.py:3"]
    assert other.splitlines() == [
        "not residual: 12 adds", "  11  elementwise", "      such as h.0.act, act.py:0",
        "   1  in place", "      at (root), model.py:9", "      try: write x = x + f",
    ]  # fmt: skip


def test_reports_of_real_models_say_everything():
    _, new, _ = rewritten("t5")
    text = str(new.report)
    assert "10 residual adds in 2 streams, 10 rewritten by ddl" in text
    assert "encoder.block.{0..1}.layer.0" in text and "decoder.block.{0..1}.layer.2" in text
    total = sum(p.numel() for p in new.new_parameters().values())
    assert f"{total:,} new parameters" in text
    assert all(s.reason in text for s in new.report.skips)
    assert text.count("x 2 blocks") == 2


@pytest.mark.every(2)
@pytest.mark.parametrize("mode", ["denseformer", "short_swa", "mhc"])
def test_methods_of_every_scope_are_named(mode):
    _, new, _ = rewritten("gpt2", mode)
    sites = [s for s in new.report.sites if mode in new.report.methods_at(s)]
    text = str(new.report)
    assert sites and sites == new.report.changed
    assert f"{len(sites)} rewritten by {mode}" in text
    assert sum(mode in line for line in text.splitlines()[1:]) >= 1


def test_a_model_without_residuals():
    text = str(resfx.scan(nn.Linear(3, 3), (torch.zeros(2, 3),)))
    assert text.startswith("Linear: no residual add")


def rings(path):
    root = ElementTree.parse(path).getroot()
    circles = root.iter(f"{SVG}circle")
    return root, sum(c.get("stroke") == MARK and c.get("r") == "12.5" for c in circles)


def test_the_picture_marks_what_was_rewritten(tmp_path):
    sites = decoder(12)
    path = tmp_path / "picture.svg"
    report_of(sites, [Skip("a<b", "/x/y.py:1", "a < b & c")], rewritten=sites[:20]).draw(path)
    root, marked = rings(path)
    assert marked == 2  # ten rewritten blocks and two others, each run drawn once
    words = " ".join(root.itertext())
    assert "x 10" in words and "x 2" in words and "h.{10..11}" in words and "a < b & c" in words
    adds = [c for c in root.iter(f"{SVG}circle") if c.get("r") == "9"]
    assert [c.get("fill") for c in adds] == [KINDS["attention"], KINDS["mlp"]] * 2
    heights = [float(c.get("cy")) for c in adds]
    assert heights == sorted(heights)
    width, height = float(root.get("width")), float(root.get("height"))
    for element in root.iter():
        assert float(element.get("x", 0)) < width and float(element.get("y", 0)) < height


@pytest.mark.parametrize(
    ("what", "words", "strokes"),
    [
        (["read"], "reads over depth", {"2 3": 1}),  # the rail
        (["read", "replaced"], "widened", {}),
        (["mixer"], "mixes positions", {}),
        (["route"], "projections read earlier layers", {}),
        ([], "", {}),
    ],
)
def test_the_picture_shows_how_a_method_acts(tmp_path, what, words, strokes):
    sites = decoder(3)
    report_of(sites, changes=[Change(s.name, "own", w) for s in sites for w in what]).draw(tmp_path / "picture.svg")
    root, marked = rings(tmp_path / "picture.svg")
    told = " ".join(root.itertext())
    assert [w for w in WORDS if w in told] == [words] * bool(words)
    assert marked == 2 * ("replaced" in what), "a ring is for an add that was replaced"
    dashes = [p.get("stroke-dasharray") for p in root.iter(f"{SVG}path") if p.get("stroke-dasharray")]
    assert {d: dashes.count(d) for d in dashes} == strokes
    trunks = [p for p in root.iter(f"{SVG}path") if p.get("stroke-width") == "1.8" and p.get("d").count("L") == 2]
    assert len(trunks) == 2 * (words == "widened")
    dots = [c for c in root.iter(f"{SVG}circle") if c.get("fill") == KINDS["mixer"] and c.get("r") == "4.5"]
    assert len(dots) == 3 * (words == "mixes positions"), "the legend's and one on each branch"
    small = [c for c in root.iter(f"{SVG}circle") if c.get("r") == "4"]
    assert len(small) == 3 * (words == "projections read earlier layers"), "the legend's and one on each branch"
    assert [g.get("data-site") for g in root.iter(f"{SVG}g")] == ["h.0:0", "h.0.mlp:0"]


def test_a_picture_is_dark_where_its_reader_is(tmp_path):
    report_of(decoder(1)).draw(tmp_path / "picture.svg")
    root = ElementTree.parse(tmp_path / "picture.svg").getroot()
    rules = root.find(f"{SVG}style").text
    assert rules.startswith("@media (prefers-color-scheme: dark)")
    used = {e.get(k) for e in root.iter() for k in ("fill", "stroke")} - {None, "none", "transparent", *KINDS.values()}
    assert used and all(f'="{colour}"]' in rules for colour in used)


def test_pictures_of_real_reports(tmp_path):
    _, new, _ = rewritten("t5")
    new.report.draw(tmp_path / "t5.svg")
    root, marked = rings(tmp_path / "t5.svg")
    assert marked == 5  # of one encoder and one decoder block: both kinds of block are folded
    assert "stream 1" in " ".join(root.itertext())
    with pytest.raises(ValueError, match=r"\.svg"):
        new.report.draw(tmp_path / "t5.png")
