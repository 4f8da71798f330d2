//! The names of tensors: those of a Hugging Face checkpoint, and what llama.cpp calls them.

use crate::ModelConfig;

/// Parts of a layer. The fused MLP of Phi-3 goes by the name of its upper half.
const LAYER: [(&str, &str); 14] = [
    ("input_layernorm", "attn_norm"),
    ("self_attn.q_proj", "attn_q"),
    ("self_attn.k_proj", "attn_k"),
    ("self_attn.v_proj", "attn_v"),
    ("self_attn.qkv_proj", "attn_qkv"),
    ("self_attn.o_proj", "attn_output"),
    ("self_attn.q_norm", "attn_q_norm"),
    ("self_attn.k_norm", "attn_k_norm"),
    ("pre_feedforward_layernorm", "ffn_norm"),
    ("post_feedforward_layernorm", "post_ffw_norm"),
    ("mlp.gate_proj", "ffn_gate"),
    ("mlp.gate_up_proj", "ffn_up"),
    ("mlp.up_proj", "ffn_up"),
    ("mlp.down_proj", "ffn_down"),
];
const WHOLE: [(&str, &str); 3] =
    [("model.embed_tokens", "token_embd"), ("model.norm", "output_norm"), ("lm_head", "output")];
/// Numbers of the rotary embedding, which the configuration reads.
pub(super) const ROPE: [&str; 3] =
    ["rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight"];

/// What tensor `name` of a Hugging Face checkpoint is called in a GGUF file.
///
/// `post_norms` tells the two meanings of `post_attention_layernorm` apart: a norm after the
/// attention, as in Gemma, or the one before the MLP.
pub(super) fn gguf_name(name: &str, post_norms: bool) -> Option<String> {
    let (stem, suffix) = name.rsplit_once('.')?;
    if let Some((_, whole)) = WHOLE.iter().find(|(whole, _)| *whole == stem) {
        return Some(format!("{whole}.{suffix}"));
    }
    let (layer, part) = stem.strip_prefix("model.layers.")?.split_once('.')?;
    let part = match part {
        "post_attention_layernorm" if post_norms => "post_attention_norm",
        "post_attention_layernorm" => "ffn_norm",
        part => LAYER.iter().find(|(hf, _)| *hf == part)?.1,
    };
    Some(format!("blk.{layer}.{part}.{suffix}"))
}

/// Whether the model has a place for the tensor `name` of a GGUF file.
pub(super) fn is_known(name: &str, config: &ModelConfig) -> bool {
    if ROPE.contains(&name) {
        return true;
    }
    let (stem, bias) = match name.rsplit_once('.') {
        Some((stem, "weight")) => (stem, false),
        Some((stem, "bias")) => (stem, true),
        _ => return false,
    };
    let Some((layer, part)) = stem.strip_prefix("blk.").and_then(|rest| rest.split_once('.'))
    else {
        return !bias && WHOLE.iter().any(|(_, gguf)| *gguf == stem);
    };
    let fused = config.fused_projections;
    layer.parse().is_ok_and(|layer: usize| layer < config.num_layers)
        && match part {
            "attn_norm" | "ffn_norm" => !bias,
            "attn_q" | "attn_k" | "attn_v" => !fused && (!bias || config.qkv_bias),
            "attn_qkv" => fused && (!bias || config.qkv_bias),
            "attn_output" => !bias || config.o_bias,
            "attn_q_norm" | "attn_k_norm" => config.qk_norm && !bias,
            "post_attention_norm" | "post_ffw_norm" => config.post_norms && !bias,
            "ffn_gate" => !fused && (!bias || config.mlp_bias),
            "ffn_up" | "ffn_down" => !bias || config.mlp_bias,
            _ => false,
        }
}
