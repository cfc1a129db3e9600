"""Recipes: what an earlier version wrote still loads."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hosts.exact import exact_decoder, exact_ids
from safetensors.torch import load_file

import resfx

SAVED_V1 = Path(__file__).parent / "saved_v1"


@pytest.mark.parametrize("name", ["site_sequence", "depth", "wide"])
def test_version_1_still_loads(name):
    model, ids = exact_decoder(), exact_ids()
    new = resfx.load(SAVED_V1 / name, model)
    answer = load_file(SAVED_V1 / "answers.safetensors")[name]
    torch.testing.assert_close(new(ids), answer, rtol=1e-5, atol=1e-6)
    assert not torch.allclose(answer, model(ids), atol=1e-2)
