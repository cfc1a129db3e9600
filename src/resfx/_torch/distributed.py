"""What is borrowed of models over several processes."""

from __future__ import annotations

import sys

from torch import nn


def positions_are_split() -> bool:
    """Whether ``context_parallel`` is at work: attention goes over the positions of all processes."""
    attention = sys.modules.get("torch.distributed.tensor.experimental._context_parallel._attention")
    return attention is not None and nn.functional.scaled_dot_product_attention in attention._replaced_functions


def is_distributed(module: nn.Module) -> bool:
    """Whether ``distribute_module`` split a module, or what goes in and out of it, over processes."""
    return "_distribute_module_applied" in vars(module)
