"""Finding residual adds is linear in the number of nodes, long streams and shared terms included."""

from __future__ import annotations

import time

import torch
from torch import fx, nn

from resfx.passes.find.detect import find_sites


def decoder(blocks: int) -> fx.Graph:
    """A stack of attention and MLP adds; one bias, made first, is added to the scores of every layer (as T5 does)."""
    graph, root = fx.Graph(), nn.Module()
    root.weight = nn.Parameter(torch.zeros(8, 8))
    value = torch.zeros(2, 5, 8)

    def call(target, *args):
        node = graph.call_function(target, args)
        node.meta["val"] = value
        return node

    x = graph.placeholder("x")
    weight = graph.get_attr("weight")
    weight.meta["val"], x.meta["val"] = root.weight, value
    aten = torch.ops.aten
    bias = call(aten.linear.default, x, weight)
    for _ in range(blocks):
        normed = call(aten.layer_norm.default, x, [8])
        scores = call(aten.add.Tensor, call(aten.linear.default, normed, weight), bias)
        mixed = call(aten.bmm.default, call(aten.softmax.int, scores, -1), normed)
        x = call(aten.add.Tensor, x, call(aten.linear.default, mixed, weight))
        hidden = call(aten.gelu.default, call(aten.linear.default, call(aten.layer_norm.default, x, [8]), weight))
        x = call(aten.add.Tensor, x, call(aten.linear.default, hidden, weight))
    graph.output(x)
    graph.owning_module = fx.GraphModule(root, graph)
    return graph


def seconds(blocks: int) -> tuple[int, float]:
    graph = decoder(blocks)
    best = float("inf")
    for _ in range(3):
        started = time.process_time()
        sites = find_sites(graph, graph.owning_module).sites
        best = min(best, time.process_time() - started)
        assert len(sites) == 2 * blocks
    return len(graph.nodes), best


def test_linear_in_nodes_and_under_a_second_for_7000():
    (small, one), (_, two), (large, four) = (seconds(n) for n in (147, 294, 588))
    assert large > 7000 and large / small > 3.9
    assert four < 1.0
    assert four / one < 8, (one, two, four)  # linear is 4, quadratic 16
