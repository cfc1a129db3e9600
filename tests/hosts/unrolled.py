"""Seven real architectures taken apart into the branches of their residual streams, in float64.

What a reference rendering needs: it says how the branches are joined, and the host's own layers do the rest. Nothing
here uses the library. ``unroll(name, model, inputs, pathway)`` runs a model whose residual streams are replaced by
``pathway(stream, x)``; :func:`plain` is the pathway the hosts have, and ``test_unrolled.py`` holds it against them.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from hosts import BY_NAME, HEADS
from torch import Tensor, nn
from torch.nn import functional as F

HOSTS = ("gpt2", "llama", "qwen3", "gpt_neox", "bert", "vit", "t5")


@dataclass
class Attention:
    """A branch that attends: three projections, each of an input of its own, and what follows them.

    Attributes:
        norm: opens the branch; ``None`` in a post-norm host.
        project: three functions of the normalised input, ``(batch, positions, d)`` to q, k, v
            ``(batch, positions, width)``, after a norm over the head if the host has one.
        attend: ``(q, k, v)`` to the branch's output, ``(batch, positions, d)``.
        after: the norm over the sum, in a post-norm host.
        owner: the module whose ``forward`` adds.
        causal: whether a position reads earlier ones only.
    """

    norm: nn.Module | None
    project: tuple[Callable[[Tensor], Tensor], ...]
    attend: Callable[[Tensor, Tensor, Tensor], Tensor]
    after: nn.Module | None = None
    owner: str = ""
    causal: bool = True
    cross: bool = False
    kind: str = "attention"

    def __call__(self, q: Tensor, k: Tensor | None = None, v: Tensor | None = None) -> Tensor:
        """The branch from states of the stream; keys and values read that of the queries unless given."""
        states = (q, q if k is None else k, q if v is None else v)
        return self.attend(*(p(h) for p, h in zip(self.project, map(self.open, states), strict=True)))

    def open(self, x: Tensor) -> Tensor:
        return x if self.norm is None else self.norm(x)


@dataclass
class MLP:
    """A branch of two layers: ``first`` gives its projections before the activation (gate and up, where gated)."""

    norm: nn.Module | None
    first: tuple[Callable[[Tensor], Tensor], ...]
    second: Callable[..., Tensor]
    after: nn.Module | None = None
    owner: str = ""
    kind: str = "mlp"

    def __call__(self, x: Tensor) -> Tensor:
        h = self.open(x)
        return self.second(*(f(h) for f in self.first))

    def open(self, x: Tensor) -> Tensor:
        return x if self.norm is None else self.norm(x)


@dataclass
class Stream:
    """One residual stream: its blocks, each a list of branches. ``parallel`` blocks start both from one state.

    Attributes:
        padding: the mask that its attention heeds, ``(batch, positions)``, if the inputs have one.
    """

    name: str
    blocks: list[list[Attention | MLP]]
    parallel: bool = False
    padding: Tensor | None = None


Pathway = Callable[[Stream, Tensor], Tensor]


def plain(stream: Stream, x: Tensor) -> Tensor:
    """The hosts' own pathway: addition."""
    for block in stream.blocks:
        if stream.parallel:
            x = x + sum(branch(x) for branch in block)
            continue
        for branch in block:
            x = x + branch(x)
            x = x if branch.after is None else branch.after(x)
    return x


def host(name: str, layers: int = 3) -> nn.Module:
    """The architecture in float64, in eval mode, with norms that stay in float64 (some hosts cast to float32)."""
    shallow = BY_NAME[name].make()
    config = copy.deepcopy(shallow.config)
    config.num_hidden_layers = layers
    if hasattr(config, "num_decoder_layers"):
        config.num_decoder_layers = layers
    if getattr(config, "layer_types", None):
        config.layer_types = config.layer_types[:1] * layers
    torch.manual_seed(0)
    model = type(shallow)(config).double().eval()
    for module in list(model.modules()):
        for child, norm in module.named_children():
            if type(norm).__name__.endswith("RMSNorm") or type(norm).__name__ == "T5LayerNorm":
                exact = nn.RMSNorm(norm.weight.shape[0], norm.variance_epsilon, dtype=torch.float64)
                exact.weight = norm.weight
                setattr(module, child, exact)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():  # so that norms scale and biases act
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return model


def unroll(name: str, model: nn.Module, inputs: dict[str, Any], pathway: Pathway) -> Tensor:
    """The logits of a host whose streams are carried by ``pathway``."""
    return globals()[f"_{name}"](model, inputs, pathway)


def _heads(x: Tensor, heads: int = HEADS) -> Tensor:
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def _merge(x: Tensor) -> Tensor:
    return x.transpose(1, 2).flatten(-2)


def _mix(q: Tensor, k: Tensor, v: Tensor, *, causal: bool, scale: float | None = None, bias: Tensor | None = None,
         keep: Tensor | None = None):  # fmt: skip
    scores = q @ k.mT * (q.shape[-1] ** -0.5 if scale is None else scale)
    scores = scores if bias is None else scores + bias
    if keep is not None:  # finite: a padded row that may read nothing stays a number
        scores = scores.masked_fill(keep[:, None, None] == 0, -1e300)
    if causal:
        future = torch.ones(q.shape[-2], k.shape[-2], dtype=torch.bool).triu(1)
        scores = scores.masked_fill(future, float("-inf"))
    return scores.softmax(-1) @ v


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding of the leading dimensions of ``x (batch, heads, positions, d_k)``."""
    turned, rest = x[..., : cos.shape[-1]], x[..., cos.shape[-1] :]
    a, b = turned.chunk(2, -1)
    return torch.cat([turned * cos[:, None] + torch.cat([-b, a], -1) * sin[:, None], rest], -1)


def _rows(conv: nn.Module, at: int, of: int) -> Callable[[Tensor], Tensor]:
    """One of ``of`` projections that a transposed linear layer holds side by side."""
    return lambda h: (h @ conv.weight + conv.bias).chunk(of, -1)[at]


def _gpt2(model: Any, inputs: dict[str, Any], pathway: Pathway) -> Tensor:
    body, ids, keep = model.transformer, inputs["input_ids"], inputs.get("attention_mask")
    blocks: list[list[Attention | MLP]] = []
    for i, layer in enumerate(body.h):
        owner, attn, mlp = f"transformer.h.{i}", layer.attn, layer.mlp

        def attend(q, k, v, attn=attn):
            return attn.c_proj(_merge(_mix(_heads(q), _heads(k), _heads(v), causal=True, keep=keep)))

        blocks.append([
            Attention(layer.ln_1, tuple(_rows(attn.c_attn, j, 3) for j in range(3)), attend, owner=owner),
            MLP(layer.ln_2, (mlp.c_fc,), lambda a, mlp=mlp: mlp.c_proj(mlp.act(a)), owner=owner),
        ])  # fmt: skip
    x = body.wte(ids) + body.wpe(torch.arange(ids.shape[1]))
    return model.lm_head(body.ln_f(pathway(Stream("", blocks, padding=keep), x)))


def _llama(model: Any, inputs: dict[str, Any], pathway: Pathway) -> Tensor:
    body, ids, keep = model.model, inputs["input_ids"], inputs.get("attention_mask")
    x = body.embed_tokens(ids)
    cos, sin = body.rotary_emb(x, torch.arange(ids.shape[1]).unsqueeze(0))
    blocks: list[list[Attention | MLP]] = []
    for i, layer in enumerate(body.layers):
        owner, attn, mlp = f"model.layers.{i}", layer.self_attn, layer.mlp
        q_norm, k_norm = getattr(attn, "q_norm", None), getattr(attn, "k_norm", None)
        size = attn.head_dim

        def project(h, linear, norm, size=size):
            return linear(h) if norm is None else norm(linear(h).unflatten(-1, (-1, size))).flatten(-2)

        def attend(q, k, v, attn=attn, size=size):
            q, k, v = (z.unflatten(-1, (-1, size)).transpose(1, 2) for z in (q, k, v))
            q, k = _rotate(q, cos, sin), _rotate(k, cos, sin)
            k, v = (z.repeat_interleave(q.shape[1] // z.shape[1], 1) for z in (k, v))
            return attn.o_proj(_merge(_mix(q, k, v, causal=True, keep=keep)))

        blocks.append([
            Attention(
                layer.input_layernorm,
                (partial(project, linear=attn.q_proj, norm=q_norm), partial(project, linear=attn.k_proj, norm=k_norm),
                 attn.v_proj),
                attend, owner=owner,
            ),
            MLP(layer.post_attention_layernorm, (mlp.gate_proj, mlp.up_proj),
                lambda gate, up, mlp=mlp: mlp.down_proj(F.silu(gate) * up), owner=owner),
        ])  # fmt: skip
    return model.lm_head(body.norm(pathway(Stream("", blocks, padding=keep), x)))


_qwen3 = _llama


def _gpt_neox(model: Any, inputs: dict[str, Any], pathway: Pathway) -> Tensor:
    body, ids, keep = model.gpt_neox, inputs["input_ids"], inputs.get("attention_mask")
    x = body.embed_in(ids)
    cos, sin = body.rotary_emb(x, torch.arange(ids.shape[1]).unsqueeze(0))
    blocks: list[list[Attention | MLP]] = []
    for i, layer in enumerate(body.layers):
        owner, attn, mlp = f"gpt_neox.layers.{i}", layer.attention, layer.mlp

        def project(h, at, attn=attn):  # q, k, v lie side by side within each head
            return attn.query_key_value(h).unflatten(-1, (HEADS, 3, -1))[..., at, :].flatten(-2)

        def attend(q, k, v, attn=attn):
            q, k = _rotate(_heads(q), cos, sin), _rotate(_heads(k), cos, sin)
            return attn.dense(_merge(_mix(q, k, _heads(v), causal=True, keep=keep)))

        blocks.append([
            Attention(layer.input_layernorm, tuple(partial(project, at=j) for j in range(3)), attend, owner=owner),
            MLP(layer.post_attention_layernorm, (mlp.dense_h_to_4h,),
                lambda a, mlp=mlp: mlp.dense_4h_to_h(mlp.act(a)), owner=owner),
        ])  # fmt: skip
    return model.lm_head(body.final_layer_norm(pathway(Stream("", blocks, parallel=True, padding=keep), x)))


def _bert(model: Any, inputs: dict[str, Any], pathway: Pathway) -> Tensor:
    ids, e, keep = inputs["input_ids"], model.bert.embeddings, inputs.get("attention_mask")
    blocks: list[list[Attention | MLP]] = []
    for i, layer in enumerate(model.bert.encoder.layer):
        owner, attn = f"bert.encoder.layer.{i}", layer.attention

        def attend(q, k, v, attn=attn):
            return attn.output.dense(_merge(_mix(_heads(q), _heads(k), _heads(v), causal=False, keep=keep)))

        one = attn.self
        blocks.append([
            Attention(None, (one.query, one.key, one.value), attend, after=attn.output.LayerNorm,
                      owner=f"{owner}.attention.output", causal=False),
            MLP(None, (layer.intermediate.dense,), lambda a, layer=layer: layer.output.dense(F.gelu(a)),
                after=layer.output.LayerNorm, owner=f"{owner}.output"),
        ])  # fmt: skip
    x = e.word_embeddings(ids) + e.token_type_embeddings(torch.zeros_like(ids))
    x = e.LayerNorm(x + e.position_embeddings(torch.arange(ids.shape[1])))
    return model.cls(pathway(Stream("", blocks, padding=keep), x))


def _vit(model: Any, inputs: dict[str, Any], pathway: Pathway) -> Tensor:
    body = model.vit
    blocks: list[list[Attention | MLP]] = []
    for i, layer in enumerate(body.layers):
        owner, attn, mlp = f"vit.layers.{i}", layer.attention, layer.mlp

        def attend(q, k, v, attn=attn):
            return attn.o_proj(_merge(_mix(_heads(q), _heads(k), _heads(v), causal=False)))

        blocks.append([
            Attention(layer.layernorm_before, (attn.q_proj, attn.k_proj, attn.v_proj), attend, owner=owner,
                      causal=False),
            MLP(layer.layernorm_after, (mlp.fc1,), lambda a, mlp=mlp: mlp.fc2(mlp.activation_fn(a)), owner=owner),
        ])  # fmt: skip
    x = body.embeddings(inputs["pixel_values"])
    return model.classifier(body.layernorm(pathway(Stream("", blocks), x))[:, 0])


def _t5(model: Any, inputs: dict[str, Any], pathway: Pathway) -> Tensor:
    keep = inputs.get("attention_mask")
    encoded = _t5_stack(model.encoder, "encoder", inputs["input_ids"], None, keep, pathway)
    decoded = _t5_stack(model.decoder, "decoder", inputs["decoder_input_ids"], encoded, keep, pathway)
    return model.lm_head(decoded * model.model_dim**-0.5 if model.config.scale_decoder_outputs else decoded)


def _t5_stack(
    stack: Any, name: str, ids: Tensor, encoded: Tensor | None, keep: Tensor | None, pathway: Pathway
) -> Tensor:
    """An encoder, or a decoder that also reads what was encoded: keys and values of its cross-attention are fixed.

    ``keep`` masks the encoder's positions.
    """
    size, decoder = ids.shape[1], encoded is not None
    bias = stack.block[0].layer[0].SelfAttention.compute_bias(size, size)
    blocks: list[list[Attention | MLP]] = []
    for i, layer in enumerate(stack.block):
        branches: list[Attention | MLP] = []
        for j, part in enumerate(layer.layer):
            owner = f"{name}.block.{i}.layer.{j}"
            if hasattr(part, "DenseReluDense"):
                mlp = part.DenseReluDense
                branches.append(MLP(part.layer_norm, (mlp.wi,), lambda a, mlp=mlp: mlp.wo(mlp.act(a)), owner=owner))
                continue
            cross = hasattr(part, "EncDecAttention")
            attn = part.EncDecAttention if cross else part.SelfAttention

            def attend(q, k, v, attn=attn, cross=cross):
                mixed = _mix(_heads(q), _heads(k), _heads(v), causal=decoder and not cross, scale=1,
                             bias=None if cross else bias, keep=keep if cross or not decoder else None)  # fmt: skip
                return attn.o(_merge(mixed))

            keys, values = (
                (lambda h, a=attn: a.k(encoded), lambda h, a=attn: a.v(encoded)) if cross else (attn.k, attn.v)
            )
            branches.append(Attention(part.layer_norm, (attn.q, keys, values), attend, owner=owner,
                                      causal=decoder, cross=cross))  # fmt: skip
        blocks.append(branches)
    return stack.final_layer_norm(
        pathway(Stream(name, blocks, padding=None if decoder else keep), stack.embed_tokens(ids))
    )
