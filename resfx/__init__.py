"""Change a model's residual stream without touching its code."""

from . import errors
from .api import rewrite, scan
from .ops.ddl import DDL
from .ops.hyper_connections import HyperConnections
from .ops.method import Method
from .ops.mhc import MHC, mHC
from .report import Report, Site, Skip, Stream
from .saving import load, save

__version__ = "0.1.0"

__all__ = [
    "DDL",
    "MHC",
    "HyperConnections",
    "Method",
    "Report",
    "Site",
    "Skip",
    "Stream",
    "errors",
    "load",
    "mHC",
    "rewrite",
    "save",
    "scan",
]
