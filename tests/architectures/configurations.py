"""A tiny random configuration of each architecture: what differs from the library's own defaults.

The numbers keep what makes an architecture (windows, experts, scales) and make it small.
"""

from typing import Any

IDS = {"vocab_size": 448, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "initializer_range": 0.1}
"""Those of the tiny model's tokenizer."""
_PLAIN = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
          "num_key_value_heads": 2, "max_position_embeddings": 2048}  # fmt: skip
_WIDE = {**_PLAIN, "head_dim": 16}
_OLD = {"n_embd": 64, "n_layer": 2, "n_head": 4}
_FEW = {"num_experts_per_tok": 2, "moe_intermediate_size": 32}
_GROUPS = {"n_routed_experts": 4, "n_group": 2, "topk_group": 1, "first_k_dense_replace": 1, **_FEW}
_LATENT = {"num_key_value_heads": 4, "q_lora_rank": 32, "kv_lora_rank": 16, "qk_rope_head_dim": 8,
           "qk_nope_head_dim": 16, "v_head_dim": 16}  # fmt: skip

CONFIGURATIONS: dict[str, dict[str, Any]] = {
    "apertus": _PLAIN,
    "arcee": _PLAIN,
    "biogpt": _PLAIN,
    "bitnet": _PLAIN,
    "bloom": {"hidden_size": 64, "n_layer": 2, "n_head": 4},
    "codegen": {**_OLD, "rotary_dim": 8},
    "cohere": _PLAIN,
    "cohere2": _WIDE,
    "deepseek_v2": {**_PLAIN, **_GROUPS, **_LATENT},
    "deepseek_v3": {**_PLAIN, **_GROUPS, **_LATENT},
    "diffllama": _PLAIN,
    "ernie4_5": _WIDE,
    "exaone4": _WIDE,
    "falcon": {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4},
    "gemma": _WIDE,
    "gemma2": _WIDE,
    "gemma3_text": {**_WIDE, "sliding_window": 512},
    "glm": _WIDE,
    "glm4": _WIDE,
    "glm4_moe": {**_WIDE, **_GROUPS},
    "gpt2": {**_OLD, "n_positions": 512},
    "gpt_bigcode": {**_OLD, "n_positions": 512},
    "gpt_neo": {
        "hidden_size": 64,
        "num_layers": 2,
        "num_heads": 4,
        "attention_types": [[["global", "local"], 1]],
    },
    "gpt_neox": _PLAIN,
    "gpt_oss": {**_WIDE, "num_local_experts": 4, "num_experts_per_tok": 2},
    "gptj": {**_OLD, "rotary_dim": 8},
    "granite": {**_PLAIN, "logits_scaling": 8.0},
    "granitemoe": {**_PLAIN, "num_local_experts": 4, "num_experts_per_tok": 2},
    "helium": _WIDE,
    "hunyuan_v1_dense": _WIDE,
    "jamba": _PLAIN,
    "lfm2": {**_PLAIN, "full_attn_idxs": [1], "block_ff_dim": 128},
    "llama": _PLAIN,
    "mamba": {"hidden_size": 64, "num_hidden_layers": 2},
    "ministral": _WIDE,
    "mistral": _PLAIN,
    "mixtral": {**_PLAIN, "num_local_experts": 4},
    "mpt": {"d_model": 64, "n_layers": 2, "n_heads": 4},
    "nemotron": _PLAIN,
    "olmo": _PLAIN,
    "olmo2": _PLAIN,
    "olmoe": {**_PLAIN, "num_experts": 4, "num_experts_per_tok": 2},
    "opt": {
        "hidden_size": 64,
        "ffn_dim": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 2048,
        "word_embed_proj_dim": 64,
        "init_std": 0.1,
    },
    "persimmon": _PLAIN,
    "phi": _PLAIN,
    "phi3": _PLAIN,
    "phimoe": {**_PLAIN, "num_local_experts": 4},
    "qwen2": _PLAIN,
    "qwen2_moe": {**_PLAIN, **_FEW, "num_experts": 4, "shared_expert_intermediate_size": 32},
    "qwen3": _WIDE,
    "qwen3_moe": {**_WIDE, **_FEW, "num_experts": 4},
    "rwkv": {"hidden_size": 64, "num_hidden_layers": 2},
    "seed_oss": _WIDE,
    "smollm3": {**_PLAIN, "no_rope_layers": [1, 0]},
    "stablelm": _PLAIN,
    "starcoder2": _PLAIN,
    "xglm": {"d_model": 64, "num_layers": 2, "attention_heads": 4, "ffn_dim": 128},
}
IN_SHORT = ("gemma2", "gpt2", "llama", "mixtral", "qwen2")
"""Those that every run of the tests tries: capped logits, Conv1D, the plain kind, fused experts, biases."""
