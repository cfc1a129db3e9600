"""The papers' equations for widened streams, one step at a time.

Nothing here is shared with the library: every sum is an einsum. :func:`pathway` carries the streams of
``tests/unrolled.py``.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import torch
from hosts.unrolled import Pathway, Stream


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
            mean = H.mean(-1, keepdim=True) * (self.config.norm == "layer")
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
        kind = self.config.readout
        if kind == "auto":
            kind = "mean" if self.config.start == "preserve" else "sum"
        if kind == "learned":
            return torch.einsum("btnd,n->btd", H, self.weights[f"{path}.collapse.weight"] + 1 / self.config.n)
        return H.mean(-2) if kind == "mean" else H.sum(-2)


def mixture(z, n, kind):
    """mHC-lite's sum over all permutations; KromHC's product of such sums over two, for ``n`` a power of two."""
    sizes = [n] if kind == "permutation" else [2] * (n.bit_length() - 1)
    product = torch.ones(*z.shape[:-1], 1, 1, dtype=z.dtype)
    for size in sizes:
        ways = [torch.eye(size, dtype=z.dtype)[list(way)] for way in itertools.permutations(range(size))]
        part, z = z[..., : len(ways)].exp(), z[..., len(ways) :]
        U = torch.einsum("...p,pij->...ij", part / part.sum(-1, keepdim=True), torch.stack(ways))
        product = torch.einsum("...ij,...kl->...ikjl", product, U).flatten(-4, -3).flatten(-2)
    return product


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
        if self.config.mixing == "orthogonal":
            z = w["alpha"][2] * seen[..., 2 * n :] + w["res"]
            A, one = torch.zeros(*z.shape[:-1], n, n, dtype=z.dtype), torch.eye(n, dtype=z.dtype)
            for k, (i, j) in enumerate(itertools.combinations(range(n), 2)):
                A[..., i, j], A[..., j, i] = z[..., k], -z[..., k]
            return torch.einsum("btn,btnd->btd", H_pre, X), (H_post, torch.linalg.inv(one - A) @ (one + A))
        if not first and "res" in w:  # where the mean reads the result, no mixing shows
            if self.config.mixing != "sinkhorn":
                z = w["alpha"][2] * seen[..., 2 * n :] + w["res"]
                return torch.einsum("btn,btnd->btd", H_pre, X), (H_post, mixture(z, n, self.config.mixing))
            M = torch.exp((w["alpha"][2] * seen[..., 2 * n :]).reshape(*X.shape[:2], n, n) + w["res"])
            # Newton's method has no part in the equations: it goes where any number of rounds goes.
            iterations, newton = self.config.rounds
            for _ in range(20000 if newton else iterations):
                columns = M.sum(-2, keepdim=True)
                if newton and (columns - 1).abs().max() < 1e-15 * n:
                    break
                M = M / columns
                M = M / M.sum(-1, keepdim=True)
            H_res = M
        return torch.einsum("btn,btnd->btd", H_pre, X), (H_post, H_res)

    def write(self, X, f, x, c, path, memo):
        H_post, H_res = memo
        return torch.einsum("btij,btjd->btid", H_res, X) + torch.einsum("btj,btd->btjd", H_post, f)


class AltUpReference(HyperReference):
    """AltUp, algorithm 1, with a sublayer and its shortcut as the layer; or in Gemma 3n's form."""

    def route(self, x):
        N = x / torch.sqrt((x**2).mean(-1, keepdim=True) + self.config.eps)
        return torch.tanh(torch.einsum("btd,nd->btn", N, self.w["router"]) / x.shape[-1])

    def read(self, X, path, first):
        sublayer = self.sublayer = 0 if first else self.sublayer + 1
        j = sublayer % self.config.n if self.config.choose == "alternating" else 0
        self.w = {k.rsplit(".", 1)[1]: v for k, v in self.weights.items() if k.startswith(f"{path}.read.")}
        p = self.w["predict"].expand(*X.shape[:2], *self.w["predict"].shape)
        if self.config.dynamic:
            eye = torch.eye(self.config.n, dtype=X.dtype)
            p = eye + torch.einsum("btijr,btr->btij", p, self.route(X[..., j, :]))
        predicted = torch.einsum("btij,btjd->btid", p, X)
        x = predicted if self.config.reads == "prediction" else X
        return x[..., j, :], (j, predicted)

    def corrections(self, computed):
        g = self.w["correct"]
        return 1 + torch.einsum("btr,nr->btn", self.route(computed), g) if self.config.dynamic else g

    def write(self, X, f, x, c, path, memo):
        j, predicted = memo
        error = x + f - predicted[..., j, :]
        return predicted + self.corrections(x + f)[..., None] * error[..., None, :]


class FracReference:
    """Frac-Connections: Hyper-Connections between slices, ``(batch, tokens, m, d / m)``."""

    def __init__(self, config, weights):
        self.config, self.weights = config, weights

    def enter(self, x, path):
        return x.unflatten(-1, (self.config.m, -1))

    def read(self, H, path, first):
        w, m = {k: self.weights[f"{path}.read.{k}"] for k in ("read", "write", "mix")}, self.config.m
        A_m, A_r, B = (w[k].expand(*H.shape[:2], *w[k].shape) for k in ("read", "mix", "write"))
        if self.config.dynamic:
            N = torch.nn.functional.layer_norm(H, H.shape[-1:], eps=self.config.eps)
            W, (s_a, s_b) = self.weights[f"{path}.read.dynamic"], self.weights[f"{path}.read.scale"]
            A_m = A_m + s_a * torch.tanh(torch.einsum("btje,ie->btji", N, W[:m]))
            A_r = A_r + s_a * torch.tanh(torch.einsum("btje,ie->btji", N, W[m : 2 * m]))
            B = B + s_b * torch.tanh(torch.einsum("btje,e->btj", N, W[2 * m]))
        return torch.einsum("btji,btje->btie", A_m, H).flatten(-2), (A_r, B)

    def write(self, H, f, x, c, path, memo):
        A_r, B = memo
        return torch.einsum("btji,btje->btie", A_r, H) + B[..., None] * f.unflatten(-1, (self.config.m, -1))

    def each(self, H, then):
        return then(H.flatten(-2)).unflatten(-1, (self.config.m, -1))

    def leave(self, H, path):
        return H.flatten(-2)


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
        s = w["mix"] if w["mix"].dim() == 0 else w["mix"].unsqueeze(-1)
        return X + f.unsqueeze(-1) + s * (published - f.unsqueeze(-1))

    def each(self, X, then):
        return torch.stack([then(x) for x in X.unbind(-1)], -1)

    def leave(self, X, path):
        return self.compress(X, f"{path}.collapse")


def reference_for(config, weights):
    name = type(config).__name__
    return {
        "AltUp": AltUpReference,
        "MHC": ManifoldReference,
        "FracConnections": FracReference,
        "HyperConnections": HyperReference,
        "DDL": DeltaReference,
    }[name](config, weights)


def run_stream(reference, x, sublayers, paths):
    """The state of a whole stream by the reference: expand, then read, branch and write at each sublayer."""
    X = reference.enter(x, paths[0])
    for i, (layer, path) in enumerate(zip(sublayers, paths, strict=True)):
        x, memo = reference.read(X, path, i == 0)
        c = layer.norm(x)
        X = reference.write(X, layer.branch(c), x, c, path, memo)
        if i + 1 < len(sublayers):
            X = reference.each(X, layer.then)
    return sublayers[-1].then(reference.leave(X, paths[-1]))


def pathway(config, key, weights) -> Pathway:
    """The streams of a host widened by the reference, with the weights that the library gave a rewrite."""
    reference = reference_for(config, weights)

    def carry(stream: Stream, x: torch.Tensor) -> torch.Tensor:
        blocks = [[_both(block)] if stream.parallel else [_sublayer(b) for b in block] for block in stream.blocks]
        owners = [b.owner for block in stream.blocks for b in (block[:1] if stream.parallel else block)]
        order = [owners[:i].count(owner) for i, owner in enumerate(owners)]
        paths = [f"resfx.{key}.{owner}.add{i}" for owner, i in zip(owners, order, strict=True)]
        return run_stream(reference, x, [s for block in blocks for s in block], paths)

    return carry


def _sublayer(branch):
    def rest(c):
        ways = branch.project if branch.kind == "attention" else branch.first
        return (branch.attend if branch.kind == "attention" else branch.second)(*(way(c) for way in ways))

    return Sublayer(branch.open, rest, branch.after or same)


def _both(block):
    """Two branches of one state with norms of their own; the first one's context gates."""
    first, *others = block
    seen = {}

    def open(x):
        seen["x"] = x
        return first.open(x)

    return Sublayer(open, lambda c: _sublayer(first).branch(c) + sum(b(seen["x"]) for b in others))
