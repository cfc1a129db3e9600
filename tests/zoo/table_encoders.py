"""Encoders, encoder-decoders, vision, audio and pairs of towers of transformers. Lines as in ``table_text``."""

TABLE = """
Aimv2Model | Aimv2EncoderLayer 2 | 2
Aimv2VisionModel | Aimv2EncoderLayer 2
AlbertModel | AlbertAttention*2 1; AlbertLayer*2 1
AltCLIPModel | AltRobertaSelfOutput 1; AltRobertaOutput 1; AltCLIPEncoderLayer 2 | 2
BeitModel | BeitLayer 2
BertGenerationDecoder | BertGenerationSelfOutput 1; BertGenerationOutput 1
BlipModel | BlipTextLayer 2; BlipEncoderLayer 2 | 2
CanineModel | CanineSelfOutput 1; CanineOutput 1 | 3
ChineseCLIPModel | ChineseCLIPTextSelfOutput 1; ChineseCLIPTextOutput 1; ChineseCLIPVisionLayer 2 | 2
ChineseCLIPVisionModel | ChineseCLIPVisionLayer 2
CLIPModel | CLIPEncoderLayer 2 | 2
CLIPTextModel | CLIPEncoderLayer 2
CLIPVisionModel | CLIPEncoderLayer 2
CLIPSegModel | CLIPSegEncoderLayer 2 | 2
ConvBertModel | ConvBertSelfOutput 1; ConvBertOutput 1
Data2VecVisionModel | Data2VecVisionLayer 2
DebertaModel | DebertaSelfOutput 1; DebertaOutput 1
DebertaV2Model | DebertaV2SelfOutput 1; DebertaV2Output 1
DeiTModel | DeiTLayer 2
Dinov2Model | Dinov2Layer 2
Dinov2WithRegistersModel | Dinov2WithRegistersLayer 2
DINOv3ViTModel | DINOv3ViTLayer 2
DistilBertModel | TransformerBlock 2
DPRQuestionEncoder | BertSelfOutput 1; BertOutput 1
DPTModel | DPTViTLayer 1; DPTViTOutput 1
EmbeddingGemma2TextModel | EmbeddingGemma2EncoderLayer 2; EmbeddingGemma2TextPLEBlock 1 | 1 | {"head_dim": 8, "global_head_dim": 8, "hidden_size_per_layer_input": 16}
EncoderDecoderModel | BertSelfOutput 1; BertOutput 1 | 2
EsmModel | EsmSelfOutput 1; EsmOutput 1
EuroBertModel | EuroBertDecoderLayer 2
EvollaModel | EvollaDecoderLayer 2
FlaubertModel | FlaubertModel*2 2
FlavaModel | FlavaLayer 1; FlavaOutput 1 | 3
FNetModel | FNetBasicOutput 1; FNetOutput 1
GlmAsrEncoder | GlmAsrEncoderLayer 2
GraniteDoclingTextModel | GraniteDoclingTextDecoderLayer 2
GraniteDoclingVisionModel | GraniteDoclingEncoderLayer 2
GroupViTModel | GroupViTEncoderLayer 2; GroupViTTokenAssign 2; GroupViTCrossAttentionLayer 2 | ?
GteModel | GteLayer 2
HiggsAudioV2ForConditionalGeneration | HiggsAudioV2DecoderLayer 3 | ?
IBertModel | IBertSelfOutput 1; IBertOutput 1
Idefics3VisionTransformer | Idefics3EncoderLayer 2
IJepaModel | IJepaLayer 2
ImageGPTModel | ImageGPTBlock 2
InternVLVisionModel | InternVLVisionLayer 2
JinaEmbeddingsV3Model | JinaEmbeddingsV3Layer 2
Kosmos2_5Model | Kosmos2_5TextBlock 2
LayoutLMModel | LayoutLMSelfOutput 1; LayoutLMOutput 1
M2M100Model | M2M100EncoderLayer 2; M2M100DecoderLayer 3 | 2
MarkupLMModel | MarkupLMSelfOutput 1; MarkupLMOutput 1
MetaClip2Model | MetaClip2EncoderLayer 2 | 2
MLCDVisionModel | MLCDEncoderLayer 2
MobileBertModel | MobileBertSelfOutput projection; FFNOutput 1; MobileBertOutput 1; OutputBottleneck 1 | 3
MobileNetV2Model | MobileNetV2InvertedResidual[use_residual] 1 | ?
ModernBertModel | ModernBertEncoderLayer 2
Molmo2TextModel | Molmo2DecoderLayer 2
MoonshineModel | MoonshineEncoderLayer 2; MoonshineDecoderLayer 3 | 2
MPNetModel | MPNetAttention 1; MPNetOutput 1
MT5Model | MT5LayerSelfAttention 1; MT5LayerFF 1; MT5LayerCrossAttention 1 | 2
MuseGlimmerTextModel | MuseGlimmerTextDecoderLayer 2
MuseSparkTextModel | MuseSparkResidualGate scaled
NllbMoeModel | NllbMoeEncoderLayer 2; NllbMoeDecoderLayer 3 | 2
NomicBertModel | NomicBertLayer 2
NystromformerModel | NystromformerSelfOutput 1; NystromformerOutput 1
Owlv2Model | Owlv2EncoderLayer 2 | 2
OwlViTModel | OwlViTEncoderLayer 2 | 2
# four adds a layer, two of them on global tokens; nothing reads those of the second and last layer
PegasusXModel | PegasusXEncoderLayer 3; PegasusXDecoderLayer 3 | 3
PixioModel | PixioLayer 2
PixtralVisionModel | PixtralAttentionLayer 2
QianfanOCRVisionModel | QianfanOCRVisionLayer 2
Qwen3VLMoeTextModel | Qwen3VLMoeTextDecoderLayer 2
Qwen3VLTextModel | Qwen3VLTextDecoderLayer 2
RadioModel | RadioLayer 2
Sam3LiteTextTextModel | Sam3LiteTextMobileOneBlock 2
Sam3VisionModel | Sam3ViTLayer 2
Sam3ViTModel | Sam3ViTLayer 2
SamHQVisionModel | SamHQVisionLayer 2
SamVisionModel | SamVisionLayer 2
Sapiens2Model | Sapiens2Layer 2
SiglipModel | SiglipEncoderLayer 2; SiglipMultiheadAttentionPoolingHead 1 | 3
SiglipVisionModel | SiglipEncoderLayer 2; SiglipMultiheadAttentionPoolingHead 1 | 2
SmolVLMVisionTransformer | SmolVLMEncoderLayer 2
SplinterModel | SplinterSelfOutput 1; SplinterOutput 1
SqueezeBertModel | ConvDropoutLayerNorm 1
T5Model | T5LayerSelfAttention 1; T5LayerFF 1; T5LayerCrossAttention 1 | 2
T5GemmaModel | T5GemmaEncoderLayer 2; T5GemmaDecoderLayer 3 | 2
TapasModel | TapasSelfOutput 1; TapasOutput 1
Tipsv2Model | Tipsv2TextEncoderLayer 2; Tipsv2VisionLayer 2 | 2
Tipsv2TextModel | Tipsv2TextEncoderLayer 2
Tipsv2VisionModel | Tipsv2VisionLayer 2
UltrabertModel | UltrabertDecoderLayer 2
UMT5Model | UMT5LayerSelfAttention 1; UMT5LayerFF 1; UMT5LayerCrossAttention 1 | 2
VisionTextDualEncoderModel | ViTLayer 2; BertSelfOutput 1; BertOutput 1 | 2
VisualBertModel | VisualBertSelfOutput 1; VisualBertOutput 1
ViTModel | ViTLayer 2
ViTMAEModel | ViTMAELayer 2
ViTMSNModel | ViTMSNLayer 2
VitDetModel | VitDetLayer 2
VoxtralRealtimeEncoder | VoxtralRealtimeEncoderLayer 2
YosoModel | YosoSelfOutput 1; YosoOutput 1
# encoders and encoder-decoders of text
BartModel | BartEncoderLayer 2; BartDecoderLayer 3 | 2
MBartModel | MBartEncoderLayer 2; MBartDecoderLayer 3 | 2
MarianModel | MarianEncoderLayer 2; MarianDecoderLayer 3 | 2
PegasusModel | PegasusEncoderLayer 2; PegasusDecoderLayer 3 | 2
BlenderbotModel | BlenderbotEncoderLayer 2; BlenderbotDecoderLayer 3 | 2
PLBartModel | PLBartEncoderLayer 2; PLBartDecoderLayer 3 | 2
ProphetNetModel | ProphetNetEncoderLayer 2; ProphetNetDecoderLayer 3 | 2
BigBirdPegasusModel | BigBirdPegasusEncoderLayer 2; BigBirdPegasusDecoderLayer 3 | 2
SwitchTransformersModel | SwitchTransformersLayerSelfAttention 1; SwitchTransformersLayerFF 1; SwitchTransformersLayerCrossAttention 1 | 2
LayoutLMv3Model | LayoutLMv3SelfOutput 1; LayoutLMv3Output 1 | 1 | {"coordinate_size": 4, "shape_size": 8, "input_size": 32, "_inputs": {"bbox": "zeros 2 7 4"}}
# nothing reads the last layer's two adds to the layout stream
LiltModel | LiltLayer 2; LiltEncoder 2 | ? | {"channel_shrink_ratio": 2, "hidden_size": 48, "_inputs": {"bbox": "zeros 2 7 4"}}
BrosModel | BrosSelfOutput 1; BrosOutput 1 | 1 | {"hidden_size": 128, "_inputs": {"bbox": (2, 7, 4)}}
LongT5Model | LongT5LayerLocalSelfAttention 1; LongT5LayerSelfAttention 1; LongT5LayerFF 1; LongT5LayerCrossAttention 1 | 2 | {"local_radius": 3}
LEDModel | LEDEncoderLayer 2; LEDDecoderLayer 3 | 2 | {"attention_window": 4}
LongformerModel | LongformerSelfOutput 1; LongformerOutput 1 | 1 | {"attention_window": 4}
FSMTModel | EncoderLayer 2; DecoderLayer 3 | 2
LukeModel | LukeSelfOutput 1; LukeOutput 1 | 1 | {"entity_vocab_size": 20, "entity_emb_size": 16}
RoCBertModel | RoCBertSelfOutput 1; RoCBertOutput 1 | 1 | {"pronunciation_vocab_size": 99, "shape_vocab_size": 99, "_inputs": {"input_shape_ids": "ids 2 7", "input_pronunciation_ids": "ids 2 7"}}
XmodModel | XmodSelfOutput 1; XmodOutput 2 | ? | {"default_language": "en_XX"}
LxmertModel | LxmertSelfAttentionLayer 1; LxmertCrossAttentionLayer*2 1; LxmertOutput 1 | ? | {"l_layers": 1, "x_layers": 1, "r_layers": 1, "visual_feat_dim": 8, "_inputs": {"visual_feats": (2, 3, 8), "visual_pos": (2, 3, 4)}}
ViltModel | ViltLayer 2 | 1 | {"image_size": 32}
DecisionTransformerModel | DecisionTransformerGPT2Block 2 | 1 | {"state_dim": 5, "act_dim": 3, "max_ep_len": 20, "_inputs": {"states": (2, 4, 5), "actions": (2, 4, 3), "rewards": (2, 4, 1), "returns_to_go": (2, 4, 1), "timesteps": "zeros 2 4", "attention_mask": "ones 2 4"}}
FunnelModel | FunnelRelMultiheadAttention 1; FunnelPositionwiseFFN 1; FunnelDecoder 1 | ? | {"block_sizes": [1, 1], "num_decoder_layers": 1, "_inputs": {"input_ids": "ids 2 8"}}
# vision
ConvNextModel | ConvNextLayer 1 | 4 | {"num_hidden_layers": ..., "depths": [1, 1, 2, 1], "hidden_sizes": [16, 16, 32, 32], "patch_size": 4, "image_size": 64}
ConvNextV2Model | ConvNextV2Layer 1 | 4 | {"num_hidden_layers": ..., "depths": [1, 1, 2, 1], "hidden_sizes": [16, 16, 32, 32], "patch_size": 4, "image_size": 64}
DINOv3ConvNextModel | DINOv3ConvNextLayer 1 | 4 | {"depths": [1, 1, 2, 1], "hidden_sizes": [16, 16, 32, 32], "_inputs": {"pixel_values": (2, 3, 64, 64)}}
SwinModel | SwinLayer 2 | 2 | {"num_heads": [2, 4], "depths": [2, 2], "embed_dim": 16, "patch_size": 4, "window_size": 4}
Swinv2Model | Swinv2Layer 2 | 2 | {"num_heads": [2, 4], "depths": [2, 2], "embed_dim": 16, "patch_size": 4, "window_size": 4}
DonutSwinModel | DonutSwinLayer 2 | 2 | {"num_heads": [2, 4], "depths": [2, 2], "embed_dim": 16, "patch_size": 4, "window_size": 4}
MaskFormerSwinModel | MaskFormerSwinLayer 2 | 2 | {"num_heads": [2, 4], "depths": [2, 2], "embed_dim": 16, "patch_size": 4, "window_size": 4}
Swin2SRModel | Swin2SRLayer 2; Swin2SRStage 1; Swin2SRModel 1 | ? | {"num_heads": [2, 2], "depths": [2, 2], "embed_dim": 16, "patch_size": 1, "window_size": 4, "image_size": 16}
SegformerModel | SegformerLayer 2 | 2 | {"num_attention_heads": [1, 2, 4, 4], "hidden_sizes": [16, 16, 32, 32], "depths": [1, 1, 1, 1], "image_size": 64, "patch_sizes": [7, 3, 3, 3]}
GLPNModel | GLPNLayer 2 | 4 | {"num_attention_heads": [1, 2, 4, 4], "hidden_sizes": [16, 16, 32, 32], "depths": [1, 1, 1, 1], "_inputs": {"pixel_values": (2, 3, 64, 64)}}
PvtModel | PvtLayer 2 | 4 | {"num_attention_heads": [1, 2, 4, 4], "hidden_sizes": [16, 16, 32, 32], "depths": [1, 1, 1, 1], "image_size": 64}
PvtV2Model | PvtV2BlockLayer 2 | 4 | {"num_attention_heads": [1, 2, 4, 4], "hidden_sizes": [16, 16, 32, 32], "depths": [1, 1, 1, 1], "image_size": 64}
PoolFormerModel | PoolFormerLayer 2 | 4 | {"hidden_sizes": [16, 16, 32, 32], "depths": [1, 1, 1, 1], "patch_size": ..., "_inputs": {"pixel_values": (2, 3, 64, 64)}}
FocalNetModel | FocalNetLayer 2 | 4 | {"embed_dim": 16, "depths": [1, 1, 1, 1], "hidden_sizes": [16, 32, 64, 128], "patch_size": 4}
LevitModel | LevitResidualLayer 1 | ? | {"num_attention_heads": [2, 2, 2], "hidden_sizes": [16, 32, 48], "depths": [1, 1, 1], "key_dim": [8, 8, 8], "image_size": 64, "patch_size": 16}
ResNetModel | ResNetBottleNeckLayer[shortcut=Identity] 1; ResNetBottleNeckLayer[shortcut=ResNetShortCut] projection | 4 | {"embedding_size": 16, "hidden_sizes": [16, 16, 32, 32], "depths": [2, 1, 1, 1], "_inputs": {"pixel_values": (2, 3, 64, 64)}}
RegNetModel | RegNetYLayer[shortcut=Identity] 1; RegNetYLayer[shortcut=RegNetShortCut] projection | 4 | {"embedding_size": 16, "hidden_sizes": [16, 16, 32, 32], "depths": [2, 1, 1, 1], "groups_width": 8, "_inputs": {"pixel_values": (2, 3, 64, 64)}}
BitModel | BitPreActivationBottleneckLayer[downsample] projection; BitPreActivationBottleneckLayer[!downsample] 1 | 4 | {"embedding_size": 32, "hidden_sizes": [32, 32, 64, 64], "depths": [2, 1, 1, 1], "num_groups": 4, "_inputs": {"pixel_values": (2, 3, 64, 64)}}
MobileViTModel | MobileViTInvertedResidual[use_residual] 1; MobileViTTransformerLayer 2 | ? | {"image_size": 64, "patch_size": 2, "hidden_sizes": [16, 24, 32], "neck_hidden_sizes": [8, 8, 16, 24, 32, 40, 48], "num_attention_heads": 4}
MobileViTV2Model | MobileViTV2InvertedResidual[use_residual] 1; MobileViTV2TransformerLayer 2 | ? | {"image_size": 64, "patch_size": 2}
MobileNetV1Model | none | 0 | {"image_size": 32}
SwiftFormerModel | SwiftFormerConvEncoder 1; SwiftFormerLocalRepresentation 1; SwiftFormerEfficientAdditiveAttention 1; SwiftFormerEncoderBlock 2 | ? | {"image_size": 64, "depths": [2, 1, 1, 1], "embed_dims": [16, 16, 32, 32]}
HGNetV2Backbone | HGNetV2BasicLayer[residual] 1 | ? | {"_inputs": {"pixel_values": (2, 3, 64, 64)}}
VideoMAEModel | VideoMAELayer 2 | 1 | {"num_frames": 2, "tubelet_size": 1, "_inputs": {"pixel_values": (1, 2, 3, 32, 32)}}
TimesformerModel | TimesformerLayer 3 | ? | {"num_frames": 2, "_inputs": {"pixel_values": (1, 2, 3, 32, 32)}}
VivitModel | VivitLayer 2 | 1 | {"num_frames": 2, "tubelet_size": [1, 8, 8], "_inputs": {"pixel_values": (1, 2, 3, 32, 32)}}
YolosModel | YolosLayer 2 | 1 | {"image_size": [32, 32], "num_detection_tokens": 4, "_inputs": {"pixel_values": (2, 3, 32, 32)}}
SegGptModel | SegGptLayer 2 | ? | {"image_size": [64, 32], "patch_size": 8, "pretrain_image_size": 32, "merge_index": 0, "intermediate_hidden_state_indices": [1], "_inputs": {"pixel_values": (2, 3, 32, 32), "prompt_pixel_values": (2, 3, 32, 32), "prompt_masks": (2, 3, 32, 32)}}
BeitForImageClassification | BeitLayer 2
# audio and series
WhisperModel | WhisperEncoderLayer 2; WhisperDecoderLayer 3 | 2 | {"max_source_positions": 20, "_inputs": {"input_features": (2, 16, 40)}}
Speech2TextModel | Speech2TextEncoderLayer 2; Speech2TextDecoderLayer 3 | 2 | {"input_feat_per_channel": 16, "num_conv_layers": 2, "_inputs": {"input_features": (2, 40, 16)}}
Wav2Vec2Model | Wav2Vec2EncoderLayer 2; Wav2Vec2Encoder 1 | 1 | {"conv_kernel": [10, 3, 3], "conv_stride": [5, 2, 2], "conv_dim": [16, 16, 16], "num_conv_pos_embeddings": 8, "num_conv_pos_embedding_groups": 2, "num_feat_extract_layers": 3}
HubertModel | HubertEncoderLayer 2; HubertEncoder 1 | 1 | {"conv_kernel": [10, 3, 3], "conv_stride": [5, 2, 2], "conv_dim": [16, 16, 16], "num_conv_pos_embeddings": 8, "num_conv_pos_embedding_groups": 2, "num_feat_extract_layers": 3}
WavLMModel | WavLMEncoderLayer 2; WavLMEncoder 1 | 1 | {"conv_kernel": [10, 3, 3], "conv_stride": [5, 2, 2], "conv_dim": [16, 16, 16], "num_conv_pos_embeddings": 8, "num_conv_pos_embedding_groups": 2, "num_feat_extract_layers": 3}
UniSpeechModel | UniSpeechEncoderLayer 2; UniSpeechEncoder 1 | 1 | {"conv_kernel": [10, 3, 3], "conv_stride": [5, 2, 2], "conv_dim": [16, 16, 16], "num_conv_pos_embeddings": 8, "num_conv_pos_embedding_groups": 2, "num_feat_extract_layers": 3}
UniSpeechSatModel | UniSpeechSatEncoderLayer 2; UniSpeechSatEncoder 1 | 1 | {"conv_kernel": [10, 3, 3], "conv_stride": [5, 2, 2], "conv_dim": [16, 16, 16], "num_conv_pos_embeddings": 8, "num_conv_pos_embedding_groups": 2, "num_feat_extract_layers": 3}
Data2VecAudioModel | Data2VecAudioEncoderLayer 2; Data2VecAudioEncoder 1 | 1 | {"conv_kernel": [10, 3, 3], "conv_stride": [5, 2, 2], "conv_dim": [16, 16, 16], "num_conv_pos_embeddings": 2, "num_conv_pos_embedding_groups": 2, "conv_pos_kernel_size": 3, "num_feat_extract_layers": 3}
Wav2Vec2ConformerModel | Wav2Vec2ConformerEncoderLayer 4 | 1 | {"conv_kernel": [10, 3, 3], "conv_stride": [5, 2, 2], "conv_dim": [16, 16, 16], "num_feat_extract_layers": 3}
Wav2Vec2BertModel | Wav2Vec2BertEncoderLayer 4 | 1 | {"feature_projection_input_dim": 16, "_inputs": {"input_features": (2, 20, 16)}}
ASTModel | ASTLayer 2 | 1 | {"patch_size": 4, "frequency_stride": 4, "time_stride": 4, "max_length": 24, "_inputs": {"input_values": (2, 24, 16)}}
SEWModel | SEWEncoderLayer 2; SEWEncoder resampled | ? | {"conv_kernel": [10, 3, 3], "conv_stride": [5, 2, 2], "conv_dim": [16, 16, 16], "num_conv_pos_embeddings": 8, "num_conv_pos_embedding_groups": 2, "num_feat_extract_layers": 3}
PatchTSTModel | PatchTSTEncoderLayer 2 | 1 | {"num_input_channels": 3, "context_length": 32, "patch_length": 8, "patch_stride": 8, "_inputs": {"past_values": (2, 32, 3)}}
PatchTSMixerModel | FeatureMixerBlock 1; PatchMixerBlock 1 | 1 | {"num_input_channels": 3, "context_length": 32, "patch_length": 8, "patch_stride": 8, "_inputs": {"past_values": (2, 32, 3)}}
Qwen2AudioEncoder | Qwen2AudioEncoderLayer 2 | 1 | {"max_source_positions": 20, "_inputs": {"input_features": (2, 16, 40)}}
VoxtralEncoder | VoxtralEncoderLayer 2 | 1 | {"max_source_positions": 20, "_inputs": {"input_features": (2, 16, 40)}}
# an image and a prompt
"""
