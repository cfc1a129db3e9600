"""What an operator is to the residual stream. One name per operator, whichever way the graph spells it.

``aten.add_.Tensor``, ``torch.add``, ``operator.iadd`` and ``x.add_()`` are all ``"add"`` here; an
``nn.Linear`` called as a module is ``"linear"``.
"""

from __future__ import annotations

import operator

from torch import fx, nn

from resfx._torch import ConvNd, NormBase, OpOverload, schema_of

PASS = frozenset(
    "view reshape _unsafe_view permute transpose swapaxes swapdims t contiguous clone to _to_copy type_as float half"
    " double bfloat16 alias detach dropout feature_dropout alpha_dropout squeeze unsqueeze flatten unflatten expand"
    " expand_as movedim moveaxis slice identity cpu cuda lift_fresh_copy lift_fresh type view_as reshape_as getitem"
    " dropout1d dropout2d dropout3d narrow unsqueeze_ squeeze_ _conj resolve_conj resolve_neg".split()
)
WEIGHTED = frozenset(
    "linear addmm conv1d conv2d conv3d convolution conv_transpose1d conv_transpose2d conv_transpose3d bilinear"
    " _grouped_mm grouped_mm embedding_bag lstm gru rnn_tanh rnn_relu multi_head_attention_forward"
    " addbmm baddbmm untraced".split()
)
CONV = frozenset("conv1d conv2d conv3d convolution conv_transpose1d conv_transpose2d conv_transpose3d".split())
MATMUL = frozenset("matmul mm bmm einsum mv dot chain_matmul tensordot".split())
NORM = frozenset(
    "layer_norm group_norm batch_norm instance_norm rms_norm native_layer_norm native_group_norm native_batch_norm"
    " cudnn_batch_norm _native_batch_norm_legit fused_rms_norm _fused_rms_norm local_response_norm".split()
)
POOL = frozenset(
    "avg_pool1d avg_pool2d avg_pool3d max_pool1d max_pool2d max_pool3d adaptive_avg_pool1d adaptive_avg_pool2d"
    " adaptive_max_pool2d max_pool2d_with_indices max_pool1d_with_indices fft_fft fft_rfft fft_rfft2 fft_fft2 fft_fftn"
    " fft_irfft2 fft_irfft fft_ifft lp_pool2d".split()
)
UPSAMPLE = frozenset(
    "upsample_nearest2d upsample_bilinear2d upsample_bicubic2d interpolate pixel_shuffle upsample upsample_nearest1d"
    " upsample_linear1d upsample_trilinear3d upsample_nearest3d _upsample_bilinear2d_aa".split()
)
SOFTMAX = frozenset("softmax _softmax".split())
ATTENTION = frozenset("scaled_dot_product_attention multi_head_attention_forward flex_attention".split())
ACTIVATION = frozenset(
    "relu gelu silu tanh sigmoid hardswish hardsigmoid hardtanh leaky_relu elu selu celu mish softplus relu6 glu"
    " prelu quick_gelu log_sigmoid softsign hardshrink swish erf exp clamp threshold rrelu swiglu".split()
)
REDUCE = frozenset("amax max mean".split())
PARTS = frozenset("split chunk unbind split_with_sizes tensor_split".split())
SLICES = frozenset("slice select narrow".split())
SCALE = frozenset("mul div truediv true_divide multiply divide neg".split())
RESAMPLE = frozenset("pad constant_pad_nd roll reflection_pad2d replication_pad2d".split())
# The shape of these follows an operand whose values do not matter.
SHAPE_ONLY = frozenset(
    "zeros_like ones_like empty_like full_like rand_like randn_like new_zeros new_ones new_empty new_full size sym_size"
    " dim numel shape getattr sym_numel sym_stride stride is_floating_point bernoulli_like".split()
)
FIRST_ONLY = frozenset("expand_as view_as type_as reshape_as to".split())

_SAME = {"iadd": "add", "imul": "mul", "isub": "sub", "itruediv": "div", "__add__": "add", "__iadd__": "add",
         "enter": "alias", "leave": "alias", "keep": "alias"}  # fmt: skip
_MODULES: dict[type, str] = {
    nn.Linear: "linear", nn.Identity: "identity", nn.Dropout: "dropout", nn.Dropout1d: "dropout",
    nn.Dropout2d: "dropout", nn.Dropout3d: "dropout", nn.Flatten: "flatten", nn.MultiheadAttention:
    "multi_head_attention_forward", nn.Embedding: "embedding", nn.LayerNorm: "layer_norm", nn.RMSNorm: "rms_norm",
    nn.GroupNorm: "group_norm", nn.LSTM: "lstm", nn.GRU: "gru", nn.Upsample: "upsample", nn.PixelShuffle:
    "pixel_shuffle",
}  # fmt: skip


def is_inplace(node: fx.Node) -> bool:
    """Whether the operator writes its result over its first operand."""
    target = node.target
    if isinstance(target, OpOverload):
        base = schema_of(target).name
        return base.endswith("_") and not base.endswith("__")
    if node.op == "call_method":
        return str(target).endswith("_") and not str(target).endswith("__")
    return target in (operator.iadd, operator.imul, operator.isub, operator.itruediv)


def operator_name(node: fx.Node, root: nn.Module | None = None) -> str:
    """The one name of a node's operator; ``""`` for inputs, parameters and the output."""
    target = node.target
    if node.op == "call_function":
        if isinstance(target, OpOverload):
            name = schema_of(target).name.split("::")[-1]
        else:
            name = getattr(target, "__name__", str(target))
    elif node.op == "call_method":
        name = str(target)
    elif node.op == "call_module":
        return _module_name(node, root)
    else:
        return ""
    name = _SAME.get(name, name)
    return name if name.startswith("__") else (name[:-1] if name.endswith("_") else name)


def _module_name(node: fx.Node, root: nn.Module | None) -> str:
    if root is None:
        return "module"
    module = root.get_submodule(str(node.target))
    for cls in type(module).__mro__:
        if cls in _MODULES:
            return _MODULES[cls]
    name = type(module).__name__.lower()
    if isinstance(module, ConvNd):
        return "convolution"
    if isinstance(module, NormBase):
        return "batch_norm"
    if "pool" in name:
        return "avg_pool2d"
    if name in ACTIVATION:
        return name
    return "weighted_module" if any(True for _ in module.parameters()) else "module"
