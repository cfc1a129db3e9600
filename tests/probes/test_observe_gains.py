"""What modules of gains, routes and slices tell makes what they compute."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

import resfx
from resfx.methods.base import Place
from resfx.methods.depth.base import DepthPlace
from resfx.methods.route.base import RoutePlace

FACTS = {"context_width": 8, "kind": "attention", "depth": 1, "dtype": torch.float64, "device": torch.device("cpu")}


def shaken(method, place):
    module = method.build(place)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return module


def told(module, *given, **more):
    with torch.no_grad():
        return {name: observed.values for name, observed in module.observe(*given, **more).items()}


def rows(*shape):
    return torch.randn(2, 5, *shape, dtype=torch.float64)


@pytest.mark.parametrize("start", ["preserve", "published"])
@pytest.mark.parametrize("method", [resfx.LayerScale, resfx.ReZero])
def test_a_gain_makes_the_add(method, start):
    module, x, f = shaken(method(start=start), Place(width=8, **FACTS)), rows(8), rows(8)
    assert_close(module(x, f, None), x + told(module, x, f, None)["gain"] * f)


def test_weights_of_a_shortcut_and_its_map():
    module, x, f = shaken(resfx.LAuReL(rank=2), Place(width=8, **FACTS)), rows(8), rows(8)
    found = told(module, x, f, None)
    low_rank = module(x, f, None) - found["branch"] * f - found["shortcut"] * x
    assert_close(found["low_rank"], low_rank.norm(dim=-1))


def test_the_way_to_a_running_average():
    place, x, f = Place(width=8, **FACTS), rows(8), rows(8)
    between, whole = shaken(resfx.DepthScaled(), place), resfx.DepthScaled(start="published").build(place)
    share = told(between, x, f, None)["share"]
    assert_close(between(x, f, None), torch.lerp(x + f, whole(x, f, None), share))
    assert told(whole, x, f, None)["share"] == 1


def test_lambdas_make_the_read():
    place = DepthPlace(width=8, read=2, sources=2, last=False, outputs=1, **FACTS)
    module, sources = shaken(resfx.Lambdas(start="published"), place), [rows(8), rows(8)]
    weights = told(module, sources, sources[-1])["weights"]
    assert_close(module(sources, sources[-1]), weights[0] * sources[0] + weights[1] * sources[1])


def test_coefficients_of_slices_make_read_and_write():
    stream = resfx.FracConnections(m=2).build_stream([Place(width=8, **FACTS)])
    with torch.no_grad():
        for parameter in stream.reads[0].parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    state, f = rows(1, 8), rows(8)
    found = told(stream.reads[0], state)
    slices, added = state.view(2, 5, 2, 4), f.view(2, 5, 2, 4)
    out, memo = stream.reads[0](state)
    assert_close(out, torch.einsum("btjd,btji->btid", slices, found["read"]).flatten(-2))
    mixed = torch.einsum("btjd,btji->btid", slices, found["mixing"]) + found["write"].unsqueeze(-1) * added
    assert_close(stream.writes[0](state, f, out, None, memo), mixed.reshape(2, 5, 1, 8))


def route_place(sources):
    return RoutePlace(width=8, heads=2, head_dim=4, layer=sources, layers=4, sources=sources, vocabulary=9, **FACTS)


@pytest.mark.parametrize("per_head", [False, True])
def test_weights_of_values_make_the_mixture(per_head):
    module = shaken(resfx.ValueResidual(start="published", form="dense", per_head=per_head), route_place(2))
    values = [rows(2, 4) for _ in range(3)]
    weights = told(module, values[:2], values[2])["weights"].expand(2, 3)
    assert_close(module(values[:2], values[2]), torch.einsum("hs,sbthd->bthd", weights, torch.stack(values)))


def test_a_share_of_the_first_values():
    module, first, own = shaken(resfx.ValueResidual(form="shared"), route_place(1)), rows(2, 4), rows(2, 4)
    assert_close(module([first], own), torch.lerp(own, first, told(module, [first], own)["share"]))
    assert told(resfx.ValueResidual(form="shared", start="published").build(route_place(1)), [first], own)["share"] == 1


def test_a_router_over_heads_and_layers():
    module, values = shaken(resfx.LIMe(start="published"), route_place(2)), [rows(2, 4) for _ in range(3)]
    router = told(module, values[:2], values[2])["router"]
    assert_close(module(values[:2], values[2]), torch.einsum("irs,sbtrd->btid", router, torch.stack(values)))


@pytest.mark.parametrize("gate", ["token", "scalar"])
def test_a_gate_of_a_token_s_row(gate):
    module, v, context = shaken(resfx.ValueEmbedding(gate=gate), route_place(0)), rows(2, 4), rows(8)
    tokens = torch.randint(9, (2, 5))
    found = told(module, [], v, context=context, tokens=tokens)
    row = module.table[tokens]
    assert_close(found["row"], row.norm(dim=-1))
    own = 1 if gate == "token" else 1 + module.scales[0]
    assert_close(module([], v, context=context, tokens=tokens) - own * v, found["gate"].expand(2, 5, 2)[..., None]
                 * row.unflatten(-1, (2, 4)))  # fmt: skip
