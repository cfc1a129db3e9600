"""Decoding: what a mixer keeps between tokens travels with the cache the caller holds.

Each mixer's state becomes one more layer of that cache (:class:`ShortState`), so that whoever reorders, repeats,
selects or resets the cache does the same to the short windows. The host never looks at these layers: it addresses its
own by number.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from resfx.errors import ResfxError, VariantError

from .mixer import Mixer


class ShortState:
    """A layer of a cache that holds what one mixer keeps: the last few tokens, batch first.

    Attributes:
        name: path of the mixer in the model's tree.
        tensors: its state; empty before the first token.
    """

    is_compileable = is_croppable = supports_early_init = False
    is_initialized = batch_only = True
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


def remembering(mixer: Mixer, name: str, cache: Any) -> Callable[..., Any]:
    """The mixer as a function that goes on where the cache says it stopped, and leaves its new state there.

    Args:
        name: of the mixer among those of the model.
        cache: a cache with ``layers``; ``None`` for a call without one.

    Raises:
        VariantError: where the cache holds tokens that the mixer has not seen, or cannot hold its state.
    """
    if cache is None:
        return mixer
    layers = layers_of(cache)
    if layers is None:
        raise VariantError(
            "cannot decode with this cache", f"a {type(cache).__name__} has no list of layers that a mixer's state"
            " could join", "a transformers Cache, or call without a cache",
        )  # fmt: skip
    own = next((x for x in layers if isinstance(x, ShortState) and x.name == name), None)

    def run(x: torch.Tensor, **given: Any) -> Any:
        if own is None and _holds_tokens(layers, x.shape[1]):
            raise VariantError(
                "cannot continue from this cache", "it holds tokens that the inserted mixers have not seen",
                "fill the cache with this model from the first token on",
            )  # fmt: skip
        state = {"state": tuple(own.tensors)} if own is not None and own.tensors else {}
        result, kept = mixer(x, keep=True, **given, **state)
        if own is None:
            layers.append(ShortState(name, list(kept)))
        else:
            own.tensors = list(kept)
        return result

    return run


def layers_of(cache: Any) -> list[Any] | None:
    """The list of layers of a cache, of the decoder's own part where it has two."""
    cache = getattr(cache, "self_attention_cache", cache)
    layers = getattr(cache, "layers", None)
    return layers if isinstance(layers, list) else None


def _holds_tokens(layers: list[Any], length: int) -> bool:
    """Whether the host's layers hold tokens of earlier calls: more than those that this call may have put there."""
    seen = [int(x.get_seq_length()) for x in layers if not isinstance(x, ShortState) and hasattr(x, "get_seq_length")]
    return bool(seen) and (seen[-1] > length or (seen[-1] > 0 and len(set(seen)) > 1 and min(seen) > 0))
