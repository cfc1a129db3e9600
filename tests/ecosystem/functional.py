"""``torch.func``: models as functions, examples one by one, ensembles; and instruments that watch operators."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import func

from .tool import IDS, LONGER, Make, hold_equal, hold_step, logits, step, tool


@tool("torch.func.functional_call")
def functional(make: Make) -> None:
    model, other = make(0.3), make(0.0)
    state = {k: v.detach().clone() for k, v in model.state_dict().items()}
    for ids in (IDS, LONGER):
        with torch.no_grad():
            found = func.functional_call(other, state, (), {"input_ids": ids, "use_cache": False}).logits
        hold_equal(logits(model, ids), found)


def _loss(model: Any, state: Any, ids: torch.Tensor) -> torch.Tensor:
    ids = ids[None]
    return func.functional_call(model, state, (), {"input_ids": ids, "labels": ids, "use_cache": False}).loss


@tool("per-example gradients: vmap of grad, in a call not seen before")
def per_example(make: Make) -> None:
    model = make.cold()
    state = dict(model.named_parameters())
    grads = func.vmap(func.grad(lambda s, i: _loss(model, s, i)), in_dims=(None, 0))(state, LONGER)
    for row in range(len(LONGER)):
        _, want = step(model, LONGER[row : row + 1])
        scale = max(float(g.abs().max()) for g in want.values())
        for name, grad in want.items():
            assert float((grads[name][row] - grad).abs().max()) <= 1e-5 * scale, name


@tool("torch.func.vmap over examples of a call not seen before")
def mapped(make: Make) -> None:
    model = make.cold()
    with torch.no_grad():
        found = func.vmap(lambda i: model(input_ids=i[None], use_cache=False).logits[0])(LONGER)
    hold_equal(logits(model, LONGER), found, 1e-5)


@tool("ensembles: stack_module_state and vmap")
def ensemble(make: Make) -> None:
    models = [make(std) for std in (0.05, 0.1, 0.2)]
    with torch.no_grad():
        for i, model in enumerate(models):
            model.lm_head.weight.mul_(1 + i)
    params, buffers = func.stack_module_state(models)
    base = make()

    def call(state: Any, ids: torch.Tensor) -> torch.Tensor:
        return func.functional_call(base, state, (), {"input_ids": ids, "use_cache": False}).logits

    with torch.no_grad():
        found = func.vmap(call, in_dims=(0, None))((params, buffers), IDS)
    hold_equal([logits(m) for m in models], list(found), 1e-5)


@tool("forward-mode: torch.func.jvp; torch.func.jacrev")
def forward_mode(make: Make) -> None:
    model = make(host="llama, eager attention")
    embed = model.model.embed_tokens(IDS).detach()
    run = lambda e: model(inputs_embeds=e, use_cache=False).logits[:, -1, :3]
    out, tangent = func.jvp(run, (embed,), (torch.ones_like(embed),))
    jacobian = func.jacrev(run)(embed)
    hold_equal(out, run(embed), 1e-5)
    hold_equal(jacobian.flatten(2).sum(-1), tangent, 1e-4)


@tool("second derivatives: grad of grad")
def second(make: Make) -> None:
    found = []
    for model in (make.plain("llama, eager attention"), make.start("llama, eager attention")):
        loss = model(input_ids=IDS, labels=IDS, use_cache=False).loss
        weight = model.model.layers[0].mlp.down_proj.weight
        (grad,) = torch.autograd.grad(loss, weight, create_graph=True)
        (again,) = torch.autograd.grad(grad.square().sum(), weight)
        found.append(again)
    hold_equal(*found, within=1e-4)
    model = make(host="llama, eager attention")
    loss = model(input_ids=IDS, labels=IDS, use_cache=False).loss
    grads = torch.autograd.grad(loss, list(model.parameters()), create_graph=True)
    sum(g.square().sum() for g in grads).backward()


@tool("flop counter")
def flops(make: Make) -> None:
    from torch.utils.flop_counter import FlopCounterMode

    counts = []
    for model in (make.plain(), make.start()):
        with FlopCounterMode(display=False) as counter:
            logits(model, LONGER)
        counts.append(counter.get_total_flops())
        assert "LlamaForCausalLM.model.layers.0.mlp" in counter.get_flop_counts(), "modules are not told apart"
    plain, new = counts
    assert new >= plain > 0, f"{new} flops, of which the plain model has {plain}"


@tool("profiler, with modules and shapes")
def profiled(make: Make) -> None:
    from torch.profiler import profile, record_function

    model = make()
    with profile(record_shapes=True, with_modules=True) as found, record_function("step"):
        step(model.train(), LONGER)
    names = {e.key for e in found.key_averages()}
    assert {"step", "aten::linear"} <= names or {"step", "aten::mm"} <= names


@tool("torch.autograd.detect_anomaly, saved_tensors_hooks, save_on_cpu")
def anomaly(make: Make) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with torch.autograd.detect_anomaly():
            step(make().train(), LONGER)
    packed: list[int] = []
    model, twin = make().train(), make().train()
    want = step(twin)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: packed.append(1) or t.clone(), lambda t: t):
        found = step(model)
    hold_equal(want[0], found[0])
    assert packed
    with torch.autograd.graph.save_on_cpu():
        hold_step(make().train(), model)


@tool("a dispatch mode that sees every operator")
def dispatched(make: Make) -> None:
    from torch.utils._python_dispatch import TorchDispatchMode

    class Count(TorchDispatchMode):
        def __init__(self) -> None:
            super().__init__()
            self.seen: list[str] = []

        def __torch_dispatch__(self, fn: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            self.seen.append(str(fn))
            return fn(*args, **(kwargs or {}))

    model, fresh = make(), make.cold()
    want = logits(model)
    with Count() as count:
        hold_equal(want, logits(model), 1e-6)  # formulas without gradients are shorter where nobody looks on
    assert count.seen
    with Count():
        found = logits(fresh, LONGER)
    hold_equal(logits(fresh, LONGER), found, 1e-6, "a first call under a mode")


@tool("FakeTensorMode: shapes without computing, known and unknown calls")
def fake(make: Make) -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    model = make.cold()
    for ids in (IDS, LONGER):
        with FakeTensorMode(allow_non_fake_inputs=True) as mode:
            out = model(input_ids=mode.from_tensor(ids), use_cache=False).logits
        assert out.shape == (*ids.shape, 64)
        hold_equal(logits(model, ids), logits(make(), ids), what="after a call of no data")
