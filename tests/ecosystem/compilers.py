"""Compilers, exporters and tracers."""

from __future__ import annotations

import tempfile
import warnings
from pathlib import Path
from typing import Any

import torch

from .tool import IDS, LONGER, Make, hold_equal, hold_step, logits, step, tool


class Logits(torch.nn.Module):
    """A model of one argument and one result, for exporters."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.model(input_ids=ids, use_cache=False).logits


def _compiled(make: Make, run: Any, within: float = 1e-5) -> None:
    """A model that ``run`` compiles computes what it did: known and unknown calls, a training step."""
    torch._dynamo.reset()
    model, twin = make(), make()
    run(model)
    for ids in (IDS, LONGER, IDS):
        hold_equal(logits(twin, ids), logits(model, ids), within)
    hold_step(twin.train(), model.train())


@tool("torch.compile(fullgraph=True), the call of the rewrite", seconds=400)
def whole(make: Make) -> None:
    torch._dynamo.reset()
    model, twin = make(), make()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        for ids in (IDS, LONGER):
            hold_equal(twin(ids).logits, compiled(ids).logits, 1e-5)
    for one in (twin, compiled):
        one(IDS).logits.square().mean().backward()
    for name, parameter in twin.named_parameters():
        hold_equal(parameter.grad, model.get_parameter(name).grad, 1e-3, name)


@tool("torch.compile(fullgraph=True) of a call known in eager mode", seconds=400)
def whole_known(make: Make) -> None:
    torch._dynamo.reset()
    model, twin = make(), make()
    logits(model)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    for ids in (IDS, LONGER):
        hold_equal(logits(twin, ids), logits(compiled, ids), 1e-5)


@tool("torch.compile(fullgraph=True) as the very first call", seconds=400)
def first(make: Make) -> None:
    torch._dynamo.reset()
    model, twin = make.cold(), make()
    mask = torch.ones_like(LONGER)
    mask[0, :3] = 0
    with torch.no_grad():
        found = torch.compile(model, fullgraph=True, backend="aot_eager")(
            input_ids=LONGER, attention_mask=mask, use_cache=False
        ).logits
    hold_equal(logits(twin, LONGER, attention_mask=mask), found, 1e-5)


@tool("model.compile()", seconds=400)
def in_place(make: Make) -> None:
    _compiled(make, lambda m: m.compile(backend="aot_eager"))


@tool("layer.compile() of each block", seconds=400)
def blockwise(make: Make) -> None:
    _compiled(make, lambda m: [layer.compile(backend="aot_eager") for layer in m.model.layers])


@tool("model.layers[i] = torch.compile(layer)", seconds=400)
def wrapped(make: Make) -> None:
    def run(model: Any) -> None:
        for i, layer in enumerate(model.model.layers):
            model.model.layers[i] = torch.compile(layer, backend="aot_eager")

    torch._dynamo.reset()
    model, twin = make(), make()
    run(model)
    for ids in (IDS, LONGER, IDS):
        hold_equal(logits(twin, ids), logits(model, ids), 1e-5)


@tool("torch.compile with hooks and adapters in place", needs="peft", seconds=400)
def with_adapters(make: Make) -> None:
    import peft

    def change(model: Any) -> Any:
        torch.manual_seed(5)
        peft.inject_adapter_in_model(
            peft.LoraConfig(r=4, target_modules=["q_proj", "down_proj"], init_lora_weights=False), model
        )
        model.model.layers[0].register_forward_hook(lambda m, a, out: out * 1.5)
        return model

    torch._dynamo.reset()
    model, twin = change(make()), change(make())
    compiled = torch.compile(model, backend="aot_eager")
    for ids in (IDS, LONGER):
        hold_equal(logits(twin, ids), logits(compiled, ids), 1e-5)


def _exported(make: Make, strict: bool) -> None:
    """A program of open sizes, made by the first call of its kind, computes what the model does."""
    from torch.export import Dim, export

    torch._dynamo.reset()
    model, ids = make.cold(), torch.cat([LONGER, LONGER])[:5, :11].contiguous()
    open_sizes = {"input_ids": (Dim.AUTO, Dim.AUTO), "use_cache": None}
    program = export(model, (), {"input_ids": ids, "use_cache": False}, strict=strict, dynamic_shapes=open_sizes)
    for other in (IDS, ids):
        with torch.no_grad():
            hold_equal(logits(model, other), program.module()(input_ids=other, use_cache=False).logits, 1e-5)


@tool("torch.export.export of a call not seen before, open sizes", seconds=300)
def exported(make: Make) -> None:
    _exported(make, strict=False)


@tool("torch.export.export of a call not seen before, strict=True", seconds=300)
def exported_strict(make: Make) -> None:
    _exported(make, strict=True)


@tool("torch.export saved, loaded, decomposed", seconds=300)
def export_saved(make: Make) -> None:
    model = make()
    program = torch.export.export(model, (), {"input_ids": LONGER, "use_cache": False}, strict=False)
    with tempfile.TemporaryDirectory() as folder:
        torch.export.save(program, Path(folder) / "model.pt2")
        loaded = torch.export.load(Path(folder) / "model.pt2")
    for one in (loaded, loaded.run_decompositions()):
        with torch.no_grad():
            hold_equal(logits(model, LONGER), one.module()(input_ids=LONGER, use_cache=False).logits, 1e-5)


@tool("AOTInductor: compiled, packaged, run", seconds=500)
def aoti(make: Make) -> None:
    model = make.cold()
    with torch.no_grad(), tempfile.TemporaryDirectory() as folder:
        program = torch.export.export(Logits(model).eval(), (LONGER,), strict=False)
        path = torch._inductor.aoti_compile_and_package(program, package_path=f"{folder}/model.pt2")
        hold_equal(logits(model, LONGER), torch._inductor.aoti_load_package(path)(LONGER), 1e-5)


@tool("torch.jit.trace")
def jit(make: Make) -> None:
    model = make()
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        for ids in (IDS, LONGER):
            traced = torch.jit.trace(Logits(model), (ids,))
            hold_equal(logits(model, ids), traced(ids), 1e-6)


@tool("make_fx of a call")
def fx(make: Make) -> None:
    from torch.fx.experimental.proxy_tensor import make_fx

    model = make()
    with torch.no_grad():
        for ids in (IDS, LONGER):
            embed = model.model.embed_tokens(ids)
            run = lambda e: model(inputs_embeds=e, use_cache=False).logits
            hold_equal(run(embed), make_fx(run)(embed)(embed), 1e-5)


@tool("torch.onnx.export(dynamo=True), run in ONNX Runtime", needs="onnx onnxscript onnxruntime", seconds=400)
def onnx(make: Make) -> None:
    import onnxruntime

    model = make()
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        torch.onnx.export(Logits(model).eval(), (LONGER,), f"{folder}/model.onnx", dynamo=True, verbose=False)
        session = onnxruntime.InferenceSession(f"{folder}/model.onnx", providers=["CPUExecutionProvider"])
        (found,) = session.run(None, {session.get_inputs()[0].name: LONGER.numpy()})
    hold_equal(logits(model, LONGER), torch.from_numpy(found), 1e-5)


@tool("compiled autograd", seconds=400)
def compiled_autograd(make: Make) -> None:
    torch._dynamo.reset()
    model, twin = make().train(), make().train()
    want = step(twin)
    with torch._dynamo.compiled_autograd._enable(torch.compile(backend="aot_eager")):
        found = step(model)
    hold_equal(want[0], found[0], 1e-6)
    for name, grad in want[1].items():
        hold_equal(grad, found[1][name], 1e-3, name)


@tool("torch.cond around a call; a call inside a compiled function", seconds=300)
def inside(make: Make) -> None:
    torch._dynamo.reset()
    model = make()

    @torch.compile(backend="aot_eager")
    def doubled(ids: torch.Tensor) -> torch.Tensor:
        return model(input_ids=ids, use_cache=False).logits * 2

    with torch.no_grad():
        for ids in (IDS, LONGER):
            hold_equal(logits(make(), ids) * 2, doubled(ids), 1e-5)
