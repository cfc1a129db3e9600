"""Models of one fused node, run by function body, kernel or reference evaluator."""

from __future__ import annotations

import onnx
import onnx_ir as ir
import onnxruntime
import torch

from resfx.export import session, verify
from resfx.export.operators import attach_bodies
from resfx.ops.record import operators


def run(path, feeds: dict[str, torch.Tensor], **options) -> list[torch.Tensor]:
    """Every output of a model; ``options`` are those of ``session``."""
    made, values = session(path, **options), {}
    for name, tensor in feeds.items():
        array = verify.to_numpy(tensor)
        kind = onnx.helper.np_dtype_to_tensor_dtype(array.dtype)
        values[name] = onnxruntime.OrtValue.ortvalue_from_numpy_with_onnx_type(array, kind)
    names = [o.name for o in made.get_outputs()]
    return [verify._from_runtime(v) for v in made.run_with_ort_values(names, values)]


def node(
    path, op: str, given: list[torch.Tensor | None], output: torch.dtype, builtin_for=lambda n: None, **attributes
) -> dict[str, torch.Tensor]:
    """Write a model of one fused node with its body attached; returns what to feed it with."""
    kind = lambda dtype: onnx.helper.np_dtype_to_tensor_dtype(verify.to_numpy(torch.empty(0, dtype=dtype)).dtype)
    feeds = {f"i{n}": t for n, t in enumerate(given) if t is not None}
    names = [f"i{n}" if t is not None else "" for n, t in enumerate(given)]
    # Sizes that operators leave open stay open, under one name each.
    shapes = {n: [s if d else "batch" for d, s in enumerate(t.shape)] for n, t in feeds.items()}
    values = [onnx.helper.make_tensor_value_info(n, kind(t.dtype), shapes[n]) for n, t in feeds.items()]
    out = onnx.helper.make_tensor_value_info("y", kind(output), None)
    made = onnx.helper.make_node(op, names, ["y"], domain="resfx", **attributes)
    imports = [onnx.helper.make_opsetid("", 23), onnx.helper.make_opsetid("resfx", 1)]
    graph = onnx.helper.make_graph([made], "one", values, [out])
    model = ir.from_proto(onnx.helper.make_model(graph, opset_imports=imports, ir_version=10))
    attach_bodies(model, operators(), 23, builtin_for)
    ir.save(model, path)
    return feeds


def delta_node(path, x, f, beta, v, mix=None, total=None, eps2=1e-3, add=True) -> dict[str, torch.Tensor]:
    kind = onnx.TensorProto.DOUBLE if x.dtype == torch.float64 else onnx.TensorProto.FLOAT
    given = [x, f, beta, v, mix, total]
    return node(path, "DeltaShortcut", given, x.dtype, eps2=eps2, add=int(add), stash_type=kind)


def delta_oracle(x, f, beta, v, mix, total, eps2: float, add: bool) -> torch.Tensor:
    """The paper's equation in float64, with the direction written out."""
    x, f, beta, v = (t.double() for t in (x, f, beta, v))
    k = f / (f.square().sum(-1, keepdim=True) + eps2).sqrt()
    update = beta * (v - (k * x).sum(-1, keepdim=True)) * k
    if mix is not None:
        update = mix.double() * (update - f)
    return (x if not add else x + f if total is None else total.double()) + update


WAYS = {
    "published": ((), False),
    "erase": ((), True),
    "interpolate": (("mix",), True),
    "scaled": (("mix", "total"), True),
    "scaled erase": (("total",), True),
}
DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]


def tolerance(dtype: torch.dtype, want: torch.Tensor) -> float:
    """Sums of 100 terms in float32; half types round the sum, the update and the result."""
    relative = {torch.float32: 2e-6, torch.float64: 1e-9}.get(dtype, 2 * torch.finfo(dtype).eps)
    return float(relative * want.abs().max())


def reference(path, feeds: dict[str, torch.Tensor]) -> list[torch.Tensor]:
    """Every output by the reference evaluator of ``onnx``."""
    made = verify.RUNNERS["reference"](str(path))
    return made([o.name for o in onnx.load(path).graph.output], feeds)


FLOAT = {torch.float32: onnx.TensorProto.FLOAT, torch.float64: onnx.TensorProto.DOUBLE}
