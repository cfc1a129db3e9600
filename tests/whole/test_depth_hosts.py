"""Depth methods on real architectures. A few pairs by default; every method on every host with ``-m matrix``."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from hosts import BY_NAME, tokens
from hosts.depth import HOST_NAMES, METHODS, equal, loss_of, pair, pairs
from hosts.made import randomise

import resfx
from resfx.methods.depth.base import DepthPlace
from resfx.passes.check import tensors_of

CAUSAL = [n for n in HOST_NAMES if BY_NAME[n].causal]


@pytest.fixture
def kept(method, host):
    """The pair at its start; new parameters that a test moves are put back."""
    model, new, inputs = pair(method, host)
    saved = {n: p.detach().clone() for n, p in new.new_parameters().items()}
    yield model, new, inputs
    with torch.no_grad():
        for name, parameter in new.new_parameters().items():
            parameter.copy_(saved[name])


@pytest.fixture
def moved(kept):
    """The pair with its new parameters off their start, for one test."""
    randomise(kept[1])
    return kept


EXACT = pairs(
    "denseformer-gpt2", "attnres-llama", "attnres-phases-bert", "delta-bert", "depth-read-full-vit", "elc-bert",
    "dca-gpt_neox", "mudd-gpt2", "vertical-vit",
)  # fmt: skip


@pytest.mark.parametrize(("method", "host"), EXACT)
def test_start_is_exact_in_eval_and_training_at_other_sizes_too(method, host):
    model, new, inputs = pair(method, host)
    assert equal(model(**inputs), new(**inputs))
    other = BY_NAME[host].inputs(3, 5)
    before = len(new.variants)
    assert equal(model(**other), new(**other))
    assert len(new.variants) == before, "batch and sequence are dynamic: no new capture"
    assert all(new.report.methods_at(s, "read") == [METHODS[method].name] for s in new.report.sites)


@pytest.mark.parametrize(("method", "host"), pairs("attnres-llama", "mudd-gpt2", "elc-bert"))
def test_a_training_step_at_the_start_is_the_hosts(method, host):
    model, new, inputs = pair(method, host)
    results = []
    for module in (model, new):
        module.train()
        torch.manual_seed(3)
        outputs = module(**inputs)
        parameters = [p for p in model.parameters() if p.requires_grad]
        results.append((outputs, torch.autograd.grad(loss_of(outputs), parameters, allow_unused=True)))
        module.eval()
    assert equal(results[0][0], results[1][0])
    for a, b in zip(results[0][1], results[1][1], strict=True):
        assert (a is None) == (b is None)
        if a is not None:  # a zero correction adds zeros to a gradient, in another order of summation
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5 * float(b.abs().max()) + 1e-7)


HALF = pairs("denseformer-bert", "attnres-gpt2", "depth-read-nanogpt", "dca-llama", "mudd-gpt_neox")


@pytest.mark.every(2)
@pytest.mark.parametrize(("method", "host"), HALF)
def test_start_is_exact_in_bfloat16(method, host):
    model = BY_NAME[host].make().bfloat16()
    inputs = BY_NAME[host].inputs(2, 6)
    inputs = {k: v.bfloat16() if torch.is_tensor(v) and v.is_floating_point() else v for k, v in inputs.items()}
    new = resfx.rewrite(model, METHODS[method], kwargs=inputs)
    assert {p.dtype for p in new.new_parameters().values()} == {torch.bfloat16}
    assert equal(model(**inputs), new(**inputs))


LEARN = pairs(
    "denseformer-gpt2", "attnres-llama", "delta-bert", "depth-read-nanogpt", "elc-bert", "dca-gpt_neox", "mudd-nanogpt"
)


@pytest.mark.parametrize(("method", "host"), LEARN)
def test_every_new_parameter_acts_and_learns(method, host, moved):
    model, new, inputs = moved
    assert not equal(model(**inputs), new(**inputs))
    parameters = new.new_parameters()
    for name, grad in zip(parameters, torch.autograd.grad(loss_of(new(**inputs)), parameters.values()), strict=True):
        assert grad.abs().max() > 0, name


@pytest.mark.parametrize(("method", "host"), LEARN)
def test_two_steps_from_the_start_reach_every_new_parameter(method, host, kept):
    """A zero in front of a parameter holds its gradient back for one step, and no longer."""
    _, new, inputs = kept
    parameters, reached = new.new_parameters(), set()
    for _ in range(2):
        grads = torch.autograd.grad(loss_of(new(**inputs)), parameters.values())
        with torch.no_grad():
            for (name, parameter), grad in zip(parameters.items(), grads, strict=True):
                parameter -= 1e-2 * grad / (grad.abs().max() + 1e-12)
                reached |= {name} if grad.abs().max() > 0 else set()
    assert reached == set(parameters)


@pytest.mark.every(3)
@pytest.mark.parametrize(("method", "host"), LEARN)
def test_twenty_steps_on_the_new_parameters_alone_lower_the_loss(method, host):
    torch.manual_seed(0)
    model = BY_NAME[host].make().double()
    inputs = BY_NAME[host].inputs(2, 6)
    inputs = {k: v.double() if torch.is_tensor(v) and v.is_floating_point() else v for k, v in inputs.items()}
    new = resfx.rewrite(model, METHODS[method], kwargs=inputs)
    optimizer = torch.optim.Adam(new.new_parameters().values(), lr=0.01)
    losses = []
    for _ in range(21):
        logits = tensors_of(new(**inputs))[0]
        target = torch.arange(logits[..., 0].numel()).view(logits.shape[:-1]) % logits.shape[-1]
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, -2), target.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0], losses


@pytest.mark.every(3)
@pytest.mark.parametrize(
    ("method", "host"), pairs("attnres-nanogpt", "mudd-nanogpt", "dca-nanogpt", "depth-read-nanogpt")
)
def test_compiled_it_computes_the_same(method, host, moved):
    _, new, inputs = moved
    torch._dynamo.reset()
    with torch.no_grad():
        want, got = (
            tensors_of(new(**inputs)),
            tensors_of(torch.compile(new, backend="aot_eager", fullgraph=True)(**inputs)),
        )
    for a, b in zip(want, got, strict=True):
        torch.testing.assert_close(b, a, rtol=1e-4, atol=1e-5)


def test_inductor_agrees():
    """One read over a list of sources, forward and backward."""
    torch._dynamo.reset()
    place = DepthPlace(width=16, context_width=16, kind="mlp", depth=1, dtype=torch.float32, device=torch.device("cpu"),
                       read=2, sources=3, last=False, outputs=1)  # fmt: skip
    read = resfx.AttnRes().build(place)
    torch.nn.init.normal_(read.query)
    sources = [torch.randn(2, 5, 16, requires_grad=True) for _ in range(3)]
    exact, doubles = copy.deepcopy(read).double(), [s.detach().double().requires_grad_() for s in sources]
    results = []
    for run, module, given in ((torch.compile(read, fullgraph=True), read, sources), (exact, exact, doubles)):
        out = run(given, given[-1])
        results.append([out, *torch.autograd.grad(out.square().sum(), [*given, *module.parameters()])])
    for got, want in zip(*results, strict=True):
        torch.testing.assert_close(got.double(), want, rtol=0, atol=3e-6 * float(want.detach().abs().max()))


@pytest.mark.parametrize(("method", "host"), pairs("mudd-gpt2", hosts=CAUSAL))
def test_generate_with_a_cache_is_generate_without(method, host, moved):
    """Reads see one token at a time: decoding in steps is prefill, also once the reads have learned."""
    _, new, _ = moved
    options = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 0}
    want = new.generate(tokens(2, 5), use_cache=False, **options)
    assert torch.equal(new.generate(tokens(2, 5), **options), want)


@pytest.mark.parametrize(("method", "host"), pairs("mudd-gpt2"))
def test_save_and_load(method, host, moved, tmp_path):
    model, new, inputs = moved
    resfx.save(new, tmp_path / "kept")
    again = resfx.load(tmp_path / "kept", model, kwargs=inputs)
    assert again._resfx.applications[0].method == METHODS[method]
    assert equal(new(**inputs), again(**inputs))


@pytest.mark.matrix
@pytest.mark.parametrize(("method", "host"), pairs("mudd-nanogpt"))
def test_onnx_runtime_agrees(method, host, moved, tmp_path):
    _, new, inputs = moved
    path = tmp_path / "model.onnx"
    resfx.export.to_onnx(new, path, kwargs=inputs)
    session = resfx.export.session(path)
    leaves = tensors_of(inputs)
    feeds = {i.name: t.numpy() for i, t in zip(session.get_inputs(), leaves, strict=True)}
    for a, b in zip(tensors_of(new(**inputs)), session.run(None, feeds), strict=False):
        torch.testing.assert_close(torch.from_numpy(b), a.detach(), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("method", METHODS)
def test_configs_are_plain_data(method):
    config = METHODS[method]
    data = json.loads(json.dumps(config.to_dict()))
    assert type(config)(**{k: v for k, v in data.items() if k != "method"}) == config
    assert resfx.methods.base.methods()[data["method"]] is type(config)
