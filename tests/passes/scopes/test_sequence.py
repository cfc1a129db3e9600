"""Mixers in real architectures: exact starts, causality, padding, where they go and where not, composition."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import pytest
import torch
from hosts import BY_NAME, tokens
from hosts.generation import CAUSAL, given_cache
from hosts.made import randomise
from hosts.sequence import HOSTS, METHODS, acting, given, logits, made, pairs
from torch import nn

import resfx

PADDED = {("llama", "swa"), ("llama", "conv"), ("bert", "canon")}


def start_is_exact(host, modes, dtype):
    model, inputs = BY_NAME[host].make().to(dtype), given(host, dtype)
    new = resfx.rewrite(model, modes, kwargs=inputs, check=False)
    with torch.no_grad():
        assert torch.equal(logits(new(**inputs)), logits(model(**inputs)))
    assert type(new).__name__ == type(model).__name__ and not hasattr(model, "resfx")


@pytest.mark.every(4)
@pytest.mark.parametrize("host, dtype", [
    *((h, torch.bfloat16) for h in HOSTS), ("gpt2", torch.float32),
])  # fmt: skip
def test_start_is_bit_exact(host, dtype):
    start_is_exact(host, list(METHODS.values()), dtype)


@pytest.mark.matrix
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("host", BY_NAME)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_start_is_bit_exact_one_by_one(host, method, dtype):
    start_is_exact(host, METHODS[method], dtype)


# -- causality and padding ---------------------------------------------------------------------------------------


@pytest.mark.every(3)
@pytest.mark.parametrize("host, method", pairs([*CAUSAL, "nanogpt", "t5", "bart", "whisper"], {"gpt2"}))
def test_a_later_token_changes_nothing_before_it(host, method):
    new, inputs = acting(host, method)
    inputs = {k: v for k, v in inputs.items() if k != "attention_mask"}
    name = next(n for n in ("decoder_input_ids", "input_ids", "idx") if n in inputs)
    a, b = tokens(2, 9, 5), tokens(2, 9, 5)
    b[:, 5] = (a[:, 5] + 1) % 80 + 3
    with torch.no_grad():
        one, other = (logits(new(**inputs | {name: ids})) for ids in (a, b))
    moved = (one - other).abs().amax((0, 2))
    assert (moved[:5] == 0).all() and (moved[5:] > 0).all()


@pytest.mark.every(2)
@pytest.mark.parametrize("host, method", pairs([*CAUSAL, "bert", "roberta"], PADDED))
def test_padded_tokens_are_not_read(host, method):
    new, inputs = acting(host, method)
    other = inputs | {"input_ids": inputs["input_ids"].clone()}
    other["input_ids"][0, :2] = 7
    with torch.no_grad():
        a, b = new(**inputs).logits[0, 2:], new(**other).logits[0, 2:]
    torch.testing.assert_close(a, b, atol=1e-12, rtol=0)


@pytest.mark.every(2)
@pytest.mark.parametrize("host, method", pairs(CAUSAL, {("llama", "swa"), ("llama", "conv")}))
def test_left_padding_changes_nothing_for_real_tokens(host, method):
    """Chunks lie where the padded text puts them: 3 positions of padding, a whole chunk, keep their places."""
    new, _ = acting(host, method)
    ids = tokens(2, 9, 5)
    mask = torch.ones_like(ids)
    mask[:, :3] = 0
    with torch.no_grad():
        padded = new(
            input_ids=ids, attention_mask=mask, position_ids=(mask.cumsum(1) - 1).clamp_min(0), use_cache=False
        )
        alone = new(input_ids=ids[:, 3:], use_cache=False)
    torch.testing.assert_close(padded.logits[:, 3:], alone.logits, atol=1e-12, rtol=0)


# -- where mixers go ---------------------------------------------------------------------------------------------


def test_norm_starts_as_a_copy_of_the_hosts():
    model = BY_NAME["gpt2"].make()
    with torch.no_grad():
        model.transformer.h[0].ln_1.weight.uniform_(0.5, 2)
    new = resfx.rewrite(model, resfx.ShortSWA(window=4), kwargs=BY_NAME["gpt2"].inputs(2, 7))
    mixer = new.get_submodule("resfx.short_swa.transformer.h.0.swa_0")
    host = model.transformer.h[0].ln_1
    assert torch.equal(mixer.norm.weight, host.weight) and mixer.norm.weight is not host.weight
    assert mixer.norm.eps == host.eps and mixer.heads == 4
    assert (
        made("bert", "swa")[1].get_submodule("resfx.short_swa.bert.encoder.layer.0.attention.output.swa_0").norm is None
    )


def test_only_named_owners_and_points():
    model, inputs = BY_NAME["llama"].make(), BY_NAME["llama"].inputs(2, 7)
    new = resfx.rewrite(model, resfx.Canon(at="AD"), kwargs=inputs, include="model.layers.1", check=False)
    names = {n.rsplit(".", 1)[0] for n in new.new_parameters()}
    root = "resfx.canon.model.layers.1"
    assert names == {f"{root}.a_0", f"{root}.d0_1", f"{root}.d1_1"}
    assert {s.name for s in new.report.changed} == {"model.layers.1:0", "model.layers.1:1"}
    only_k = resfx.rewrite(model, resfx.ShortConv(on="k"), kwargs=inputs, check=False)
    assert len(only_k.new_parameters()) == 2


def test_experts_keep_their_hidden_features():
    model, inputs = BY_NAME["mixtral"].make(), BY_NAME["mixtral"].inputs(2, 7)
    new = resfx.rewrite(model, resfx.Canon(at="CD"), kwargs=inputs)
    assert all(".c_1." in n for n in new.new_parameters())
    assert any("experts" in s.reason for s in new.report.skips)


def test_what_a_method_refused_stays_without_a_mixer_in_later_captures():
    """A method that takes queries alone, of all the points it asks for: training is another capture."""
    inputs = BY_NAME["qwen3"].inputs(2, 7)
    new = resfx.rewrite(BY_NAME["qwen3"].make(), OnlyWide(), kwargs=inputs, check=False)
    assert {n.rsplit(".", 2)[1] for n in new.new_parameters()} == {"q_0"}
    assert any(s.reason == "too narrow" for s in new.report.skips)
    with torch.no_grad():
        torch.testing.assert_close(new.train()(**inputs).logits, new.eval()(**inputs).logits)


@dataclasses.dataclass(frozen=True, kw_only=True)
class OnlyWide(resfx.ShortConv):
    """A method that somebody else wrote."""

    def refuse(self, place):
        return "too narrow" if place.width < 32 else None


class MixerHost(nn.Module):
    """Token mixing without attention (an MLP-Mixer block)."""

    def __init__(self):
        super().__init__()
        self.norm, self.across, self.out = nn.LayerNorm(8), nn.Linear(6, 6), nn.Linear(6, 6)

    def forward(self, x):
        return x + self.out(self.across(self.norm(x).mT).relu()).mT


class WindowHost(nn.Module):
    """Vision attention inside windows of four positions."""

    def __init__(self):
        super().__init__()
        self.norm, self.qkv, self.out = nn.LayerNorm(8), nn.Linear(8, 24), nn.Linear(8, 8)

    def forward(self, x):
        b, t, d = x.shape
        q, k, v = self.qkv(self.norm(x)).view(b * (t // 4), 4, 3, 2, 4).permute(2, 0, 3, 1, 4)
        mixed = nn.functional.scaled_dot_product_attention(q, k, v)
        return x + self.out(mixed.transpose(1, 2).reshape(b, t, d))


def test_hosts_without_a_sequence_are_left_alone_with_a_reason():
    with pytest.raises(resfx.errors.NoSitesError, match="no attention"):
        resfx.rewrite(MixerHost(), "short_swa", args=(torch.randn(2, 6, 8),))
    with pytest.raises(resfx.errors.NoSitesError, match="attention over windows"):
        resfx.rewrite(WindowHost(), "short_conv", args=(torch.randn(2, 8, 8),))


def test_a_fused_projection_is_mixed_whole_or_in_part():
    model, inputs = BY_NAME["nanogpt"].make(), BY_NAME["nanogpt"].inputs(2, 7)
    for on, width in (("qkv", 96), ("k", 32)):
        new = resfx.rewrite(model, resfx.ShortConv(on=on), kwargs=inputs, check=False)
        assert [p.shape for p in new.new_parameters().values()] == [(width, 4)] * 2
        assert all(f".{on}_" in name for name in new.new_parameters())
        assert torch.equal(new(**inputs), model(**inputs))


def test_hand_written_attention():
    """nanoGPT: softmax spelled out, a triangle for a mask, one fused projection."""
    model = BY_NAME["nanogpt"].make().double()
    for mode in (resfx.ShortSWA(window=3), resfx.Canon()):
        new = resfx.rewrite(model, mode, args=(tokens(2, 7),))
        mixers = [m for m in new.modules() if hasattr(m, "streams")]
        assert mixers and all(m.streams for m in mixers)  # all causal
        randomise(new, 0.3)
        a, b = tokens(2, 9, 5), tokens(2, 9, 5)
        b[:, 5] = 3
        with torch.no_grad():
            moved = (new(a) - new(b)).abs().amax((0, 2))
        assert (moved[:5] == 0).all() and (moved[5:] > 0).all()


def test_longer_sequences_and_other_batches_use_the_same_graph():
    _, new, _ = made("llama", "swa", torch.float32)
    before = len(new.variants)
    with torch.no_grad():
        new(**given("llama", torch.float32, 3, 13))
    assert len(new.variants) == before


# -- composition -------------------------------------------------------------------------------------------------


def composed(*modes, host="llama"):
    model = BY_NAME[host].make().double()
    inputs = BY_NAME[host].inputs(2, 7)
    for mode in modes:
        model = resfx.rewrite(model, mode, kwargs=inputs, check=False)
    return model, inputs


@pytest.mark.matrix
def test_methods_compose_in_any_order():
    swa, ddl = METHODS["swa"], resfx.DDL()
    first, inputs = composed(swa, ddl, host="gpt2")
    randomise(first, 0.3)
    want = first(**inputs).logits
    host = BY_NAME["gpt2"].make().double()
    for modes in ((ddl, swa), ([swa, ddl],), ([ddl, swa],)):
        other, _ = composed(*modes, host="gpt2")
        torch.testing.assert_close(other(**inputs).logits, host(**inputs).logits, atol=0, rtol=0)
        other.load_state_dict(first.state_dict())
        assert torch.equal(other(**inputs).logits, want)


def test_a_delta_shortcut_reads_the_mixed_state():
    new, inputs = composed(METHODS["swa"], resfx.DDL(start="published"))
    randomise(new, 0.3)
    seen = SimpleNamespace()
    new.get_submodule("resfx.short_swa.model.layers.0.swa_0").register_forward_hook(
        lambda m, args, out: seen.__dict__.update(s=args[0] + out)
    )
    new.get_submodule("resfx.ddl.model.layers.0.add0").register_forward_hook(
        lambda m, args, out: seen.__dict__.update(x=args[0], c=args[2])
    )
    new(**inputs)
    assert torch.equal(seen.x, seen.s)
    norm = new.model.layers[0].input_layernorm
    assert torch.equal(seen.c, norm(seen.s))


def test_all_sequence_methods_together():
    modes = [METHODS["swa"], resfx.Canon(), resfx.ShortConv(), resfx.DDL()]
    new, inputs = composed(modes)
    host = BY_NAME["llama"].make().double()
    assert torch.equal(new(**inputs).logits, host(**inputs).logits)
    randomise(new, 0.2)
    ids = tokens(2, 9, 5)
    with torch.no_grad():
        full = new(input_ids=ids, use_cache=False).logits
        out = new(input_ids=ids[:, :5], use_cache=True)
        parts = [out.logits]
        for t in range(5, 9):
            out = new(input_ids=ids[:, t : t + 1], **given_cache(new, out.past_key_values), use_cache=True)
            parts.append(out.logits)
    torch.testing.assert_close(torch.cat(parts, 1), full, atol=1e-10, rtol=0)


def test_the_mixers_add_is_part_of_the_stream():
    new, _ = composed(METHODS["swa"])
    names = [s.name for s in new.report.streams[0].sites]
    assert names[:3] == ["model.layers.0.short_swa:0", "model.layers.0:0", "model.layers.0:1"]
    assert new.report.streams[0].sites[0].form == "mixer"


def test_an_exported_programs_norm_is_copied_from_its_operator():
    """Its modules hold parameters, and no code to copy."""
    layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0, batch_first=True, norm_first=True)
    with torch.no_grad():
        layer.norm1.weight.add_(0.5)
    x = torch.randn(2, 5, 16)
    new = resfx.rewrite(torch.export.export(layer, (x,)), "short_swa")
    (norm,) = [m for n, m in new.named_modules() if n.startswith("resfx") and n.endswith("norm")]
    assert isinstance(norm, nn.LayerNorm)
    torch.testing.assert_close(norm.weight, layer.norm1.weight, rtol=0, atol=0)
    assert norm.weight is not layer.norm1.weight
    torch.testing.assert_close(new(x), layer(x), rtol=0, atol=0)
