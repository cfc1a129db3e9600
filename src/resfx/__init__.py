"""Change a model's residual stream without touching its code."""

from typing import TYPE_CHECKING, Any

from resfx.comparison.compare import compare
from resfx.comparison.result import Comparison
from resfx.methods.base import Method
from resfx.methods.depth.attn_res import AttnRes
from resfx.methods.depth.dca import DCA
from resfx.methods.depth.delta_attn_res import DeltaAttnRes
from resfx.methods.depth.denseformer import DenseFormer
from resfx.methods.depth.depth_read import DepthRead
from resfx.methods.depth.elc import ELC
from resfx.methods.depth.lambdas import Lambdas
from resfx.methods.depth.mudd import MUDD
from resfx.methods.depth.vertical import VerticalAttention
from resfx.methods.route.lime import LIMe
from resfx.methods.route.value_embedding import ValueEmbedding
from resfx.methods.route.value_residual import ValueResidual
from resfx.methods.sequence.canon import Canon
from resfx.methods.sequence.short_conv import ShortConv
from resfx.methods.sequence.short_swa import ShortSWA
from resfx.methods.site.ddl import DDL
from resfx.methods.site.depth_scaled import DepthScaled
from resfx.methods.site.laurel import LAuReL
from resfx.methods.site.layer_scale import LayerScale
from resfx.methods.site.rezero import ReZero
from resfx.methods.wide.altup import AltUp
from resfx.methods.wide.frac_connections import FracConnections
from resfx.methods.wide.hyper_connections import HyperConnections
from resfx.methods.wide.mhc import MHC, mHC
from resfx.passes.find.site import Site, Skip, Stream
from resfx.probes.probe import probe
from resfx.probes.result import Probe
from resfx.report.page.page import page
from resfx.report.report import Report
from resfx.runtime.blocks import checkpoint_blocks, compile_blocks
from resfx.runtime.module import of
from resfx.runtime.pipeline.split import Stages, split
from resfx.runtime.saved.saving import load, save
from resfx.runtime.switch import disabled, freeze_original, original, trainable

from . import errors, export
from .api import rewrite, scan

__version__ = "0.1.0"

__all__ = [
    "DCA",
    "DDL",
    "ELC",
    "MHC",
    "MUDD",
    "AltUp",
    "AttnRes",
    "Canon",
    "Comparison",
    "DeltaAttnRes",
    "DenseFormer",
    "DepthRead",
    "DepthScaled",
    "FracConnections",
    "HyperConnections",
    "LAuReL",
    "LIMe",
    "Lambdas",
    "LayerScale",
    "Method",
    "Probe",
    "ReZero",
    "Report",
    "ShortConv",
    "ShortSWA",
    "Site",
    "Skip",
    "Stages",
    "Stream",
    "ValueEmbedding",
    "ValueResidual",
    "VerticalAttention",
    "checkpoint_blocks",
    "compare",
    "compile_blocks",
    "disabled",
    "errors",
    "export",
    "freeze_original",
    "load",
    "mHC",
    "of",
    "original",
    "page",
    "probe",
    "rewrite",
    "save",
    "scan",
    "split",
    "study",
    "trainable",
]


if TYPE_CHECKING:
    from resfx.studies.study import study


def __getattr__(name: str) -> Any:
    if name == "study":  # a day's work: imported when it is begun
        from resfx.studies.study import study

        return study
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
