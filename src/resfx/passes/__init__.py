"""The passes, in the order a model meets them: capture, sites, streams, rewrite, fold, check."""

from resfx.passes.capture.source import Source, source_of
from resfx.passes.find.detect import find_sites
from resfx.passes.scopes.apply import apply_methods

from .check import check_rewrite
from .fold import fold

__all__ = ["Source", "apply_methods", "check_rewrite", "find_sites", "fold", "source_of"]
