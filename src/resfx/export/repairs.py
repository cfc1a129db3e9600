"""Mending what the exporter and its optimiser get wrong."""

from __future__ import annotations

from typing import Any

import torch

from resfx.errors import require


def expand_rotary_caches(model: Any) -> None:
    """Give every ``RotaryEmbedding`` a cosine and sine per row of the batch.

    The optimiser fuses rotary terms into this node whatever their batch is; models compute them once for the whole
    batch, the node broadcasts nothing, and the file fails when it runs.
    """
    ir = require("onnx_ir", "onnx", "ONNX export")
    for node in list(model.graph.all_nodes()):
        if node.domain == "" and node.op_type == "RotaryEmbedding" and (len(node.inputs) < 4 or node.inputs[3] is None):
            x = node.inputs[0]
            batch = x.shape[0] if x.shape is not None else None
            for i in (1, 2):
                cache = node.inputs[i]
                if batch is None or cache.shape is None or cache.shape[0] != batch:
                    node.replace_input_with(i, _expanded(ir, node, x, cache))


def _expanded(ir: Any, before: Any, x: Any, cache: Any) -> Any:
    """``cache (1, T, d)`` as ``(B, T, d)``, with ``B`` read from ``x``."""
    ones = ir.node("Constant", [], {"value_ints": [1, 1]})
    batch = ir.node("Shape", [x], {"start": 0, "end": 1})
    target = ir.node("Concat", [batch.outputs[0], ones.outputs[0]], {"axis": 0})
    expand = ir.node("Expand", [cache, target.outputs[0]])
    before.prepend([ones, batch, target, expand])
    expand.outputs[0].type = cache.type
    return expand.outputs[0]


def share_heads(program: torch.export.ExportedProgram) -> None:
    """Say that queries share a key head where attention only broadcasts it: the exporter has no other way."""
    attention = torch.ops.aten.scaled_dot_product_attention.default
    for node in program.graph_module.graph.find_nodes(op="call_function", target=attention):
        heads = [value.meta["val"].shape[-3] for value in node.args[:3]]
        if heads[0] != heads[1] == heads[2] == 1:
            node.kwargs = {**node.kwargs, "enable_gqa": True}


def drop_idle_squeezes(program: torch.export.ExportedProgram) -> None:
    """Let each squeeze of an axis longer than one hand on what it is given, as torch does: ONNX's own refuses."""
    for node in program.graph_module.graph.find_nodes(op="call_function", target=torch.ops.aten.squeeze.dim):
        x: Any = node.args[0]
        if node.meta["val"].dim() == x.meta["val"].dim():
            node.target, node.args = torch.ops.aten.alias.default, (x,)


def own_names(model: Any, prefix: str) -> None:
    """Give weights the names they have in the model, and leave out stack traces: they hold paths of this machine."""
    for name in list(model.graph.initializers):
        if name.startswith(prefix):
            model.graph.initializers[name].name = name.removeprefix(prefix)
    for node in model.graph.all_nodes():
        node.metadata_props.pop("pkg.torch.onnx.stack_trace", None)
