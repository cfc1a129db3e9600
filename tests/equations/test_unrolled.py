"""The hosts taken apart are the hosts: what every float64 reference stands on."""

from __future__ import annotations

import pytest
import torch
from hosts import BY_NAME
from hosts.unrolled import HOSTS, host, plain, unroll


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("name", HOSTS)
def test_branches_joined_by_addition_are_the_host(name, padded):
    model = host(name)
    inputs = BY_NAME[name].inputs(2, 6)
    inputs = {k: v.double() if torch.is_tensor(v) and v.is_floating_point() else v for k, v in inputs.items()}
    real = slice(None)
    if padded and "input_ids" in inputs:
        inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
        inputs["attention_mask"][0, :2] = 0
        real = inputs["attention_mask"].bool() if name != "t5" else real
    got, want = unroll(name, model, inputs, plain), model(**inputs).logits
    torch.testing.assert_close(got[real], want[real], rtol=1e-11, atol=1e-11)
