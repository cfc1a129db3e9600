"""Operators on a wide state ``(..., n, d)`` that keep their operands for the backward pass, and nothing else.

Each is a plain formula, and the same formula with its gradients in closed form: what lies between operands and result
(differences of channels, conversions of half types, products) is computed again, one pass of elementwise work, where
autograd would keep a copy of the state for each. Reductions run in float32 for half types.
"""

from .combine import combine, combine_formula
from .delta import delta_write, delta_write_formula
from .mix import mix, mix_formula
from .rows import deviation_formula, inverse_deviation, spread, spread_formula, total

__all__ = [
    "combine",
    "combine_formula",
    "delta_write",
    "delta_write_formula",
    "deviation_formula",
    "inverse_deviation",
    "mix",
    "mix_formula",
    "spread",
    "spread_formula",
    "total",
]
