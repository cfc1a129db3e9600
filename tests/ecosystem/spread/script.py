"""What ``torchrun`` starts: one step of training, held against one process on the whole batch."""

from __future__ import annotations

import sys

from ..tool import Make
from .distributed import gradients
from .launched import same


def main(mode: str | None) -> None:
    """Train a step; raises where loss or gradients are others."""
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True)
    make = Make(mode)
    same(make, accelerator, accelerator.prepare(make().train()), gradients)


if __name__ == "__main__":
    main(sys.argv[1] or None)
