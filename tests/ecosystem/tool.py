"""What a tool is here, what it is given, and how results are compared."""

from __future__ import annotations

import copy
import fnmatch
import functools
import importlib
import importlib.util
import pkgutil
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

import resfx

MODES = ("ddl", "attnres", "mhc", "short_swa")
"""One method of each scope: site, depth, wide, sequence."""

IDS = torch.randint(3, 60, (2, 9), generator=torch.Generator().manual_seed(3))
LONGER = torch.randint(3, 60, (3, 12), generator=torch.Generator().manual_seed(4))
SIZES = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
         "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64,
         "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}  # fmt: skip


def llama(**changes: Any) -> Any:
    """The model that tools act on: small, from a fixed seed, in eval mode."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**{**SIZES, **changes})).eval()


def gpt2(**changes: Any) -> Any:
    """A model with ``nn.Dropout`` and ``nn.LayerNorm``."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    sizes = {"vocab_size": 64, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}
    return GPT2LMHeadModel(GPT2Config(**{**sizes, **changes})).eval()


HOSTS: dict[str, Callable[[], Any]] = {
    "llama": llama, "gpt2": gpt2, "llama, eager attention": functools.partial(llama, attn_implementation="eager"),
}  # fmt: skip


@dataclass(frozen=True)
class Make:
    """What makes a model for a tool. It can be pickled: a process started by a tool makes its own.

    Attributes:
        mode: of the rewrite; ``None`` for the model as it is.
    """

    mode: str | None

    def __call__(self, std: float = 0.1, host: str = "llama") -> Any:
        """A model of its own parameters; new ones are off their start by a little noise, so that the method acts."""
        if self.mode is None:
            return self.plain(host)
        return stir(copy.deepcopy(_warm(self.mode, host)), std)

    def cold(self, std: float = 0.1, host: str = "llama") -> Any:
        """The same that has not been called since its rewrite: every call of its first is one not seen before."""
        return self.plain(host) if self.mode is None else stir(copy.deepcopy(_rewritten(self.mode, host)), std)

    def start(self, host: str = "llama") -> Any:
        """The same with new parameters at their start: it computes what :meth:`plain` does, whatever acts on both."""
        return self(0.0, host)

    def changed_before(self, change: Callable[[Any], Any], host: str = "llama") -> Any:
        """A model that was changed first and rewritten then: what one that is changed after its rewrite must equal."""
        model = self.plain(host)
        model = change(model) or model
        if self.mode is None:
            return model
        new = resfx.rewrite(model, self.mode, args=(IDS,))
        with torch.no_grad():
            for name, parameter in self.cold(host=host).new_parameters().items():
                new.get_parameter(name).copy_(parameter)
        return new

    def plain(self, host: str = "llama") -> Any:
        """The model as it is, of the same weights."""
        return HOSTS[host]()


@functools.cache
def _rewritten(mode: str, host: str) -> Any:
    # No backward pass here, nor below: a process that has run one cannot hand it on to those forked from it.
    return resfx.rewrite(HOSTS[host](), mode, args=(IDS,), check=False)


@functools.cache
def _warm(mode: str, host: str) -> Any:
    """Called the way most tools do, so that copies need no capture for it."""
    model = copy.deepcopy(_rewritten(mode, host))
    logits(model)
    trained(model, IDS)
    return model.eval()


def trained(model: Any, ids: torch.Tensor) -> None:
    """Make the call of a training step, so that copies need no capture for it."""
    model.train()(input_ids=ids, labels=ids, use_cache=False)


def stir(model: Any, std: float) -> Any:
    """Move new parameters off their start."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in model.new_parameters().values() if std else ():
            parameter.add_(std * torch.randn(parameter.shape, generator=generator))
    return model


class Limit(Exception):
    """Raised by a row where the tool itself falls short, on any model of the same form; says how that was seen."""


Run = Callable[[Make], "str | None"]


@dataclass(frozen=True)
class Tool:
    """One row of the table.

    Attributes:
        name: what is done to a model.
        run: does it; raises where it does not hold, may return a short note.
        needs: packages that it is skipped without.
        seconds: a cell may take so long.
    """

    name: str
    run: Run
    needs: tuple[str, ...] = ()
    seconds: int = 180

    @property
    def kind(self) -> str:
        return self.run.__module__.rpartition(".")[2]

    def lacks(self) -> str:
        """Why it cannot be tried here; empty if it can."""
        missing = [p for p in self.needs if importlib.util.find_spec(p) is None]
        return f"{', '.join(missing)} is not installed" if missing else ""


TOOLS: dict[str, Tool] = {}


def tool(name: str, needs: str | None = None, seconds: int = 180) -> Callable[[Run], Run]:
    """Make a function a row of the table; ``needs`` are packages, apart by spaces."""

    def register(run: Run) -> Run:
        assert name not in TOOLS, name
        TOOLS[name] = Tool(name, run, tuple((needs or "").split()), seconds)
        return run

    return register


def tools(glob: str = "*") -> dict[str, Tool]:
    """The tools of every file here, by name; those whose name, file or function fits a glob."""
    package = importlib.import_module(__package__)
    for module in pkgutil.walk_packages(package.__path__, f"{__package__}."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    fits = lambda one: any(fnmatch.fnmatchcase(n, glob) for n in (one.name, one.kind, one.run.__name__))
    return {name: one for name, one in TOOLS.items() if fits(one)}


def refusal(error: BaseException) -> str:
    """What the library said in an error, itself or as the reason of another's; empty if it did not refuse."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, resfx.errors.ResfxError):
            return f"{seen.asked}: {seen.found}"
        seen = seen.__cause__ or seen.__context__
    quoted = re.search(r"resfx(?:\.errors\.\w+)?: (.*)", str(error))  # of another process, or what a compiler was told
    return quoted.group(1) if quoted else ""


def tensors(value: Any) -> list[torch.Tensor]:
    if torch.is_tensor(value):
        return [value]
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else ()
    return [t for part in parts for t in tensors(part)]


def hold_equal(a: Any, b: Any, within: float = 0.0, what: str = "results") -> None:
    """Raise where two results differ by more than a part of the largest value in each tensor."""
    left, right = tensors(a), tensors(b)
    assert len(left) == len(right) > 0, f"{what}: {len(left)} tensors became {len(right)}"
    for x, y in zip(left, right, strict=True):
        assert x.shape == y.shape, f"{what}: shape {tuple(x.shape)} became {tuple(y.shape)}"
        off = (x.detach().double() - y.detach().double()).abs().max() / x.detach().double().abs().max().clamp(min=1e-30)
        assert float(off) <= within, f"{what}: off by {float(off):.2g} of the largest"


def logits(model: Any, ids: torch.Tensor = IDS, **kwargs: Any) -> torch.Tensor:
    """One call without gradients."""
    with torch.no_grad():
        return model(input_ids=ids, use_cache=False, **kwargs).logits


def step(model: nn.Module, ids: torch.Tensor = IDS, **kwargs: Any) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Loss and gradients of one training step."""
    model.zero_grad()
    loss = model(input_ids=ids, labels=ids, use_cache=False, **kwargs).loss
    loss.backward()
    return loss.detach(), {n: p.grad.detach().clone() for n, p in model.named_parameters() if p.grad is not None}


def hold_changed(make: Make, change: Callable[[Any], Any], host: str = "llama", acts: bool = True) -> None:
    """Raise where a change acts on a rewritten model otherwise than on the plain one, or than before the rewrite.

    Args:
        change: changes a model in place, or returns another.
        acts: results are others after it.
    """
    plain, start, late = make.plain(host), make.start(host), make(host=host)
    before = logits(late)
    plain, start, late = change(plain) or plain, change(start) or start, change(late) or late
    early = make.changed_before(change, host=host)
    for ids in (IDS, LONGER):
        hold_equal(logits(plain, ids), logits(start, ids), what="the plain model's results")
        hold_equal(logits(early, ids), logits(late, ids), what="results of a change before the rewrite")
    assert torch.equal(before, logits(late)) != acts, "the change does not act" if acts else "it changed results"
    hold_step(plain.train(), start.train(), what="of the plain model")
    hold_step(early.train(), late.train(), what="of a change before the rewrite")


def hold_step(a: nn.Module, b: nn.Module, ids: torch.Tensor = IDS, within: float = 1e-5, what: str = "") -> None:
    """Raise where a training step of ``b`` has another loss or other gradients of what ``a`` has too."""
    found = []
    for one in (a, b):
        torch.manual_seed(11)
        found.append(step(one, ids))
    (loss, grads), (other, others) = found
    hold_equal(loss, other, 1e-6, f"loss {what}")
    scale = max(float(g.abs().max()) for g in grads.values())
    for name, grad in grads.items():
        assert name in others, f"no gradient for {name}"
        off = float((grad - others[name]).abs().max()) / scale
        assert off <= within, f"gradient of {name} {what}: off by {off:.2g}"
