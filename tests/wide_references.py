"""The papers' equations for widened streams, one step at a time, and hosts taken apart into sublayers.

Nothing here is shared with the library: states are ``(batch, tokens, n, d)`` and every sum is an einsum.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch


def same(x):
    return x


@dataclass
class Sublayer:
    """``f(x) = branch(norm(x))``; ``then`` is what the host does to the state after the add."""

    norm: Callable
    branch: Callable
    then: Callable = same


def sigmoid(x):
    return 1 / (1 + torch.exp(-x))


class HyperReference:
    """Hyper-Connections, equations 2 to 5; dynamic coefficients with a layer norm per channel."""

    def __init__(self, config, weights):
        self.config, self.weights = config, weights

    def enter(self, x, path):
        return torch.stack([x] * self.config.n, -2)

    def read(self, H, path, first):
        w, n = {k: self.weights[f"{path}.read.{k}"] for k in ("read", "write", "mix")}, self.config.n
        A_m, B, A_r = w["read"], w["write"], w["mix"]
        if self.config.dynamic:
            mean = H.mean(-1, keepdim=True)
            N = (H - mean) / torch.sqrt(((H - mean) ** 2).mean(-1, keepdim=True) + self.config.eps)
            W, (s_a, s_b) = self.weights[f"{path}.read.dynamic"], self.weights[f"{path}.read.scale"]
            bound = torch.tanh if self.config.tanh else (lambda x: x)
            A_m = A_m + s_a * bound(torch.einsum("btnd,d->btn", N, W[0]))
            B = B + s_b * bound(torch.einsum("btnd,d->btn", N, W[1]))
            A_r = A_r + s_a * bound(torch.einsum("btnd,md->btnm", N, W[2 : n + 2]))
        shape = H.shape[:2]
        A_m, B, A_r = A_m.expand(*shape, n), B.expand(*shape, n), A_r.expand(*shape, n, n)
        return torch.einsum("btn,btnd->btd", A_m, H), (B, A_r)

    def write(self, H, f, x, c, path, memo):
        B, A_r = memo
        return torch.einsum("btij,btid->btjd", A_r, H) + torch.einsum("btj,btd->btjd", B, f)

    def each(self, H, then):
        """The host's norm on each channel's vector."""
        return torch.stack([then(h) for h in H.unbind(-2)], -2)

    def leave(self, H, path):
        return H.mean(-2)


class ManifoldReference(HyperReference):
    """mHC, equations 5 to 9."""

    def read(self, X, path, first):
        n = self.config.n
        z = X.flatten(-2)
        z = z / torch.sqrt((z**2).mean(-1, keepdim=True) + self.config.eps)
        w = {k.rsplit(".", 1)[1]: v for k, v in self.weights.items() if k.startswith(f"{path}.read.")}
        seen = torch.einsum("btk,mk->btm", z, w["projection"])
        H_pre = sigmoid(w["alpha"][0] * seen[..., :n] + w["pre"])
        H_post = 2 * sigmoid(w["alpha"][1] * seen[..., n : 2 * n] + w["post"])
        H_res = torch.eye(n, dtype=X.dtype).expand(*X.shape[:2], n, n)
        if not first:
            M = torch.exp((w["alpha"][2] * seen[..., 2 * n :]).reshape(*X.shape[:2], n, n) + w["res"])
            for _ in range(self.config.sinkhorn_iterations):
                M = M / M.sum(-2, keepdim=True)
                M = M / M.sum(-1, keepdim=True)
            H_res = M
        return torch.einsum("btn,btnd->btd", H_pre, X), (H_post, H_res)

    def write(self, X, f, x, c, path, memo):
        H_post, H_res = memo
        return torch.einsum("btij,btjd->btid", H_res, X) + torch.einsum("btj,btd->btjd", H_post, f)


class DeltaReference:
    """DDL with ``d_v`` channels: section 4, appendix A.2 and the authors' convolutions; state ``(b, t, d, d_v)``."""

    def __init__(self, config, weights):
        self.config, self.weights, self.compressor = config, weights, ""

    def enter(self, x, path):
        n = self.config.value_channels
        if not self.config.embed_conv:
            return torch.stack([x] * n, -1)
        E = self.weights[f"{path}.expand.kernel"]  # (n, d, k): depthwise, d -> d n
        k = E.shape[-1]
        kernel = E.permute(1, 0, 2).reshape(-1, 1, k)
        padded = torch.nn.functional.pad(x.transpose(1, 2), (k - 1, 0))
        out = torch.nn.functional.conv1d(padded, kernel, groups=x.shape[-1])
        return out.reshape(x.shape[0], x.shape[2], n, x.shape[1]).permute(0, 3, 1, 2)

    def compress(self, X, path):
        W, r = self.weights[f"{path}.kernel"], self.weights[f"{path}.read"]
        b, t, d, n = X.shape
        if self.config.compress == "channel":
            left = (n - 1) // 2
            rows = torch.nn.functional.pad(X.reshape(b * t, d, n), (left, n - 1 - left))
            conv = torch.nn.functional.conv1d(rows, W.unsqueeze(1), groups=d).reshape(b, t, d, n)
        else:
            k = W.shape[-1]
            flat = torch.nn.functional.pad(X.permute(0, 2, 3, 1).reshape(b, d * n, t), (k - 1, 0))
            kernel = W.permute(1, 0, 2).reshape(d * n, 1, k)
            conv = torch.nn.functional.conv1d(flat, kernel, groups=d * n).reshape(b, d, n, t).permute(0, 3, 1, 2)
        return torch.einsum("btdv,v->btd", conv, r)

    def read(self, X, path, first):
        if f"{path}.read.compress.kernel" in self.weights:
            self.compressor = f"{path}.read.compress"
        return self.compress(X, self.compressor), None

    def write(self, X, f, x, c, path, memo):
        w = {k.removeprefix(f"{path}.write."): v for k, v in self.weights.items() if k.startswith(f"{path}.write.")}
        source = {"context": c, "stream": x, "sublayer": f}[self.config.target]
        k = f / torch.sqrt((f**2).sum(-1, keepdim=True) + self.config.eps**2)
        v = torch.einsum("btd,vd->btv", source, w["target.weight"])
        if self.config.target_bias:
            v = v + w["target.bias"]
        if self.config.target_sigmoid:
            v = self.config.target_scale * sigmoid(v)
        logit = torch.einsum("btd,od->bto", c, w["gate.weight"]) + w["gate.bias"]
        erased = torch.zeros_like(v) if self.config.write_only else torch.einsum("btd,btdv->btv", k, X)
        if self.config.start == "preserve" and self.config.preserve == "erase":
            gamma = 2 * torch.tanh(logit)
            return X + f.unsqueeze(-1) - torch.einsum("bto,btv,btd->btdv", gamma, erased - v, k)
        published = torch.einsum("bto,btv,btd->btdv", 2 * sigmoid(logit), v - erased, k)
        if self.config.start == "published":
            return X + published
        return X + f.unsqueeze(-1) + w["mix"] * (published - f.unsqueeze(-1))

    def each(self, X, then):
        return torch.stack([then(x) for x in X.unbind(-1)], -1)

    def leave(self, X, path):
        return self.compress(X, f"{path}.collapse")


def reference_for(config, weights):
    name = type(config).__name__
    return {"MHC": ManifoldReference, "HyperConnections": HyperReference, "DDL": DeltaReference}[name](config, weights)


def run_stream(reference, x, sublayers, paths, then=None):
    """The state of a whole stream by the reference: expand, then read, branch and write at each sublayer."""
    X = reference.enter(x, paths[0])
    for i, (layer, path) in enumerate(zip(sublayers, paths, strict=True)):
        x, memo = reference.read(X, path, i == 0)
        c = layer.norm(x)
        X = reference.write(X, layer.branch(c), x, c, path, memo)
        if i + 1 < len(sublayers):
            X = reference.each(X, layer.then)
    return sublayers[-1].then(reference.leave(X, paths[-1]))


def take_apart(name, model, inputs):
    """``(streams, finish)``: per stream a function from earlier streams' outputs to ``(x, sublayers)``, and the
    function from the outputs of all streams to the model's."""
    return globals()[f"_{name}"](model, inputs)


def _nanogpt(model, inputs):
    idx = inputs["idx"]

    def stream(_):
        x = model.wte(idx) + model.wpe(torch.arange(idx.shape[1]))
        parts = []
        for b in model.blocks:
            parts += [
                Sublayer(b.ln_1, b.attend),
                Sublayer(b.ln_2, lambda c, b=b: b.out(torch.nn.functional.gelu(b.fc(c)))),
            ]
        return x, parts

    return [stream], lambda xs: model.head(model.ln_f(xs[0]))


def _gpt2(model, inputs):
    ids, t = inputs["input_ids"], model.transformer

    def stream(_):
        parts = []
        for b in t.h:
            parts += [Sublayer(b.ln_1, lambda c, b=b: b.attn(c)[0]), Sublayer(b.ln_2, b.mlp)]
        return t.wte(ids) + t.wpe(torch.arange(ids.shape[1])), parts

    return [stream], lambda xs: model.lm_head(t.ln_f(xs[0]))


def _llama(model, inputs):
    ids, m = inputs["input_ids"], model.model

    def stream(_):
        x = m.embed_tokens(ids)
        rope = m.rotary_emb(x, torch.arange(ids.shape[1]).unsqueeze(0))
        parts = []
        for b in m.layers:
            attend = lambda c, b=b: b.self_attn(c, position_embeddings=rope, attention_mask=None)[0]
            parts += [Sublayer(b.input_layernorm, attend), Sublayer(b.post_attention_layernorm, b.mlp)]
        return x, parts

    return [stream], lambda xs: model.lm_head(m.norm(xs[0]))


_qwen3 = _llama


def _gpt_neox(model, inputs):
    ids, m = inputs["input_ids"], model.gpt_neox

    def stream(_):
        x = m.embed_in(ids)
        rope = m.rotary_emb(x, torch.arange(ids.shape[1]).unsqueeze(0))
        parts = []
        for b in m.layers:
            # Both branches read the same state through norms of their own; the context is the attention's.
            state = {}

            def norm(x, b=b, state=state):
                state["x"] = x
                return b.input_layernorm(x)

            def branch(c, b=b, state=state):
                attended = b.attention(c, attention_mask=None, position_embeddings=rope)[0]
                return b.mlp(b.post_attention_layernorm(state["x"])) + attended

            parts.append(Sublayer(norm, branch))
        return x, parts

    return [stream], lambda xs: model.get_output_embeddings()(m.final_layer_norm(xs[0]))


def _vit(model, inputs):
    m = model.vit

    def stream(_):
        x = m.embeddings(inputs["pixel_values"])
        parts = []
        for b in m.layers:
            parts += [Sublayer(b.layernorm_before, lambda c, b=b: b.attention(c)[0]),
                      Sublayer(b.layernorm_after, b.mlp)]  # fmt: skip
        return x, parts

    return [stream], lambda xs: model.classifier(m.layernorm(xs[0])[:, 0])


def _bert(model, inputs):
    m = model.bert

    def stream(_):
        parts = []
        for b in m.encoder.layer:
            out = b.attention.output
            parts.append(Sublayer(lambda x: x, lambda c, b=b, o=out: o.dense(b.attention.self(c)[0]), out.LayerNorm))
            parts.append(Sublayer(lambda x: x, lambda c, b=b: b.output.dense(b.intermediate(c)), b.output.LayerNorm))
        return m.embeddings(inputs["input_ids"]), parts

    return [stream], lambda xs: model.cls(xs[0])


def _t5(model, inputs):
    enc, dec = model.encoder, model.decoder

    def encoder(_):
        x = model.shared(inputs["input_ids"])
        size = x.shape[1]
        bias = enc.block[0].layer[0].SelfAttention.compute_bias(size, size)
        parts = []
        for b in enc.block:
            attend = lambda c, a=b.layer[0].SelfAttention: a(c, mask=None, position_bias=bias)[0]
            parts += [
                Sublayer(b.layer[0].layer_norm, attend),
                Sublayer(b.layer[1].layer_norm, b.layer[1].DenseReluDense),
            ]
        return x, parts

    def decoder(earlier):
        memory = enc.final_layer_norm(earlier[0])
        x = model.shared(inputs["decoder_input_ids"])
        size = x.shape[1]
        causal = torch.full((size, size), torch.finfo(x.dtype).min, dtype=x.dtype).triu(1)
        bias = dec.block[0].layer[0].SelfAttention.compute_bias(size, size) + causal
        parts = []
        for b in dec.block:
            own, cross, mlp = b.layer
            none = torch.zeros(1, own.SelfAttention.n_heads, size, memory.shape[1], dtype=x.dtype)
            parts += [
                Sublayer(own.layer_norm, lambda c, a=own.SelfAttention: a(c, mask=None, position_bias=bias)[0]),
                Sublayer(cross.layer_norm, lambda c, a=cross.EncDecAttention, z=none:
                         a(c, mask=None, key_value_states=memory, position_bias=z)[0]),
                Sublayer(mlp.layer_norm, mlp.DenseReluDense),
            ]  # fmt: skip
        return x, parts

    def finish(xs):
        hidden = dec.final_layer_norm(xs[1])
        if model.config.tie_word_embeddings or getattr(model.config, "scale_decoder_outputs", False):
            hidden = hidden * model.model_dim**-0.5
        return model.lm_head(hidden)

    return [encoder, decoder], finish
