"""Tiny random models of Hugging Face configurations, and the inputs they take.

One shared table of small values covers most families; a family's own line in the zoo adds what differs.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import nn

from .torchvision_stub import import_timm  # noqa: F401 - re-exported for the tables

VOCAB = 99
_SMALL = {
    99: "vocab_size",
    64: "max_position_embeddings n_positions n_ctx max_source_positions max_target_positions",
    48: "intermediate_size ffn_dim d_ff encoder_ffn_dim decoder_ffn_dim n_inner hidden_dim dim_feedforward"
        " decoder_intermediate_size",
    32: "hidden_size d_model n_embd embed_dim dim embedding_size encoder_embed_dim decoder_embed_dim projection_dim"
        " decoder_hidden_size out_hidden_size image_size",
    16: "moe_intermediate_size shared_expert_intermediate_size q_lora_rank kv_lora_rank num_mel_bins",
    8: "d_kv head_dim v_head_dim patch_size sliding_window state_size ssm_state_size mamba_d_state",
    4: "num_attention_heads num_heads n_head n_heads encoder_attention_heads decoder_attention_heads conv_kernel"
       " decoder_num_attention_heads encoder_num_attention_heads encoder_num_key_value_heads num_experts"
       " num_local_experts n_routed_experts qk_rope_head_dim qk_nope_head_dim",
    2: "num_hidden_layers num_layers n_layer n_layers encoder_layers decoder_layers num_decoder_layers depth"
       " num_encoder_layers encoder_num_hidden_layers decoder_num_hidden_layers decoder_num_layers eos_token_id"
       " num_key_value_heads decoder_num_key_value_heads num_experts_per_tok type_vocab_size mamba_expand",
    1: "n_group topk_group first_k_dense_replace n_groups bos_token_id decoder_start_token_id temporal_patch_size",
    0: "pad_token_id",
}  # fmt: skip
SMALL = {name: value for value, names in _SMALL.items() for name in names.split()}


def tiny_config(cls: type, changes: dict[str, Any], nested: bool = False) -> Any:
    """A small configuration of a class: the shared table where it has the field, then ``changes``."""
    default = cls()
    fields = set(vars(default)) | set(getattr(cls, "attribute_map", {}))
    values = {k: v for k, v in SMALL.items() if k in fields} | changes
    for name in getattr(cls, "sub_configs", {}):
        part = getattr(default, name, None)
        if hasattr(part, "to_dict"):
            given = changes.get(name, {})
            if isinstance(given, dict):
                part = tiny_config(type(part), given, True)
                values[name] = part.to_dict() if nested else part
    return cls(**{k: v for k, v in values.items() if v is not DEFAULT})


DEFAULT = object()  # leave a field of the shared table as the configuration has it


def build(model: str, config: str, changes: dict[str, Any]) -> nn.Module:
    """A model in eval mode from a fixed seed."""
    import transformers

    transformers.logging.set_verbosity_error()
    torch.manual_seed(0)
    return getattr(transformers, model)(tiny_config(getattr(transformers, config), changes)).eval()


def tokens(batch: int, length: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(3, VOCAB - 1, (batch, length), generator=torch.Generator().manual_seed(seed))


def noise(*size: int) -> torch.Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(0))


def inputs_of(model: nn.Module) -> dict[str, Any]:
    """Keyword arguments for one call, from the names in the signature of ``forward``."""
    names = inspect.signature(type(model).forward).parameters
    config = model.config
    inputs: dict[str, Any] = {}
    if "input_ids" in names:
        inputs["input_ids"] = tokens(2, 7)
    if "decoder_input_ids" in names and getattr(config, "is_encoder_decoder", True):
        inputs["decoder_input_ids"] = tokens(2, 5, 1)
    if "pixel_values" in names:
        vision = getattr(config, "vision_config", config)
        size = getattr(vision, "image_size", None) or 32
        height, width = size if isinstance(size, (tuple, list)) else (size, size)
        inputs["pixel_values"] = noise(2, getattr(vision, "num_channels", 3), height, width)
    if "input_features" in names:
        audio = getattr(config, "audio_config", config)
        inputs["input_features"] = noise(2, getattr(audio, "num_mel_bins", 16), 40)
    if "input_values" in names:
        inputs["input_values"] = noise(2, 1200)
    if "use_cache" in names:
        inputs["use_cache"] = False
    return inputs
