"""The passes, in the order a model meets them: capture, sites, streams, one rewrite per scope, check."""

from .capture import Source, source_of
from .check import check_rewrite
from .sites import find_sites
from .streams import find_streams

__all__ = ["Source", "check_rewrite", "find_sites", "find_streams", "source_of"]
