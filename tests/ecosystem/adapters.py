"""Adapters: PEFT."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Callable
from typing import Any

import torch

from .tool import IDS, LONGER, Make, hold_equal, hold_step, logits, tool

PROJECTIONS = ["q_proj", "down_proj"]


def _lora(**options: Any) -> Any:
    import peft

    return peft.LoraConfig(r=4, target_modules=PROJECTIONS, init_lora_weights=False, **options)


def _dora() -> Any:
    return _lora(use_dora=True)


def _ia3() -> Any:
    import peft

    modules = ["k_proj", "v_proj", "down_proj"]
    return peft.IA3Config(target_modules=modules, feedforward_modules=["down_proj"], init_ia3_weights=False)


def _prefix() -> Any:
    import peft

    return peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)


def _prompt() -> Any:
    import peft

    return peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)


def _adapted(model: Any, config: Callable[[], Any]) -> Any:
    """The model with adapters of fixed values, in eval mode."""
    import peft

    torch.manual_seed(5)
    return peft.get_peft_model(model, config()).eval()


def _merges(make: Make, config: Callable[[], Any]) -> None:
    """Adapters act as on the plain model, train as there, and can be switched off and merged."""

    def outputs(model: Any) -> list[torch.Tensor]:
        found = [logits(model)]
        adapted = _adapted(model, config)
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
    hold_step(_adapted(make.plain(), config).train(), _adapted(make.start(), config).train())


@tool("PEFT: LoRA injected, switched off, merged", needs="peft")
def lora(make: Make) -> None:
    _merges(make, _lora)


@tool("PEFT: DoRA, switched off, merged", needs="peft")
def dora(make: Make) -> None:
    _merges(make, _dora)


@tool("PEFT: IA3, switched off, merged", needs="peft")
def ia3(make: Make) -> None:
    _merges(make, _ia3)


def _ahead(make: Make, config: Callable[[], Any]) -> None:
    """Tokens that are learned act and train as before the plain model, and answer in ``generate()``."""
    plain, start, moved = (_adapted(model, config) for model in (make.plain(), make.start(), make()))
    for ids in (IDS, LONGER):
        hold_equal(logits(plain, ids), logits(start, ids))
    assert not torch.equal(logits(make()), logits(moved))
    hold_step(plain.train(), start.train())
    options = {"attention_mask": torch.ones_like(IDS), "do_sample": False, "max_new_tokens": 4, "eos_token_id": None}
    found = [model.eval().generate(input_ids=IDS, **options) for model in (plain, start)]
    assert torch.equal(*found), "other tokens"


@tool("PEFT: prefix tuning", needs="peft")
def prefix(make: Make) -> None:
    _ahead(make, _prefix)


@tool("PEFT: prompt tuning", needs="peft")
def prompt(make: Make) -> None:
    _ahead(make, _prompt)


@tool("PEFT: adapters saved, loaded onto a fresh model", needs="peft", seconds=300)
def adapters_saved(make: Make) -> None:
    import peft

    for config in (_lora, _dora, _ia3, _prefix, _prompt):
        adapted = _adapted(make(), config)
        with tempfile.TemporaryDirectory() as folder:
            adapted.save_pretrained(folder)
            loaded = peft.PeftModel.from_pretrained(make(), folder).eval()
        for ids in (IDS, LONGER):
            hold_equal(logits(adapted, ids), logits(loaded, ids), what=config.__name__)


@tool("PEFT: merged for good, saved, loaded", needs="peft", seconds=300)
def merged_saved(make: Make) -> None:
    import transformers

    import resfx

    model = _adapted(make(), _lora).merge_and_unload()
    assert not torch.equal(logits(make()), logits(model))
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.save_pretrained(folder)
        load = transformers.AutoModelForCausalLM.from_pretrained if make.mode is None else resfx.load
        for ids in (IDS, LONGER):
            hold_equal(logits(model, ids), logits(load(folder).eval(), ids))


@tool("PEFT: several adapters, switched between, added up", needs="peft")
def several(make: Make) -> None:
    def outputs(model: Any) -> list[torch.Tensor]:
        adapted = _adapted(model, _lora)
        torch.manual_seed(6)
        adapted.add_adapter("other", _lora())
        adapted.add_weighted_adapter(["default", "other"], [0.5, 0.5], "both", combination_type="linear")
        found = []
        for name in ("default", "other", "both", "default"):
            adapted.set_adapter(name)
            found.append(logits(adapted))
        return found

    for a, b in zip(outputs(make.plain()), outputs(make.start()), strict=True):
        hold_equal(a, b)
    first, other, _, again = outputs(make())
    hold_equal(first, again, what="switched back")
    assert not torch.equal(first, other)
