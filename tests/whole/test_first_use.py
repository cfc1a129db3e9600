"""Every mode, and every kind of host, as its library makes it and with the plainest call; all pairs: first_use.py."""

from __future__ import annotations

import pytest
from first_use import PLAIN, row
from hosts import BY_NAME

from resfx.methods.base import methods

# Each host and each mode at least once; the mixers on two hosts, for their state is in the cache that comes back.
PAIRS = [
    ("llama", "short_swa"), ("gpt2", "canon"), ("gemma2", "short_conv"), ("qwen3", "mhc"), ("gpt_neox", "attnres"),
    ("mixtral", "depth_read"), ("bert", "hyper_connections"), ("vit", "denseformer"), ("t5", "ddl"), ("bert", "elc"),
    ("bert", "mudd"), ("vit", "dca"), ("vit", "delta_attnres"), ("bert", "vertical"),
    ("vit", "value_residual"), ("bert", "lime"), ("bert", "value_embedding"), ("vit", "layer_scale"),
    ("vit", "rezero"), ("vit", "laurel"), ("vit", "depth_scaled"), ("vit", "frac_connections"), ("bert", "lambdas"),
    ("bert", "altup"),
]  # fmt: skip


@pytest.mark.parametrize(("host", "mode"), PAIRS)
def test_first_use(host, mode):
    cells = row(host, mode)
    assert not any(cell.startswith(("NO", "left alone", "warns")) for cell in cells), cells
    assert cells[0] == "bit"


def test_the_slice_has_every_host_and_every_mode():
    assert {h for h, _ in PAIRS} == set(PLAIN) <= set(BY_NAME)
    assert {m for _, m in PAIRS} == set(methods())
