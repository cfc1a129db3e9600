"""Routes in a graph: what they find, what crosses layers, what the host's cache holds, and what is refused by name."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from hosts import BY_NAME, tokens
from hosts.exact import exact_decoder, exact_ids
from hosts.made import randomise
from torch import nn

import resfx
from resfx.methods.route.base import RouteMethod, RoutePlace


@dataclass(frozen=True, kw_only=True)
class Seen(RouteMethod):
    """Hands its projection on, and what it was given with it."""

    name: ClassVar[str] = "seen"
    points: ClassVar = ("q", "k", "v")
    wants: ClassVar = ("context", "tokens")

    def sources(self, layer, layers):
        return list(range(layer))

    def build(self, place):
        return Look(place)


class Look(nn.Module):
    def __init__(self, place):
        super().__init__()
        self.place, self.seen = place, []

    def forward(self, sources, v, context, tokens):
        self.seen.append((list(sources), v, context, tokens))
        return v


MATRIX = pytest.mark.matrix


@pytest.mark.parametrize("host", [
    "gpt_neox", *(pytest.param(h, marks=MATRIX) for h in ("llama", "qwen3", "gpt2", "t5"))
])  # fmt: skip
def test_a_route_is_handed_heads_of_every_layer_so_far(host):
    model, inputs = BY_NAME[host].make(), BY_NAME[host].inputs(2, 7)
    new = resfx.rewrite(model, Seen(), kwargs=inputs, check=False)
    looks = {n: m for n, m in new.named_modules() if isinstance(m, Look)}
    assert len(looks) == 3 * 2 * BY_NAME[host].streams
    for look in looks.values():
        look.seen.clear()
    new(**inputs)
    ids = {inputs["input_ids"].shape: inputs["input_ids"]}
    if "decoder_input_ids" in inputs:
        ids[inputs["decoder_input_ids"].shape] = inputs["decoder_input_ids"]
    for name, look in looks.items():
        ((sources, v, context, given),) = look.seen
        place, point = look.place, name.rsplit(".", 1)[-1][0]
        grouped = host in ("llama", "qwen3") and point in "kv"
        assert v.shape == (2, given.shape[1], 2 if grouped else 4, 8) == (*given.shape, v.shape[2], place.head_dim)
        assert torch.equal(given, ids[given.shape]) and place.vocabulary == 89
        assert context.shape == (*given.shape, 32)
        others = [m for n, m in looks.items() if n.rsplit(".", 1)[-1][0] == point and m.place.layer < place.layer
                  and n.split(".")[2] == name.split(".")[2]]  # fmt: skip
        assert len(sources) == place.layer == len(others)
        assert all(torch.equal(s, m.seen[0][1]) for s, m in zip(sources, others, strict=True))
    if host in ("llama", "qwen3"):
        attention = new.model.layers[1].self_attn
        (_, q, context, _), (_, v, *_) = looks["resfx.seen.model.layers.1.q_0"].seen[0], looks[
            "resfx.seen.model.layers.1.v_0"].seen[0]  # fmt: skip
        q_norm = getattr(attention, "q_norm", nn.Identity())
        torch.testing.assert_close(q, q_norm(attention.q_proj(context).unflatten(-1, (-1, 8))))
        torch.testing.assert_close(v, attention.v_proj(context).unflatten(-1, (-1, 8)))


@pytest.mark.parametrize("method", [
    pytest.param(resfx.LIMe(), id="lime"), pytest.param(resfx.ValueEmbedding(), id="value_embedding", marks=MATRIX)
])  # fmt: skip
def test_the_hosts_cache_holds_what_was_mixed(method):
    new = resfx.rewrite(BY_NAME["llama"].make(), method, kwargs=BY_NAME["llama"].inputs(2, 7), check=False)
    randomise(new, 0.3)
    ids, mixed = tokens(2, 9), []
    (*_, (name, module)) = [(n, m) for n, m in new.named_modules() if n.rsplit(".", 1)[-1][:-2] in ("v", "kv")]
    handle = module.register_forward_hook(lambda m, given, out: mixed.append((given[1], out)))
    layer = new(input_ids=ids, use_cache=True).past_key_values.layers[int(name.split(".")[4])]
    handle.remove()
    before, values = mixed[-1]
    assert torch.equal(layer.values, values.transpose(1, 2)) and (values - before).abs().max() > 1e-3
    options = {"max_new_tokens": 5, "do_sample": False, "eos_token_id": None}
    assert torch.equal(new.generate(ids, **options), new.generate(ids, use_cache=False, **options))


def test_routes_mixers_and_what_replaces_adds_go_together():
    modes = [resfx.ShortConv(on="v", activation="none"), "value_residual", "mudd", "ddl", "lime"]
    model, ids = exact_decoder(), exact_ids()
    new = resfx.rewrite(model, modes, args=(ids,))
    assert torch.equal(new(ids), model(ids))
    assert set(new.report.methods_at(new.report.sites[2])) == {"short_conv", "value_residual", "mudd", "ddl", "lime"}
    randomise(new, 0.3)
    parameters = new.new_parameters()
    grads = torch.autograd.grad(new(ids).square().sum(), list(parameters.values()))
    assert all(g.abs().max() > 0 for g in grads)
    wide = resfx.rewrite(model, ["lime", "mhc"], args=(ids,), check=False)
    assert torch.equal(wide(ids), model(ids))
    again = resfx.rewrite(model, ["value_residual", "lime"], args=(ids,), check=False)
    with torch.no_grad():
        for name, parameter in again.new_parameters().items():
            parameter.fill_(0.1 if "lime" in name else 0.0)
    reads = again(ids)
    with torch.no_grad():
        again.get_parameter("resfx.value_residual.layers.1.v_0.weight").fill_(0.5)
    assert not torch.equal(again(ids), reads), "the second route mixes what the first one gives"


def test_what_has_no_place_is_a_skip_with_its_reason():
    new = resfx.rewrite(exact_decoder(), "value_residual", args=(exact_ids(),), check=False)
    skips = new._resfx.applications[0].skips
    assert [s.owner for s in skips] == ["layers.0", "layers.1", "layers.0"]
    assert [s.reason for s in skips] == ["no attention in this branch"] * 2 + ["the method reads nothing here"]
    vit = BY_NAME["vit"]
    with pytest.raises(resfx.errors.NoSitesError, match="does not begin with token numbers"):
        resfx.rewrite(vit.make(), "value_embedding", kwargs=vit.inputs(2, 7))


@MATRIX
def test_a_decoder_s_cross_attention_is_left_alone():
    host = BY_NAME["t5"]
    new = resfx.rewrite(host.make(), "value_residual", kwargs=host.inputs(2, 7), exclude="encoder.*", check=False)
    reasons = {s.owner: s.reason for s in new._resfx.applications[0].skips}
    assert "decoder.block.1.layer.0" not in reasons
    assert reasons["decoder.block.0.layer.0"] == "the method reads nothing here"
    assert "cross-attention" in reasons["decoder.block.0.layer.1"]


def test_layers_of_another_shape_are_left_alone():
    model = exact_decoder()
    odd = model.layers[1]
    odd.q, odd.k, odd.v, odd.o = (nn.Linear(*size) for size in ((8, 12), (8, 12), (8, 12), (12, 8)))
    with pytest.raises(resfx.errors.NoSitesError, match=r"v of 2 x 6 torch\.float32, .* v of 2 x 4"):
        resfx.rewrite(model, "value_residual", args=(exact_ids(),))


def test_other_calls_find_their_tokens_or_say_so():
    host = BY_NAME["llama"]
    new = resfx.rewrite(host.make(), "value_embedding", kwargs=host.inputs(2, 7), check=False)
    hidden = torch.randn(2, 5, 32)
    with pytest.raises(resfx.errors.VariantError, match="does not begin with token numbers"):
        new(inputs_embeds=hidden, use_cache=False)
    with pytest.raises(resfx.errors.VariantError, match="reads states across its border"):
        new.model.layers[1](hidden, position_embeddings=(torch.ones(1, 5, 8), torch.zeros(1, 5, 8)))


def test_a_route_reads_what_came_before():
    class Itself(Seen):
        wants = ()

        def sources(self, layer, layers):
            return [layer]

    with pytest.raises(resfx.errors.OptionError, match="layer 0 read layers"):
        resfx.rewrite(exact_decoder(), Itself(), args=(exact_ids(),))


@pytest.mark.parametrize("options, message", [
    ({"learned": False}, "never leaves"), ({"last": 0}, "at least 1 layer"), ({"form": "mixed"}, "form"),
])  # fmt: skip
def test_options_that_make_no_sense(options, message):
    with pytest.raises(ValueError, match=message):
        resfx.ValueResidual(**options)


def test_published_starts():
    def made(config):
        return resfx.rewrite(exact_decoder(), config, args=(exact_ids(),), check=False).new_parameters()

    assert not made(resfx.ValueResidual(form="shared", start="published"))
    assert not made(resfx.ValueResidual(learned=False, start="published"))
    sparse = made(resfx.ValueResidual(last=1, first=5, own=1, start="published"))
    assert [p.tolist() for p in sparse.values()] == [[5.0, 1.0]]
    (router,) = made(resfx.LIMe(start="published")).values()
    assert torch.equal(router[:, 2:], torch.eye(2)) and 0 < router[:, :2].abs().max() <= (3 / 4) ** 0.5


@pytest.mark.parametrize("compiled", [False, True])
def test_heads_are_mixed_in_full_precision_under_autocast(compiled):
    torch._dynamo.reset()
    torch.manual_seed(0)
    place = RoutePlace(
        width=32, context_width=32, kind="attention", depth=0, dtype=torch.float32, device=torch.device("cpu"),
        heads=4, head_dim=8, layer=2, layers=4, sources=2,
    )  # fmt: skip
    router = resfx.LIMe(start="published").build(place)
    *sources, v = (torch.randn(2, 5, 4, 8) for _ in range(3))
    run = torch.compile(router, backend="aot_eager", fullgraph=True) if compiled else router
    with torch.autocast("cpu", torch.bfloat16):
        got = run(sources, v)
    torch.testing.assert_close(got, router(sources, v))
