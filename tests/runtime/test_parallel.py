"""A part of a sequence: mixers over positions say that they would not see the others."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
from hosts import BY_NAME
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor.experimental import context_parallel

import resfx
from resfx.errors import ResfxError


def test_mixers_are_refused_under_context_parallel():
    host = BY_NAME["llama"]
    given = host.inputs(2, 8)
    new = resfx.rewrite(host.make(), "short_swa", kwargs=given)
    want = new(**given).logits
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        mesh = init_device_mesh("cpu", (1,))
        on = context_parallel(mesh, buffers=[given["input_ids"]], buffer_seq_dims=[1])
        with on, pytest.raises(ResfxError, match="mixes over positions"):
            new(**given)
    finally:
        dist.destroy_process_group()
    assert torch.equal(new(**given).logits, want)
