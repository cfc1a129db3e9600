"""How ``H_res (..., n, n)`` of manifold-constrained Hyper-Connections is made of numbers without constraints.

All forms but the orthogonal one are doubly stochastic, so that a mix keeps equal channels, their mean and their sum.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from resfx.ops.sinkhorn.formula import sinkhorn


class Mixing:
    """The numbers of one ``H_res``, their start, and the matrix they make. This one is mHC's own, ``Sinkhorn(exp(z))``.

    Attributes:
        shape: of the numbers ``z``.
        factors: orders of the matrices that it is a product of, each with a table.
        stochastic: whether rows and columns sum to one.
        rounds: of Sinkhorn's scaling, and Newton steps behind them; ``None`` where there are none.
    """

    factors: Sequence[int] = ()
    stochastic = True
    rounds: tuple[int, int] | None = None

    def __init__(self, n: int, rounds: tuple[int, int]) -> None:
        self.n, self.rounds = n, rounds
        self.shape: tuple[int, ...] = (n, n)

    def start(self, diagonal: float) -> Tensor:
        """The numbers that lean towards the identity."""
        return diagonal * torch.eye(self.n)

    def tables(self) -> list[Tensor]:
        """Constants that :meth:`matrix` is handed: integers."""
        return []

    def matrix(self, z: Tensor, tables: Sequence[Tensor]) -> Tensor:
        """``(..., *shape)`` to ``(..., n, n)``, row: to, column: from."""
        assert self.rounds is not None
        return sinkhorn(z, *self.rounds)


class Permutations(Mixing):
    """A Kronecker product of mixtures of permutations, ``kron_k sum_p softmax(z_k)_p P_p``.

    With one factor it is mHC-lite's (arXiv 2601.05732): every doubly stochastic matrix, from ``n!`` numbers. With one
    factor for each prime of ``n`` it is KromHC's (arXiv 2601.21579): two and two numbers for ``n = 4``. No rounds, and
    doubly stochastic whatever the numbers.
    """

    def __init__(self, factors: Sequence[int]) -> None:
        self.factors = list(factors)
        self.counts = [math.factorial(f) for f in self.factors]
        self.n, self.shape = math.prod(self.factors), (sum(self.counts),)

    def start(self, diagonal: float) -> Tensor:
        """The identity comes first among the permutations of each factor."""
        return torch.cat([diagonal * torch.nn.functional.one_hot(torch.tensor(0), c) for c in self.counts])

    def tables(self) -> list[Tensor]:
        """Per factor ``(f * f, (f - 1)!)``: the permutations that take ``j`` to ``i``, by entry ``i f + j``."""
        tables = []
        for f in self.factors:
            ways = list(itertools.permutations(range(f)))
            entries = [[k for k, way in enumerate(ways) if way[i] == j] for i in range(f) for j in range(f)]
            tables.append(torch.tensor(entries))
        return tables

    def matrix(self, z: Tensor, tables: Sequence[Tensor]) -> Tensor:
        product: Tensor | None = None
        for part, table, f in zip(z.split(self.counts, -1), tables, self.factors, strict=True):
            entries = part.softmax(-1)[..., table].sum(-1)
            factor = entries.unflatten(-1, (f, f))
            product = factor if product is None else kronecker(product, factor)
        assert product is not None
        return product


class Orthogonal(Mixing):
    """``(I - A)^-1 (I + A)`` with ``A`` skew-symmetric (Cayley; JPmHC, arXiv 2602.18308): a rotation of the channels.

    It keeps the norm of the state, which a doubly stochastic mix can only shrink, and moves the mean of the channels.
    ``A = 0`` is the identity.
    """

    stochastic = False

    def __init__(self, n: int) -> None:
        self.n, self.factors, self.shape = n, [n], (n * (n - 1) // 2,)

    def start(self, diagonal: float) -> Tensor:
        return torch.zeros(self.shape)

    def tables(self) -> list[Tensor]:
        """Where each entry of ``A`` is among ``z``, ``-z`` and a zero, ``(n, n)``."""
        count = self.shape[0]
        table = torch.full((self.n, self.n), 2 * count)
        rows, columns = torch.triu_indices(self.n, self.n, 1)
        table[rows, columns], table[columns, rows] = torch.arange(count), torch.arange(count) + count
        return [table]

    def matrix(self, z: Tensor, tables: Sequence[Tensor]) -> Tensor:
        return cayley(torch.cat([z, -z, torch.zeros_like(z[..., :1])], -1)[..., tables[0]])


def cayley(skew: Tensor) -> Tensor:
    """``(I - A)^-1 (I + A)`` of ``A (..., n, n)``, by elimination: the symmetric part of ``I - A`` is ``I``, so that no
    pivot is ever below one."""
    n = skew.shape[-1]
    eye = torch.eye(n, dtype=skew.dtype, device=skew.device)
    both = torch.cat([eye - skew, eye + skew], -1)
    for k in range(n):
        row = both[..., k : k + 1, :] / both[..., k : k + 1, k : k + 1]
        both = both - (both[..., k : k + 1] - eye[:, k : k + 1]) * row
    return both[..., n:]


def kronecker(a: Tensor, b: Tensor) -> Tensor:
    """``(..., m, m)`` and ``(..., n, n)`` to ``(..., m n, m n)``."""
    product = a[..., :, None, :, None] * b[..., None, :, None, :]
    return product.flatten(-4, -3).flatten(-2, -1)


def primes(n: int) -> list[int]:
    """The prime factors of a number, the smallest first."""
    found, p = [], 2
    while n > 1:
        while n % p == 0:
            found.append(p)
            n //= p
        p += 1
    return found


def mixing_of(name: str, n: int, rounds: tuple[int, int]) -> Mixing | None:
    """The form of a name; ``None`` for ``"identity"``."""
    if name == "identity":
        return None
    if name == "sinkhorn":
        return Mixing(n, rounds)
    if name == "orthogonal":
        return Orthogonal(n)
    return Permutations([n] if name == "permutation" else primes(n))
