"""Fused operators by kernels that ONNX Runtime has itself: bodies for ``profile="ort-cuda"``.

A node keeps its name; where a built-in kernel does its work on CUDA in the node's type, its body calls that kernel, in
the domain ``com.microsoft``, else it has the standard body. Since when a kernel is there, and for which types, is from
the runtime's own tables (1.31).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from resfx.errors import ExportError, require

DOMAIN = "com.microsoft"
_ALL = ("FLOAT", "FLOAT16", "BFLOAT16")
Static = Mapping[str, int]


@dataclass(frozen=True)
class Builtin:
    """One built-in kernel in the place of a fused operator.

    Attributes:
        name: of its node.
        since: the first release of ONNX Runtime that has it as used here, ``(major, minor)``.
        cuda, cpu: types that the CUDA and the CPU provider have it for.
        fits: what the body needs to know of a node's shapes; ``None`` where the kernel does not do what the node does.
        body: as of :class:`resfx.export.operators.FusedOperator`, with what ``fits`` gave as keywords.
    """

    name: str
    since: tuple[int, int]
    cuda: tuple[str, ...]
    cpu: tuple[str, ...]
    fits: Callable[[Any], Static | None]
    body: Callable[..., Any]


def choose(node: Any) -> tuple[Builtin, Static] | None:
    """The kernel for a fused node on CUDA, and what its body needs to know; ``None`` for the standard body.

    Raises:
        ExportError: if the installed ONNX Runtime is older than the kernel.
    """
    builtin = BUILTINS.get(node.op_type)
    kind = node.inputs[0].dtype
    if builtin is None or kind is None or kind.name not in builtin.cuda:
        return None
    static = builtin.fits(node)
    if static is None:
        return None
    here = installed()
    if here[:2] < builtin.since:
        raise ExportError(
            f"cannot lower {node.op_type} to {builtin.name} with profile='ort-cuda'",
            f"onnxruntime {'.'.join(map(str, here))} is installed, and {builtin.name} is there since"
            f" {'.'.join(map(str, builtin.since))}",
            "pip install -U onnxruntime-gpu, or profile='portable', whose bodies any release runs",
        )
    return builtin, static


def installed() -> tuple[int, ...]:
    """The release of ONNX Runtime."""
    version = require("onnxruntime", "onnx-gpu", "profile='ort-cuda'").__version__
    return tuple(int(part) for part in version.split("+")[0].split(".")[:3] if part.isdigit())


def runs_on_cpu(node: Any) -> bool:
    """Whether the CPU provider has the chosen kernel too, in the node's type."""
    return node.inputs[0].dtype.name in BUILTINS[node.op_type].cpu


def _always(node: Any) -> Static | None:
    return {}


def _combine(op: Any, state: Any, weights: Any, unit: Any, **settings: Any) -> Any:
    # What the weights sum to differs from `unit` by what was learned, and `unit` from one by rounding only.
    shape = op.Concat(op.Shape(state, start=0, end=-1), op.Shape(weights, start=-1), axis=0)
    return _call(op, "HyperConnectionPreMix", state, op.Expand(weights, shape))


def _ranked(node: Any) -> Static | None:
    matrix = node.inputs[3]
    return {"rank": 0} if matrix is None else None if matrix.shape is None else {"rank": len(matrix.shape)}


def _mix(op: Any, state: Any, f: Any, write: Any, matrix: Any, *, rank: int, **settings: Any) -> Any:
    if matrix is not None:
        matrix = op.Transpose(matrix, perm=[*range(rank - 2), rank - 1, rank - 2])
        leading = op.Shape(state, start=0, end=-2)
        matrix = op.Expand(matrix, op.Concat(leading, op.Shape(matrix, start=-2), axis=0))
    write = op.Expand(write, op.Shape(state, start=0, end=-1))
    return _call(op, "HyperConnectionPostMix", state, f, write, matrix)


def _several(node: Any) -> Static | None:
    return {} if node.attributes["kernel"].as_int() > 1 else None


def _convolution(
    op: Any, x: Any, weight: Any, bias: Any, base: Any, *, silu: bool, kernel: int, **settings: Any
) -> Any:
    number = lambda n: op.Constant(value_ints=[n])
    past = op.Slice(x, number(0), number(kernel - 1), number(1))
    here = op.Slice(x, number(kernel - 1), number(2**62), number(1))
    weight = op.Unsqueeze(op.CastLike(weight, x), number(1))
    bias = None if bias is None else op.CastLike(bias, x)
    activation = "silu" if silu else "none"
    mixed, _ = _call(
        op, "CausalConvWithState", here, weight, bias, past, channels_last=1, activation=activation, _outputs=2
    )
    return mixed if base is None else op.Add(base, mixed)


def _grouped(node: Any) -> Static | None:
    """Causal windows without a mask and with as many keys as queries."""
    q, k, v, mask = node.inputs
    settings = {name: node.attributes[name].as_int() for name in ("causal", "chunk")}
    if mask is not None or settings != {"causal": 1, "chunk": 0} or any(x.shape is None for x in (q, k, v)):
        return None
    heads, shared, width = q.shape[1], k.shape[1], q.shape[3]
    if q.shape[2] != k.shape[2] or v.shape[3] != width or not all(isinstance(n, int) for n in (heads, shared, width)):
        return None
    return {"heads": heads, "shared": shared, "width": width} if width % 8 == 0 else None


def _window(
    op: Any, q: Any, k: Any, v: Any, mask: Any, *, window: int, scale: Any, heads: int, shared: int, width: int,
    **settings: Any,
) -> Any:  # fmt: skip
    def rows(x: Any, count: int) -> Any:  # (batch, heads, T, width) to (batch, T, heads * width)
        shape = op.Constant(value_ints=[0, 0, count * width])
        return op.Reshape(op.Transpose(x, perm=[0, 2, 1, 3]), shape)

    size = op.Shape(q, start=2, end=3)
    last = op.Cast(op.Sub(size, op.Constant(value_ints=[1])), to=6)
    lengths = op.Expand(last, op.Shape(q, start=0, end=1))
    total = op.Squeeze(op.Cast(size, to=6))
    read = _call(
        op, "GroupQueryAttention", rows(q, heads), rows(k, shared), rows(v, shared), None, None, lengths, total,
        num_heads=heads, kv_num_heads=shared, local_window_size=window, scale=scale,
    )  # fmt: skip
    return op.Transpose(op.Reshape(read, op.Constant(value_ints=[0, 0, heads, width])), perm=[0, 2, 1, 3])


def _one_mix(node: Any) -> Static | None:
    mix = node.inputs[4]
    return {} if mix is None or (mix.shape is not None and len(mix.shape) == 0) else None


def _delta(op: Any, x: Any, f: Any, beta: Any, v: Any, mix: Any, total: Any, **settings: Any) -> Any:
    from resfx.ops.delta import onnx as delta_onnx  # needs onnx

    base, weight = delta_onnx.base_and_weight(op, x, f, beta, v, mix, total, **settings)
    return _call(op, "GatedAdd", base, f, op.CastLike(weight, f))


def _call(op: Any, name: str, *inputs: Any, **attributes: Any) -> Any:
    return getattr(op, name)(*inputs, _domain=DOMAIN, _version=1, **attributes)


BUILTINS = {
    "CombineChannels": Builtin("HyperConnectionPreMix", (1, 31), _ALL, _ALL, _always, _combine),
    "MixChannels": Builtin("HyperConnectionPostMix", (1, 31), _ALL, _ALL, _ranked, _mix),
    "ShortConvolution": Builtin("CausalConvWithState", (1, 31), _ALL, ("FLOAT",), _several, _convolution),
    "WindowedAttention": Builtin(
        "GroupQueryAttention", (1, 24), ("FLOAT16", "BFLOAT16"), ("FLOAT", "FLOAT16"), _grouped, _window
    ),
    "DeltaShortcut": Builtin("GatedAdd", (1, 29), _ALL, ("FLOAT", "FLOAT16"), _one_mix, _delta),
}
