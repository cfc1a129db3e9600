"""Tiny random models of Hugging Face configurations.

One shared table of small values covers most families; a family's own line in the zoo adds what differs.
"""

from __future__ import annotations

from types import NoneType
from typing import Any

from torch import nn

from .torchvision_stub import import_timm

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
    """A small configuration of a class: the shared table where it has the field, then ``changes``.

    A change to ``...`` leaves the field as the configuration has it.
    """
    from transformers import AutoConfig

    default = cls()
    fields = set(vars(default)) | set(getattr(cls, "attribute_map", {}))
    values = {k: v for k, v in SMALL.items() if k in fields and isinstance(_default(default, k), (int, NoneType))}
    values |= changes
    for name in getattr(cls, "sub_configs", {}):
        part = getattr(default, name, None)
        if hasattr(part, "to_dict"):
            given = changes.get(name, {})
            if isinstance(given, dict) and "model_type" in given:  # another kind than the default
                values[name] = AutoConfig.for_model(**given)
            elif isinstance(given, dict):
                part = tiny_config(type(part), given, True)
                values[name] = part.to_dict() if nested else part
    return cls(**{k: v for k, v in values.items() if v is not ...})


def _default(config: Any, name: str) -> Any:
    try:
        return getattr(config, name, None)
    except Exception:  # a value per layer, which the configuration makes itself
        return ...


def build(model: str, changes: dict[str, Any]) -> nn.Module:
    """A model of ``transformers`` in eval mode."""
    import_timm()  # before transformers looks for it
    import transformers

    transformers.logging.set_verbosity_error()
    cls = getattr(transformers, model)
    return cls(tiny_config(cls.config_class, changes)).eval()
