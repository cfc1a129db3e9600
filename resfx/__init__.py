"""Change a model's residual stream without touching its code."""

from . import errors, export
from .api import rewrite, scan
from .benchmark import compare
from .comparison import Comparison
from .ops.canon import Canon
from .ops.ddl import DDL
from .ops.hyper_connections import HyperConnections
from .ops.method import Method
from .ops.mhc import MHC, mHC
from .ops.short_conv import ShortConv
from .ops.short_swa import ShortSWA
from .report import Report, Site, Skip, Stream
from .saving import load, save

__version__ = "0.1.0"

__all__ = [
    "DDL",
    "MHC",
    "Canon",
    "Comparison",
    "HyperConnections",
    "Method",
    "Report",
    "ShortConv",
    "ShortSWA",
    "Site",
    "Skip",
    "Stream",
    "compare",
    "errors",
    "export",
    "load",
    "mHC",
    "rewrite",
    "save",
    "scan",
]
