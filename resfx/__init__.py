"""Change a model's residual stream without touching its code."""

from . import errors, export
from .api import rewrite, scan
from .ops.ddl import DDL
from .ops.method import Method
from .report import Report, Site, Skip, Stream
from .saving import load, save

__version__ = "0.1.0"

__all__ = [
    "DDL",
    "Method",
    "Report",
    "Site",
    "Skip",
    "Stream",
    "errors",
    "export",
    "load",
    "rewrite",
    "save",
    "scan",
]
