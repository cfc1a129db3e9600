"""Stages in several processes, by torch.distributed.pipelining: losses and gradients are those of one process."""

from __future__ import annotations

import multiprocessing
from concurrent.futures import ProcessPoolExecutor

import pytest
import torch
import torch.distributed as dist
from hosts import VOCAB, Block, tokens
from hosts.made import randomise
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.pipelining import (
    PipelineStage,
    Schedule1F1B,
    ScheduleGPipe,
    ScheduleInterleaved1F1B,
    ScheduleZBVZeroBubble,
)

import resfx
from resfx.errors import OptionError, VariantError

IDS = tokens(4, 8)


class Decoder(nn.Module):
    """Four blocks, untied."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(VOCAB, 16), nn.Linear(16, VOCAB)
        self.blocks = nn.ModuleList(Block(16, 2) for _ in range(4))

    def forward(self, ids):
        x = self.embed(ids)
        for block in self.blocks:
            x = block(x)
        return self.head(x)


class Turns(nn.Module):
    """A block whose gradient is laid out the other way round."""

    def forward(self, x):
        return x.transpose(1, 2).contiguous().transpose(1, 2)


def made(method: str) -> nn.Module:
    torch.manual_seed(0)
    new = resfx.rewrite(Decoder().eval(), method, args=(IDS[:2],))
    randomise(new)
    return new


def loss_of(y: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    return nn.functional.cross_entropy(y.flatten(0, 1), ids.flatten())


def in_process(rank: int, method: str, folder: str):
    """The gradients and losses of this process by 1F1B, and interleaved with what it keeps, or why it cannot."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    found = []
    for count, ranks in (2, None), (4, 2):
        stages = resfx.split(made(method), count, args=(IDS[:2],), ranks=ranks)
        mine = stages.pipeline_stages("cpu")
        schedule = (ScheduleInterleaved1F1B(mine, 2, loss_fn=loss_of) if ranks else
                    Schedule1F1B(mine[0], 2, loss_fn=loss_of))  # fmt: skip
        losses: list[torch.Tensor] = []
        for _ in range(2):  # what is kept of one step is not read in the next
            losses.clear()
            for stage in mine:
                stage.submod.zero_grad()
            schedule.step(IDS) if rank == 0 else schedule.step(target=IDS, losses=losses)
        gradients = {n: p.grad.numpy() for i in mine for n, p in i.submod.named_parameters()}
        found.append((gradients, [loss.item() for loss in losses]))
    with pytest.raises(OptionError, match="cannot run these stages by this schedule"):
        ScheduleZBVZeroBubble(mine, 2, loss_fn=loss_of)
    with pytest.raises(VariantError, match="splits backward passes"):
        mine[0].backward_one_chunk(0, full_backward=False)
    dist.destroy_process_group()
    return found


@pytest.mark.matrix
@pytest.mark.parametrize("method", ["attnres", pytest.param("mhc", marks=pytest.mark.matrix)])
def test_two_processes_train_as_one(method, tmp_path):
    model, losses = made(method), []
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as pool:
        parts = [pool.submit(in_process, rank, method, str(tmp_path)) for rank in range(2)]
        for rows in IDS.chunk(2):
            loss = loss_of(model(rows), rows)
            (loss / 2).backward()
            losses.append(loss.item())
        for (first, _), (second, seen) in zip(*(part.result() for part in parts), strict=True):
            assert seen == pytest.approx(losses, rel=1e-6)
            assert not first.keys() & second.keys()
            for name, parameter in model.named_parameters():
                got, want = torch.from_numpy((first | second)[name]), parameter.grad
                torch.testing.assert_close(got, want, rtol=0, atol=1e-6 * float(want.abs().max()))


def in_mesh(rank: int, method: str, folder: str):
    """Two stages, each sharded over two processes that take half of the rows."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=4)
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("pipeline", "data"))
    number, part = mesh["pipeline"].get_local_rank(), mesh["data"].get_local_rank()
    rows = IDS.chunk(2)[part]
    stage = resfx.split(made(method), 2, args=(IDS[:2],))[number]
    for block in stage.blocks.children():
        fully_shard(block, mesh=mesh["data"])
    fully_shard(stage, mesh=mesh["data"])
    place = PipelineStage(stage, number, 2, torch.device("cpu"), group=mesh["pipeline"].get_group())
    schedule = ScheduleGPipe(place, 1, loss_fn=loss_of)
    schedule.step(rows) if number == 0 else schedule.step(target=rows)
    found = {n: p.grad.full_tensor().numpy() for n, p in stage.named_parameters()}
    dist.destroy_process_group()
    return found


@pytest.mark.matrix
@pytest.mark.parametrize("method", ["ddl", "attnres", "mhc", "short_swa", "value_residual"])
def test_stages_sharded_over_a_mesh_train_as_one_process(method, tmp_path):
    model = made(method)
    loss_of(model(IDS), IDS).backward()
    with ProcessPoolExecutor(4, mp_context=multiprocessing.get_context("spawn")) as pool:
        parts = [pool.submit(in_mesh, rank, method, str(tmp_path)) for rank in range(4)]
        found = parts[0].result() | parts[2].result()
    assert found.keys() == dict(model.named_parameters()).keys()
    for name, parameter in model.named_parameters():
        got, want = torch.from_numpy(found[name]), parameter.grad  # two halves of the rows add up in another order
        torch.testing.assert_close(got, want, rtol=0, atol=1e-5 * float(want.abs().max()))


def test_states_over_depth_cross_every_border_behind_them():
    stages = resfx.split(made("attnres"), 4, args=(IDS,))
    assert [len(border) for border in stages.borders] == [4, 6, 8]
    assert "stage 2 from blocks.2: 6 tensors, 384 bytes per token forward, 384 back" in str(stages)


def test_gradients_go_back_as_what_is_sent_has_to_be():
    """A process group refuses to send what is not contiguous."""
    model = nn.Sequential(Block(16, 2), Turns(), Block(16, 2))
    second = resfx.split(model.eval(), at=["1"], args=(torch.randn(2, 8, 16),))[1]
    sent = torch.randn(2, 8, 16, requires_grad=True)
    assert torch.autograd.grad(second(sent).square().sum(), sent)[0].is_contiguous()
    assert not torch.autograd.grad(model[2](model[1](sent)).square().sum(), sent)[0].is_contiguous()


@pytest.mark.matrix
def test_what_a_process_has_crosses_no_more():
    stages = resfx.split(made("attnres"), 4, args=(IDS,), ranks=2)
    assert [len(border) for border in stages.borders] == [4, 3, 3], "the stream, and what one block wrote"
    assert [len(kept) for kept in stages.kept] == [3, 5, 0, 0]
    assert "stage 2 from blocks.2: 3 tensors, 192 bytes per token forward, 192 back" in str(stages)
    assert "stage 1 keeps 5 tensors, 320 bytes per token, for later stages of its process" in str(stages)
    with pytest.raises(VariantError, match="split for ranks"):
        stages[0](IDS)
    for ranks in (1, 3):
        with pytest.raises(OptionError, match=f"for {ranks} processes"):
            resfx.split(made("attnres"), 4, args=(IDS,), ranks=ranks)
