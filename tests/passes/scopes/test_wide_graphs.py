"""What of a model is wide and what is not: other readers, adds left out, parallel and scaled adds, conflicts."""

from __future__ import annotations

import copy

import pytest
import torch
from hosts import BY_NAME, LAYERS, WIDTH, tokens
from hosts.generation import given_cache
from hosts.made import randomise, rewritten
from hosts.wide import CC, TC, Mlp, equal
from references import wide as wide_references
from torch import nn

import resfx
from resfx import DDL, MHC, AltUp, HyperConnections
from resfx.errors import ConflictError, NoSitesError, VariantError


def test_hidden_states_handed_out_are_collapsed():
    host = BY_NAME["gpt2"]
    model = host.make()
    inputs = {**host.inputs(2, 7), "output_hidden_states": True}
    new = resfx.rewrite(model, MHC(), kwargs=inputs)
    want, got = model(**inputs).hidden_states, new(**inputs).hidden_states
    assert len(got) == len(want) == LAYERS + 1
    assert all(torch.equal(a, b) for a, b in zip(want, got, strict=True))
    randomise(new, 0.3)
    states = []
    for name, module in new.named_modules():
        if name.endswith(".write"):
            module.register_forward_hook(lambda _, args, out: states.append(out))
    got = new(**inputs).hidden_states
    assert (got[1] - states[1].mean(-2)).abs().max() < 1e-6
    assert (got[1] - want[1]).abs().max() > 1e-3


def test_an_add_left_out_stays_a_plain_add_between_two_wide_streams():
    host = BY_NAME["gpt2"]
    model, inputs = host.make(), host.inputs(2, 7)
    new = resfx.rewrite(model, MHC(), kwargs=inputs, include="transformer.h.*")
    assert len(new.report.changed) == 4
    three = nn.Sequential(*[Mlp(False) for _ in range(5)]).eval()
    x = torch.randn(2, 6, WIDTH)
    part = resfx.rewrite(three, HyperConnections(), args=(x,), exclude="2")
    assert [bool(part.report.methods_at(s)) for s in part.report.sites] == [True, True, False, True, True]
    entries = [n for n, _ in part.named_modules() if n.endswith(".expand")]
    assert entries == ["resfx.hyper_connections.0.add0.expand", "resfx.hyper_connections.3.add0.expand"]
    randomise(part, 0.3)
    randomised = {k: v.double() for k, v in part.new_parameters().items()}
    y = x.double()
    for pair in (("0", "1"), ("2",), ("3", "4")):
        layers = [three[int(i)].double() for i in pair]
        subs = [wide_references.Sublayer(m.norm, m.branch) for m in layers]
        if pair == ("2",):
            y = y + subs[0].branch(subs[0].norm(y))
            continue
        reference = wide_references.reference_for(HyperConnections(), randomised)
        y = wide_references.run_stream(reference, y, subs, [f"resfx.hyper_connections.{i}.add0" for i in pair])
    three.float()
    assert (part(x) - y).abs().max() < 1e-5


def test_parallel_branches_of_altup_compute_one_channel_and_each_has_its_own_correction():
    torch.manual_seed(0)
    model, config = nn.Sequential(Mlp(True), Mlp(True)).double().eval(), AltUp(dynamic=True)
    x = torch.randn(2, 5, WIDTH, dtype=torch.float64)
    new = resfx.rewrite(model, config, args=(x,))
    randomise(new, 0.3)
    assert [m.computes for n, m in new.named_modules() if n.endswith(".read")] == [0, 1]
    reference = wide_references.reference_for(config, dict(new.new_parameters()))
    X = reference.enter(x, "")
    for i, block in enumerate(model):
        path = f"resfx.altup.{i}.add0"
        h, memo = reference.read(X, path, i == 0)
        c = block.norm(h)
        f, g = block.branch(c), block.other(c)
        X = reference.write(X, f, h, c, path, memo)
        X = X + reference.corrections(h + g)[..., None] * g[..., None, :]
    want = reference.leave(X, path)
    assert (new(x) - want).abs().max() <= 1e-12 * want.abs().max()


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("config", [MHC(), HyperConnections(n=3), CC], ids=["mhc", "hyper", "channel"])
def test_parallel_branches_added_one_after_the_other_are_one_site(config, shared):
    torch.manual_seed(0)
    model = nn.Sequential(*[Mlp(True, shared) for _ in range(2)]).double().eval()
    x = torch.randn(2, 5, WIDTH, dtype=torch.float64)
    new = resfx.rewrite(model, config, args=(x,))
    assert [s.form for s in new.report.changed] == ["identity", "parallel"] * 2
    assert torch.equal(model(x), new(x))
    randomise(new, 0.3)
    reference = wide_references.reference_for(config, dict(new.new_parameters()))
    key = new._resfx.applications[0].key
    X = reference.enter(x, f"resfx.{key}.0.add0")
    for i, block in enumerate(model):
        first, second = (f"resfx.{key}.{i}.add{j}" for j in (0, 1))
        h, memo = reference.read(X, first, i == 0)
        c = block.norm(h)
        f, g = block.branch(c), block.other(block.second(h))
        if isinstance(config, DDL):
            X = reference.write(X, f, h, c, first, memo)
            X = reference.write(X, g, h, block.second(h), second, memo)
        else:
            X = reference.write(X, f + g, h, c, first, memo)
    want = reference.leave(X, f"resfx.{key}.1.add1")
    assert (new(x) - want).abs().max() < 1e-12


def test_a_scaled_shortcut_scales_every_channel():
    torch.manual_seed(0)

    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.ModuleList(Mlp(False) for _ in range(3))

        def forward(self, x):
            for layer in self.layers:
                x = 0.7 * x + layer.branch(layer.norm(x))
            return x

    model, x = Scaled().double().eval(), torch.randn(2, 5, WIDTH, dtype=torch.float64)
    new = resfx.rewrite(model, MHC(), args=(x,))
    assert [s.form for s in new.report.changed] == ["scaled"] * 3
    assert torch.equal(model(x), new(x))
    assert sum(n.endswith(".expand") for n, _ in new.named_modules()) == 1
    randomise(new, 0.3)
    reference = wide_references.reference_for(MHC(), dict(new.new_parameters()))
    paths = [f"resfx.mhc.(root).add{i}".replace("(root).", "") for i in range(3)]
    X = reference.enter(x, paths[0])
    for i, (layer, path) in enumerate(zip(model.layers, paths, strict=True)):
        h, memo = reference.read(X, path, i == 0)
        X = reference.write(0.7 * X, layer.branch(layer.norm(h)), h, None, path, memo)
    assert (new(x) - X.mean(-2)).abs().max() < 1e-12


def test_what_stands_between_two_adds_runs_on_every_channel():
    """A norm written out, a reshape and an activation between the adds: at once, or channel by channel."""
    torch.manual_seed(0)

    class Between(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.ModuleList(Mlp(False) for _ in range(3))
            self.gain = nn.Parameter(torch.rand(WIDTH) + 0.5)

        def tidy(self, x, i):
            if i == 0:
                return self.gain * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6))
            return torch.relu(x.reshape(x.shape[0], -1).view(x.shape))

        def forward(self, x):
            for i, layer in enumerate(self.layers):
                x = self.tidy(x + layer.branch(x), i)
            return x

    model, x = Between().double().eval(), torch.randn(2, 5, WIDTH, dtype=torch.float64)
    new = resfx.rewrite(model, HyperConnections(), args=(x,))
    assert len(new.report.changed) == 3
    assert sum(n.endswith(".expand") for n, _ in new.named_modules()) == 1
    assert torch.equal(model(x), new(x))
    randomise(new, 0.3)
    reference = wide_references.reference_for(HyperConnections(), dict(new.new_parameters()))
    subs = [wide_references.Sublayer(lambda h: h, layer.branch, lambda h, i=i: model.tidy(h, i))
            for i, layer in enumerate(model.layers)]  # fmt: skip
    want = wide_references.run_stream(reference, x, subs, [f"resfx.hyper_connections.add{i}" for i in range(3)])
    assert (new(x) - want).abs().max() < 1e-12


def test_streams_that_cannot_be_widened_say_why():
    flat = nn.Sequential(Mlp(False), Mlp(False))
    with pytest.raises(NoSitesError, match="tokens"):
        resfx.rewrite(flat, TC, args=(torch.randn(5, WIDTH),))
    with pytest.raises(NoSitesError, match="embed_conv=False"):
        resfx.rewrite(flat, CC, args=(torch.randn(5, WIDTH),))
    new = resfx.rewrite(flat, DDL(value_channels=4, embed_conv=False), args=(torch.randn(5, WIDTH),))
    with pytest.raises(ConflictError, match="ddl rewrote it already"):
        resfx.rewrite(new, MHC())


@pytest.mark.matrix
def test_a_wide_stream_leaves_no_room_for_reads_over_depth_or_later_mixers():
    host = BY_NAME["gpt2"]
    _, wide, inputs = rewritten("gpt2", MHC())
    with pytest.raises(ConflictError, match="mhc rewrote it already"):
        resfx.rewrite(wide, "denseformer")
    with pytest.raises(ConflictError, match="denseformer rewrote it already"):
        resfx.rewrite(host.make(), ["denseformer", MHC()], kwargs=inputs)
    with pytest.raises(VariantError, match="in one call"):
        resfx.rewrite(wide, "short_swa")
    assert equal(wide(**inputs), host.make()(**inputs))


def test_convolutions_over_tokens_continue_from_the_cache():
    from transformers import DynamicCache

    model, kept, _ = rewritten("llama", TC)
    new = copy.deepcopy(kept)
    randomise(new, 0.3)
    ids = tokens(2, 9)
    cache, parts = DynamicCache(config=model.config), []
    for piece in ids.split((4, 1, 1, 3), 1):
        parts.append(new(piece, **given_cache(new, cache), use_cache=True).logits)
    whole = new(ids, use_cache=False).logits
    assert (torch.cat(parts, 1) - whole).abs().max() < 1e-5 * whole.abs().max()
    state = [t for layer in cache.layers if type(layer).__name__ == "ShortState" for t in layer.tensors]
    # The entry, a read at each add and the read-out; each three vectors of one channel.
    assert [tuple(t.shape) for t in state] == [(2, 3, WIDTH)] * (1 + 2 * LAYERS + 1)


def test_a_cache_is_filled_by_calls_that_hand_hidden_states_out():
    from transformers import DynamicCache

    model, new, _ = rewritten("llama", MHC())
    ids, found = tokens(2, 5), []
    for one in (model, new):
        cache = DynamicCache(config=model.config)
        for piece in ids.split((4, 1), 1):
            out = one(piece, **given_cache(one, cache), use_cache=True, output_hidden_states=True)
        assert [layer.keys.shape[2] for layer in cache.layers] == [5] * LAYERS
        found.append(out.hidden_states)
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


@pytest.mark.matrix
def test_mixers_over_positions_are_branches_of_the_wide_stream():
    from resfx import ShortSWA

    host = BY_NAME["gpt2"]
    model, inputs = host.make(), host.inputs(2, 7)
    new = resfx.rewrite(model, [ShortSWA(), MHC()], kwargs=inputs)
    assert equal(model(**inputs), new(**inputs))
    names = [n for n, _ in new.named_modules()]
    assert sum(n.endswith(".expand") for n in names) == 1
    assert sum(n.endswith(".write") for n in names) == 3 * LAYERS
    randomise(new, 0.3)
    ids = tokens(2, 6)
    options = {"max_new_tokens": 5, "do_sample": False, "attention_mask": torch.ones_like(ids), "eos_token_id": None}
    cached = new.generate(ids, use_cache=True, **options)
    assert torch.equal(cached, new.generate(ids, use_cache=False, **options))
