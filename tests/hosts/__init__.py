"""Real architectures with tiny random configs, and a hand-written one: what most tests run on.

``sites`` is derived from the configuration, not from what the detector says: residual adds per block, times blocks.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

VOCAB, WIDTH, LAYERS, HEADS = 89, 32, 2, 4


@dataclass(frozen=True)
class Host:
    """A model to test on.

    Attributes:
        make: builds the model, in eval mode, from a fixed seed.
        inputs: keyword arguments of one call at a batch size and a length.
        sites: residual adds it must have, and why.
        streams: residual streams it must have.
        causal: whether it is a causal language model with ``generate``.
    """

    name: str
    make: Callable[[], nn.Module]
    inputs: Callable[[int, int], dict[str, Any]]
    sites: int
    why: str
    streams: int = 1
    causal: bool = False
    norm: str = "pre"


def tokens(batch: int, length: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(3, VOCAB - 1, (batch, length), generator=generator)


def _text(batch: int, length: int) -> dict[str, Any]:
    return {"input_ids": tokens(batch, length)}


def _causal(batch: int, length: int) -> dict[str, Any]:
    return {"input_ids": tokens(batch, length), "use_cache": False}


def _seq2seq(batch: int, length: int) -> dict[str, Any]:
    return {"input_ids": tokens(batch, length), "decoder_input_ids": tokens(batch, length + 1, 1), "use_cache": False}


def _image(batch: int, length: int) -> dict[str, Any]:
    return {"pixel_values": torch.randn(batch, 3, 16, 16, generator=torch.Generator().manual_seed(0))}


def _speech(batch: int, length: int) -> dict[str, Any]:
    features = torch.randn(batch, 8, 40, generator=torch.Generator().manual_seed(0))
    return {"input_features": features, "decoder_input_ids": tokens(batch, length), "use_cache": False}


def _hf(model: str, config: str, **changes: Any) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        import transformers

        torch.manual_seed(0)
        return getattr(transformers, model)(getattr(transformers, config)(**changes)).eval()

    return make


_LLAMA = {
    "vocab_size": VOCAB, "hidden_size": WIDTH, "intermediate_size": 48, "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS, "num_key_value_heads": 2, "max_position_embeddings": 512,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
_BERT = {
    "vocab_size": VOCAB, "hidden_size": WIDTH, "intermediate_size": 48, "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS, "max_position_embeddings": 64, "pad_token_id": 0,
}  # fmt: skip
_FALCON = {
    "vocab_size": VOCAB, "hidden_size": WIDTH, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS,
    "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip


class Block(nn.Module):
    """A nanoGPT-style block: pre-norm, written-out causal attention, residual dropout."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.fc, self.out = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.drop = nn.Dropout(0.1)

    def attend(self, x: torch.Tensor) -> torch.Tensor:
        b, t, d = x.shape
        q, k, v = (z.view(b, t, self.heads, d // self.heads).transpose(1, 2) for z in self.qkv(x).split(d, dim=2))
        scores = q @ k.transpose(-2, -1) / (d // self.heads) ** 0.5
        mask = torch.ones(t, t, dtype=torch.bool, device=x.device).tril()
        weights = scores.masked_fill(~mask, float("-inf")).softmax(-1)
        return self.drop(self.proj((weights @ v).transpose(1, 2).reshape(b, t, d)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.attend(self.ln_1(x))
        return x + self.drop(self.out(nn.functional.gelu(self.fc(self.ln_2(x)))))


class NanoGPT(nn.Module):
    """A small decoder as people write them by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.wte, self.wpe = nn.Embedding(VOCAB, WIDTH), nn.Embedding(64, WIDTH)
        self.blocks = nn.ModuleList(Block(WIDTH, HEADS) for _ in range(LAYERS))
        self.ln_f, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, VOCAB, bias=False)
        self.head.weight = self.wte.weight

    def forward(self, idx: torch.Tensor, targets: torch.Tensor | None = None) -> Any:
        x = self.wte(idx) + self.wpe(torch.arange(idx.shape[1], device=idx.device))
        for block in self.blocks:
            x = block(x)
        logits = self.head(self.ln_f(x))
        if targets is None:
            return logits
        return logits, nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())


def _nano() -> nn.Module:
    torch.manual_seed(0)
    return NanoGPT().eval()


HOSTS = [
    Host("gpt2", _hf("GPT2LMHeadModel", "GPT2Config", vocab_size=VOCAB, n_embd=WIDTH, n_layer=LAYERS, n_head=HEADS,
                     n_positions=512, bos_token_id=1, eos_token_id=2), _causal, 4, "attention and MLP, 2 blocks",
         causal=True),
    Host("llama", _hf("LlamaForCausalLM", "LlamaConfig", **_LLAMA), _causal, 4, "attention and MLP, 2 blocks",
         causal=True),
    Host("qwen3", _hf("Qwen3ForCausalLM", "Qwen3Config", head_dim=8, **_LLAMA), _causal, 4,
         "attention and MLP, 2 blocks", causal=True),
    Host("gemma2", _hf("Gemma2ForCausalLM", "Gemma2Config", head_dim=8, sliding_window=8, **_LLAMA), _causal, 4,
         "attention and MLP, 2 blocks; norms on both sides", causal=True, norm="sandwich"),
    Host("gpt_neox", _hf("GPTNeoXForCausalLM", "GPTNeoXConfig", **{k: v for k, v in _LLAMA.items()
                         if k != "num_key_value_heads"}), _causal, 2, "x + (attention + MLP), 2 blocks", causal=True,
         norm="parallel"),
    Host("falcon", _hf("FalconForCausalLM", "FalconConfig", **_FALCON), _causal, 2,
         "x + (attention + MLP), 2 blocks", causal=True, norm="parallel"),
    Host("bert", _hf("BertForMaskedLM", "BertConfig", **_BERT), _text, 4, "attention and MLP, 2 blocks", norm="post"),
    Host("roberta", _hf("RobertaForMaskedLM", "RobertaConfig", **_BERT), _text, 4, "attention and MLP, 2 blocks",
         norm="post"),
    Host("vit", _hf("ViTForImageClassification", "ViTConfig", hidden_size=WIDTH, intermediate_size=48, image_size=16,
                    num_hidden_layers=LAYERS, num_attention_heads=HEADS, patch_size=4), _image, 4,
         "attention and MLP, 2 blocks"),
    Host("t5", _hf("T5ForConditionalGeneration", "T5Config", vocab_size=VOCAB, d_model=WIDTH, d_kv=8, d_ff=48,
                   num_layers=LAYERS, num_heads=HEADS, decoder_start_token_id=0), _seq2seq, 10,
         "encoder 2 x 2, decoder 2 x 3 with cross-attention", streams=2),
    Host("bart", _hf("BartForConditionalGeneration", "BartConfig", vocab_size=VOCAB, d_model=WIDTH,
                     encoder_layers=LAYERS, decoder_layers=LAYERS, encoder_attention_heads=HEADS,
                     decoder_attention_heads=HEADS,
                     encoder_ffn_dim=48, decoder_ffn_dim=48, max_position_embeddings=64, pad_token_id=0,
                     bos_token_id=1, eos_token_id=2, decoder_start_token_id=2, forced_eos_token_id=2), _seq2seq, 10,
         "encoder 2 x 2, decoder 2 x 3 with cross-attention", streams=2, norm="post"),
    Host("mixtral", _hf("MixtralForCausalLM", "MixtralConfig", num_local_experts=4, num_experts_per_tok=2, **_LLAMA),
         _causal, 4, "attention and experts, 2 blocks", causal=True),
    Host("whisper", _hf("WhisperForConditionalGeneration", "WhisperConfig", vocab_size=VOCAB, d_model=WIDTH,
                        encoder_layers=LAYERS, decoder_layers=LAYERS, encoder_attention_heads=HEADS,
                        decoder_attention_heads=HEADS, encoder_ffn_dim=48, decoder_ffn_dim=48, num_mel_bins=8,
                        max_source_positions=20, max_target_positions=64, pad_token_id=0, bos_token_id=1,
                        eos_token_id=2, decoder_start_token_id=1, suppress_tokens=None, begin_suppress_tokens=None),
         _speech, 10, "encoder 2 x 2, decoder 2 x 3 with cross-attention", streams=2),
    Host("nanogpt", _nano, lambda b, t: {"idx": tokens(b, t)}, 4, "attention and MLP, 2 blocks"),
]  # fmt: skip
BY_NAME = {host.name: host for host in HOSTS}
