"""Every mode on models as their own library makes them: ``python -m tests.first_use`` writes ``docs/first_use.md``.

A host's configuration is its default but for sizes, its call the plainest there is: ``model(ids)``, with the cache
and the dropout that come with it. Nothing is asserted here beyond what is written: the table is the result.
"""

from __future__ import annotations

import argparse
import copy
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import torch
from torch import nn

import resfx
from resfx.methods.base import methods
from resfx.passes.check.gradients import ROUNDING
from resfx.passes.check.values import difference, largest, pairs, same

CHECKS = ("start", "generate", "training step")
VOCABULARY = 89


@dataclass(frozen=True)
class Plain:
    """A model as its library makes it.

    Attributes:
        model, config: names in ``transformers``.
        sizes: what is smaller than the default.
        call: positional and keyword arguments of the plainest call.
        labels: what makes a loss of it.
    """

    model: str
    config: str
    sizes: dict[str, Any]
    call: Callable[[], tuple[tuple[Any, ...], dict[str, Any]]]
    labels: Callable[[], torch.Tensor]

    def make(self) -> nn.Module:
        import transformers

        torch.manual_seed(0)
        return getattr(transformers, self.model)(getattr(transformers, self.config)(**self.sizes)).eval()


def ids(batch: int = 2, length: int = 9, seed: int = 3) -> torch.Tensor:
    return torch.randint(3, VOCABULARY - 1, (batch, length), generator=torch.Generator().manual_seed(seed))


def _image() -> torch.Tensor:
    return torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


_text = lambda: ((ids(),), {})
_WIDTH = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
_TEXT = {"vocab_size": VOCABULARY, **_WIDTH}
_GROUPED = {**_TEXT, "num_key_value_heads": 2}
PLAIN = {
    "gpt2": Plain("GPT2LMHeadModel", "GPT2Config",
                  {"vocab_size": VOCABULARY, "n_embd": 32, "n_layer": 2, "n_head": 4}, _text, ids),
    "llama": Plain("LlamaForCausalLM", "LlamaConfig", _GROUPED, _text, ids),
    "qwen3": Plain("Qwen3ForCausalLM", "Qwen3Config", {**_GROUPED, "head_dim": 8}, _text, ids),
    "gemma2": Plain("Gemma2ForCausalLM", "Gemma2Config", {**_GROUPED, "head_dim": 8}, _text, ids),
    "gpt_neox": Plain("GPTNeoXForCausalLM", "GPTNeoXConfig", _TEXT, _text, ids),
    "mixtral": Plain("MixtralForCausalLM", "MixtralConfig", _GROUPED, _text, ids),
    "bert": Plain("BertForMaskedLM", "BertConfig", _TEXT, _text, ids),
    "t5": Plain("T5ForConditionalGeneration", "T5Config",
                {"vocab_size": VOCABULARY, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4,
                 "decoder_start_token_id": 0},  # generate() of any T5 asks for the last
                lambda: ((ids(),), {"decoder_input_ids": ids(2, 5, 4)}), lambda: ids(2, 5, 4)),
    "vit": Plain("ViTForImageClassification", "ViTConfig", {**_WIDTH, "image_size": 32, "patch_size": 8},
                 lambda: ((_image(),), {}), lambda: torch.tensor([0, 1])),
}  # fmt: skip


def start(model: nn.Module, new: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
    """The plain call gives the same numbers."""
    with torch.no_grad():
        found = pairs(model(*args, **kwargs), new(*args, **kwargs))
    return "bit" if found and all(same(a, b) for a, b in found) else f"NO: off by {_worst(found):.2g}"


def _worst(found: list[tuple[torch.Tensor, torch.Tensor]]) -> float:
    return max((difference(a, b) for a, b in found), default=float("nan"))


def generates(model: nn.Module, new: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
    """``generate()`` gives the same tokens, greedy and sampled."""
    if not getattr(type(model), "can_generate", lambda: False)() or "Image" in type(model).__name__:
        return "-"
    for options in ({"do_sample": False}, {"do_sample": True, "top_k": 5}):
        made = []
        for one in (model, new):
            torch.manual_seed(1)
            made.append(one.generate(*args, max_new_tokens=6, **options))
        if not torch.equal(*made):
            return "NO: other tokens" + (" when sampling" if options["do_sample"] else "")
    return "same"


def trains(model: nn.Module, new: Any, args: tuple[Any, ...], kwargs: dict[str, Any], labels: torch.Tensor) -> str:
    """One step in training mode: the same loss and gradients from the same seed, and a finite loss after it."""
    losses, grads = [], []
    names = [n for n, p in model.named_parameters() if p.requires_grad]
    kwargs = {k: v for k, v in kwargs.items() if k != "decoder_input_ids"}
    for one in (model.train(), new.train()):
        one.zero_grad()
        torch.manual_seed(5)
        losses.append(one(*args, labels=labels, **kwargs).loss)
        losses[-1].backward()
        grads.append({n: one.get_parameter(n).grad for n in names})
    if not torch.equal(losses[0], losses[1]):
        return f"NO: loss {losses[0].item():.6f} became {losses[1].item():.6f}"
    scale: dict[str, float] = {}
    for name in names:
        owner = name.rpartition(".")[0]
        scale[owner] = max(scale.get(owner, 0.0), largest(grads[0][name]) if grads[0][name] is not None else 0.0)
    off = 0.0
    for name in names:
        a, b = (g[name] if g[name] is not None else torch.zeros_like(one.get_parameter(name)) for g in grads)
        if not same(a, b):
            off = max(off, difference(a, b) / (scale[name.rpartition(".")[0]] or 1e-30))
    silent = [n for n, p in new.new_parameters().items() if p.grad is None]
    if silent:
        return f"NO: no gradient for {silent[0]}"
    torch.optim.AdamW(new.parameters(), lr=1e-3).step()
    if not bool(new(*args, labels=labels, **kwargs).loss.isfinite()):
        return "NO: the loss after a step is not finite"
    allowed = ROUNDING * torch.finfo(torch.float32).eps
    return "bit" if off == 0.0 else f"{'' if off <= allowed else 'NO: '}gradients to {off:.1g}"


def row(host: str, mode: str) -> list[str]:
    """What held for one host and one mode."""
    plain = PLAIN[host]
    model = plain.make()
    args, kwargs = plain.call()
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        try:
            new = resfx.rewrite(model, mode, args, kwargs or None)
        except resfx.errors.NoSitesError as refusal:
            return [f"left alone: {refusal.found}"]
        except Exception as error:
            return [_failure(error)]
    model = copy.deepcopy(model)  # a step on the rewritten model must not move the original
    cells = [_attempt(check, model, new, args, kwargs) for check in (start, generates)]
    cells.append(_attempt(trains, model, new, args, kwargs, plain.labels()))
    ours = [str(w.message) for w in said if issubclass(w.category, UserWarning)]
    return cells + ([f"warns: {ours[0]}"] if ours else [])


def _attempt(check: Callable[..., str], *given: Any) -> str:
    try:
        return check(*given)
    except Exception as error:
        return _failure(error)


def _failure(error: Exception) -> str:
    lines = [line for line in str(getattr(error, "found", "") or error).strip().splitlines() if line]
    return f"NO: {type(error).__name__}: {lines[0] if lines else ''}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--hosts", nargs="*", default=list(PLAIN))
    parser.add_argument("--modes", nargs="*", default=list(methods()))
    parser.add_argument("--out", type=Path, default=Path("docs/first_use.md"))
    options = parser.parse_args()
    import transformers

    transformers.logging.set_verbosity_error()
    rows: dict[tuple[str, str], list[str]] = {}
    for host in options.hosts:
        for mode in options.modes:
            begun = time.perf_counter()
            rows[host, mode] = row(host, mode)
            print(
                f"{host:9} {mode:17} {time.perf_counter() - begun:5.1f} s  {' | '.join(rows[host, mode])}", flush=True
            )
            options.out.write_text(page(rows))
    sys.exit(any(cell.startswith("NO") for cells in rows.values() for cell in cells))


def page(rows: dict[tuple[str, str], list[str]]) -> str:
    """The table as it stands."""
    words = [word for cells in rows.values() for word in cells[: len(CHECKS)] if word != "-"]
    lines = [
        "# First use: every mode on models as their own library makes them", "",
        "Made by `make first-use`. Configurations are the library's defaults but for sizes, the call is the plainest",
        "(`resfx.rewrite(model, mode, args=(ids,))`, then `model(ids)`), with its cache and its dropout.",
        "`start`: results equal bit for bit. `generate`: same tokens, greedy and sampled. `training step`: loss equal",
        "bit for bit from one seed in training mode, gradients of the original's parameters equal (`bit`) or to the",
        "rounding given, as a part of the largest in their module; a finite loss after a step of AdamW.",
        "A dash was not run: the host does not generate.", "",
        f"{sum(not w.startswith('NO') for w in words)} of {len(words)} cells that were run hold.", "",
        "| host | mode | " + " | ".join(CHECKS) + " |", "|---" * (2 + len(CHECKS)) + "|",
    ]  # fmt: skip
    for (host, mode), cells in rows.items():
        full = cells[: len(CHECKS)] + [""] * (len(CHECKS) - len(cells))
        lines.append(f"| {host} | {mode} | " + " | ".join(w.replace("|", "/")[:160] for w in full) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
