"""What the tables of the matrix and of pipelines have rows for."""

from __future__ import annotations

import resfx
from resfx.methods.base import Method, methods


def configs() -> dict[str, Method]:
    """Every method at its defaults, and the forms that go another way through the code."""
    found: dict[str, Method] = {name: cls() for name, cls in methods().items()}
    found["ddl, 4 channels"] = resfx.DDL(value_channels=4)
    found["altup, gemma3n"] = resfx.AltUp.gemma3n()
    found["attnres, blocks"] = resfx.AttnRes(block=2)
    found["attnres, blocks, two phases"] = resfx.AttnRes(block=2, two_phase=True)
    found["attnres, normalized"] = resfx.AttnRes(block=2, normalized=True)
    found["lambdas, skips"] = resfx.Lambdas(skips=((0, 1),), backout=True)
    for mixing in ("identity", "permutation", "kronecker", "orthogonal"):
        found[f"mhc, {mixing}"] = resfx.MHC(mixing=mixing)
    found["value_residual, dense heads"] = resfx.ValueResidual(form="dense", per_head=True)
    found["value_residual, shared"] = resfx.ValueResidual(form="shared")
    found["short_swa, narrow"] = resfx.ShortSWA(window=4, heads=2, head_dim=4)
    return found
