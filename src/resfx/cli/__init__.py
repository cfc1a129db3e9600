"""The command line: ``python -m resfx``."""

from .cli import main

__all__ = ["main"]
