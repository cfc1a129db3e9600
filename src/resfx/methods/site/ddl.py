"""Deep Delta Learning, scalar state (arXiv 2601.00417): the residual add becomes a gated rank-one update."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from torch import nn

from resfx.methods.base import Method, Place
from resfx.methods.delta_site import DeltaSite
from resfx.methods.options import refuse_idle, wrong
from resfx.methods.wide.base import WideStream
from resfx.methods.wide.ddl_wide import build_stream


@dataclass(frozen=True, kw_only=True)
class DDL(Method):
    """Replace ``x + f`` by ``x + beta (v - k.x) k`` with ``k = f / |f|``.

    The defaults are the paper's form (section 3, appendix A.1): the gate ``beta = 2 sigmoid(W c + b)`` and the
    target ``v = W_v c`` read the normalised context. ``resfx.DDL.repository()`` is the form of the authors' code.

    With ``start="preserve"`` the shortcut is ``x + f + s (beta (v - k.x) k - f)`` with ``s = 0``: bit for bit the
    host's add, and published DDL at ``s = 1``. No choice of gate and target alone gives that start (a closed gate
    deletes the sublayer). ``start="published"`` has no ``s``.

    Attributes:
        target: what the target ``v`` is read from.
        target_bias: whether that read has a bias.
        target_sigmoid: squash the target to ``(0, target_scale)``.
        target_scale: its upper end.
        target_constant: the target's value for ``target="constant"``.
        gate_hidden: hidden width of a two-layer gate ``W_2 tanh(W_1 c) + b_2``; 0 for one layer. Both start at a
            standard deviation of ``0.5 / sqrt(d)``, as the authors draw them.
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
    parameters: ClassVar[str] = "2 d + 2"
    kept: ClassVar[str] = "with value channels, 3 positions where it convolves over tokens"
    crosses: ClassVar[str] = "1, or value_channels"
    saved: ClassVar[str] = "(value_channels + min(value_channels - 1, 1)) d + value_channels + 2"

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
                raise wrong(self, field, f"{field} must be one of {allowed}")
        if not 0 <= self.beta_init <= 2:
            raise wrong(self, "beta_init", "beta_init must lie in [0, 2]")
        if self.eps <= 0:
            raise wrong(self, "eps", "eps must be positive")
        if self.target_scale <= 0:
            raise wrong(self, "target_scale", "target_scale must be positive")
        if self.gate_hidden < 0:
            raise wrong(self, "gate_hidden", "gate_hidden must be 0 (one layer) or a width")
        if self.start != "preserve" or self.preserve != "interpolate":
            refuse_idle(self, ("mix_per_channel",), "needs the s that start='preserve' with preserve='interpolate' has",
                        "mix_per_channel=False")  # fmt: skip
        if self.target == "constant":
            refuse_idle(self, ("target_bias", "target_sigmoid", "target_scale"),
                        "is of a target that is read, and target='constant' is not")  # fmt: skip
        self._check_channels()

    def _check_channels(self) -> None:
        if not isinstance(self.value_channels, int) or self.value_channels < 1:
            raise wrong(self, "value_channels", "value_channels must be a positive integer")
        if self.token_kernel < 2:
            raise wrong(self, "token_kernel", "token_kernel must be at least 2")
        if self.value_channels > 1:
            object.__setattr__(self, "scope", "wide")
            if self.target == "constant":
                raise wrong(self, "target", "target='constant' is the same for every value channel: they would"
                            " never differ",
                            "target='context'")  # fmt: skip
            return
        refuse_idle(self, ("compress", "share_compressor", "embed_conv", "token_kernel", "write_only"),
                    "needs value_channels of at least 2", "value_channels=2")  # fmt: skip

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
        return build_stream(self, places)
