"""Decoding: what a mixer keeps between tokens travels with the cache the caller holds.

Each mixer's state becomes one more layer of that cache (:class:`.huggingface.ShortState`), so that whoever reorders,
repeats, selects or resets the cache does the same to the short windows. The host never looks at these layers: it
addresses its own by number.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from resfx.errors import VariantError
from resfx.methods.sequence.mixer import Mixer

from .huggingface import CACHE_LAYERS, ShortState

_PENDING = "_resfx_pending"


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

    def run(x: torch.Tensor | tuple[torch.Tensor, ...], **given: Any) -> Any:
        if own is None and _holds_tokens(layers, (x[0] if isinstance(x, tuple) else x).shape[1]):
            raise VariantError(
                "cannot continue from this cache", "it holds tokens that the inserted mixers have not seen",
                "fill the cache with this model from the first token on",
            )  # fmt: skip
        state = {"state": tuple(own.tensors)} if own is not None and own.tensors else {}
        result, kept = mixer(x, keep=True, **given, **state)
        if own is None:
            cache.__dict__.setdefault(_PENDING, []).append(ShortState(name, list(kept)))
        else:
            own.tensors = list(kept)
        return result

    return run


def settle(cache: Any) -> None:
    """Let the states of mixers that a call met for the first time join the cache's layers, behind all of the host's:
    some caches get theirs one by one, and know them by number."""
    layers = layers_of(cache) if cache is not None else None
    if layers is not None:
        layers += cache.__dict__.pop(_PENDING, [])


def layers_of(cache: Any) -> list[Any] | None:
    """The list of layers of a cache, of the decoder's own part where it has two."""
    cache = getattr(cache, "self_attention_cache", cache)
    layers = getattr(cache, CACHE_LAYERS, None)
    return layers if isinstance(layers, list) else None


def _holds_tokens(layers: list[Any], length: int) -> bool:
    """Whether the host's layers hold tokens of earlier calls: more than those that this call may have put there."""
    seen = [int(x.get_seq_length()) for x in layers if not isinstance(x, ShortState) and hasattr(x, "get_seq_length")]
    return bool(seen) and (seen[-1] > length or (seen[-1] > 0 and len(set(seen)) > 1 and min(seen) > 0))
