"""The hosts taken apart are the hosts: what every float64 reference stands on."""

from __future__ import annotations

import pytest
import torch
from hosts import BY_NAME
from unrolled import HOSTS, host, plain, unroll


@pytest.mark.parametrize("name", HOSTS)
def test_branches_joined_by_addition_are_the_host(name):
    model = host(name)
    inputs = BY_NAME[name].inputs(2, 6)
    inputs = {k: v.double() if torch.is_tensor(v) and v.is_floating_point() else v for k, v in inputs.items()}
    torch.testing.assert_close(unroll(name, model, inputs, plain), model(**inputs).logits, rtol=1e-11, atol=1e-11)
