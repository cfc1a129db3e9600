"""One residual add as a delta shortcut: the module of Deep Delta Learning, for one value channel and for several."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from resfx._torch import bare_parameters, held_modules
from resfx.ops.delta.formula import delta_shortcut
from resfx.ops.delta.site import SOURCES, delta_site
from resfx.ops.inductor import per_row
from resfx.ops.register import accumulator, in_type

from .base import Place, factory_of
from .learned import Draw, Learned, Linear, constant, empty, normal, tensors_of, uniform, zeros
from .observe import Observations, Observed


class DeltaSite(Learned):
    """One residual add as a delta shortcut. Parameters per site: ``2d + 2`` in the paper's form, and ``s``.

    Args:
        config: a :class:`resfx.methods.site.ddl.DDL`.
        values: targets per row, one per value channel.
    """

    def __init__(self, config: Any, place: Place, values: int = 1) -> None:
        super().__init__()
        self.config = config
        factory = factory_of(place)
        d, c = place.width, place.context_width or place.width
        self.eps2 = config.eps**2 * (d if config.eps_rule == "mean" else 1)
        self.erase = config.start == "preserve" and config.preserve == "erase"
        self.gate = _gate(config, c, d, factory)
        self.target = None
        if config.target != "constant":
            width = c if config.target == "context" else d
            bias = uniform(1 / math.sqrt(width)) if config.target_bias else None
            self.target = Linear(width, values, normal(0.5 / math.sqrt(width)), bias, **factory)
        mixed = config.start == "preserve" and not self.erase
        self.mix = empty(d if config.mix_per_channel else 1, **factory) if mixed else None
        top = config.target_scale if config.target_sigmoid else 0.0
        self.settings = (
            (self.eps2, top, config.target_constant),
            (config.start == "preserve", self.erase, SOURCES.index(config.target)),
        )
        self.reset_parameters()

    def reset_parameters(self) -> None:
        if self.mix is not None:
            nn.init.zeros_(self.mix)

    def gates(self, x: Tensor, f: Tensor, c: Tensor | None) -> tuple[Tensor, Tensor]:
        """``beta (..., 1)`` and ``v (..., values)``, in float32 unless the config says otherwise."""
        config = self.config
        if c is None:
            c = nn.functional.rms_norm(x, x.shape[-1:])
        wide = accumulator(x.dtype) if config.float32 else x.dtype
        logits = in_type(self.gate(c), wide)
        half = per_row(torch.tanh(logits) if self.erase else torch.sigmoid(logits), logits)
        beta = half + half
        if self.target is None:
            return beta, torch.full_like(beta, config.target_constant)
        source = {"context": c, "stream": x, "sublayer": f}[config.target]
        v = in_type(self.target(source), wide)
        return beta, config.target_scale * torch.sigmoid(v) if config.target_sigmoid else v

    def forward(self, x: Tensor, f: Tensor, c: Tensor | None, total: Tensor | None = None) -> Tensor:
        if c is not None and (done := self._at_once(x, f, c, total)) is not None:
            return done
        beta, v = self.gates(x, f, c)
        return delta_shortcut(x, f, beta, v, self.mix, total, eps2=self.eps2, add=self.config.start == "preserve")

    def _at_once(self, x: Tensor, f: Tensor, c: Tensor, total: Tensor | None) -> Tensor | None:
        """Gates and shortcut as one kernel; ``None`` where there is none, or a gate is not what was built here."""
        parts = held_modules(self)
        gate = bare_parameters(parts["gate"], Linear)
        target = bare_parameters(parts["target"], Linear) if "target" in parts else {}
        if gate is None or target is None or not self.config.float32:
            return None
        (mix,) = tensors_of(self, "mix")
        weights = gate["weight"], gate.get("bias"), target.get("weight"), target.get("bias")
        return delta_site(x, f, c, weights, mix, total, *self.settings)

    def observe(self, x: Tensor, f: Tensor, c: Tensor | None, total: Tensor | None = None) -> Observations:
        """The gate, and what it does along ``k = f / |f|``, per row: :meth:`along`."""
        return self.along(x.unsqueeze(-2), x, f, c)

    def along(self, state: Tensor, x: Tensor, f: Tensor, c: Tensor | None) -> Observations:
        """``beta``; ``erased``, the norm of ``beta k (k . X)``; ``written``, that of ``beta k v``; ``cosine``, of ``k``
        with the stream; over value channels the norms are those of the whole matrices, and the cosine has an axis.
        Where the shortcut starts as the host's (``preserve="interpolate"``) they act times ``mix``.

        Args:
            state: the stream, ``(..., values, d)``.
            x, f, c: what :meth:`gates` reads.
        """
        beta, v = self.gates(x, f, c)
        wide = accumulator(x.dtype)
        state, f = state.to(wide), f.to(wide)
        k = f * torch.rsqrt(f.square().sum(-1, keepdim=True) + self.eps2)
        inside = (state * k.unsqueeze(-2)).sum(-1)  # k . X, one number per channel
        size = beta.abs() * k.square().sum(-1, keepdim=True).sqrt()
        cosine = inside / (state.square().sum(-1) * k.square().sum(-1, keepdim=True)).sqrt().clamp_min(1e-30)
        several = state.shape[-2] > 1
        found = {
            "beta": Observed(beta.squeeze(-1)),
            "erased": Observed((size * inside).square().sum(-1).sqrt()),
            "written": Observed((size * v).square().sum(-1).sqrt()),
            "cosine": Observed(cosine, ("channel",)) if several else Observed(cosine.squeeze(-1)),
        }
        if self.mix is not None:
            found["mix"] = Observed(self.mix.mean())
        return found

    def extra_repr(self) -> str:
        return f"target={self.config.target}, eps2={self.eps2:g}"


def _gate(config: Any, context: int, width: int, factory: dict[str, Any]) -> nn.Module:
    """The authors' initialisation: weights ``N(0, (0.5/sqrt(d))^2)``, bias ``logit(beta_init / 2)``; an erase gate is
    closed."""
    p = min(max(config.beta_init / 2, 1e-6), 1 - 1e-6)
    closed = config.start == "preserve" and config.preserve == "erase"
    bias: Draw = zeros if closed else constant(math.log(p / (1 - p)))
    if not config.gate_hidden:
        return Linear(context, 1, zeros if closed else normal(0.5 / math.sqrt(context)), bias, **factory)
    hidden = Linear(context, config.gate_hidden, normal(0.5 / math.sqrt(context)), **factory)
    last = Linear(config.gate_hidden, 1, zeros if closed else normal(0.5 / math.sqrt(width)), bias, **factory)
    return nn.Sequential(hidden, nn.Tanh(), last)
