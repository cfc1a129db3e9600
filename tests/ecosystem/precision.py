"""Number types: mixed precision, models moved after the rewrite, quantised weights."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from .tool import IDS, LONGER, Make, hold_equal, hold_step, logits, step, tool


def _moved(make: Make, move: Any, within: float = 0.0) -> None:
    """What is moved after the rewrite computes as what was moved before it, and as a plain model at the start."""
    plain, start, late = make.plain(), make.start(), make()
    before = logits(late)
    early = make.changed_before(move)
    for model in (plain, start, late):
        move(model)
    for ids in (IDS, LONGER):
        hold_equal(logits(plain, ids), logits(start, ids), within, "the plain model's results")
        hold_equal(logits(early, ids), logits(late, ids), within, "results of a model moved before")
    assert logits(late).dtype == logits(plain).dtype
    assert not torch.equal(before, logits(late).float())
    hold_step(plain.train(), start.train(), within=0.02)


@tool("model.to(bfloat16), .half() after the rewrite")
def moved(make: Make) -> None:
    _moved(make, lambda m: m.to(torch.bfloat16))
    _moved(make, lambda m: m.half())


@tool("model.double() after the rewrite")
def doubled(make: Make) -> None:
    late, before = make().double(), logits(make())
    assert logits(late).dtype == torch.float64
    hold_equal(before, logits(late), 1e-5)
    hold_equal(logits(make.plain().double()), logits(make.start().double()), 1e-13)


@tool("moved to bfloat16 and back, between calls of both")
def there_and_back(make: Make) -> None:
    model = make()
    low = logits(model.bfloat16())
    once = logits(model.float())
    hold_equal(low, logits(model.bfloat16()))
    hold_equal(once, logits(model.float()))


@tool("bfloat16 with the norms left in float32")
def mixed(make: Make) -> None:
    def move(model: Any) -> None:
        model.bfloat16()
        for name, part in model.named_modules():
            if "norm" in name and not name.startswith("resfx"):
                part.float()

    plain, start = make.plain(), make.start()
    move(plain)
    move(start)
    for ids in (IDS, LONGER):
        hold_equal(logits(plain, ids), logits(start, ids))


@tool("autocast around calls, switched on and off")
def autocast(make: Make) -> None:
    for on in (True, False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=on):
            for ids in (IDS, LONGER):
                hold_equal(logits(make.plain(), ids), logits(make.start(), ids))
    model = make()
    full = logits(model)
    with torch.autocast("cpu", torch.bfloat16):
        low = logits(model)
    hold_equal(full, low, 0.05, "autocast")
    assert not torch.equal(full, low.float())
    hold_equal(full, logits(model))
    plain, start = make.plain().train(), make.start().train()
    with torch.autocast("cpu", torch.bfloat16):
        losses = [m(input_ids=IDS, labels=IDS).loss for m in (plain, start)]
    for loss in losses:
        loss.backward()
    hold_equal(*losses)


@tool("load_state_dict(assign=True), of another type too")
def assigned(make: Make) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        plain, start, moved, twin = make.plain(), make.start(), make(), make()
        for model in (plain, start, moved):
            model.load_state_dict({k: v.to(dtype).clone() for k, v in model.state_dict().items()}, assign=True)
        for parameter in twin.parameters():
            parameter.data = parameter.data.to(dtype)
        for ids in (IDS, LONGER):
            hold_equal(logits(plain, ids), logits(start, ids))
            hold_equal(logits(twin, ids), logits(moved, ids))
        hold_step(plain.train(), start.train(), within=0.02)


@tool("weights assigned to a model on meta")
def from_meta(make: Make) -> None:
    want, model = make(), make(0.0)
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    model.to("meta").load_state_dict({k: v.clone() for k, v in want.state_dict().items()}, assign=True)
    for name, buffer in buffers.items():
        owner, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(owner), leaf, buffer)
    for ids in (IDS, LONGER):
        hold_equal(logits(want, ids), logits(model, ids))
    hold_step(want.train(), model.train())


@tool("accelerate: mixed precision bf16", needs="accelerate")
def accelerate_bf16(make: Make) -> None:
    import accelerate

    found = []
    for model in (make.plain(), make.start()):
        accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)  # one of a process, whoever made it
        accelerator = accelerate.Accelerator(cpu=True, mixed_precision="bf16")
        prepared, optimizer = accelerator.prepare(model.train(), torch.optim.AdamW(model.parameters(), lr=1e-2))
        losses = []
        for _ in range(3):
            with accelerator.accumulate(prepared):
                loss = prepared(input_ids=IDS, labels=IDS).loss
                accelerator.backward(loss)
                accelerator.clip_grad_norm_(prepared.parameters(), 1.0)
                optimizer.step()
                optimizer.zero_grad()
            losses.append(loss.detach())
        found.append(losses[0])
        assert losses[-1] < losses[0], "the loss does not fall"
        unwrapped = accelerator.unwrap_model(prepared)
        assert unwrapped is model
        accelerator.free_memory()
    accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)
    hold_equal(*found)


def _torchao(make: Make, config: Any, low: float = 0.2) -> None:
    from torchao.quantization import quantize_

    linear = lambda module, name: isinstance(module, nn.Linear) and not name.startswith("resfx")
    plain, start, late = make.plain(), make.start(), make()
    before = logits(late)
    for model in (plain, start, late):
        quantize_(model, config(), linear)
    for ids in (IDS, LONGER):
        hold_equal(logits(plain, ids), logits(start, ids), 1e-5)
    hold_equal(before, logits(late), low, "quantised")
    assert not torch.equal(before, logits(late))
    everything = make()
    quantize_(everything, config())
    hold_equal(before, logits(everything), low, "new layers quantised too")


@tool("torchao: int8 weights", needs="torchao")
def torchao_weight(make: Make) -> None:
    from torchao.quantization import Int8WeightOnlyConfig

    _torchao(make, Int8WeightOnlyConfig)


@tool("torchao: int8 weights and activations", needs="torchao")
def torchao_dynamic(make: Make) -> None:
    from torchao.quantization import Int8DynamicActivationInt8WeightConfig

    _torchao(make, Int8DynamicActivationInt8WeightConfig, 0.3)


@tool("torchao: a rewrite of a model that is quantised already", needs="torchao")
def torchao_before(make: Make) -> None:
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    plain = make.plain()
    quantize_(plain, Int8WeightOnlyConfig())

    def change(model: Any) -> None:
        quantize_(model, Int8WeightOnlyConfig(), lambda m, n: isinstance(m, nn.Linear) and not n.startswith("resfx"))

    early, late = make.changed_before(change), make()
    change(late)
    for ids in (IDS, LONGER):
        hold_equal(logits(early, ids), logits(late, ids), 1e-5)


@tool("torch.ao.quantization.quantize_dynamic of linear layers")
def dynamic(make: Make) -> None:
    late = make()
    before = logits(late)
    kinds = {n for n, m in late.named_modules() if isinstance(m, nn.Linear) and not n.startswith("resfx")}
    found = []
    for model in (make.plain(), make.start()):
        found.append(torch.ao.quantization.quantize_dynamic(model, kinds, torch.qint8))
    for ids in (IDS, LONGER):
        hold_equal(logits(found[0], ids), logits(found[1], ids))
    hold_equal(before, logits(torch.ao.quantization.quantize_dynamic(late, kinds, torch.qint8)), 0.3)


@tool("torch.set_default_dtype, set_float32_matmul_precision, deterministic algorithms")
def switches(make: Make) -> None:
    model, plain, start = make(), make.plain(), make.cold(0.0)
    before = logits(model)
    try:
        torch.set_default_dtype(torch.float64)
        for ids in (IDS, LONGER):
            hold_equal(logits(plain, ids), logits(start, ids))
        torch.set_float32_matmul_precision("medium")
        for ids in (IDS, LONGER):
            hold_equal(logits(plain, ids), logits(start, ids))
    finally:
        torch.set_default_dtype(torch.float32)
        torch.set_float32_matmul_precision("highest")
    torch.use_deterministic_algorithms(True)
    try:
        hold_equal(before, logits(model))
        step(model.train())
    finally:
        torch.use_deterministic_algorithms(False)
