"""Mixers in real architectures: training, ``torch.compile``, ONNX, save and load, and what the traced graph holds."""

from __future__ import annotations

import pytest
import torch
from hosts import BY_NAME, Block
from hosts.made import randomise
from hosts.sequence import HOSTS, METHODS, acting, given, logits, made, pairs

import resfx
from resfx.export.trace import flatten_model, trace


@pytest.mark.parametrize("host, method", pairs(HOSTS, {("gpt2", "canon")}))
def test_training_lowers_the_loss_and_moves_every_new_parameter(host, method):
    new, inputs = acting(host, method, torch.float32)
    new.train()
    head = logits(new(**inputs))
    target = torch.randint(head.shape[-1], head.shape[:-1], generator=torch.Generator().manual_seed(0))
    optimiser = torch.optim.AdamW(new.new_parameters().values(), lr=0.03)
    before, losses = {n: p.detach().clone() for n, p in new.new_parameters().items()}, []
    for _ in range(15):
        torch.manual_seed(0)  # one dropout mask, so that the loss compares
        loss = torch.nn.functional.cross_entropy(logits(new(**inputs)).flatten(0, -2), target.flatten())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0] - 0.05
    for name, p in new.new_parameters().items():
        assert p.grad is not None and p.grad.abs().sum() > 0, name
        assert not torch.equal(p, before[name]), name


def gradients_agree(model, compiled, inputs, tolerance):
    got, want = logits(compiled(**inputs)), logits(model(**inputs))
    torch.testing.assert_close(got, want, atol=tolerance, rtol=tolerance)
    weight = torch.cos(torch.arange(want.numel(), dtype=want.dtype)).view_as(want)
    parameters = list(model.new_parameters().values())
    for x, y in zip(*(torch.autograd.grad((z * weight).sum(), parameters) for z in (got, want)), strict=True):
        torch.testing.assert_close(x, y, atol=10 * tolerance, rtol=10 * tolerance)


@pytest.mark.every(2)
@pytest.mark.parametrize("host, method", pairs(HOSTS, {("gpt2", "swa"), ("llama", "lean")}))
def test_compiles_whole(host, method):
    new, inputs = acting(host, method, torch.float32)
    torch._dynamo.reset()
    gradients_agree(new, torch.compile(new, backend="aot_eager", fullgraph=True), inputs, 1e-5)


@pytest.mark.parametrize("block, method", pairs(["block"], {("block", "conv")}))
def test_one_block_compiles_to_machine_code(block, method):
    torch.manual_seed(0)
    x = torch.randn(2, 9, 16)
    new = resfx.rewrite(Block(16, 2).eval(), METHODS[method], args=(x,))
    randomise(new, 0.3)
    torch._dynamo.reset()
    gradients_agree(new, torch.compile(new, backend="inductor", fullgraph=True), {"x": x}, 1e-5)


@pytest.mark.matrix
@pytest.mark.parametrize("host, method", pairs(HOSTS, ()))
def test_onnx_equals_torch(host, method, tmp_path):
    new, inputs = acting(host, method, torch.float32)
    resfx.export.to_onnx(new, tmp_path / "model.onnx", kwargs=inputs, check="onnxruntime")


@pytest.mark.parametrize("host, method", pairs(HOSTS, {("llama", "swa")}))
def test_save_and_load(host, method, tmp_path):
    new, inputs = acting(host, method)
    resfx.save(new, tmp_path / "m")
    again = resfx.load(tmp_path / "m", made(host, method)[0])
    assert torch.equal(logits(again(**inputs)), logits(new(**inputs)))


def grows_with_the_square(node, symbol) -> bool:
    """Whether a tensor of a traced graph has more than four times the elements at four times the length."""
    size = 1
    for axis in node.meta["val"].shape:
        size = size * (axis if isinstance(axis, int) else axis.node.expr)
    if isinstance(size, int):
        return False
    others = {s: 2 for s in size.free_symbols if s != symbol}
    short, long = (float(size.subs({**others, symbol: n})) for n in (1024, 4096))
    return long > 5 * short


@pytest.mark.matrix
@pytest.mark.parametrize("host, method", [
    pytest.param(h, m, marks=() if (h, m) == ("llama", "swa") else pytest.mark.matrix)
    for h in HOSTS if h != "vit" for m in METHODS  # an image keeps its size: its length is no symbol
])  # fmt: skip
def test_no_added_node_of_the_traced_graph_is_quadratic_in_the_length(host, method):
    inputs = given(host, length=11)
    new = resfx.rewrite(BY_NAME[host].make(), METHODS[method], kwargs=inputs, check=False)
    program = trace(flatten_model(new, None, inputs, fused=False), True, fused=False)
    nodes = [n for n in program.graph.nodes if isinstance(n.meta.get("val"), torch.Tensor)]
    lengths = {n.meta["val"].shape[1].node.expr for n in nodes if n.op == "placeholder" and n.name.startswith("leaves")}
    assert len(lengths) == (2 if host == "t5" else 1)
    added = [n for n in nodes if any("tree.resfx." in key for key in n.meta.get("nn_module_stack") or {})]
    hosts = [n for n in nodes if n not in set(added)]
    for length in lengths:
        assert sum(length in n.meta["val"].shape[1].node.expr.free_symbols for n in added
                   if n.meta["val"].dim() > 1 and not isinstance(n.meta["val"].shape[1], int)) > 10  # fmt: skip
        assert [n.name for n in added if grows_with_the_square(n, length)] == []
        assert any(grows_with_the_square(n, length) for n in hosts), "the host's own attention has such tensors"


def test_no_tensor_of_an_eager_window_is_quadratic_in_the_length():
    mixer = made("llama", "swa", torch.float32)[1].get_submodule("resfx.short_swa.model.layers.0.swa_0")

    class Watch(torch.overrides.TorchFunctionMode):
        largest = 0

        def __torch_function__(self, f, types, args=(), kwargs=None):
            out = f(*args, **(kwargs or {}))
            tensors = [t for t in (out if isinstance(out, tuple) else (out,)) if isinstance(t, torch.Tensor)]
            self.largest = max([self.largest, *(t.numel() for t in tensors)])
            return out

    found = []
    for length in (512, 2048):
        with Watch() as watch, torch.no_grad():
            mixer(torch.randn(1, length, 32))
        found.append(watch.largest)
    assert found[1] <= 4 * found[0] + 4096
