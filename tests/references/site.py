"""The learned adds as their papers write them, in float64, on the hosts of ``unrolled.py``."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from hosts.unrolled import Pathway, Stream
from torch import Tensor

import resfx

Parameters = dict[str, Tensor]


def layer_scale(p: Parameters, config: resfx.LayerScale, x: Tensor, f: Tensor, k: int) -> Tensor:
    return x + torch.einsum("d,...d->...d", p["gain"] + (config.start == "preserve"), f)


def rezero(p: Parameters, config: resfx.ReZero, x: Tensor, f: Tensor, k: int) -> Tensor:
    return x + (p["gain"] + (config.start == "preserve")) * f


def laurel(p: Parameters, config: resfx.LAuReL, x: Tensor, f: Tensor, k: int) -> Tensor:
    a = b = x.new_ones(1)
    if config.weights:
        u, v = p["logits"].unbind()
        if config.bound == "none":
            a, b = 1 + u, 1 + v
        else:
            a, b = (1 / (1 + (-z).exp()) for z in ((u, v) if config.bound == "sigmoid" else (u - v, v - u)))
            a, b = (2 * a, 2 * b) if config.start == "preserve" else (a, b)
    low = x @ (p["up.weight"] @ p["down.weight"]).T if config.rank else 0
    return a * f + b * (x + low)


def depth_scaled(p: Parameters, config: resfx.DepthScaled, x: Tensor, f: Tensor, k: int) -> Tensor:
    scaled = math.sqrt((k - 1) / k) * x + f / math.sqrt(k)
    return scaled if config.start == "published" else (1 - p["share"]) * (x + f) + p["share"] * scaled


ADDS = {"layer_scale": layer_scale, "rezero": rezero, "laurel": laurel, "depth_scaled": depth_scaled}


def pathway(new, config: resfx.Method) -> Pathway:
    """How a rewritten model's streams run: each add with the parameters the library gave it, in depth order."""
    parameters, sites = new.new_parameters(), iter(new.report.sites)

    def of_next() -> Parameters:
        site = next(sites)
        prefix = f"resfx.{config.name}.{site.owner}.add{site.order}."
        return {n.removeprefix(prefix): p for n, p in parameters.items() if n.startswith(prefix)}

    return lambda stream, x: _run(stream, x, config, iter(of_next, None))


def _run(stream: Stream, x: Tensor, config: resfx.Method, parameters: Iterator[Parameters]) -> Tensor:
    add, k = ADDS[config.name], 1
    for block in stream.blocks:
        start = x
        for branch in block:
            k += 1
            x = add(next(parameters), config, x, branch(start if stream.parallel else x), k)
            x = x if branch.after is None else branch.after(x)
    return x
