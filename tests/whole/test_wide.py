"""Widened streams on real architectures: an exact start, causality, channels that separate in training."""

from __future__ import annotations

import copy

import pytest
import torch
from hosts import BY_NAME, VOCAB, tokens
from hosts.made import randomise, rewritten
from hosts.wide import ALL, METHODS, both, equal, loss_of
from torch import nn

import resfx
from resfx.passes.check import tensors_of

DEFAULT = [("mhc", "gpt2"), ("hyper", "llama"), ("channel", "t5"), ("token", "vit"), ("mhc", "bert")]
ONE_READ = ("gpt2", "vit", "nanogpt")  # each branch reads the state once, through a norm that is one operator


@pytest.mark.every(2)
@pytest.mark.parametrize(("method", "host"), both(DEFAULT, ALL))
def test_start_is_exact_and_each_stream_is_one_run(method, host):
    model, new, inputs = rewritten(host, METHODS[method])
    assert equal(model(**inputs), new(**inputs))
    other = BY_NAME[host].inputs(3, 5)
    captured = len(new.variants)
    assert equal(model(**other), new(**other))
    assert len(new.variants) == captured, "batch and sequence are dynamic"
    assert [new.report.methods_at(s) for s in new.report.sites] == [[METHODS[method].name]] * BY_NAME[host].sites
    names = [n for n, _ in new.named_modules()]
    assert sum(n.endswith(".expand") for n in names) == BY_NAME[host].streams
    assert sum(n.endswith(".collapse") for n in names) == BY_NAME[host].streams


@pytest.mark.every(2)
@pytest.mark.parametrize(("method", "host"), both([("mhc", "llama"), ("token", "gpt2")], ALL))
def test_start_is_exact_in_bfloat16(method, host):
    model = BY_NAME[host].make().bfloat16()
    inputs = {k: v.bfloat16() if torch.is_tensor(v) and v.is_floating_point() else v
              for k, v in BY_NAME[host].inputs(2, 6).items()}  # fmt: skip
    new = resfx.rewrite(model, METHODS[method], kwargs=inputs)
    assert {p.dtype for p in new.new_parameters().values()} == {torch.bfloat16}
    assert equal(model(**inputs), new(**inputs))


@pytest.mark.parametrize(("method", "host"), both([("hyper", "gpt2"), ("channel", "t5")], ALL))
def test_start_is_exact_in_training_with_the_same_seed(method, host):
    model, new, inputs = rewritten(host, METHODS[method])
    model.train(), new.train()
    try:
        torch.manual_seed(3)
        want = model(**inputs)
        torch.manual_seed(3)
        got = new(**inputs)
        assert equal(want, got)
        names = [n for n, p in model.named_parameters() if p.requires_grad]
        before = torch.autograd.grad(loss_of(want), [model.get_parameter(n) for n in names], allow_unused=True)
        after = torch.autograd.grad(loss_of(got), [new.get_parameter(n) for n in names], allow_unused=True)
    finally:
        model.eval(), new.eval()
    exact = host in ONE_READ and METHODS[method].name == "ddl" and METHODS[method].value_channels in (2, 4)
    largest = max(float(a.abs().max()) for a in before if a is not None)
    for key, a, b in zip(names, before, after, strict=True):
        assert (a is None) == (b is None), key
        # Equal channels share a gradient, in halves of halves, which are exact. Where channels do not have equal
        # parts of it (reads that lean to one of them), or a branch reads the state more than once, whose gradients
        # autograd adds in the order of the graph, sums round in another order.
        bound = 0 if exact else 32 * torch.finfo(a.dtype).eps * largest if a is not None else 0
        assert a is None or (a - b).abs().max() <= bound, key


def train(new, inputs, steps=20):
    target = torch.randint(0, VOCAB, (2, 7), generator=torch.Generator().manual_seed(5))
    optimizer = torch.optim.Adam(new.parameters(), lr=3e-3)
    losses = []
    for _ in range(steps):
        logits = tensors_of(new(**inputs))[0].float()
        if logits.dim() == 3:
            loss = nn.functional.cross_entropy(logits[:, : target.shape[1]].flatten(0, 1), target.flatten())
        else:
            loss = nn.functional.cross_entropy(logits, target[:, 0] % logits.shape[-1])
        losses.append(float(loss.detach()))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return losses


def spread_at_exit(new, inputs):
    """How far apart the channels are where a stream collapses, relative to their size."""
    seen = []
    collapse = next(m for n, m in new.named_modules() if n.endswith(".collapse"))
    handle = collapse.register_forward_pre_hook(lambda _, args: seen.append(args[0].detach()))
    new(**inputs)
    handle.remove()
    return float(seen[0].std(-2).mean() / seen[0].abs().mean())


@pytest.mark.parametrize(
    ("method", "host"),
    both([("mhc", "gpt2"), ("hyper", "gpt2"), ("channel", "gpt2"), ("token", "vit")], ALL),
)
def test_training_lowers_the_loss_and_separates_the_channels(method, host):
    model, kept, inputs = rewritten(host, METHODS[method])
    new = copy.deepcopy(kept)
    assert spread_at_exit(new, inputs) == 0
    frozen = {n: p.detach().clone() for n, p in model.named_parameters()}
    losses = train(new, inputs)
    for name, value in frozen.items():  # the parameters are the original's; other tests want them as they were
        model.get_parameter(name).data.copy_(value)
    assert losses[-1] < 0.9 * losses[0]
    assert spread_at_exit(new, inputs) > 1e-4


@pytest.mark.parametrize("method", ["mhc", "hyper", "channel", "token"])
def test_a_token_does_not_see_later_ones(method):
    new = copy.deepcopy(rewritten("gpt2", METHODS[method])[1])
    randomise(new, 0.3)
    ids = tokens(2, 9)
    changed = ids.clone()
    changed[:, 5] = (changed[:, 5] + 1) % VOCAB
    a, b = (tensors_of(new(input_ids=x, use_cache=False))[0] for x in (ids, changed))
    assert torch.equal(a[:, :5], b[:, :5])
    assert (a[:, 5:] - b[:, 5:]).abs().amax((0, 2)).min() > 0
