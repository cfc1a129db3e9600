"""One published method a file: a frozen config and the module it builds.

A method of your own derives from one of the bases below; ``docs/guides/own_method.md`` has one of each scope.
"""

from .base import Method, Place
from .depth.base import DepthMethod, DepthPlace, Read
from .learned import Learned, Linear
from .route.base import RouteMethod, RoutePlace
from .sequence.mixer import Mixer
from .wide.base import Expand, Readout, WideStream

__all__ = [
    "DepthMethod",
    "DepthPlace",
    "Expand",
    "Learned",
    "Linear",
    "Method",
    "Mixer",
    "Place",
    "Read",
    "Readout",
    "RouteMethod",
    "RoutePlace",
    "WideStream",
]
