"""diffusers, monai, x-transformers, vit-pytorch and open_clip. Lines as in ``table_text``, built by ``libraries``."""

_NOISE = '"_inputs": {"hidden_states": (2, 4, 8, 8), "timestep": "ones 2"'
_DIT = '"num_attention_heads": 4, "attention_head_dim": 8, "in_channels": 4, "num_layers": 2, "sample_size": 8, "patch_size": 2'
_RESNET = "ResnetBlock2D[conv_shortcut] projection; ResnetBlock2D[!conv_shortcut] 1"
_UNET = '"sample_size": 16, "layers_per_block": 1, "block_out_channels": (16, 32), "norm_num_groups": 8'

DIFFUSERS = (
    """
UNet2DModel | RESNET; Attention 1 | ? | {UNET, "attention_head_dim": 8, "in_channels": 3, "out_channels": 3, "down_block_types": ("DownBlock2D", "AttnDownBlock2D"), "up_block_types": ("AttnUpBlock2D", "UpBlock2D"), "_inputs": {"sample": (2, 3, 16, 16), "timestep": "ones 2"}}
UNet2DConditionModel | RESNET; Transformer2DModel 1; BasicTransformerBlock 3 | ? | {UNET, "attention_head_dim": 8, "in_channels": 4, "out_channels": 4, "cross_attention_dim": 24, "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"), "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"), "_inputs": {"sample": (2, 4, 16, 16), "timestep": "ones 2", "encoder_hidden_states": (2, 7, 24)}}
AutoencoderKL | RESNET; Attention 1 | ? | {"layers_per_block": 1, "block_out_channels": (16, 32), "norm_num_groups": 8, "down_block_types": ("DownEncoderBlock2D", "DownEncoderBlock2D"), "up_block_types": ("UpDecoderBlock2D", "UpDecoderBlock2D"), "_inputs": {"sample": (2, 3, 16, 16)}}
DiTTransformer2DModel | BasicTransformerBlock 2 | 1 | {DIT, "num_embeds_ada_norm": 10, NOISE, "class_labels": "ones 2"}}
PixArtTransformer2DModel | BasicTransformerBlock 3 | 1 | {DIT, "out_channels": 8, "cross_attention_dim": 32, "caption_channels": 24, "norm_type": "ada_norm_single", NOISE, "encoder_hidden_states": (2, 7, 24), "added_cond_kwargs": {"resolution": None, "aspect_ratio": None}}}
SD3Transformer2DModel | JointTransformerBlock[!context_pre_only] 4; JointTransformerBlock[context_pre_only] 2 | 2 | {DIT, "num_layers": 3, "joint_attention_dim": 16, "caption_projection_dim": 32, "pooled_projection_dim": 16, "out_channels": 4, "pos_embed_max_size": 8, NOISE, "encoder_hidden_states": (2, 7, 16), "pooled_projections": (2, 16)}}
FluxTransformer2DModel | FluxTransformerBlock 4; FluxSingleTransformerBlock 1 | ? | {"patch_size": 1, "in_channels": 4, "num_layers": 2, "num_single_layers": 2, "attention_head_dim": 16, "num_attention_heads": 2, "joint_attention_dim": 32, "pooled_projection_dim": 32, "axes_dims_rope": (4, 4, 8), "_inputs": {"hidden_states": (2, 16, 4), "timestep": (2,), "encoder_hidden_states": (2, 7, 32), "pooled_projections": (2, 32), "img_ids": (16, 3), "txt_ids": (7, 3)}}
""".replace("RESNET", _RESNET)
    .replace("UNET", _UNET)
    .replace("DIT", _DIT)
    .replace("NOISE", _NOISE)
)

_RES = "UnetResBlock[downsample] projection; UnetResBlock[!downsample] 1"
_FLAT = '"spatial_dims": 2, "in_channels": 1'

MONAI = """
UNet | ResidualUnit[residual=Identity] 1; ResidualUnit[!residual=Identity] projection | ? | {FLAT, "out_channels": 2, "channels": (8, 16, 32), "strides": (2, 2), "num_res_units": 2, "_inputs": {"x": (2, 1, 16, 16)}}
SegResNet | ResBlock 1; SegResNet 1 | ? | {FLAT, "init_filters": 8, "out_channels": 2, "blocks_down": (1, 2), "blocks_up": (1,), "_inputs": {"x": (2, 1, 16, 16)}}
ViT | TransformerBlock 2 | 1 | {FLAT, "img_size": (16, 16), "patch_size": (8, 8), "hidden_size": 32, "mlp_dim": 48, "num_layers": 2, "num_heads": 4, "_inputs": {"x": (2, 1, 16, 16)}}
UNETR | TransformerBlock 2; RES | ? | {FLAT, "out_channels": 2, "img_size": (32, 32), "feature_size": 8, "hidden_size": 32, "mlp_dim": 48, "num_heads": 4, "_inputs": {"x_in": (2, 1, 32, 32)}}
SwinUNETR | SwinTransformerBlock 2; RES | ? | {FLAT, "out_channels": 2, "feature_size": 12, "depths": (1, 1, 1, 1), "num_heads": (1, 2, 2, 4), "_inputs": {"x_in": (2, 1, 64, 64)}}
""".replace("; RES |", f"; {_RES} |").replace("FLAT", _FLAT)

_LAYERS = '"attn_layers": {"_class": "KIND", "dim": 32, "depth": 2, "heads": 4, "attn_dim_head": 8'
_WORDS = '"num_tokens": 99, "max_seq_len": 64, "_inputs": {"x": "ids 2 7"}'

X_TRANSFORMERS = """
TransformerWrapper/decoder | Residual 1 | 1 | {LAYERS}, WORDS}
TransformerWrapper/encoder | Residual 1 | 1 | {ENCODER}, WORDS}
TransformerWrapper/llama | Residual 1 | 1 | {LAYERS, "rotary_pos_emb": True, "ff_glu": True, "ff_swish": True, "use_rmsnorm": True, "attn_kv_heads": 2}, WORDS}
ViTransformerWrapper | Residual 1 | 1 | {"image_size": 32, "patch_size": 8, "num_classes": 5, ENCODER}, "_inputs": {"img": (2, 3, 32, 32)}}
""".replace("ENCODER", _LAYERS.replace("KIND", "Encoder"))
X_TRANSFORMERS = X_TRANSFORMERS.replace("LAYERS", _LAYERS.replace("KIND", "Decoder")).replace("WORDS", _WORDS)

_VIT = '"image_size": 32, "patch_size": 8, "num_classes": 5, "dim": 32, "depth": 2, "heads": 4, "dim_head": 8, "mlp_dim": 48'
_PIXELS = '"_inputs": {"img": (2, 3, 32, 32)}'

# One class holds both blocks of a transformer: two adds a layer, two layers.
VIT_PYTORCH = """
vit:ViT | Transformer 4 | 1 | {VIT, PIXELS}
simple_vit:SimpleViT | Transformer 4 | 1 | {VIT, PIXELS}
deepvit:DeepViT | Transformer 4 | 1 | {VIT, PIXELS}
cait:CaiT | Transformer 4 | 2 | {VIT, "cls_depth": 2, PIXELS}
""".replace("VIT,", _VIT + ",").replace("PIXELS", _PIXELS)

_TOWER = '"image_size": 32, "layers": 2, "width": 32, "patch_size": 8, "head_width": 8'
_TEXT = '"context_length": 9, "vocab_size": 99, "width": 32, "heads": 4, "layers": 2'
_PAIR = '"_inputs": {"image": (2, 3, 32, 32), "text": "ids 2 9"}'

OPEN_CLIP = (
    """
model:CLIP | ResidualAttentionBlock 2 | 2 | {"embed_dim": 32, "vision_cfg": {TOWER}, "text_cfg": {TEXT}, PAIR}
""".replace("TOWER", _TOWER)
    .replace("TEXT", _TEXT)
    .replace("PAIR", _PAIR)
)
