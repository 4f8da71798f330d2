"""Writes crates/engine-core/tests/data/config.json: what transformers makes of a config.json.

    pip install transformers torch
    python scripts/make_config_fixture.py crates/engine-core/tests/data/config.json

Each case holds a config.json and what the model class that transformers builds from it looks like:
its modules are inspected, not its documentation. Weights are never allocated (meta device).
"""

import copy
import json
import sys

import torch
import transformers

SMALL = {
    "hidden_size": 128,
    "intermediate_size": 96,
    "num_hidden_layers": 8,
    "num_attention_heads": 32,
    "vocab_size": 64,
}
LLAMA, MISTRAL, PHI3 = "LlamaForCausalLM", "MistralForCausalLM", "Phi3ForCausalLM"
QWEN2, QWEN3 = "Qwen2ForCausalLM", "Qwen3ForCausalLM"
GEMMA2, GEMMA3 = "Gemma2ForCausalLM", "Gemma3ForCausalLM"
TYPES = ["full_attention", "sliding_attention", "sliding_attention", "full_attention"] * 2

CASES = [
    (LLAMA, {}),
    (LLAMA, {"num_key_value_heads": None, "head_dim": None, "tie_word_embeddings": True}),
    (LLAMA, {"num_key_value_heads": 4, "head_dim": 16, "attention_bias": True, "mlp_bias": True}),
    (LLAMA, {"hidden_act": "gelu", "rms_norm_eps": 1e-5, "max_position_embeddings": 64}),
    (LLAMA, {"eos_token_id": [3, 4], "bos_token_id": None}),
    (LLAMA, {"eos_token_id": None, "rope_theta": 500000.0}),
    (MISTRAL, {}),
    (MISTRAL, {"sliding_window": None, "num_key_value_heads": 4, "attention_bias": True}),
    (MISTRAL, {"sliding_window": 16, "head_dim": 8}),
    (QWEN2, {}),
    (QWEN2, {"use_sliding_window": True, "max_window_layers": 3}),
    (QWEN2, {"use_sliding_window": True, "sliding_window": 16, "layer_types": TYPES}),
    (QWEN2, {"num_key_value_heads": 2, "sliding_window": 16, "attention_bias": True}),
    (QWEN3, {}),
    (QWEN3, {"attention_bias": True, "head_dim": 8, "num_key_value_heads": 8}),
    (QWEN3, {"use_sliding_window": True, "max_window_layers": 0, "sliding_window": 16}),
    (GEMMA2, {"num_attention_heads": 8}),
    (GEMMA2, {"query_pre_attn_scalar": 64, "attn_logit_softcapping": None, "head_dim": 8}),
    (GEMMA2, {"layer_types": TYPES, "attention_bias": True, "final_logit_softcapping": None}),
    (GEMMA2, {"tie_word_embeddings": False, "hidden_activation": "gelu", "sliding_window": 16}),
    (GEMMA3, {}),
    (GEMMA3, {"sliding_window_pattern": 4, "sliding_window": 16, "attn_logit_softcapping": 20.0}),
    (GEMMA3, {"layer_types": TYPES, "rope_theta": 5000.0, "rope_local_base_freq": 300.0}),
    (GEMMA3, {"num_attention_heads": None, "vocab_size": None, "final_logit_softcapping": 9.0}),
    (PHI3, {}),
    (PHI3, {"partial_rotary_factor": 0.5, "num_key_value_heads": 8, "sliding_window": 16}),
    (PHI3, {"attention_bias": True, "tie_word_embeddings": True}),
]

ACTIVATIONS = {
    "SiLUActivation": "Silu",
    "GELUTanh": "GeluTanh",
    "GELUActivation": "Gelu",
}


def inspect(config, model):
    layers = model.model.layers
    attention, mlp = layers[0].self_attn, layers[0].mlp
    fused = hasattr(attention, "qkv_proj")
    qkv = attention.qkv_proj if fused else attention.q_proj
    gate = mlp.gate_up_proj if fused else mlp.gate_proj
    embed = model.model.embed_tokens
    activation = getattr(mlp, "act_fn", None) or mlp.activation_fn
    eos = config.eos_token_id
    uniform = config.sliding_window if config.model_type in ("mistral", "phi3") else None
    windows = [getattr(layer.self_attn, "sliding_window", None) or uniform for layer in layers]
    parameters = config.rope_parameters
    nested = "full_attention" in parameters
    kinds = ("full_attention", "sliding_attention")
    ropes = [parameters[kind] for kind in kinds] if nested else [parameters]
    return {
        "hidden_size": config.hidden_size,
        "num_heads": config.num_attention_heads,
        "num_kv_heads": config.num_key_value_heads,
        "head_dim": attention.head_dim,
        "vocab_size": embed.weight.shape[0],
        "max_position_embeddings": config.max_position_embeddings,
        "rms_norm_eps": config.rms_norm_eps,
        "activation": ACTIVATIONS[type(activation).__name__],
        "post_norms": hasattr(layers[0], "post_feedforward_layernorm"),
        "qk_norm": hasattr(attention, "q_norm"),
        "qkv_bias": qkv.bias is not None,
        "o_bias": attention.o_proj.bias is not None,
        "mlp_bias": gate.bias is not None,
        "fused_projections": fused,
        "tie_word_embeddings": config.tie_word_embeddings,
        "embed_scale": getattr(embed, "scalar_embed_scale", None),
        "attention_scale": attention.scaling,
        "attention_softcap": getattr(attention, "attn_logit_softcapping", None),
        "final_softcap": getattr(config, "final_logit_softcapping", None),
        "windows": windows,
        "thetas": [rope["rope_theta"] for rope in ropes],
        "partial_rotary_factor": ropes[0].get("partial_rotary_factor", 1.0),
        "bos_token_id": config.bos_token_id,
        "eos_token_ids": eos if isinstance(eos, list) else [] if eos is None else [eos],
    }


def main(path):
    cases = []
    for name, changes in CASES:
        keys = {**SMALL, **changes}
        # A missing key and `null` differ: these two stand for missing.
        for key in ("num_attention_heads", "vocab_size"):
            if keys[key] is None:
                del keys[key]
        model_class = getattr(transformers, name)
        # Phi-3 pads with a token beyond a small vocabulary by default.
        config = model_class.config_class(**copy.deepcopy(keys), pad_token_id=0)
        with torch.device("meta"):
            model = model_class(config)
        keys = {"architectures": [name], **keys}
        cases.append({"config": keys, "expected": inspect(config, model)})
    versions = {"transformers": transformers.__version__, "torch": torch.__version__}
    made = "scripts/make_config_fixture.py"
    with open(path, "w") as file:
        json.dump({"made_by": made, "versions": versions, "cases": cases}, file, indent=1)
        file.write("\n")


main(sys.argv[1])
