"""What a rewrite notes: facts that stay, places of modules, marks on nodes, how deep a place is."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import pytest
import torch
from hosts.exact import Layer, exact_decoder, exact_ids
from hosts.made import flat_graph
from torch import nn

import resfx
from resfx.passes.find.mark import KEY, mark_of
from resfx.passes.scopes.bank import BANK

MODES = {
    "site": ["ddl"], "depth": ["denseformer"], "shared": [resfx.DepthRead(window=None, shared=True)],
    "wide": ["mhc"], "channels": [resfx.DDL(value_channels=2, compress="token")], "sequence": ["canon"],
    "route": [resfx.ValueResidual(), "lime"],
    "all": ["short_swa", "ddl", "attnres"], "swa_wide": ["short_swa", "hyper_connections"],
}  # fmt: skip


@pytest.mark.every(3)
@pytest.mark.parametrize("modes", MODES.values(), ids=MODES)
def test_every_new_module_is_on_record_and_every_call_of_one_is_marked(modes):
    new = resfx.rewrite(exact_decoder(), modes, args=(exact_ids(),), check=False)
    applications = new._resfx.applications
    placed = [entry for a in applications for entry in a.placed.values()]
    paths = {entry.path: entry for entry in placed}
    assert len(paths) == len(placed)
    assert all(name.startswith(tuple(f"{path}." for path in paths)) for name in new.new_parameters())
    assert all(new.get_submodule(path) is not None for path in paths)
    assert {entry.site for entry in placed if ".short_swa" not in entry.site} <= {s.name for s in new.report.sites}
    graph = flat_graph(new, exact_ids())
    calls = [n for n in graph.nodes if n.op == "call_module" and str(n.target).startswith(BANK)]
    assert {str(n.target) for n in calls} == set(paths)
    scopes = {a.key: a.method.scope for a in applications}
    for node in calls:
        entry = paths[str(node.target)]
        assert (mark_of(node).role, mark_of(node).scope) == (entry.role, scopes[entry.application])
    ours = [k for n in graph.nodes for k in n.meta if "resfx" in k or k in ("lifted", "argument", "longer_keys")]
    assert set(ours) == {KEY}


def test_sites_are_facts():
    report = resfx.scan(exact_decoder(), args=(exact_ids(),))
    with pytest.raises(dataclasses.FrozenInstanceError):
        report.sites[0].kind = "mlp"
    assert [s.depth for s in report.sites] == [0, 1, 2, 3]
    assert not report.changed and report.methods_at(report.sites[0]) == []


class Down(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 12))
        self.short = nn.Linear(8, 12)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(12), nn.Linear(12, 12), nn.Tanh(), nn.Linear(12, 12)) for _ in range(2)
        )

    def forward(self, x):
        x = self.short(x) + self.body(x)
        for block in self.blocks:
            x = x + block(x)
        return x


def test_depth_counts_the_adds_before_in_the_stream():
    report = resfx.scan(nn.Sequential(Layer(), Down()), args=(torch.randn(1, 3, 8),))
    assert [(s.stream, s.form, s.depth) for s in report.sites] == [
        (0, "identity", 0), (0, "identity", 1), (1, "projection", 0), (1, "identity", 1), (1, "identity", 2),
    ]  # fmt: skip


class Seen:
    """Keeps the depths of the places it was built for."""

    depths: ClassVar[list[int]] = []

    def build(self, place):
        self.depths.append(place.depth)
        return super().build(place)

    def build_stream(self, places):
        self.depths.extend(place.depth for place in places)
        return super().build_stream(places)


class SeenDDL(Seen, resfx.DDL):
    pass


class SeenRead(Seen, resfx.AttnRes):
    pass


class SeenCanon(Seen, resfx.Canon):
    pass


class SeenWide(Seen, resfx.HyperConnections):
    pass


@pytest.mark.parametrize(
    ("method", "include", "want"),
    [
        (SeenDDL(), "*", [0, 1, 2, 3]), (SeenDDL(), "layers.1", [2, 3]), (SeenRead(), "*", [1, 2, 3, 3]),
        (SeenWide(), "*", [0, 1, 2, 3]), (SeenWide(), "layers.1", [0, 1]),
    ],
)  # fmt: skip
def test_a_place_says_how_many_adds_come_before_it(method, include, want):
    Seen.depths.clear()
    resfx.rewrite(exact_decoder(), method, args=(exact_ids(),), include=include, check=False)
    assert Seen.depths == want


def test_a_mixers_place_has_the_depth_of_its_add():
    Seen.depths.clear()
    resfx.rewrite(exact_decoder(), SeenCanon(), args=(exact_ids(),), check=False)
    assert sorted(set(Seen.depths)) == [0, 1, 2, 3]


class Pair(nn.Module):
    """Two attentions in one forward, or one attention and one MLP as parallel branches ``(x + f) + g``."""

    def __init__(self, parallel):
        super().__init__()
        self.parallel = parallel
        self.one, self.two = Layer(), Layer()

    @staticmethod
    def attend(layer, h):
        q, k, v = (p(h).unflatten(-1, (2, -1)).transpose(1, 2) for p in (layer.q, layer.k, layer.v))
        mixed = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        return layer.o(mixed.transpose(1, 2).flatten(2))

    def forward(self, x):
        if self.parallel:
            h = self.one.before(x)
            return (x + self.attend(self.one, h)) + self.one.down(torch.tanh(self.one.up(h)))
        x = x + self.attend(self.one, self.one.before(x))
        return x + self.attend(self.two, self.two.before(x))


@pytest.mark.every(3)
@pytest.mark.parametrize("modes", [["short_swa", "mhc"], ["short_swa", "denseformer"]], ids=str)
@pytest.mark.parametrize("parallel", [True, False])
def test_mixers_beside_parallel_branches_and_several_in_one_owner(modes, parallel):
    torch.manual_seed(0)
    net, x = nn.Sequential(Pair(parallel), Pair(parallel)), torch.randn(2, 5, 8)
    new = resfx.rewrite(net, modes, args=(x,))
    assert torch.equal(new(x), net(x))
    sites = new.report.streams[0].sites
    mixers = [s.name for s in sites if s.form == "mixer"]
    assert len(set(mixers)) == len(mixers) == (2 if parallel else 4)
    assert all(modes[1] in new.report.methods_at(s) for s in new.report.sites)
    new.train()
    assert torch.equal(new(x), net(x)), "another capture finds the same modules"
