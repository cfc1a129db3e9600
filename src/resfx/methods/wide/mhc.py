"""Manifold-constrained Hyper-Connections (mHC, arXiv 2512.24880): mixing kept doubly stochastic."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from resfx._torch import held_buffers
from resfx.methods.base import Method, Place, factory_of
from resfx.methods.learned import Learned, empty, normal, set_values, tensors_of
from resfx.methods.observe import Observations
from resfx.methods.options import wrong
from resfx.ops.channels.formula import combine, inverse_deviation, mix, total
from resfx.ops.channels.manifold import manifold_read
from resfx.ops.register import accumulator, in_type

from .base import Expand, Readout, WideStream
from .hyper_connections import check_wide, observed_channels, readout_of
from .mixing import mixing_of, primes


@dataclass(frozen=True, kw_only=True)
class MHC(Method):
    """``X' = H_res X + H_post^T f(H_pre X)`` with bounded, state-dependent coefficients (equations 7 to 9).

    ``z = RMSNorm(vec X)``, then ``H_pre = sigmoid(a_pre z W_pre + b_pre)``, ``H_post = 2 sigmoid(a_post z W_post +
    b_post)`` and ``H_res = Sinkhorn(exp(a_res z W_res + b_res))``. The row that Sinkhorn leaves short of one by
    rounding is made exact, so equal channels stay equal exactly. A doubly stochastic mix does nothing to equal
    channels nor to their mean or sum: the first add of a stream has no ``H_res``, and the last has one only before a
    learned readout.

    =========== =====================================================================================================
    mixing      ``H_res``
    =========== =====================================================================================================
    sinkhorn    as above (the paper)
    identity    none, ``X' = X + H_post^T f`` (identity HC, arXiv 2607.28611): ``2 n^2 d + 2n + 2`` parameters
    permutation ``sum_p softmax(z)_p P_p`` over the ``n!`` permutations (mHC-lite, arXiv 2601.05732); no rounds
    kronecker   a Kronecker product of such mixtures, one for each prime factor of ``n`` (KromHC, arXiv 2601.21579)
    orthogonal  ``(I - A)^-1 (I + A)`` with the ``n (n - 1) / 2`` numbers of a skew-symmetric ``A = z`` (JPmHC, arXiv
                2602.18308): not stochastic, so every add has one; ``b_res = 0`` is the identity
    =========== =====================================================================================================

    In each, ``z = a_res z W_res + b_res``, and ``diagonal`` weighs the identity at the start of a stochastic one.

    The paper states ``a = 0.01`` and neither ``W`` nor ``b``. Here ``W`` is random, ``b_post = 0``, ``b_res =
    diagonal * I`` and ``b_pre`` gives weight ``lean`` to channel ``k mod n`` at the ``k``-th add and shares the
    rest, so that the weights sum to one. With equal weights, equal ``b`` and ``W = 0`` the channels would stay
    equal for ever. ``start="preserve"`` has ``a = 0``: the model is left as it is, bit for bit, for any ``n``
    (what rounding adds to the sum of ``H_pre`` at the start is taken off); ``"published"`` has ``a = 0.01``.

    Attributes:
        n: channels.
        mixing: as above.
        sinkhorn_iterations: rounds of column and row scaling.
        sinkhorn_newton: Newton steps that carry on to the limit of the rounds, see
            :func:`resfx.ops.sinkhorn.formula.sinkhorn`. ``None`` is 8 with ``start="preserve"``, and 0 with
            ``start="published"``: the paper stops after its rounds.
        lean: weight of the leading channel in ``H_pre`` at the start; the paper's tables do not say.
        diagonal: ``b_res`` starts at this multiple of the identity.
        readout: how the channels leave: ``"mean"``, ``"sum"``, ``"learned"``; ``"auto"`` is the mean with
            ``start="preserve"`` and the sum with ``start="published"``. The paper does not say.
        eps: of the norm.
    """

    name: ClassVar[str] = "mhc"
    scope: ClassVar[str] = "wide"
    parameters: ClassVar[str] = "(n d + 1) (n^2 + 2 n) + 3"
    crosses: ClassVar[str] = "n"
    saved: ClassVar[str] = "(n + 1) d + 3 n^2 + 7 n + 1"

    n: int = 4
    mixing: Literal["sinkhorn", "permutation", "kronecker", "orthogonal", "identity"] = "sinkhorn"
    sinkhorn_iterations: int = 20
    sinkhorn_newton: int | None = None
    lean: float = 0.7
    diagonal: float = 4.0
    readout: Literal["auto", "mean", "sum", "learned"] = "auto"
    eps: float = 1e-6

    def __post_init__(self) -> None:
        super().__post_init__()
        check_wide(self, least=2)
        largest = 0
        if self.mixing == "permutation":
            largest = self.n
        elif self.mixing == "kronecker":
            largest = max(primes(self.n))
        if largest > 5:
            raise wrong(self, "mixing", f"mixing={self.mixing!r} has {largest}! numbers an add with n={self.n}: too"
                        " many, 5! at most", "a smaller n, or mixing='sinkhorn'")  # fmt: skip
        if self.sinkhorn_iterations < 1:
            raise wrong(self, "sinkhorn_iterations", "sinkhorn_iterations must be at least 1")
        if self.sinkhorn_newton is not None and self.sinkhorn_newton < 0:
            raise wrong(self, "sinkhorn_newton", "sinkhorn_newton must not be negative")
        if not 0 < self.lean < 1:
            raise wrong(self, "lean", "lean must lie between 0 and 1")

    def build_stream(self, places: Sequence[Place]) -> WideStream:
        mixing = self.mixing_at(places)
        reads = [None if p.parallel else ManifoldRead(self, p, i in mixing) for i, p in enumerate(places)]
        return WideStream(
            Expand(self.n), list(reads), [ManifoldWrite(p.parallel, self.mixing != "orthogonal") for p in places],
            Readout(self.n, readout_of(self), factory_of(places[-1])),
        )  # fmt: skip

    def mixing_at(self, places: Sequence[Place]) -> list[int]:
        """The adds that have an ``H_res``."""
        if self.mixing == "identity":
            return []
        adds = [i for i, p in enumerate(places) if not p.parallel]
        if self.mixing == "orthogonal":  # it moves the mean of the channels, of equal ones too
            return adds
        return adds[1:] if readout_of(self) == "learned" else adds[1:-1]

    @property
    def rounds(self) -> tuple[int, int]:
        """Rounds of scaling, and Newton steps behind them."""
        newton = 8 if self.start == "preserve" else 0
        return self.sinkhorn_iterations, newton if self.sinkhorn_newton is None else self.sinkhorn_newton


mHC = MHC


class ManifoldRead(Learned):
    """The coefficients of one add and the branch's input. Parameters: ``(n d + 1) (m + 2n) + 3`` with ``m`` numbers of
    ``H_res``, ``n^2`` for Sinkhorn's; without ``H_res``, ``2 n^2 d + 2n + 2``.

    Args:
        mixes: whether the add has an ``H_res``.
    """

    origin: Tensor | None

    def __init__(self, config: MHC, place: Place, mixes: bool) -> None:
        super().__init__()
        n, factory = config.n, factory_of(place)
        self.config, self.eps, self.leads = config, config.eps, place.depth % config.n
        self.mixing = mixing_of(config.mixing, n, config.rounds) if mixes else None
        count = math.prod(self.mixing.shape) if self.mixing else 0
        self.projection = empty(2 * n + count, n * place.width, **factory)  # pre, post, res by rows
        self.alpha = empty(3 if self.mixing else 2, **factory)
        self.pre, self.post = empty(n, **factory), empty(n, **factory)
        self.res = empty(*self.mixing.shape, **factory) if self.mixing else None
        self.register_buffer("origin", None, persistent=False)
        self.hold_constants(**factory)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Projections with unit variance on a normalised state, and what the config says of the rest."""
        config = self.config
        normal(1 / math.sqrt(self.projection.shape[1]))(self.projection)
        nn.init.constant_(self.alpha, 0.0 if config.start == "preserve" else 0.01)
        set_values(self.pre, self._leaning())
        nn.init.zeros_(self.post)
        if self.res is not None and self.mixing is not None:
            set_values(self.res, self.mixing.start(config.diagonal))
        self.write_constants()

    def _leaning(self) -> Tensor:
        """Where ``b_pre`` starts."""
        n, lean = self.config.n, self.config.lean
        weights = torch.full((n,), (1 - lean) / (n - 1), dtype=torch.float64)
        weights[self.leads] = lean
        return torch.logit(weights)

    def constants(self) -> dict[str, Tensor]:
        """What the mixing is handed, and where ``b_pre`` was at a start that left the model as it was."""
        tables = self.mixing.tables() if self.mixing else []
        origin = {"origin": self._leaning()} if self.config.start == "preserve" else {}
        return {f"table{i}": table for i, table in enumerate(tables)} | origin

    def upgrade(self, state: dict[str, Any], prefix: str) -> None:
        """Older saves have an ``H_res`` at the last add, which no mean or sum of the channels sees: it is left out."""
        if self.res is None and f"{prefix}res" in state:
            del state[f"{prefix}res"]
            for name in ("projection", "alpha"):
                state[prefix + name] = state[prefix + name][: len(self.get_parameter(name))].clone()

    def coefficients(self, state: Tensor) -> tuple[Tensor, Tensor, Tensor | None, Tensor | float]:
        """``H_pre (..., n)``, ``H_post (..., n)``, ``H_res (..., n, n)``, and what ``H_pre`` summed to at the start,
        ``(..., 1)``: one, but for rounding."""
        n, flat = self.config.n, state.flatten(-2)
        wide = accumulator(state.dtype)
        # The division by the norm commutes with the projection and is cheaper after it.
        scale = inverse_deviation(flat, self.eps, centre=False)
        projection = self.projection
        seen = in_type(nn.functional.linear(in_type(flat, projection.dtype), projection), wide) * scale
        parts = seen.split((n, n) if self.res is None else (n, n, self.res.numel()), -1)
        alpha = in_type(self.alpha, wide).unbind()
        pre = torch.addcmul(in_type(self.pre, wide), alpha[0], parts[0])
        half = torch.sigmoid(torch.addcmul(in_type(self.post, wide), alpha[1], parts[1]))
        res = None
        if self.res is not None and self.mixing is not None:
            z = torch.addcmul(in_type(self.res, wide), alpha[2], parts[2].unflatten(-1, self.mixing.shape))
            res = self.mixing.matrix(z, [self.get_buffer(f"table{i}") for i in range(len(self.mixing.factors))])
        unit: Tensor | float = 1.0
        if self.origin is not None:  # computed like the weights themselves, so that the difference starts at zero
            start = torch.sigmoid(torch.zeros_like(pre) + in_type(self.origin, wide))
            unit = total(start.unsqueeze(-1).unbind(-2)).detach()
        return torch.sigmoid(pre), half + half, res, unit

    def forward(self, state: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor | None]]:
        if (rounds := self.mixing.rounds if self.mixing else (0, 0)) is not None:
            projection, alpha, pre, post, res = tensors_of(self, "projection", "alpha", "pre", "post", "res")
            origin = held_buffers(self)["origin"]
            done = manifold_read(state, projection, alpha, pre, post, res, origin, self.eps, rounds)
            if done is not None:
                return done
        weights, post, res, unit = self.coefficients(state)
        return combine(state, weights.unsqueeze(-1), unit), (post, res)

    def observe(self, state: Tensor) -> Observations:
        """``read``, ``H_pre``; ``write``, ``H_post``; ``mixing``, ``H_res`` from row to column, the identity at the
        adds that have none; ``apart``: how far the channels differ."""
        read, write, res, _ = self.coefficients(state)
        mixing = torch.eye(self.config.n, dtype=read.dtype, device=read.device) if res is None else res.mT
        return observed_channels(state, read, write, mixing)

    def extra_repr(self) -> str:
        return f"channels={self.config.n}"


class ManifoldWrite(nn.Module):
    """``H_res X + H_post^T f``; for the second of two parallel branches ``X + H_post^T f``: both are one site.

    Args:
        stochastic: the rows of ``H_res`` sum to one.
    """

    def __init__(self, follows: bool, stochastic: bool) -> None:
        super().__init__()
        self.follows, self.stochastic = follows, stochastic

    def forward(
        self, state: Tensor, f: Tensor, x: Tensor, c: Tensor | None, memo: tuple[Tensor, Tensor | None]
    ) -> Tensor:
        post, res = memo
        return mix(state, f, post, None if self.follows else res, unit=self.stochastic)
