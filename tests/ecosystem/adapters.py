"""Adapters: PEFT."""

from __future__ import annotations

from typing import Any

import torch

from .tool import Make, hold_equal, logits, tool


def _lora(**options: Any) -> Any:
    import peft

    torch.manual_seed(5)
    return peft.LoraConfig(r=4, target_modules=["q_proj", "down_proj"], init_lora_weights=False, **options)


@tool("PEFT: LoRA injected, switched off, merged", needs="peft")
def lora(make: Make) -> None:
    import peft

    def outputs(model: Any) -> list[torch.Tensor]:
        found = [logits(model)]
        adapted = peft.get_peft_model(model, _lora()).eval()
        found.append(logits(adapted))
        with adapted.disable_adapter():
            found.append(logits(adapted))
        adapted.merge_adapter()
        return [*found, logits(adapted)]

    for a, b in zip(outputs(make.plain()), outputs(make.start()), strict=True):
        hold_equal(a, b)
    before, on, off, merged = outputs(make())
    hold_equal(before, off, what="switched off")
    hold_equal(on, merged, 1e-5, what="merged")
    assert not torch.equal(before, on)
