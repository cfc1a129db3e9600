"""The passes, in the order a model meets them: capture, sites, streams, rewrite, fold, check."""

from resfx.passes.capture.source import Source, source_of
from resfx.passes.find.detect import find_sites

from .check import check_rewrite

__all__ = ["Source", "check_rewrite", "find_sites", "source_of"]
