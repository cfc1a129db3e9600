"""The models of a study: a Llama or a GPT-2 from its configuration, in three sizes. Nothing is downloaded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from resfx.errors import OptionError, nearest, require

HOSTS = ("llama", "gpt2")


@dataclass(frozen=True)
class Size:
    """A model and how long it is trained.

    Attributes:
        width, layers, heads: of the model.
        inner: features inside an MLP.
        vocabulary: entries of the tokenizer that is trained on the text; 256 for plain bytes.
        length: tokens of a row.
        batch: rows of a step.
        tokens: tokens of a run from scratch; a graft is trained on half as many.
        rate: the largest learning rate of a run from scratch; a graft has three tenths of it.
    """

    width: int
    layers: int
    heads: int
    inner: int
    vocabulary: int
    length: int
    batch: int
    tokens: int
    rate: float


SIZES = {
    "tiny": Size(96, 8, 4, 256, 1024, 128, 8, 262_144, 3e-3),
    "small": Size(256, 12, 8, 704, 2048, 256, 32, 20_000_000, 1e-3),
    "gpt2": Size(768, 12, 12, 3072, 50257, 1024, 16, 500_000_000, 6e-4),
}
"""About 1, 10 and 124 million parameters (as a Llama ``gpt2`` has 152, since its MLP has three matrices)."""


def size_of(name: str) -> Size:
    """A size by its name.

    Raises:
        OptionError: for one that does not exist.
    """
    if name not in SIZES:
        known = ", ".join(nearest(name, SIZES))
        raise OptionError(f"there is no size {name!r}", f"the sizes are {known}", "size='tiny'")
    return SIZES[name]


def build_host(host: str, size: Size, inner: int) -> Any:
    """The plain model, with fresh weights drawn from torch's generator: no dropout, so that training and evaluation
    compute the same, no cache, embeddings tied.

    Raises:
        OptionError: for a host that does not exist.
        MissingPackageError: without transformers.
    """
    hf = require("transformers", "hf", "a study")
    if host == "llama":
        config = hf.LlamaConfig(
            vocab_size=size.vocabulary, hidden_size=size.width, intermediate_size=inner, num_hidden_layers=size.layers,
            num_attention_heads=size.heads, num_key_value_heads=size.heads, max_position_embeddings=size.length,
            tie_word_embeddings=True, use_cache=False,
        )  # fmt: skip
        return hf.LlamaForCausalLM(config).train()
    if host == "gpt2":
        config = hf.GPT2Config(
            vocab_size=size.vocabulary, n_embd=size.width, n_inner=inner, n_layer=size.layers, n_head=size.heads,
            n_positions=size.length, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, use_cache=False,
        )  # fmt: skip
        return hf.GPT2LMHeadModel(config).train()
    raise OptionError(f"there is no host {host!r}", f"the hosts are {', '.join(HOSTS)}", "host='llama'")


def wider(host: str, size: Size, added: int) -> int:
    """The inner width with which the plain model has ``added`` parameters more, as nearly as whole features give it."""
    per_feature = size.layers * (3 * size.width if host == "llama" else 2 * size.width + 1)
    return size.inner + round(added / per_feature)
