"""Change a model's residual stream without touching its code."""

from . import errors, export
from .api import rewrite, scan
from .benchmark import compare
from .blocks import checkpoint_blocks, compile_blocks
from .comparison import Comparison
from .ops.attn_res import AttnRes
from .ops.canon import Canon
from .ops.dca import DCA
from .ops.ddl import DDL
from .ops.delta_attn_res import DeltaAttnRes
from .ops.denseformer import DenseFormer
from .ops.depth_read import DepthRead
from .ops.elc import ELC
from .ops.hyper_connections import HyperConnections
from .ops.method import Method
from .ops.mhc import MHC, mHC
from .ops.mudd import MUDD
from .ops.short_conv import ShortConv
from .ops.short_swa import ShortSWA
from .ops.vertical import VerticalAttention
from .report import Report, Site, Skip, Stream
from .saving import load, save

__version__ = "0.1.0"

__all__ = [
    "DCA",
    "DDL",
    "ELC",
    "MHC",
    "MUDD",
    "AttnRes",
    "Canon",
    "Comparison",
    "DeltaAttnRes",
    "DenseFormer",
    "DepthRead",
    "HyperConnections",
    "Method",
    "Report",
    "ShortConv",
    "ShortSWA",
    "Site",
    "Skip",
    "Stream",
    "VerticalAttention",
    "checkpoint_blocks",
    "compare",
    "compile_blocks",
    "errors",
    "export",
    "load",
    "mHC",
    "rewrite",
    "save",
    "scan",
]
