# SPDX-FileCopyrightText: 2026 The onprem.llm authors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What the config class of a family fills in for a key that a config.json leaves out.

From the classes of transformers 5.24.0 (models/*/configuration_*.py), and only what counts here. At the top of a config the sizes
are wanted all the same; a nested config (text_config) is saved without what equals the defaults of its class, so sizes are here
for the families that are nested.
"""

from __future__ import annotations

from typing import Any

# fmt: off
DEFAULTS: dict[str, dict[str, Any]] = {
    "ministral": {"num_key_value_heads": 8},
    "ministral3": {"num_key_value_heads": 8, "head_dim": 128},
    "cwm": {"head_dim": 128, "sliding_window": 8192},
    "internlm3": {"head_dim": 128},
    "mistral": {
        "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32,
        "num_key_value_heads": 8, "vocab_size": 32000, "sliding_window": 4096, "max_position_embeddings": 131072,
    },
    "qwen2_vl_text": {
        "hidden_size": 8192, "intermediate_size": 29568, "num_hidden_layers": 80, "num_attention_heads": 64,
        "num_key_value_heads": 8, "vocab_size": 152064, "sliding_window": 4096, "max_window_layers": 80,
        "max_position_embeddings": 32768,
    },
    "qwen2_5_vl_text": {
        "hidden_size": 8192, "intermediate_size": 29568, "num_hidden_layers": 80, "num_attention_heads": 64,
        "num_key_value_heads": 8, "vocab_size": 152064, "sliding_window": 4096, "max_window_layers": 80,
        "max_position_embeddings": 32768,
    },
    "qwen2": {"sliding_window": 4096, "max_window_layers": 28, "num_key_value_heads": 32},
    "mimo": {"sliding_window": 4096, "max_window_layers": 28, "num_key_value_heads": 32},
    "qwen3_vl_text": {
        "hidden_size": 4096, "intermediate_size": 22016, "num_hidden_layers": 32, "num_attention_heads": 32,
        "num_key_value_heads": 32, "head_dim": 128, "vocab_size": 151936, "max_position_embeddings": 128000,
    },
    "qwen3": {"head_dim": 128, "sliding_window": 4096, "max_window_layers": 28, "num_key_value_heads": 32},
    "seed_oss": {"attention_bias": True, "head_dim": 128, "num_key_value_heads": 8},
    "smollm3": {"tie_word_embeddings": True, "num_key_value_heads": 4, "no_rope_layer_interval": 4},
    "ernie4_5": {"tie_word_embeddings": True, "head_dim": 128, "num_key_value_heads": 2},
    "gemma": {"tie_word_embeddings": True, "head_dim": 256, "num_key_value_heads": 16},
    "gemma2": {"tie_word_embeddings": True, "head_dim": 256, "num_key_value_heads": 4, "sliding_window": 4096},
    "gemma3_text": {
        "tie_word_embeddings": True, "hidden_size": 2304, "intermediate_size": 9216, "num_hidden_layers": 26,
        "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256, "vocab_size": 262208, "sliding_window": 4096,
        "max_position_embeddings": 131072,
    },
    "gemma4_text": {
        "tie_word_embeddings": True, "hidden_size": 2304, "intermediate_size": 9216, "num_hidden_layers": 30,
        "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256, "vocab_size": 262144, "sliding_window": 512,
        "max_position_embeddings": 131072, "vocab_size_per_layer_input": 262144, "hidden_size_per_layer_input": 256,
    },
    "glm_moe_dsa": {"first_k_dense_replace": 3, "shared_experts": 1, "q_lora_rank": 2048},
    "olmo3": {"sliding_window": 4096},
    "exaone4": {"sliding_window": 4096, "sliding_window_pattern": 4},
    "cohere": {"tie_word_embeddings": True},
    "cohere2": {"tie_word_embeddings": True, "sliding_window": 4096},
    "glm": {"head_dim": 128, "num_key_value_heads": 2, "attention_bias": True},
    "glm4": {"head_dim": 128, "num_key_value_heads": 2, "attention_bias": True},
    "starcoder2": {"tie_word_embeddings": True, "use_bias": True, "num_key_value_heads": 2},
    "gpt2": {"tie_word_embeddings": True},
    "gpt_bigcode": {"tie_word_embeddings": True, "multi_query": True},
    "gpt_neox": {"attention_bias": True},
    "opt": {
        "tie_word_embeddings": True, "enable_bias": True, "do_layer_norm_before": True,
        "layer_norm_elementwise_affine": True,
    },
    "bloom": {"tie_word_embeddings": True},
    "mpt": {"tie_word_embeddings": True, "expansion_ratio": 4, "no_bias": True},
    "falcon": {"tie_word_embeddings": True, "multi_query": True, "parallel_attn": True},
    "RefinedWeb": {"tie_word_embeddings": True, "multi_query": True, "parallel_attn": True},
    "RefinedWebModel": {"tie_word_embeddings": True, "multi_query": True, "parallel_attn": True},
    "mixtral": {"num_key_value_heads": 8},
    "phimoe": {"num_key_value_heads": 8},
    "minimax_m2": {"head_dim": 128, "num_key_value_heads": 8},
    "qwen2_moe": {"qkv_bias": True, "sliding_window": 4096, "max_window_layers": 28, "num_key_value_heads": 16},
    "qwen3_vl_moe_text": {
        "hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 24, "num_attention_heads": 16,
        "num_key_value_heads": 16, "head_dim": 128, "vocab_size": 151936, "moe_intermediate_size": 1408, "experts": 60,
        "experts_per_token": 4, "max_position_embeddings": 128000,
    },
    "qwen3_moe": {"num_key_value_heads": 4},
    "gpt_oss": {"head_dim": 64, "num_key_value_heads": 8, "sliding_window": 128, "attention_bias": True},
    "llama4_text": {
        "hidden_size": 5120, "intermediate_size": 8192, "intermediate_size_mlp": 16384, "num_hidden_layers": 48,
        "num_attention_heads": 40, "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 202048,
        "max_position_embeddings": 131072, "experts": 16, "experts_per_token": 1, "interleave_moe_layer_step": 1,
        "no_rope_layer_interval": 4, "attention_chunk_size": 8192,
    },
    "ernie4_5_moe": {
        "tie_word_embeddings": True, "num_key_value_heads": 4, "shared_experts": 2, "moe_layer_start_index": 1,
        "moe_layer_interval": 1,
    },
    "glm4_moe_lite": {"first_k_dense_replace": 1, "shared_experts": 1, "q_lora_rank": 768},
    "deepseek_v32": {"first_k_dense_replace": 3, "shared_experts": 1, "q_lora_rank": 1536},
    "deepseek_v2": {"q_lora_rank": 1536, "shared_experts": 2, "first_k_dense_replace": 0},
    "deepseek_v3": {
        "hidden_size": 7168, "intermediate_size": 18432, "moe_intermediate_size": 2048, "num_hidden_layers": 61,
        "num_attention_heads": 128, "vocab_size": 129280, "experts": 256, "experts_per_token": 8, "shared_experts": 1,
        "first_k_dense_replace": 3, "q_lora_rank": 1536, "kv_lora_rank": 512, "qk_rope_head_dim": 64, "qk_nope_head_dim": 128,
        "v_head_dim": 128, "max_position_embeddings": 4096,
    },
    "kimi_k2": {"first_k_dense_replace": 3, "shared_experts": 1, "experts_per_token": 8, "q_lora_rank": 1536},
    "dots1": {"first_k_dense_replace": 0, "sliding_window": 4096, "max_window_layers": 62},
    "glm4_moe": {"first_k_dense_replace": 1, "shared_experts": 1, "num_key_value_heads": 8},
    "qwen3_5_moe_text": {
        "hidden_size": 2048, "num_hidden_layers": 40, "num_attention_heads": 16, "num_key_value_heads": 2, "head_dim": 256,
        "vocab_size": 248320, "max_position_embeddings": 32768, "linear_conv_kernel_dim": 4, "linear_key_head_dim": 128,
        "linear_value_head_dim": 128, "linear_num_key_heads": 16, "linear_num_value_heads": 32,
        "moe_intermediate_size": 512, "experts": 256, "experts_per_token": 8, "shared_expert_intermediate_size": 512,
        "full_attention_interval": 4,
    },
    "qwen3_5_text": {
        "hidden_size": 4096, "intermediate_size": 12288, "num_hidden_layers": 32, "num_attention_heads": 16,
        "num_key_value_heads": 4, "head_dim": 256, "vocab_size": 248320, "max_position_embeddings": 32768,
        "linear_conv_kernel_dim": 4, "linear_key_head_dim": 128, "linear_value_head_dim": 128, "linear_num_key_heads": 16,
        "linear_num_value_heads": 32, "full_attention_interval": 4,
    },
    "qwen3_next": {
        "head_dim": 256, "num_key_value_heads": 2, "linear_conv_kernel_dim": 4, "linear_key_head_dim": 128,
        "linear_value_head_dim": 128, "linear_num_key_heads": 16, "linear_num_value_heads": 32,
        "shared_expert_intermediate_size": 512, "full_attention_interval": 4,
    },
    "kimi_linear": {"shared_experts": 1, "first_k_dense_replace": 1},
    "minimax": {"num_key_value_heads": 8},
    "minimax_text_01": {"num_key_value_heads": 8},
    "minimax_m1": {"num_key_value_heads": 8},
    "granitemoehybrid": {
        "mamba_n_heads": 128, "mamba_n_groups": 1, "mamba_d_state": 256, "mamba_d_head": "auto", "mamba_d_conv": 4,
        "mamba_expand": 2, "mamba_conv_bias": True, "shared_intermediate_size": 1024, "experts": 8, "experts_per_token": 2,
    },
    "falcon_h1": {
        "num_key_value_heads": 8, "mamba_d_ssm": 1024, "mamba_n_heads": 128, "mamba_d_head": "auto", "mamba_n_groups": 1,
        "mamba_d_state": 256, "mamba_d_conv": 4, "mamba_expand": 2, "mamba_conv_bias": True,
    },
    "jamba": {
        "num_key_value_heads": 8, "attn_layer_period": 8, "attn_layer_offset": 4, "expert_layer_period": 2,
        "expert_layer_offset": 1, "mamba_d_state": 16, "mamba_d_conv": 4, "mamba_expand": 2, "mamba_dt_rank": "auto",
        "mamba_conv_bias": True,
    },
    "nemotron_h": {
        "head_dim": 128, "num_key_value_heads": 8, "mamba_num_heads": 128, "mamba_head_dim": 64, "ssm_state_size": 128,
        "n_groups": 8, "conv_kernel": 4, "use_conv_bias": True, "intermediate_size": 21504,
    },
    "mamba2": {
        "num_attention_heads": 128, "head_dim": 64, "state_size": 128, "n_groups": 8, "conv_kernel": 4, "expand": 2,
        "use_conv_bias": True,
    },
    "mamba": {
        "tie_word_embeddings": True, "state_size": 16, "conv_kernel": 4, "expand": 2, "use_conv_bias": True,
        "time_step_rank": "auto",
    },
    "falcon_mamba": {
        "tie_word_embeddings": True, "state_size": 16, "conv_kernel": 4, "expand": 2, "use_conv_bias": True,
        "time_step_rank": "auto",
    },
    "lfm2_moe": {
        "num_key_value_heads": 8, "tie_word_embeddings": True, "conv_L_cache": 3, "num_dense_layers": 2,
        "use_expert_bias": True,
    },
    "lfm2": {
        "num_key_value_heads": 8, "tie_word_embeddings": True, "conv_L_cache": 3, "block_multiple_of": 256,
        "block_auto_adjust_ff_dim": True, "intermediate_size": 12288,
    },
}
# fmt: on
