"""Decoders with a language head. A line: model | adds of each class of block | streams (1) | changes.

The adds are read from the ``forward`` of the class named, as the model is built here: a decoder without encoder
states runs no cross-attention. Sums of experts, masks, positions and GELU polynomials are no residual adds.
"""

TABLE = """
GPT2LMHeadModel | GPT2Block 2
AfmoeForCausalLM | AfmoeDecoderLayer 2
ApertusForCausalLM | ApertusDecoderLayer 2
ArceeForCausalLM | ArceeDecoderLayer 2
AriaTextForCausalLM | AriaTextDecoderLayer 2
BailingHybridForCausalLM | BailingHybridDecoderLayer 2
BartForCausalLM | BartDecoderLayer 2
BeamForCausalLM | BeamDecoderLayer scaled scaled
BertLMHeadModel | BertSelfOutput 1; BertOutput 1
BigBirdForCausalLM | BigBirdSelfOutput 1; BigBirdOutput 1
BigBirdPegasusForCausalLM | BigBirdPegasusDecoderLayer 2
BioGptForCausalLM | BioGptDecoderLayer 2
BitNetForCausalLM | BitNetDecoderLayer 2
BlenderbotForCausalLM | BlenderbotDecoderLayer 2
BlenderbotSmallForCausalLM | BlenderbotSmallDecoderLayer 2
BloomForCausalLM | BloomBlock 2
CamembertForCausalLM | CamembertSelfOutput 1; CamembertOutput 1
CohereForCausalLM | CohereDecoderLayer identity parallel
Cohere2ForCausalLM | Cohere2DecoderLayer identity parallel
Cohere2MoeForCausalLM | Cohere2MoeDecoderLayer identity parallel
CpmAntForCausalLM | CpmAntSelfAttentionBlock 1; CpmAntFFNBlock 1
CTRLLMHeadModel | EncoderLayer 2
CwmForCausalLM | CwmDecoderLayer 2
Data2VecTextForCausalLM | Data2VecTextSelfOutput 1; Data2VecTextOutput 1
DeepseekV4ForCausalLM | none | 0
DiffLlamaForCausalLM | DiffLlamaDecoderLayer 2
DogeForCausalLM | DogeDecoderLayer scaled scaled
ElectraForCausalLM | ElectraSelfOutput 1; ElectraOutput 1
ErnieForCausalLM | ErnieSelfOutput 1; ErnieOutput 1
Ernie4_5ForCausalLM | Ernie4_5DecoderLayer 2
Ernie4_5_MoeForCausalLM | Ernie4_5_MoeDecoderLayer 2
Exaone4ForCausalLM | Exaone4DecoderLayer 2
ExaoneMoeForCausalLM | ExaoneMoeDecoderLayer 2
FalconForCausalLM | FalconDecoderLayer 1
FalconH1ForCausalLM | FalconH1DecoderLayer 2
FalconMambaForCausalLM | FalconMambaBlock 1
FlexOlmoForCausalLM | FlexOlmoDecoderLayer 2
FlintForCausalLM | FlintDecoderLayer 2
GemmaForCausalLM | GemmaDecoderLayer 2
Gemma2ForCausalLM | Gemma2DecoderLayer 2
Gemma3ForCausalLM | Gemma3DecoderLayer 2
Gemma4UnifiedForCausalLM | Gemma4UnifiedTextDecoderLayer 2
GitForCausalLM | GitVisionEncoderLayer 2; GitSelfOutput 1; GitOutput 1 | 2
GlmForCausalLM | GlmDecoderLayer 2
Glm4ForCausalLM | Glm4DecoderLayer 2
Glm4MoeForCausalLM | Glm4MoeDecoderLayer 2
GPTBigCodeForCausalLM | GPTBigCodeBlock 2
GPTNeoXForCausalLM | GPTNeoXLayer 1
GPTNeoXJapaneseForCausalLM | GPTNeoXJapaneseLayer 2
GptOssForCausalLM | GptOssDecoderLayer 2
GraniteForCausalLM | GraniteDecoderLayer 2
GraniteSWAForCausalLM | GraniteSWADecoderLayer 2
GraniteMoeForCausalLM | GraniteMoeDecoderLayer 2
GraniteMoeSWAForCausalLM | GraniteMoeSWADecoderLayer 2
GraniteMoeSharedForCausalLM | GraniteMoeSharedDecoderLayer 2
HeliumForCausalLM | HeliumDecoderLayer 2
HunYuanDenseV1ForCausalLM | HunYuanDenseV1DecoderLayer 2
HunYuanMoEV1ForCausalLM | HunYuanMoEV1DecoderLayer 2
HYV3ForCausalLM | HYV3DecoderLayer 2
HYV4ForCausalLM | HYV4DecoderLayer 2
HyperCLOVAXForCausalLM | HyperCLOVAXDecoderLayer 2
InklingForCausalLM | InklingDecoderLayer 2; InklingShortConvolution 1 | 9
LlamaForCausalLM | LlamaDecoderLayer 2
Jais2ForCausalLM | Jais2DecoderLayer 2
JambaForCausalLM | JambaMambaDecoderLayer 2
JetMoeForCausalLM | JetMoeDecoderLayer 2
Kolibri1ForCausalLM | Kolibri1DecoderLayer 2
LagunaForCausalLM | LagunaDecoderLayer 2
Lfm2ForCausalLM | Lfm2DecoderLayer 2
Lfm3ForCausalLM | Lfm3DecoderLayer 2
Llama4ForCausalLM | Llama4TextDecoderLayer 2
MambaForCausalLM | MambaBlock 1
MarianForCausalLM | MarianDecoderLayer 2
MBartForCausalLM | MBartDecoderLayer 2
MegatronBertForCausalLM | MegatronBertSelfOutput 1; MegatronBertOutput 1
MellumForCausalLM | MellumDecoderLayer 2
MiMoV2FlashForCausalLM | MiMoV2FlashDecoderLayer 2
MiniMaxForCausalLM | MiniMaxDecoderLayer scaled scaled
MiniMaxM2ForCausalLM | MiniMaxM2DecoderLayer 2
MiniMaxM3VLForCausalLM | MiniMaxM3VLDecoderLayer 2
MinistralForCausalLM | MinistralDecoderLayer 2
Ministral3ForCausalLM | Ministral3DecoderLayer 2
MistralForCausalLM | MistralDecoderLayer 2
MixtralForCausalLM | MixtralDecoderLayer 2
MllamaForCausalLM | MllamaSelfAttentionDecoderLayer 2
ModernBertDecoderForCausalLM | ModernBertDecoderLayer 2
MoshiForCausalLM | MoshiDecoderLayer 2
MptForCausalLM | MptBlock 1; MptMLP 1
MvpForCausalLM | MvpDecoderLayer 2
NanoChatForCausalLM | NanoChatDecoderLayer 2
NemotronForCausalLM | NemotronDecoderLayer 2
NemotronHForCausalLM | NemotronHBlock 1
OlmoForCausalLM | OlmoDecoderLayer 2
Olmo2ForCausalLM | Olmo2DecoderLayer 2
Olmo3ForCausalLM | Olmo3DecoderLayer 2
OlmoHybridForCausalLM | OlmoHybridLinearAttentionDecoderLayer 2; OlmoHybridAttentionDecoderLayer 2
OlmoeForCausalLM | OlmoeDecoderLayer 2
OpenAIGPTLMHeadModel | Block 2
OPTForCausalLM | OPTDecoderLayer 2
PegasusForCausalLM | PegasusDecoderLayer 2
PersimmonForCausalLM | PersimmonDecoderLayer 2
PhiForCausalLM | PhiDecoderLayer 1
Phi3ForCausalLM | Phi3DecoderLayer 2
PhimoeForCausalLM | PhimoeDecoderLayer 2
PLBartForCausalLM | PLBartDecoderLayer 2
ProphetNetForCausalLM | ProphetNetDecoderLayer 2
Qwen2ForCausalLM | Qwen2DecoderLayer 2
Qwen2MoeForCausalLM | Qwen2MoeDecoderLayer 2
Qwen3ForCausalLM | Qwen3DecoderLayer 2
Qwen3_5MoeForCausalLM | Qwen3_5MoeDecoderLayer 2
Qwen3_5ForCausalLM | Qwen3_5DecoderLayer 2
Qwen3MoeForCausalLM | Qwen3MoeDecoderLayer 2
Qwen3NextForCausalLM | Qwen3NextDecoderLayer 2
Qwen4ExpForCausalLM | Qwen4ExpTextDecoderLayer 2
RecurrentGemmaForCausalLM | RecurrentGemmaDecoderLayer 2
RemBertForCausalLM | RemBertSelfOutput 1; RemBertOutput 1
RobertaForCausalLM | RobertaSelfOutput 1; RobertaOutput 1
RobertaPreLayerNormForCausalLM | RobertaPreLayerNormSelfOutput 1; RobertaPreLayerNormOutput 1
RoFormerForCausalLM | RoFormerSelfOutput 1; RoFormerOutput 1
RwkvForCausalLM | RwkvBlock 2
SeedOssForCausalLM | SeedOssDecoderLayer 2
SmolLM3ForCausalLM | SmolLM3DecoderLayer 2
SolarOpenForCausalLM | SolarOpenDecoderLayer 2
StableLmForCausalLM | StableLmDecoderLayer 2
Starcoder2ForCausalLM | Starcoder2DecoderLayer 2
TrOCRForCausalLM | TrOCRDecoderLayer 2
VaultGemmaForCausalLM | VaultGemmaDecoderLayer 2
WhisperForCausalLM | WhisperDecoderLayer 2
XGLMForCausalLM | XGLMDecoderLayer 2
XLMWithLMHeadModel | XLMModel*2 2
XLMRobertaForCausalLM | XLMRobertaSelfOutput 1; XLMRobertaOutput 1
XLMRobertaXLForCausalLM | XLMRobertaXLSelfOutput 1; XLMRobertaXLOutput 1
XLNetLMHeadModel | XLNetRelativeAttention 1; XLNetFeedForward 1
xLSTMForCausalLM | xLSTMBlock 2
# head sizes that the shared small values do not fit
AXK1ForCausalLM | AXK1DecoderLayer 2 | 1 | {"num_key_value_heads": 4, "head_dim": 4}
AXK2ForCausalLM | AXK2DecoderLayer 2 | 1 | {"num_key_value_heads": 4, "head_dim": 4}
CodeGenForCausalLM | CodeGenBlock 1 | 1 | {"rotary_dim": 4}
DeepseekV2ForCausalLM | DeepseekV2DecoderLayer 2 | 1 | {"num_key_value_heads": 4, "head_dim": 4}
DeepseekV3ForCausalLM | DeepseekV3DecoderLayer 2 | 1 | {"num_key_value_heads": 4, "head_dim": 4}
Glm4MoeLiteForCausalLM | Glm4MoeLiteDecoderLayer 2 | 1 | {"num_key_value_heads": 4, "head_dim": 4}
GlmMoeDsaForCausalLM | GlmMoeDsaDecoderLayer 2 | 1 | {"num_key_value_heads": 4, "head_dim": 4}
GPTJForCausalLM | GPTJBlock 1 | 1 | {"rotary_dim": 4}
GPTNeoForCausalLM | GPTNeoBlock 2 | 1 | {"attention_types": [[["global", "local"], 1]]}
LongcatFlashForCausalLM | LongcatFlashDecoderLayer identity identity identity identity parallel | 1 | {"num_key_value_heads": 4, "head_dim": 4}
Mamba2ForCausalLM | Mamba2Block 1 | 1 | {"num_heads": 8, "head_dim": 8}
MiniCPM3ForCausalLM | MiniCPM3DecoderLayer 2 | 1 | {"num_key_value_heads": 4, "head_dim": 4}
Dots1ForCausalLM | Dots1DecoderLayer 2 | 1 | {"n_shared_experts": 1}
BambaForCausalLM | BambaDecoderLayer 2 | 1 | {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_n_groups": 1}
GraniteMoeHybridForCausalLM | GraniteMoeHybridDecoderLayer 2 | 1 | {"layer_types": ["mamba", "attention"], "mamba_n_heads": 8, "mamba_d_head": 8, "mamba_n_groups": 1}
Lfm2MoeForCausalLM | Lfm2MoeDecoderLayer 2 | 1 | {"layer_types": ["conv", "full_attention"]}
Zamba2ForCausalLM | Zamba2MambaDecoderLayer 1 | ? | {"num_hidden_layers": 3, "layers_block_type": ["mamba", "mamba", "hybrid"]}
ReformerModelWithLMHead | ReformerLayer 2 | 2 | {"is_decoder": True, "attn_layers": ["local", "local"], "axial_pos_shape": [8, 8], "axial_pos_embds_dim": [16, 16]}
Emu3ForCausalLM | Emu3DecoderLayer 2
"""
