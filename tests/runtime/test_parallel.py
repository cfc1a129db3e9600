"""Models over several processes, or with their weights elsewhere: what cannot be kept is refused by name."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
from hosts import BY_NAME, small
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.distributed.tensor.experimental import context_parallel
from torch.distributed.tensor.parallel import SequenceParallel, parallelize_module

import resfx
from resfx.errors import CaptureError, ResfxError, SaveError

X = small.batch()


@pytest.fixture
def mesh():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        yield init_device_mesh("cpu", (1,))
    finally:
        dist.destroy_process_group()


def test_mixers_are_refused_under_context_parallel(mesh):
    host = BY_NAME["llama"]
    given = host.inputs(2, 8)
    new = resfx.rewrite(host.make(), "short_swa", kwargs=given)
    want = new(**given).logits
    on = context_parallel(mesh, buffers=[given["input_ids"]], buffer_seq_dims=[1])
    with on, pytest.raises(ResfxError, match="mixes over positions"):
        new(**given)
    assert torch.equal(new(**given).logits, want)


@pytest.mark.parametrize("gain", [True, False])
@pytest.mark.parametrize("mode", ["ddl", "attnres"])
def test_norms_that_see_a_part_of_the_positions_are_refused(mesh, gain, mode):
    model = small.net()
    for block in model.blocks:
        block.norm = nn.LayerNorm(8, elementwise_affine=gain)
    new = resfx.rewrite(model, mode, args=(X,))
    parallelize_module(new, mesh, {"blocks.0.norm": SequenceParallel()})
    with pytest.raises(ResfxError, match="'norm' is parallelised over positions"):
        new(X)


def test_a_sharded_model_is_neither_rewritten_nor_saved(mesh, tmp_path):
    new = resfx.rewrite(small.net(), "ddl", args=(X,))
    resfx.save(new, tmp_path / "new")
    with pytest.raises(SaveError, match="split over processes"):
        resfx.save(fully_shard(new, mesh=mesh), tmp_path / "sharded")
    with pytest.raises(SaveError, match="split over processes"):
        resfx.load(tmp_path / "new", fully_shard(small.net(), mesh=mesh), args=(X,))
    with pytest.raises(CaptureError, match="weights of the whole are not with it"):
        resfx.rewrite(fully_shard(small.net(), mesh=mesh), "ddl", args=(X,))


@pytest.mark.filterwarnings("ignore:FSDP is switching")  # of one process
def test_a_call_not_seen_before_around_wrapped_blocks_is_refused(mesh):
    new = resfx.rewrite(small.net(), "attnres", args=(X,))
    for i, block in enumerate(new.blocks):
        new.blocks[i] = FullyShardedDataParallel(block, device_id=torch.device("cpu"), use_orig_params=True)
    with pytest.raises(CaptureError, match="FullyShardedDataParallel"):
        new(X[:1])


def test_a_call_not_seen_before_of_an_offloaded_model_is_refused():
    accelerate = pytest.importorskip("accelerate")
    new = resfx.rewrite(small.net(), "ddl", args=(X,))
    want = new(X)
    accelerate.cpu_offload(new, torch.device("cpu"))
    assert torch.equal(new(X), want)
    with pytest.raises(CaptureError, match="offloads"):
        new(X[:1])
    with pytest.raises(CaptureError, match="offloads"):
        resfx.rewrite(accelerate.cpu_offload(small.net(), torch.device("cpu")) or small.net(), "ddl", args=(X,))
