"""What a rewrite promises, held against the original on real inputs."""

from .blame import first_broken_site
from .check import GraphDiffers, check_rewrite
from .values import difference, same, tensors_of

__all__ = ["GraphDiffers", "check_rewrite", "difference", "first_broken_site", "same", "tensors_of"]
