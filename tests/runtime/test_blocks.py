"""The blocks of a rewritten model are modules: compiled one by one, equal ones share a function; or recomputed."""

from __future__ import annotations

import copy

import pytest
import torch
from hosts import BY_NAME, VOCAB, Block, tokens
from hosts.made import randomise, recompute_activations, rewritten
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend

import resfx
from resfx.errors import ResfxError

WIDTH = 16
# The compiler looks at every input's gradient and hides the warning, which an error filter finds nevertheless.
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")


class Decoder(nn.Module):
    """As many equal pre-norm blocks as asked for, with dropout."""

    def __init__(self, depth: int, dropout: float) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCAB, WIDTH)
        self.blocks = nn.ModuleList(Block(WIDTH, 2) for _ in range(depth))
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, VOCAB)
        for block in self.blocks:
            block.drop.p = dropout

    def forward(self, ids):
        x = self.embed(ids)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


def _decoder(depth: int, mode: object, dropout: float = 0.2):
    torch.manual_seed(0)
    new = resfx.rewrite(Decoder(depth, dropout), mode, args=(tokens(2, 7),), check=False)
    randomise(new, 0.05)
    return new


def _step(model, inputs, seed: int = 3):
    """Output and gradients of one call; the same random numbers for every call."""
    model.zero_grad()
    torch.manual_seed(seed)
    output = model(**inputs)
    output = output if isinstance(output, torch.Tensor) else output.logits
    (output * torch.linspace(-1, 1, output.numel()).view_as(output)).sum().backward()
    return output.detach(), {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.every(2)
@pytest.mark.parametrize("mode", ["ddl", "denseformer"])
def test_equal_blocks_share_one_compiled_function(mode):
    counts = []
    for depth in (2, 5):
        new, backend = _decoder(depth, mode), CompileCounterWithBackend("eager")
        inputs = {"ids": tokens(2, 7)}
        want = _step(copy.deepcopy(new).eval(), inputs)
        resfx.compile_blocks(new.eval(), backend=backend)
        got = _step(new, inputs)
        assert torch.allclose(want[0], got[0], atol=1e-6)
        counts.append(backend.frame_count)
        torch._dynamo.reset()
    assert counts[0] == counts[1] > 0


@pytest.mark.parametrize("mode", ["ddl", "attnres", "hyper_connections"])
def test_recomputed_blocks_keep_every_bit(mode):
    new = _decoder(3, mode).train()
    inputs = {"ids": tokens(2, 7)}
    want = _step(new, inputs)
    resfx.checkpoint_blocks(new)
    got = _step(new, inputs)
    assert torch.equal(want[0], got[0]) and all(torch.equal(want[1][n], got[1][n]) for n in want[1])
    resfx.checkpoint_blocks(new, every=0)
    assert not any("forward" in vars(m) for m in new.blocks)


def test_every_second_block_is_recomputed():
    new = resfx.checkpoint_blocks(_decoder(3, "ddl"), every=2)
    assert ["forward" in vars(m) for m in new.blocks] == [True, False, True]
    twin = copy.deepcopy(new)
    assert twin.blocks[0].forward.block is twin.blocks[0]
    with pytest.raises(ValueError, match="every"):
        resfx.checkpoint_blocks(new, every=-1)


def test_the_switch_of_hugging_face_models():
    new = copy.deepcopy(rewritten("llama")[1])
    randomise(new)
    inputs = {**BY_NAME["llama"].inputs(2, 7), "use_cache": False}
    want = _step(new.train(), inputs)
    recompute_activations(new, use_reentrant=False)
    calls = []
    new.model.layers[0].self_attn.register_forward_hook(lambda *_: calls.append(1))
    got = _step(new, inputs)
    assert len(calls) == 2, "once forward, once again in the backward pass"
    assert torch.equal(want[0], got[0]) and all(torch.equal(want[1][n], got[1][n]) for n in want[1])


def test_the_reentrant_kind_is_refused_where_gradients_would_be_lost():
    model, new, inputs = rewritten("llama", "attnres")
    for one in (model, new):
        recompute_activations(one.train(), use_reentrant=True)
        one.enable_input_require_grads()
    ids = {"input_ids": inputs["input_ids"], "labels": inputs["input_ids"], "use_cache": False}
    model(**ids).loss.backward()
    with pytest.raises(ResfxError, match="use_reentrant=False"):
        new(**ids).loss.backward()
    recompute_activations(new, use_reentrant=False)
    new(**ids).loss.backward()


@pytest.mark.parametrize("mode", ["ddl", "attnres"])
def test_traces_of_torch_jit_are_refused(mode):
    with pytest.raises(ResfxError, match=r"while torch\.jit\.trace runs"):
        torch.jit.trace(_decoder(1, mode), (tokens(2, 7),))


def test_what_is_not_rewritten_is_refused():
    for act in (resfx.compile_blocks, resfx.checkpoint_blocks):
        with pytest.raises(ResfxError, match="rewritten"):
            act(nn.Linear(2, 2))
