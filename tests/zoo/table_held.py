"""Families held out: none of the rules was written for them. Lines as in ``table_text``."""

_RESNET = (
    '{"model_type": "resnet", "embedding_size": 16, "hidden_sizes": [16, 16, 32, 32], "depths": [1, 1, 1, 1],'
    ' "layer_type": "basic", "out_features": OUT}'
)
_DETR = '{"use_timm_backbone": False, "backbone": None, "num_queries": 5, "backbone_config": RESNET, "_inputs": {"pixel_values": (2, 3, 64, 64)}}'
_LAST, _THREE = '["stage4"]', '["stage2", "stage3", "stage4"]'
_RTDETR = (
    '{"encoder_layers": 1, "decoder_layers": 2, "backbone": None, "encoder_in_channels": [16, 32, 32],'
    ' "encoder_hidden_dim": 32, "decoder_in_channels": [32, 32, 32], "d_model": 32, "num_queries": 10,'
    ' "encoder_ffn_dim": 48, "num_feature_levels": 3, "feat_strides": [8, 16, 32], "anchor_image_size": None,'
    ' "backbone_config": RESNET, "_inputs": {"pixel_values": (1, 3, 64, 64)}}'
)
_SWIN = (
    '{"model_type": "swin", "embed_dim": 16, "depths": [1, 1, 1, 1], "num_heads": [1, 1, 2, 2], "window_size": 4,'
    ' "image_size": 64, "patch_size": 4, "out_features": ["stage1", "stage2", "stage3", "stage4"]}'
)
_BASIC = "ResNetBasicLayer[shortcut=Identity] 1; ResNetBasicLayer[!shortcut=Identity] projection"

TRANSFORMERS = (
    """
# streams that feed one another, states added again before each read, positions scaled by what they are added to
SamModel | SamVisionLayer 2; SamTwoWayAttentionBlock[skip_first_layer_pe] 3; SamTwoWayAttentionBlock[!skip_first_layer_pe] 4; SamTwoWayTransformer 1 | ? | {"vision_config": {"image_size": 64, "patch_size": 16, "global_attn_indexes": [1], "window_size": 2, "output_channels": 256}, "prompt_encoder_config": {"image_size": 64, "patch_size": 16, "hidden_size": 256}, "mask_decoder_config": {"hidden_size": 256, "mlp_dim": 48, "num_attention_heads": 4, "iou_head_hidden_dim": 32}, "_inputs": {"pixel_values": (1, 3, 64, 64), "input_points": (1, 1, 2, 2)}}
DetrModel | DetrEncoderLayer 2; DetrDecoderLayer 3; BASIC | ? | DETR-1
ConditionalDetrModel | ConditionalDetrEncoderLayer 2; ConditionalDetrDecoderLayer 3; BASIC | ? | DETR-1
DabDetrModel | DabDetrEncoderLayer 2; DabDetrDecoderLayer 3; BASIC | ? | DETR-1
DeformableDetrModel | DeformableDetrEncoderLayer 2; DeformableDetrDecoderLayer 3; BASIC | ? | DETR-3
RTDetrModel | RTDetrEncoderLayer 2; RTDetrDecoderLayer 3; RTDetrResNetBasicLayer projection | ? | RT-DETR
RTDetrV2Model | RTDetrV2EncoderLayer 2; RTDetrV2DecoderLayer 3; RTDetrResNetBasicLayer projection | ? | RT-DETR
MaskFormerModel | MaskFormerSwinLayer 2; MaskFormerDetrDecoderLayer 3 | ? | {"backbone": None, "fpn_feature_size": 32, "mask_feature_size": 32, "backbone_config": SWIN, "_inputs": {"pixel_values": (1, 3, 64, 64)}}
Mask2FormerModel | SwinLayer 2; Mask2FormerPixelDecoderEncoderLayer 2; Mask2FormerMaskedAttentionDecoderLayer 3 | ? | {"backbone": None, "hidden_dim": 32, "feature_size": 32, "mask_feature_size": 32, "encoder_feedforward_dim": 48, "num_queries": 5, "dim_feedforward": 48, "backbone_config": SWIN, "_inputs": {"pixel_values": (1, 3, 64, 64)}}
UperNetForSemanticSegmentation | ConvNextLayer 1 | 4 | {"backbone": None, "hidden_size": 32, "backbone_config": {"model_type": "convnext", "depths": [1, 1, 1, 1], "hidden_sizes": [16, 16, 32, 32], "out_features": ["stage1", "stage2", "stage3", "stage4"]}, "_inputs": {"pixel_values": (2, 3, 64, 64)}}
# layers that run several times: the fast ones six times, the slow ones twice
HrmTextModel | HrmTextDecoderLayer*4 2 | ?
AlbertForMaskedLM | AlbertAttention*2 1; AlbertLayer*2 1 | 1 | {"num_hidden_groups": 2, "inner_group_num": 2, "num_hidden_layers": 4}
SpeechT5HifiGan | HifiGanResidualBlock 3 | ? | {"upsample_rates": [4, 4], "upsample_kernel_sizes": [8, 8], "upsample_initial_channel": 32, "_inputs": {"spectrogram": (2, 10, 80)}}
FastSpeech2ConformerHifiGan | HifiGanResidualBlock 3 | ? | {"upsample_rates": [4, 4], "upsample_kernel_sizes": [8, 8], "upsample_initial_channel": 32, "_inputs": {"spectrogram": (2, 10, 80)}}
# towers and heads
CvtModel | CvtLayer 1; CvtOutput 1 | 3
MgpstrModel | MgpstrLayer 2
Phi4MultimodalVisionModel | Phi4MultimodalVisionEncoderLayer 2; Phi4MultimodalVisionMultiheadAttentionPoolingHead 1 | 2
JanusVisionModel | JanusVisionEncoderLayer 2
BridgeTowerModel | BridgeTowerResidualAttention 2; BridgeTowerSelfOutput 1; BridgeTowerOutput 1 | ? | {"text_config": {"num_attention_heads": 4}, "vision_config": {"num_attention_heads": 4, "hidden_size": 64, "image_size": 32, "patch_size": 8}}
ClvpEncoder | ClvpEncoderLayer 2 | 1 | {"use_rotary_embedding": False}
SpeechT5ForSpeechToText | SpeechT5EncoderLayer 2; SpeechT5DecoderLayer 3; SpeechT5SpeechEncoderPrenet 1 | ?
MusicgenMelodyForCausalLM | MusicgenMelodyDecoderLayer 2 | 1 | {"_inputs": {"input_ids": "ids 8 7"}}
TimesFmModel | TimesFmResidualBlock projection; TimesFmDecoderLayer 1; TimesFmMLP 1 | ? | {"_inputs": {"past_values": (2, 64), "past_values_padding": "zeros 2 64", "freq": "zeros 2 1"}}
PatchTSTForPrediction | PatchTSTEncoderLayer 3 | 1 | {"num_input_channels": 3, "context_length": 32, "patch_length": 8, "patch_stride": 8, "channel_attention": True, "_inputs": {"past_values": (2, 32, 3)}}
""".replace("DETR-1", _DETR.replace("RESNET", _RESNET.replace("OUT", _LAST)))
    .replace(
        "DETR-3", _DETR.replace("RESNET", _RESNET.replace("OUT", _THREE)).replace("{", '{"num_feature_levels": 3, ', 1)
    )
    .replace("RT-DETR", _RTDETR.replace("RESNET", _RESNET.replace("OUT", _THREE).replace("resnet", "rt_detr_resnet")))
    .replace("SWIN", _SWIN)
    .replace("BASIC", _BASIC)
)

_VIT = '{"img_size": 64, "embed_dim": 32, "depth": 2, "num_heads": 4}'

TIMM = """
nextvit_small | NextConvBlock 2; NextTransformerBlock 3 | ?
csatv2 | Block 1; SpatialTransformerBlock 2; TransformerBlock 2; PosConv 1 | ? | {"size": 128}
gemma4_vit_167m | Gemma4Block 2 | 1 | VIT
qwen3_vit_88m | EvaBlock 2 | 1 | VIT
mobilenetv5_base | UniversalInvertedResidual[has_skip] 1; MobileAttention[has_skip] 1; EdgeResidual[has_skip] 1 | ?
nasnetalarge | none | 0 | {"size": 96}
bat_resnext26ts | BottleneckBlock[shortcut=Identity] 1; BottleneckBlock[shortcut,!shortcut=Identity] projection; BatNonLocalAttn 1 | ? | {"size": 256}
botnet26t_256 | BottleneckBlock[shortcut=Identity] 1; BottleneckBlock[shortcut,!shortcut=Identity] projection; SelfAttnBlock[shortcut=Identity] 1; SelfAttnBlock[shortcut,!shortcut=Identity] projection | 4 | {"size": 256}
naflexvit_base_patch16_map | Block 2; AttentionPoolLatent 1 | 2 | {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 4}
cs3darknet_s | DarkBlock 1 | ?
cs3edgenet_x | EdgeBlock 1 | ?
caformer_s18 | MetaFormerBlock[res_scale1=Identity] 2; MetaFormerBlock[res_scale1=Scale] scaled scaled | 4
dla60_res2net | DlaTree[levels=1,project=Sequential] projection; DlaTree[levels=1,!project=Sequential,downsample=MaxPool2d] resampled; DlaTree[levels=1,!project=Sequential,downsample=Identity] 1; DlaTree[levels=1] 1 | ?
""".replace("VIT", _VIT)
