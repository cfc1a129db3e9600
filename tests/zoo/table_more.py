"""More of transformers: the families that the other tables lack. Lines as in ``table_text``."""

TABLE = """
AutoformerModel | AutoformerEncoderLayer 2; AutoformerDecoderLayer 3 | ? | {"context_length":12,"prediction_length":4,"lags_sequence":[1],"_inputs":{"past_values":(2,13),"past_time_features":(2,13,1),"past_observed_mask":(2,13),"future_values":(2,4),"future_time_features":(2,4,1)},"num_time_features":1,"input_size":1}
BarkCausalModel | BarkBlock 2
ClapTextModel | ClapTextSelfOutput 1; ClapTextOutput 1
HieraModel | HieraLayer[proj] projection identity; HieraLayer[!proj] 2 | 4 | {"depths":[1,1,2,1],"num_heads":[1,2,4,8],"embed_dim":16,"image_size":[64,64],"patch_size":[7,7],"_inputs":{"pixel_values":(2,3,64,64)}}
SEWDModel | SEWDSelfOutput 1; SEWDOutput 1; SEWDEncoder resampled | ? | {"conv_kernel": [10, 3, 3], "conv_stride": [5, 2, 2], "conv_dim": [16, 16, 16], "num_conv_pos_embeddings": 8, "num_conv_pos_embedding_groups": 2, "num_feat_extract_layers": 3}
MusicgenForCausalLM | MusicgenDecoderLayer 2 | 1 | {"_inputs":{"input_ids":"ids 8 7"}}
LasrEncoder | LasrEncoderBlock scaled identity scaled scaled | 1 | {"_inputs":{"input_features":(2,40,16)}}
ParakeetEncoder | ParakeetEncoderBlock 4 | 1 | {"_inputs":{"input_features":(2,40,16)}}
PerceiverModel | PerceiverAttention[use_query_residual] 1; PerceiverLayer 1 | ? | {"d_model":32,"d_latents":32,"num_latents":4,"num_self_attends_per_block":2,"num_cross_attention_heads":2,"num_self_attention_heads":4,"_inputs":{"inputs":(2,10,32)}}
Qwen2VLTextModel | Qwen2VLDecoderLayer 2 | 1 | {"rope_parameters":{"rope_type":"default","rope_theta":10000.0,"mrope_section":[1,1,2]}}
Qwen2_5_VLTextModel | Qwen2_5_VLDecoderLayer 2 | 1 | {"rope_parameters":{"rope_type":"default","rope_theta":10000.0,"mrope_section":[1,1,2]}}
Glm4vTextModel | Glm4vTextDecoderLayer 2 | 1 | {"rope_parameters":{"rope_type":"default","rope_theta":10000.0,"mrope_section":[1,1,2],"partial_rotary_factor":1.0}}
TimeSeriesTransformerModel | TimeSeriesTransformerEncoderLayer 2; TimeSeriesTransformerDecoderLayer 3 | 2 | {"context_length":12,"prediction_length":4,"lags_sequence":[1],"_inputs":{"past_values":(2,13),"past_time_features":(2,13,1),"past_observed_mask":(2,13),"future_values":(2,4),"future_time_features":(2,4,1)},"num_time_features":1,"input_size":1}
InformerModel | InformerEncoderLayer 2; InformerDecoderLayer 3 | ? | {"context_length":12,"prediction_length":4,"lags_sequence":[1],"_inputs":{"past_values":(2,13),"past_time_features":(2,13,1),"past_observed_mask":(2,13),"future_values":(2,4),"future_time_features":(2,4,1)},"num_time_features":1,"input_size":1}
UnivNetModel | UnivNetKernelPredictorResidualBlock 1; UnivNetLvcResidualBlock 1 | ? | {"model_in_channels":16,"model_hidden_channels":16,"kernel_predictor_hidden_channels":16,"resblock_stride_sizes":[2,2],"resblock_kernel_sizes":[3,3],"resblock_dilation_sizes":[[1,3],[1,3]],"_inputs":{"input_features":(1,8,16),"noise_sequence":(1,8,16)}}
VJEPA2Model | VJEPA2Layer 2 | 2 | {"crop_size":32,"frames_per_clip":4,"pred_hidden_size":32,"pred_num_attention_heads":4,"pred_num_hidden_layers":1,"_inputs":{"pixel_values_videos":(1,4,3,32,32)}}
XCLIPVisionModel | XCLIPVisionEncoderLayer 3 | ? | {"_inputs":{"pixel_values":(8,3,32,32)}}
YoutuForCausalLM | YoutuDecoderLayer 2 | 1 | {"num_key_value_heads":4,"head_dim":4}
ZayaForCausalLM | ZayaResidualScaling scaled | 1 | {"num_experts_per_tok":1}
DacModel | DacResidualUnit 1 | ? | {"_inputs":{"input_values":(1,1,1200)},"encoder_hidden_size":8,"decoder_hidden_size":32,"downsampling_ratios":[2,4],"upsampling_ratios":[4,2],"n_codebooks":2}
Blip2QFormerModel | Blip2QFormerSelfOutput 1; Blip2QFormerOutput 1 | 1 | {"encoder_hidden_size":32,"_inputs":{"query_embeds":(2,4,32),"encoder_hidden_states":(2,6,32)}}
Pop2PianoForConditionalGeneration | Pop2PianoLayerSelfAttention 1; Pop2PianoLayerFF 1; Pop2PianoLayerCrossAttention 1 | 2 | {"_inputs":{"input_features":None}}
MimiModel | MimiResnetBlock 1; MimiTransformerLayer 2 | ? | {"_inputs":{"input_values":(1,1,1200)},"num_filters":4,"upsample_groups":32,"upsampling_ratios":[4,2]}
EfficientNetModel | EfficientNetFinalBlockLayer[apply_dropout] 1 | ? | {"width_coefficient":0.25,"depth_coefficient":0.3,"hidden_dim":320,"_inputs":{"pixel_values":(2,3,64,64)}}
KimiLinearForCausalLM | KimiLinearDecoderLayer 2 | 1 | {"linear_num_heads":4,"linear_head_dim":8}
Gemma4ForCausalLM | Gemma4TextDecoderLayer 3 | 1 | {"vocab_size_per_layer_input":99,"hidden_size_per_layer_input":8,"global_head_dim":8}
DeepseekV32ForCausalLM | DeepseekV32DecoderLayer 2 | 1 | {"num_key_value_heads":4,"head_dim":4}
OpenAIPrivacyFilterModel | OpenAIPrivacyFilterEncoderLayer 2
RTDetrResNetBackbone | RTDetrResNetBottleNeckLayer[shortcut=Identity] 1; RTDetrResNetBottleNeckLayer[!shortcut=Identity] projection | ? | {"embedding_size":16,"hidden_sizes":[16,16,32,32],"depths":[2,1,1,1],"_inputs":{"pixel_values":(2,3,64,64)}}
Mistral4ForCausalLM | Mistral4DecoderLayer 2 | 1 | {"num_key_value_heads":4,"head_dim":8}
# without its CUDA kernel the attention gives zeros
MraModel | MraOutput 1
SeamlessM4Tv2ForTextToText | SeamlessM4Tv2EncoderLayer 2; SeamlessM4Tv2DecoderLayer 3 | 2
SuperPointForKeypointDetection | none | 0
TextNetModel | none | 0
"""
