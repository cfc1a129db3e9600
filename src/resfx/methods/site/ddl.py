"""Deep Delta Learning, scalar state (arXiv 2601.00417): the residual add becomes a gated rank-one update."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from resfx.methods.base import Method, Place
from resfx.methods.wide.base import WideStream, factory_of
from resfx.ops.delta.formula import delta_shortcut
from resfx.ops.register import accumulator, per_row
from resfx.ops.row_linear import RowLinear


@dataclass(frozen=True, kw_only=True)
class DDL(Method):
    """Replace ``x + f`` by ``x + beta (v - k.x) k`` with ``k = f / |f|``.

    The defaults are the paper's form (section 3, appendix A.1): the gate ``beta = 2 sigmoid(W c + b)`` and the
    target ``v = W_v c`` read the normalised context. :meth:`repository` is the form of the authors' code.

    With ``start="preserve"`` the shortcut is ``x + f + s (beta (v - k.x) k - f)`` with ``s = 0``: bit for bit the
    host's add, and published DDL at ``s = 1``. No choice of gate and target alone gives that start (a closed gate
    deletes the sublayer). ``start="published"`` has no ``s``.

    Attributes:
        target: what the target ``v`` is read from.
        target_bias: whether that read has a bias.
        target_sigmoid: squash the target to ``(0, target_scale)``.
        target_scale: its upper end.
        target_constant: the target's value for ``target="constant"``.
        gate_hidden: hidden width of a two-layer gate ``W_2 tanh(W_1 c) + b_2``; 0 for one layer.
        beta_init: where the gate's bias starts, in ``[0, 2]`` (0 gives 2e-6: logits are clamped).
        eps: keeps ``k`` finite where the branch vanishes.
        eps_rule: ``"sum"`` divides by ``sqrt(|f|^2 + eps^2)`` (paper, eager code), ``"mean"`` by
            ``sqrt(|f|^2 + d eps^2)`` (the authors' fused kernel).
        float32: gates in float32 after the projection; reductions always are.
        preserve: ``"interpolate"`` as above, or ``"erase"``: ``x + f - g (k.x - v) k`` with ``g = 2 tanh(W c + b)``
            starting at zero, where the gate itself learns from the first step.
        mix_per_channel: one ``s`` per feature instead of one per site.
        context: what gates where a branch has no opening norm: ``"auto"`` normalises the stream itself (root mean
            square, no parameters), ``"host"`` leaves such sites alone.
        value_channels: ``d_v``. More than one makes the state a matrix ``(d, d_v)`` with a target per channel
            (section 4); the paper reports 4. What follows is for that state, see :mod:`resfx.methods.wide.ddl_wide`.
        compress: what a branch reads is compressed over value channels, ``"channel"``, or over channels and the last
            ``token_kernel`` tokens, ``"token"``.
        share_compressor: one compressor per ``"block"`` (the authors' code) or per ``"sublayer"`` (the paper).
        embed_conv: the state enters through a causal convolution over tokens, as in the paper's main results; it
            starts as equal channels. Without, the channels are copies (the paper's "w/o EC").
        token_kernel: taps of both convolutions over tokens.
        write_only: leave out what is erased, ``x + beta v k``: the control for the value of erasing.
    """

    name: ClassVar[str] = "ddl"
    scope: ClassVar[str] = "site"

    target: Literal["context", "stream", "sublayer", "constant"] = "context"
    target_bias: bool = False
    target_sigmoid: bool = False
    target_scale: float = 4.0
    target_constant: float = 2.0
    gate_hidden: int = 0
    beta_init: float = 1.0
    eps: float = 1e-5
    eps_rule: Literal["sum", "mean"] = "sum"
    float32: bool = True
    preserve: Literal["interpolate", "erase"] = "interpolate"
    mix_per_channel: bool = False
    context: Literal["auto", "host"] = "auto"
    value_channels: int = 1
    compress: Literal["channel", "token"] = "channel"
    share_compressor: Literal["block", "sublayer"] = "block"
    embed_conv: bool = True
    token_kernel: int = 4
    write_only: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        for field, allowed in (
            ("target", ("context", "stream", "sublayer", "constant")), ("eps_rule", ("sum", "mean")),
            ("preserve", ("interpolate", "erase")), ("context", ("auto", "host")),
            ("compress", ("channel", "token")), ("share_compressor", ("block", "sublayer")),
        ):  # fmt: skip
            if getattr(self, field) not in allowed:
                raise ValueError(f"{field} must be one of {allowed}, not {getattr(self, field)!r}")
        if not 0 <= self.beta_init <= 2:
            raise ValueError(f"beta_init must lie in [0, 2], not {self.beta_init}")
        if self.eps <= 0:
            raise ValueError(f"eps must be positive, not {self.eps}")
        if self.gate_hidden < 0:
            raise ValueError(f"gate_hidden must be 0 (one layer) or a width, not {self.gate_hidden}")
        self._check_channels()

    def _check_channels(self) -> None:
        if not isinstance(self.value_channels, int) or self.value_channels < 1:
            raise ValueError(f"value_channels must be a positive integer, not {self.value_channels!r}")
        if self.token_kernel < 2:
            raise ValueError(f"token_kernel must be at least 2, not {self.token_kernel}")
        if self.value_channels > 1:
            object.__setattr__(self, "scope", "wide")
            if self.target == "constant":
                raise ValueError("target='constant' is the same for every value channel: they would never differ")
            return
        for field in ("compress", "share_compressor", "embed_conv", "token_kernel", "write_only"):
            if getattr(self, field) != getattr(type(self), field):
                raise ValueError(f"{field}={getattr(self, field)!r} needs value_channels of at least 2")

    @classmethod
    def repository(cls, **changes: Any) -> DDL:
        """The form of the authors' code: ``v = 4 sigmoid(W_v x + b_v)`` from the raw stream."""
        return cls(**{"target": "stream", "target_bias": True, "target_sigmoid": True, **changes})

    def refuse(self, place: Place) -> str | None:
        if place.context_width is None and self.context == "host":
            return "the branch has no normalised context to gate from"
        if self.over_tokens and place.rank != 3:
            other = " (compress='channel' with embed_conv=False needs no tokens)"
            return "a convolution over tokens needs a stream of shape (batch, tokens, d)" + other
        return None

    @property
    def over_tokens(self) -> bool:
        """Whether the rewritten stream reads earlier tokens."""
        return self.value_channels > 1 and (self.embed_conv or self.compress == "token")

    def build(self, place: Place) -> nn.Module:
        return DeltaSite(self, place)

    def build_stream(self, places: Sequence[Place]) -> WideStream:
        from resfx.methods.wide.ddl_wide import build_stream

        return build_stream(self, places)


class DeltaSite(nn.Module):
    """One residual add as a delta shortcut. Parameters per site: ``2d + 2`` in the paper's form, and ``s``.

    Args:
        values: targets per row, one per value channel.
    """

    def __init__(self, config: DDL, place: Place, values: int = 1) -> None:
        super().__init__()
        self.config = config
        factory = factory_of(place)
        d, c = place.width, place.context_width or place.width
        self.eps2 = config.eps**2 * (d if config.eps_rule == "mean" else 1)
        self.erase = config.start == "preserve" and config.preserve == "erase"
        self.gate = _gate(c, config, factory)
        sources = {"context": c, "stream": d, "sublayer": d}
        self.target = (
            _linear(sources[config.target], values, bias=config.target_bias, **factory)
            if config.target in sources
            else None
        )
        self.reset_parameters()
        self.mix = None
        if config.start == "preserve" and not self.erase:
            self.mix = nn.Parameter(torch.zeros((d,) if config.mix_per_channel else (), **factory))

    def reset_parameters(self) -> None:
        """The authors' initialisation: weights ``N(0, (0.5/sqrt(d))^2)``, gate bias ``logit(beta_init / 2)``."""
        for linear in [m for m in self.modules() if isinstance(m, nn.Linear)]:
            nn.init.normal_(linear.weight, std=0.5 / math.sqrt(linear.in_features))
        last = [m for m in self.gate.modules() if isinstance(m, nn.Linear)][-1]
        p = min(max(self.config.beta_init / 2, 1e-6), 1 - 1e-6)
        if self.erase:
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)
        else:
            nn.init.constant_(last.bias, math.log(p / (1 - p)))

    def gates(self, x: Tensor, f: Tensor, c: Tensor | None) -> tuple[Tensor, Tensor]:
        """``beta (..., 1)`` and ``v (..., values)``, in float32 unless the config says otherwise."""
        config = self.config
        if c is None:
            c = nn.functional.rms_norm(x, x.shape[-1:])
        wide = accumulator(x.dtype) if config.float32 else x.dtype
        logits = self.gate(c.to(self.dtype)).to(wide)
        beta = 2 * per_row(torch.tanh(logits) if self.erase else torch.sigmoid(logits), logits)
        if self.target is None:
            return beta, torch.full_like(beta, config.target_constant)
        source = {"context": c, "stream": x, "sublayer": f}[config.target]
        v = self.target(source.to(self.dtype)).to(wide)
        return beta, config.target_scale * torch.sigmoid(v) if config.target_sigmoid else v

    def forward(self, x: Tensor, f: Tensor, c: Tensor | None, total: Tensor | None = None) -> Tensor:
        beta, v = self.gates(x, f, c)
        return delta_shortcut(x, f, beta, v, self.mix, total, eps2=self.eps2, add=self.config.start == "preserve")

    @property
    def dtype(self) -> torch.dtype:
        """Element type of the gates."""
        return next(self.gate.parameters()).dtype

    def extra_repr(self) -> str:
        return f"target={self.config.target}, eps2={self.eps2:g}"


def _linear(width: int, out: int, **options: Any) -> nn.Linear:
    return RowLinear(width, 1, **options) if out == 1 else nn.Linear(width, out, **options)


def _gate(width: int, config: DDL, factory: dict[str, Any]) -> nn.Module:
    if not config.gate_hidden:
        return _linear(width, 1, **factory)
    hidden = nn.Linear(width, config.gate_hidden, bias=False, **factory)
    return nn.Sequential(hidden, nn.Tanh(), _linear(config.gate_hidden, 1, **factory))
