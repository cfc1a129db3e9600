"""Models as people write them by hand: every form of shortcut, and sums that are no shortcuts.

``MODELS`` maps a name to a function that returns a model and the keyword arguments of one call; ``TABLE`` says how
many residual adds each has, from the classes in ``plain_*.py``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from .inputs import noise, tokens
from .plain_conv import (
    AveragedBlock,
    BasicBlock,
    Bottleneck,
    DenseNet,
    Group,
    PreActBlock,
    Pyramid,
    Stem,
    Temporal,
    UNet,
    WaveNet,
    conv,
)
from .plain_layers import (
    Adapted,
    D,
    Decomposed,
    ExpertLayer,
    Injected,
    Joined,
    Layer,
    MacaronLayer,
    PooledQueries,
    Rotary,
    ScanLayer,
    Stack,
)
from .plain_nets import (
    ClassToken,
    Conditioned,
    Gated,
    KindStack,
    Latents,
    LowRank,
    Reversible,
    TorchTransformer,
    WindowNet,
)
from .plain_streams import (
    Denoiser,
    GlobalTokens,
    NonLocalBlock,
    Place,
    Pooled,
    Quantiser,
    Searched,
    SetTransformer,
    TwoWay,
)

MODELS: dict[str, Callable[[], tuple[nn.Module, dict[str, Any]]]] = {}


def _add(name: str, make: Callable[[], nn.Module], **call: Any) -> None:
    def build() -> tuple[nn.Module, dict[str, Any]]:
        torch.manual_seed(0)
        return make().eval(), call

    MODELS[name] = build


_image, _ids = {"x": noise(2, 3, 32, 32)}, {"ids": tokens(2, 8)}
_add("ResNet", lambda: Stem(BasicBlock(16, 16), BasicBlock(16, 32, 2), BasicBlock(32, 64, 2)), **_image)
_add("SEResNeXt", lambda: Stem(Bottleneck(16, 32, 1, 4), Bottleneck(32, 32), Bottleneck(32, 64, 2)), **_image)
_add("PreActResNet", lambda: Stem(PreActBlock(16, 16), PreActBlock(16, 64, 2), PreActBlock(64, 64)), **_image)
_add("OptionAResNet", lambda: Stem(PreActBlock(16, 16), AveragedBlock(16, 64)), **_image)
_add("DenseNet", DenseNet, **_image)
_add("UNetCat", lambda: UNet("cat"), **_image)
_add("UNetAdd", lambda: UNet("add"), **_image)
_add("FeaturePyramid", Pyramid, **_image)
_add("ResidualInResidual", lambda: nn.Sequential(conv(3, 16), Group(1)), input=noise(1, 3, 12, 12))
_add("ShiftedWindows", WindowNet, image=noise(2, 3, 32, 32))
_add("ClassToken", ClassToken, image=noise(2, 3, 32, 32))
for _style in ("pre", "post", "parallel", "joint", "rezero", "deepnorm", "multiplier", "float32", "bias"):
    _add(f"Transformer-{_style}", lambda s=_style: Stack(Layer(s), Layer(s)), **_ids)
_add("SharedLayers", lambda: Stack(Layer(), Layer(), twice=True), **_ids)
_add("MixtureOfExperts", lambda: Stack(ExpertLayer(), ExpertLayer()), **_ids)
_add("Conformer", lambda: Stack(MacaronLayer(), MacaronLayer()), **_ids)
_add("StateSpace", lambda: Stack(ScanLayer(), ScanLayer()), ids=tokens(2, 4))
_add("Adapters", lambda: Stack(Adapted(), Adapted()), **_ids)
_add("Rotary", lambda: Stack(Rotary(), Rotary()), **_ids)
_add("DiffusionTransformer", Conditioned, x=noise(2, 6, D), t=noise(2, D // 2))
_add("GatedCells", Gated, x=noise(3, D), state=noise(3, D))
_add("TemporalConv", lambda: nn.Sequential(Temporal(4, 8, 1), Temporal(8, 8, 2)), input=noise(2, 4, 20))
_add("WaveNet", WaveNet, x=noise(2, 8, 20))
_add("LatentQueries", Latents, x=noise(2, 6, D))
_add("LowRankGelu", LowRank, x=noise(2, 6, D))
_add("Reversible", lambda: Reversible(False), x=noise(2, 4, D))
_add("ReversibleHalves", lambda: Reversible(True), x=noise(2, 4, D))
_add("TwoKinds", KindStack, x=noise(2, 4, D), kind=noise(2, 4) > 0)
_add("Injected", lambda: Stack(Injected(), Injected()), **_ids)
_add("Joined", lambda: Stack(Joined(), Joined()), **_ids)
_add("Decomposed", lambda: Stack(Decomposed(), Decomposed()), **_ids)
_add("PooledQueries", lambda: Stack(PooledQueries(), PooledQueries(True)), **_ids)
_add("TorchTransformerPre", lambda: TorchTransformer(True), src=noise(2, 6, D), tgt=noise(2, 5, D))
_add("TorchTransformerPost", lambda: TorchTransformer(False), src=noise(2, 6, D), tgt=noise(2, 5, D))
_add("NonLocal", lambda: Stem(NonLocalBlock(16, 16), NonLocalBlock(16, 64, 2)), **_image)
_add("SetTransformer", SetTransformer, x=noise(2, 6, D))
_add("AttentionPool", Pooled, x=noise(2, 6, D))
_add("GlobalTokens", GlobalTokens, x=noise(2, 6, D))
_add("TwoWay", TwoWay, x=noise(2, 6, D), prompt=noise(2, 3, D))
_add("ScaledPositions", lambda: nn.Sequential(Place(), Place()), input=noise(2, 6, D))
_add("Quantiser", Quantiser, x=noise(2, 6, D))
_add("SearchedCells", Searched, x=noise(2, 3, 16, 16))
_add("Denoiser", Denoiser, x=noise(2, 3, 16, 16))

TABLE = """
ResNet | BasicBlock[downsample] projection; BasicBlock[!downsample] 1 | 3
SEResNeXt | Bottleneck[downsample] projection; Bottleneck[!downsample] 1 | 2
PreActResNet | PreActBlock[shortcut] projection; PreActBlock[!shortcut] 1 | 2
OptionAResNet | PreActBlock 1; AveragedBlock resampled | 2
DenseNet | none | 0
UNetCat | BasicBlock[downsample] projection; BasicBlock[!downsample] 1 | 1
UNetAdd | BasicBlock[downsample] projection; BasicBlock[!downsample] 1; UNet 1 | 2
FeaturePyramid | BasicBlock[downsample] projection; BasicBlock[!downsample] 1 | 2
ResidualInResidual | Group 1 | 1
ShiftedWindows | Windows 2 | 2
ClassToken | Layer 2
Transformer-pre | Layer 2
Transformer-post | Layer 2
Transformer-parallel | Layer identity parallel
Transformer-joint | Layer 1
Transformer-rezero | Layer 2
Transformer-deepnorm | Layer scaled scaled
Transformer-multiplier | Layer 2
Transformer-float32 | Layer 2
Transformer-bias | Layer 2
SharedLayers | Layer*2 2
MixtureOfExperts | ExpertLayer 2
Conformer | MacaronLayer 4
StateSpace | ScanLayer 1
Adapters | Adapted 4 | ?
Rotary | Rotary 2
DiffusionTransformer | Layer 2
GatedCells | none | 0
TemporalConv | Temporal[downsample] projection; Temporal[!downsample] 1
WaveNet | WaveNet*3 1
LatentQueries | Latents 3
LowRankGelu | none | 0
Reversible | Coupling 2 | 2
ReversibleHalves | Coupling 2 | 2
TwoKinds | TwoKinds 3 | 6
Injected | Injected 2
Joined | Joined identity scaled | ?
Decomposed | Decomposed 2 | ?
PooledQueries | PooledQueries[shortcut] projection identity; PooledQueries[!shortcut] 2 | ?
TorchTransformerPre | TransformerEncoderLayer 2; TransformerDecoderLayer 3 | 2
TorchTransformerPost | TransformerEncoderLayer 2; TransformerDecoderLayer 3 | 2
NonLocal | NonLocal 1; NonLocalBlock[shortcut] projection; NonLocalBlock[!shortcut] 1 | ?
SetTransformer | SetAttention 2 | ?
AttentionPool | Pooled 1
GlobalTokens | GlobalLayer 4 | 2
TwoWay | TwoWayLayer 4 | 2
ScaledPositions | Place 1
Quantiser | Quantiser 2 | ?
SearchedCells | none | 0
Denoiser | Denoiser 1
"""
