"""timm. Lines as in ``table_text``; ``module:Class`` where the entry point fixes its own sizes."""

_VIT = '{"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 4}'

TABLE = """
# transformers
vit_tiny_patch16_224 | Block 2 | 1 | VIT
deit_tiny_distilled_patch16_224 | Block 2 | 1 | VIT
deit3_small_patch16_224 | Block 2 | 1 | VIT
vit_relpos_small_patch16_224 | RelPosBlock 2 | 1 | VIT
vit_srelpos_small_patch16_224 | RelPosBlock 2 | 1 | VIT
beit_base_patch16_224 | Block 2 | 1 | VIT
beitv2_base_patch16_224 | Block 2 | 1 | VIT
eva02_tiny_patch14_224 | EvaBlock 2 | 1 | VIT
eva_giant_patch14_224 | EvaBlock 2 | 1 | VIT
vit_small_patch16_rope_224 | EvaBlock 2 | 1 | VIT
vit_small_patch16_dinov3 | EvaBlock 2 | 1 | VIT
vit_pwee_patch16_reg1_gap_256 | ParallelScalingBlock 1 | 1 | VIT
vit_base_patch16_clip_224 | Block 2 | 1 | VIT
vit_base_patch16_siglip_224 | Block 2; AttentionPoolLatent 1 | 2 | VIT
naflexvit_base_patch16_gap | Block 2 | 1 | VIT
convit_tiny | Block 2 | 1 | VIT
cait_xxs24_224 | LayerScaleBlock 2; LayerScaleBlockClassAttn 2 | 2 | {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 4, "depth_token_only": 2}
xcit_nano_12_p16_224 | XCABlock 3; ClassAttentionBlock 2 | ? | VIT
samvit_base_patch16 | Block 2 | 1 | {"img_size": 64, "patch_size": 16, "embed_dim": 32, "depth": 2, "num_heads": 4, "window_size": 2, "global_attn_indexes": (1,)}
volo:VOLO | Outlooker 2; Transformer 2; ClassBlock 2 | ? | {"img_size": 32, "layers": (1, 1, 1, 1), "embed_dims": (16, 32, 32, 32), "num_heads": (2, 4, 4, 4), "use_aux_head": False, "use_mix_token": False}
tnt_s_legacy_patch16_224 | Block 4 | ? | {"img_size": 32, "embed_dim": 32, "depth": 2, "num_heads_outer": 4, "inner_dim": 16}
pit_ti_224 | Block 2 | 3 | {"img_size": 32, "patch_size": 8, "stride": 4, "base_dims": [16, 16, 16], "depth": [1, 1, 1], "heads": [1, 2, 4]}
coat_lite_tiny | ConvPosEnc 1; SerialBlock 2 | ? | {"img_size": 32, "embed_dims": [16, 32, 32, 32], "serial_depths": [1, 1, 1, 1]}
levit_128s | LevitBlock 2; LevitDownsample 1 | 3 | {"img_size": 32, "embed_dim": (16, 32, 48), "depth": (1, 1, 1)}
levit_conv_128s | LevitBlock 2; LevitDownsample 1 | 3 | {"img_size": 32, "embed_dim": (16, 32, 48), "depth": (1, 1, 1)}
swin_tiny_patch4_window7_224 | SwinTransformerBlock 2 | 2 | {"img_size": 32, "window_size": 4, "embed_dim": 16, "depths": (2, 2), "num_heads": (2, 4)}
swinv2_tiny_window8_256 | SwinTransformerV2Block 2 | 2 | {"img_size": 32, "window_size": 4, "embed_dim": 16, "depths": (2, 2), "num_heads": (2, 4)}
swinv2_cr_tiny_224 | SwinTransformerV2CrBlock 2 | 2 | {"img_size": 32, "window_size": 4, "embed_dim": 16, "depths": (2, 2), "num_heads": (2, 4)}
twins_pcpvt_small | Block 2; PosConv 1 | 4 | {"img_size": 32, "embed_dims": [16, 16, 32, 32], "depths": [1, 1, 1, 1], "num_heads": [1, 2, 4, 4]}
twins_svt_small | Block 2; PosConv 1 | 4 | {"img_size": 64, "embed_dims": [16, 16, 32, 32], "depths": [2, 2, 1, 1], "num_heads": [1, 2, 4, 4], "wss": [4, 4, 2, 2]}
pvt_v2_b0 | Block 2 | 4 | {"depths": (1, 1, 1, 1), "embed_dims": (16, 16, 32, 32), "num_heads": (1, 2, 4, 4)}
hiera_tiny_224 | HieraBlock[do_expand] projection identity; HieraBlock[!do_expand] 2 | 4 | {"img_size": (32, 32), "size": 32, "embed_dim": 16, "num_heads": 1, "stages": (1, 1, 1, 1), "mask_unit_size": (8, 8)}
hieradet_small | MultiScaleBlock[proj=Identity] 2; MultiScaleBlock[proj=Linear] projection identity | 4 | {"embed_dim": 16, "num_heads": 1, "stages": (1, 1, 1, 1)}
mvitv2_tiny | MultiScaleBlock[shortcut_proj_attn] projection identity; MultiScaleBlock[!shortcut_proj_attn] 2 | 4 | {"size": 224}
davit_tiny | SpatialBlock 2; ChannelBlock 2; ConvPosEnc 1 | 2 | {"depths": (1, 1), "embed_dims": (16, 32), "num_heads": (2, 4)}
gcvit:GlobalContextVit | MbConvBlock 1; GlobalContextVitBlock 2 | ? | {"img_size": 64, "depths": (2, 2, 2, 2), "embed_dim": 16, "num_heads": (1, 2, 4, 4), "window_size": (2, 2, 2, 2)}
focalnet:FocalNet | FocalNetBlock 2 | 4 | {"depths": (1, 1, 1, 1), "embed_dim": 16}
maxvit_pico_rw_256 | MbConvBlock[shortcut=Identity] 1; MbConvBlock[shortcut.expand=Conv2d] projection; MbConvBlock[shortcut.expand=Identity] resampled; PartitionAttentionCl 2 | 4 | {"img_size": 64, "embed_dim": (32, 32, 32, 32), "depths": (1, 1, 1, 1), "stem_width": 8}
maxxvit_rmlp_nano_rw_256 | ConvNeXtBlock[shortcut=Identity] 1; ConvNeXtBlock[shortcut.expand=Conv2d] projection; ConvNeXtBlock[shortcut.expand=Identity] resampled; PartitionAttentionCl 2 | 4 | {"img_size": 64, "embed_dim": (32, 32, 32, 32), "depths": (1, 1, 1, 1), "stem_width": 8}
nest:Nest | TransformerLayer 2 | 3 | {"img_size": 32, "embed_dims": (16, 16, 32), "num_heads": (2, 2, 4), "depths": (1, 1, 1)}
visformer_tiny | Block[attn] 1; Block 1 | 3 | {"img_size": 64, "embed_dim": 32, "depth": (1, 1, 1), "num_heads": 4, "init_channels": 8}
vitamin_small_224 | MbConvLNBlock[shortcut=Identity] 1; MbConvLNBlock[shortcut=Conv2d] projection; MbConvLNBlock[shortcut.expand=Conv2d] projection; MbConvLNBlock[shortcut.expand=Identity] resampled; Block 2 | ? | {"img_size": 64, "depth": 2}
tiny_vit_5m_224 | MBConv 1; TinyVitBlock 2 | ? | {"embed_dims": (16, 16, 32, 32), "depths": (1, 1, 1, 1), "num_heads": (1, 2, 4, 4), "window_sizes": (4, 4, 4, 2)}
vit_small_r26_s32_224 | Bottleneck[downsample] projection; Bottleneck[!downsample] 1; Block 2 | 5 | {"img_size": 64, "embed_dim": 32, "depth": 2, "num_heads": 4}
crossvit_9_240 | CrossAttentionBlock 1; Block 2 | ? | {"img_size": 48, "img_scale": (1.0, 1.0), "patch_size": (8, 16), "embed_dim": (32, 64), "depth": [[1, 1, 0]], "num_heads": (4, 4), "mlp_ratio": (3, 3, 1)}
# mixers
sequencer2d_s | Sequencer2dBlock 2 | 4 | {"img_size": 32, "layers": (1, 1, 1, 1), "embed_dims": (16, 16, 16, 16), "hidden_sizes": (8, 8, 8, 8)}
mlp_mixer:MlpMixer | MixerBlock 2 | 1 | {"img_size": 32, "patch_size": 8, "embed_dim": 32, "num_blocks": 2}
resmlp_12_224 | ResBlock 2 | 1 | {"img_size": 64}
gmixer_12_224 | MixerBlock 2 | 1 | {"img_size": 64}
gmlp_ti16_224 | SpatialGatingBlock 1 | 1 | {"img_size": 64}
convmixer:ConvMixer | Residual 1 | ? | {"dim": 32, "depth": 2, "patch_size": 4}
metaformer:MetaFormer | MetaFormerBlock[res_scale1=Identity] 2; MetaFormerBlock[res_scale1=Scale] scaled scaled | ? | {"depths": (1, 1, 1, 1), "dims": (16, 16, 32, 32)}
poolformer_s12 | MetaFormerBlock 2 | 4
convformer_s18 | MetaFormerBlock[res_scale1=Identity] 2; MetaFormerBlock[res_scale1=Scale] scaled scaled | 4
mambaout_femto | GatedConvBlock 1 | 4 | {"depths": (1, 1, 1, 1), "dims": (16, 16, 32, 32)}
efficientvim_m1 | EfficientViMBlock 4; PatchMerging 2 | ?
# convolutions
resnet18 | BasicBlock[downsample] projection; BasicBlock[!downsample] 1 | 4 | {"layers": (2, 1, 1, 1), "channels": (16, 16, 32, 32), "stem_width": 16}
resnet26d | Bottleneck[downsample] projection; Bottleneck[!downsample] 1 | 4 | {"layers": (2, 1, 1, 1), "channels": (8, 8, 16, 16)}
resnet50_gn | Bottleneck[downsample] projection; Bottleneck[!downsample] 1 | 4 | {"layers": (2, 1, 1, 1), "channels": (32, 32, 32, 32)}
resnetblur18 | BasicBlock[downsample] projection; BasicBlock[!downsample] 1 | 4 | {"layers": (2, 1, 1, 1), "channels": (16, 16, 32, 32)}
ecaresnet26t | Bottleneck[downsample] projection; Bottleneck[!downsample] 1 | 4 | {"layers": (2, 1, 1, 1), "channels": (8, 8, 16, 16)}
resnetrs50 | Bottleneck[downsample] projection; Bottleneck[!downsample] 1 | 4 | {"layers": (1, 1, 1, 1), "channels": (8, 8, 16, 16)}
wide_resnet50_2 | Bottleneck[downsample] projection; Bottleneck[!downsample] 1 | 4 | {"layers": (1, 1, 1, 1), "channels": (8, 8, 8, 8)}
resnext26ts | BottleneckBlock[shortcut=Identity] 1; BottleneckBlock[shortcut,!shortcut=Identity] projection | 4
lambda_resnet26t | BottleneckBlock[shortcut=Identity] 1; BottleneckBlock[shortcut,!shortcut=Identity] projection; SelfAttnBlock[shortcut=Identity] 1; SelfAttnBlock[shortcut,!shortcut=Identity] projection | 4 | {"size": 128}
gernet_s | BasicBlock[shortcut=Identity] 1; BasicBlock[shortcut,!shortcut=Identity] projection; BottleneckBlock[shortcut=Identity] 1; BottleneckBlock[shortcut,!shortcut=Identity] projection | ?
resnest14d | ResNestBottleneck[downsample] projection; ResNestBottleneck[!downsample] 1 | 4 | {"layers": (2, 1, 1, 1)}
res2net50_26w_4s | Bottle2neck[downsample] projection; Bottle2neck[!downsample] 1 | 4 | {"layers": (2, 1, 1, 1)}
skresnet18 | SelectiveKernelBasic[downsample] projection; SelectiveKernelBasic[!downsample] 1 | 4 | {"layers": (2, 1, 1, 1)}
legacy_seresnet18 | SEResNetBlock[downsample] projection; SEResNetBlock[!downsample] 1 | 4 | {"layers": (1, 1, 1, 1)}
resnetv2_50 | PreActBottleneck[downsample] projection; PreActBottleneck[!downsample] 1 | 4 | {"layers": (2, 1, 1, 1), "channels": (32, 32, 64, 64), "stem_chs": 16}
resnetv2_18 | PreActBasic[downsample] projection; PreActBasic[!downsample] 1 | 4 | {"layers": (2, 1, 1, 1), "channels": (16, 16, 32, 32), "stem_chs": 16}
nf_regnet_b0 | NormFreeBlock[downsample] projection; NormFreeBlock[!downsample] 1 | 4
nf_resnet26 | NormFreeBlock[downsample] projection; NormFreeBlock[!downsample] 1 | 4
dm_nfnet_f0 | NormFreeBlock[downsample] projection; NormFreeBlock[!downsample] 1 | 4
regnetx_002 | Bottleneck[downsample=Identity] 1; Bottleneck[downsample,!downsample=Identity] projection | 4
regnety_002 | Bottleneck[downsample=Identity] 1; Bottleneck[downsample,!downsample=Identity] projection | 4
regnetz_005 | Bottleneck[downsample=Identity] 1; Bottleneck[downsample,!downsample=Identity] projection | ?
regnetv_040 | PreBottleneck[downsample=Identity] 1; PreBottleneck[downsample,!downsample=Identity] projection | 4
tresnet_m | BasicBlock[downsample] projection; BasicBlock[!downsample] 1; Bottleneck[downsample] projection; Bottleneck[!downsample] 1 | 4 | {"layers": (1, 1, 1, 1), "width_factor": 0.25}
dla34 | DlaTree[levels=1,project=Sequential] projection; DlaTree[levels=1,!project=Sequential,downsample=MaxPool2d] resampled; DlaTree[levels=1,!project=Sequential,downsample=Identity] 1; DlaTree[levels=1] 1 | ?
dpn48b | DualPathBlock[has_proj] projection; DualPathBlock[!has_proj] 1 | ?
densenet121 | none | 0 | {"block_config": (2, 2), "growth_rate": 8}
rdnet_tiny | none | 0
cspresnet50 | BottleneckBlock 1 | ?
darknet17 | DarkBlock 1 | ?
hrnet_w18_small | Bottleneck[downsample] projection; Bottleneck[!downsample] 1; BasicBlock 1 | ?
hgnet_tiny | HighPerfGpuBlock[residual] 1 | ?
hgnetv2_b0 | HighPerfGpuBlock[residual] 1 | ?
inception_resnet_v2 | Block35 1; Block17 1; Block8 1 | 3 | {"size": 96}
inception_v3 | none | 0 | {"size": 96}
inception_v4 | none | 0 | {"size": 96}
inception_next_atto | MetaNeXtBlock 1 | 4 | {"depths": (1, 1, 1, 1), "dims": (16, 16, 32, 32)}
legacy_xception | Block[skip] projection; Block[!skip] 1 | ?
xception41 | XceptionModule[shortcut] projection; XceptionModule[!shortcut,!no_skip] 1 | ?
selecsls42 | none | 0
vgg11 | none | 0
ese_vovnet19b_slim_dw | OsaBlock[residual] 1 | 0
eca_vovnet39b | OsaBlock[residual] 1 | ?
starnet_s050 | Block 1 | 4
shvit_s1 | Residual 1 | 3
swiftformer_xs | Block 2; LocalRepresentation 1; EfficientAdditiveAttention 1 | ? | {"layers": (1, 1, 1, 1), "embed_dims": (16, 16, 32, 32)}
fasternet_t0 | MLPBlock 1 | 4 | {"embed_dim": 16, "depths": (1, 1, 2, 1)}
iformer_t | Residual 1 | 4
convnext_atto | ConvNeXtBlock 1 | 4 | {"depths": (1, 1, 2, 1), "dims": (16, 16, 32, 32)}
convnextv2_atto | ConvNeXtBlock 1 | 4 | {"depths": (1, 1, 2, 1), "dims": (16, 16, 32, 32)}
edgenext_xx_small | ConvBlock 1; SplitTransposeBlock 2 | ? | {"depths": (1, 1, 2, 1), "dims": (16, 16, 32, 32)}
efficientformerv2_s0 | EfficientFormerV2Block 1; EfficientFormerV2Block[token_mixer] 1; Downsample[attn] projection | ? | {"img_size": 64, "depths": (1, 1, 2, 2), "embed_dims": (16, 16, 32, 32), "mlp_ratios": ((4,), (4,), (4, 4), (4, 4)), "num_vit": 1}
efficientvit_b0 | ResidualBlock[shortcut] 1 | ?
efficientvit_m0 | ResidualDrop 1 | ?
lowformer_b0 | ResidualBlock[shortcut] 1 | ?
cpubone_nano | ResidualBlock[shortcut] 1 | ?
fastvit_t8 | RepMixerBlock 1; RepMixer 1 | 4 | {"layers": (1, 1, 1, 1), "embed_dims": (16, 16, 32, 32)}
fastvit_sa12 | RepMixerBlock 1; RepMixer 1; AttentionBlock 2; RepConditionalPosEnc 1 | ? | {"layers": (1, 1, 1, 1), "embed_dims": (16, 16, 32, 32)}
repvit_m0_9 | RepViTBlock 1; RepVitDownsample 1 | ? | {"embed_dim": (16, 16, 32, 32), "depth": (1, 1, 2, 1)}
mobileone_s0 | none | 0
repvgg_a0 | none | 0
ghostnet_050 | GhostBottleneck[shortcut] projection; GhostBottleneck[!shortcut] 1 | ?
ghostnetv2_100 | GhostBottleneck[shortcut] projection; GhostBottleneck[!shortcut] 1 | ?
repghostnet_050 | RepGhostBottleneck[shortcut] projection; RepGhostBottleneck[!shortcut] 1 | ?
mobilenetv2_035 | InvertedResidual[has_skip] 1 | ?
mobilenetv3_small_050 | InvertedResidual[has_skip] 1; DepthwiseSeparableConv[has_skip] 1 | ?
mobilenetv4_conv_small_035 | UniversalInvertedResidual[has_skip] 1 | ?
mobilenetv4_hybrid_medium_075 | UniversalInvertedResidual[has_skip] 1; EdgeResidual[has_skip] 1; MobileAttention[has_skip] 1 | ?
efficientnet_b0 | InvertedResidual[has_skip] 1; DepthwiseSeparableConv[has_skip] 1 | ?
efficientnet_es | InvertedResidual[has_skip] 1; EdgeResidual[has_skip] 1 | ?
tf_efficientnetv2_b0 | InvertedResidual[has_skip] 1; EdgeResidual[has_skip] 1; ConvBnAct[has_skip] 1 | ?
mixnet_s | InvertedResidual[has_skip] 1; DepthwiseSeparableConv[has_skip] 1 | ?
hardcorenas_a | InvertedResidual[has_skip] 1; DepthwiseSeparableConv[has_skip] 1 | ?
mnasnet_small | InvertedResidual[has_skip] 1; DepthwiseSeparableConv[has_skip] 1 | ?
fbnetc_100 | InvertedResidual[has_skip] 1 | ?
lcnet_035 | none | 0
lcnetv2_small | RepDepthwiseSeparable[use_shortcut] 1 | ?
cspnext_tiny | CspNextBlock[add_identity] 1 | ?
tinynet_e | InvertedResidual[has_skip] 1; DepthwiseSeparableConv[has_skip] 1 | ?
rexnet_100 | LinearBottleneck[use_shortcut] 1 | ?
mobilevit_xxs | BottleneckBlock[shortcut=Identity] 1; Block 2 | ?
mobilevitv2_050 | BottleneckBlock[shortcut=Identity] 1; LinearTransformerBlock 2 | ?
pnasnet5large | none | 0
""".replace("VIT", _VIT)
