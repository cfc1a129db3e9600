"""Every mode, and every kind of host, as its library makes it and with the plainest call; all pairs: first_use.py."""

from __future__ import annotations

import pytest
from first_use import PLAIN, row
from hosts import BY_NAME

from resfx.methods.base import methods

# Each host and each mode at least once; the mixers on decoders, for their state is in the cache that comes back.
# The everyday run takes every third pair.
PAIRS = [
    ("llama", "short_swa"), ("gemma2", "short_conv"), ("gpt2", "canon"), ("t5", "ddl"), ("qwen3", "mhc"),
    ("mixtral", "depth_read"), ("bert", "elc"), ("gpt_neox", "attnres"), ("bert", "hyper_connections"),
    ("bert", "mudd"), ("vit", "dca"), ("vit", "denseformer"), ("bert", "vertical"), ("vit", "delta_attnres"),
    ("vit", "value_residual"), ("bert", "lime"), ("vit", "layer_scale"), ("bert", "value_embedding"),
    ("vit", "rezero"), ("vit", "laurel"), ("vit", "frac_connections"), ("vit", "depth_scaled"), ("bert", "lambdas"),
    ("bert", "altup"),
]  # fmt: skip


@pytest.mark.every(3)
@pytest.mark.parametrize(("host", "mode"), PAIRS)
def test_first_use(host, mode):
    cells = row(host, mode)
    assert not any(cell.startswith(("NO", "left alone", "warns")) for cell in cells), cells
    assert cells[0] == "bit"


def test_the_slice_has_every_host_and_every_mode():
    assert {h for h, _ in PAIRS} == set(PLAIN) <= set(BY_NAME)
    assert {m for _, m in PAIRS} == set(methods())
