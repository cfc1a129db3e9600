"""What is known of transformers beyond its documented names: nothing else in the library knows any of it.

The package is not imported, but to load a folder of its own: what is here acts on the user's own objects, and holds for
models that never heard of it. ``tests/borrowed.py`` says which of it an installed version has.
"""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from resfx.errors import ResfxError, SaveError, require

CACHE_LAYERS = "layers"
"""Where a cache keeps its layers: a list, of which a host addresses its own by number."""

LAYER_KEYS = "keys"
"""Where a layer keeps its keys, ``(batch, heads, length, width)``."""


COLLECTS = "_output_capturing_hooks_installed"
"""Set on a model once it has the hooks by which it collects hidden states and attentions: a copy without hooks must not
have it, and gets them anew by the first call that asks for any."""


DECIDES_RESULTS = ("_attn_implementation_internal",)
"""Attributes of a config that decide of which parts the results of layers are: with or without attention weights."""


@contextmanager
def traced_plainly(tree: nn.Module) -> Iterator[None]:
    """Inside, Hugging Face layers that recompute activations just run."""
    name = "_gradient_checkpointing_func"
    held = [(m, m.__dict__[name]) for m in tree.modules() if name in m.__dict__]
    try:
        for module, _ in held:
            module.__dict__[name] = _plainly
        yield
    finally:
        for module, function in held:
            module.__dict__[name] = function


def _plainly(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    return function(*args)


def from_config(cls: Any, config: Any) -> nn.Module:
    """A model of a class with fresh weights, in the type and the attention that its config names."""
    return cls._from_config(config)


def writes_here(model: Any, is_main_process: bool) -> bool:
    """Whether ``save_pretrained`` writes files in this process."""
    decides = getattr(model, "should_save_on_this_rank", None)
    return bool(decides(is_main_process) if decides else is_main_process)


_LOADING = threading.Lock()


def from_folder(folder: Path, cls: Any, options: dict[str, Any]) -> nn.Module:
    """The model that a folder of ``save_pretrained`` holds, without what a rewrite added, and without a word on that.

    Args:
        cls: its class; by default the one that its config names.
        options: for ``from_pretrained``.

    Raises:
        SaveError: if there is no such class, or weights of the model are missing.
    """
    cls = cls or _class_named_in(folder)
    if not hasattr(cls, _EXPECTED):  # not of transformers: another library's from_pretrained
        return cls.from_pretrained(folder, **options).eval()
    with _LOADING:
        own, before = _EXPECTED in vars(cls), getattr(cls, _EXPECTED)
        setattr(cls, _EXPECTED, [*(before or ()), r"^resfx\."])
        try:
            model, told = cls.from_pretrained(folder, output_loading_info=True, **options)
        finally:
            setattr(cls, _EXPECTED, before) if own else delattr(cls, _EXPECTED)
    if missing := sorted(told["missing_keys"]):
        raise SaveError(f"cannot load {folder}", f"its files lack weights of {cls.__name__}: {', '.join(missing[:4])}",
                        "save it again, all of it, from the rewritten model")  # fmt: skip
    return model


_EXPECTED = "_keys_to_ignore_on_load_unexpected"
"""Where a class of transformers has the patterns of names in a file that it says nothing of."""


def _class_named_in(folder: Path) -> Any:
    asked, remedy = f"cannot load {folder}", "name the model's class: resfx.load(folder, cls=...)"
    try:
        named = list(json.loads((folder / "config.json").read_text()).get("architectures") or ())
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise SaveError(asked, f"its config.json is missing or damaged: {error}", remedy) from error
    transformers = require("transformers", "hf", "a folder of save_pretrained")
    for name in named:
        found = getattr(transformers, name, None) if isinstance(name, str) else None
        if isinstance(found, type) and issubclass(found, transformers.PreTrainedModel):
            return found
    raise SaveError(asked, f"transformers has no model {' or '.join(map(str, named)) or 'of no name'}", remedy)


class ShortState:
    """A layer of a cache that holds what one mixer keeps: the last few tokens, batch first.

    Attributes:
        name: path of the mixer in the model's tree.
        tensors: its state; empty before the first token.
    """

    is_croppable = supports_early_init = False
    # Compileable, or a host takes the empty places of a cache of fixed size for tokens: it makes no mask for one token.
    is_compileable = is_initialized = batch_only = True
    is_sliding = "short"  # neither True nor false: a host looks for its first layer of either kind to size its masks

    def __init__(self, name: str, tensors: list[torch.Tensor]) -> None:
        self.name, self.tensors = name, tensors

    def __repr__(self) -> str:
        return f"ShortState({self.name})"

    def reorder_cache(self, beam_idx: torch.Tensor) -> None:
        """Give each row the state of the row it continues (beam search)."""
        self.batch_select_indices(beam_idx)

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Keep some rows of the batch."""
        self.tensors = [t[indices.to(t.device)] for t in self.tensors]

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat every row of the batch."""
        self.tensors = [t.repeat_interleave(repeats, dim=0) for t in self.tensors]

    def reset(self) -> None:
        """Forget every token."""
        self.tensors = []

    def crop(self, tokens_to_remove: int) -> None:
        """Raise unless nothing is removed: what the window dropped cannot be had back."""
        if tokens_to_remove:
            raise ResfxError(
                f"cannot take {abs(tokens_to_remove)} tokens back from the cache",
                f"{self.name} keeps only its last few tokens",
                "generate without an assistant or prompt look-up; or run the shorter text again with a fresh cache",
            )  # fmt: skip

    def get_seq_length(self) -> int:
        """Zero: it is no key-value layer."""
        return 0

    def get_max_length(self) -> int:
        """No limit."""
        return -1

    def offload(self) -> None:
        """Stay on the device: the state is small."""

    def prefetch(self) -> None:
        """Nothing to bring back."""

    def nbytes(self) -> int:
        """Bytes kept."""
        return sum(t.nbytes for t in self.tensors)


def renamed_arguments(forward: Callable[..., Any]) -> dict[str, tuple[str, str]]:
    """Older names under which a forward still takes arguments: ``{old: (new, what is said of it)}``.

    A decorator puts the new name for the old one. Generated code takes the place of both and knows arguments by name:
    under two names, one call would be two variants.
    """
    found: dict[str, tuple[str, str]] = {}
    layer: Any = forward
    while layer is not None:
        code = getattr(layer, "__code__", None)
        if code is not None and code.co_qualname.startswith("deprecate_kwarg."):
            known = dict(zip(code.co_freevars, (cell.cell_contents for cell in layer.__closure__), strict=True))
            old, new = known.get("old_name"), known.get("new_name")
            if old and new:
                when = f"deprecated {known.get('version_message', '')}"
                what = f"`{old}` is {when} for `{layer.__qualname__}`. Use `{new}` instead."
                found.setdefault(old, (new, what))
        layer = getattr(layer, "__wrapped__", None)
    return found


def kept_functions(tree: nn.Module) -> list[tuple[Any, str]]:
    """The makers of attention masks that a model's own files call, as ``(module, name)``.

    In eager mode they look at the values of tensors and often return nothing, so that attention takes its fast kernels;
    traced, they return a mask. A rewritten model calls them as they are.
    """
    found = []
    for name in dict.fromkeys(type(m).__module__ for m in tree.modules()):
        source = sys.modules.get(name)
        for attribute, value in vars(source).items() if source is not None else ():
            if getattr(value, "__module__", "") == "transformers.masking_utils" and attribute.startswith("create_"):
                found.append((source, attribute))
    return found


def starting_new_modules(own: type) -> dict[str, Any]:
    """What a rewritten model's class has beside ``own``, so that ``init_weights()`` gives new modules their start and
    not that of any linear layer. Nothing where the class has no such thing."""
    before = getattr(own, "_init_weights", None)
    if before is None:
        return {}

    def is_new(self: nn.Module, module: nn.Module) -> bool:
        return any(m is module for m in self.get_submodule("resfx").modules())

    def start(self: nn.Module, module: nn.Module) -> None:
        if not is_new(self, module):
            before(self, module)
        elif callable(reset := getattr(module, "reset_parameters", None)):  # children before parents, of each its own
            reset()

    body: dict[str, Any] = {"_init_weights": start}
    if (visit := getattr(own, "_initialize_weights", None)) is not None:
        # A class that is not transformers' own, as fully_shard makes, counts as custom code, which starts everything
        # regardless of marks; modules whose parameters are all marked are then passed over. Ours heed the marks.
        body["_initialize_weights"] = lambda self, module, *custom: visit(
            self, module, *(() if is_new(self, module) else custom)
        )
    return body
