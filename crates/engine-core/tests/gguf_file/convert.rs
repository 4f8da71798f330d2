//! Checkpoints as GGUF files, as llama.cpp's converter makes them.

use std::path::{Path, PathBuf};

use engine_core::{Architecture, Checkpoint, ModelConfig};

use super::{Writer, f32_pair, pair, text_pair, u32_pair};

/// `tests/data`.
pub fn data() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/data")
}

/// Names and shapes of all tensors of a checkpoint, with their values.
pub fn tensors(checkpoint: &Checkpoint) -> Vec<(String, Vec<usize>, Vec<f32>)> {
    let read = |name: &str| {
        let shape = checkpoint.tensor(name).unwrap().shape.to_vec();
        let values = checkpoint.load(name, &shape).unwrap().iter::<f32>().collect();
        (name.to_owned(), shape, values)
    };
    checkpoint.names().map(read).collect()
}

/// What llama.cpp's converter calls a tensor of a checkpoint.
fn own_name(name: &str, gemma: bool) -> String {
    let parts = [
        ("model.", ""),
        ("layers.", "blk."),
        ("embed_tokens", "token_embd"),
        ("lm_head", "output"),
        ("self_attn.q_proj", "attn_q"),
        ("self_attn.k_proj", "attn_k"),
        ("self_attn.v_proj", "attn_v"),
        ("self_attn.qkv_proj", "attn_qkv"),
        ("self_attn.o_proj", "attn_output"),
        ("self_attn.q_norm", "attn_q_norm"),
        ("self_attn.k_norm", "attn_k_norm"),
        ("mlp.gate_up_proj", "ffn_up"),
        ("mlp.gate_proj", "ffn_gate"),
        ("mlp.up_proj", "ffn_up"),
        ("mlp.down_proj", "ffn_down"),
        ("input_layernorm", "attn_norm"),
        ("pre_feedforward_layernorm", "ffn_norm"),
        ("post_feedforward_layernorm", "post_ffw_norm"),
        ("post_attention_layernorm", if gemma { "post_attention_norm" } else { "ffn_norm" }),
    ];
    let name = parts.iter().fold(name.to_owned(), |name, (from, to)| name.replace(from, to));
    if name == "norm.weight" { "output_norm.weight".into() } else { name }
}

/// The rows of queries or keys as the converter writes them: the halves of a head interleaved.
fn interleave(values: &[f32], heads: usize, columns: usize) -> Vec<f32> {
    let half = values.len() / columns / heads / 2;
    let rows = (0..heads).flat_map(|head| (0..half).map(move |i| head * 2 * half + i));
    let both = rows.flat_map(|row| [row, row + half]);
    both.flat_map(|row| &values[row * columns..][..columns]).copied().collect()
}

/// A checkpoint as a GGUF file of F32, as llama.cpp's converter would make it.
pub fn convert(name: &str) -> (Writer, ModelConfig, Checkpoint) {
    let dir = data().join("models").join(name);
    let config = ModelConfig::load(&dir).unwrap();
    let checkpoint = Checkpoint::open(&dir).unwrap();
    let arch = match config.architecture {
        Architecture::Llama | Architecture::Mistral => "llama",
        Architecture::Qwen2 => "qwen2",
        Architecture::Qwen3 => "qwen3",
        Architecture::Gemma2 => "gemma2",
        Architecture::Gemma3 => "gemma3",
        Architecture::Phi3 => "phi3",
    };
    let mut writer = Writer { pairs: pairs(arch, &config), ..Writer::default() };
    for (name, shape, mut values) in tensors(&checkpoint) {
        if config.norm_offset && name.ends_with("norm.weight") {
            values.iter_mut().for_each(|value| *value += 1.0);
        }
        let columns = if shape.len() == 2 { shape[1] } else { 1 };
        if arch == "llama" && name.contains("q_proj") {
            values = interleave(&values, config.num_heads, columns);
        }
        if arch == "llama" && name.contains("k_proj") {
            values = interleave(&values, config.num_kv_heads, columns);
        }
        let dims: Vec<u64> = shape.iter().rev().map(|&len| len as u64).collect();
        let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        writer.push(&own_name(&name, config.norm_offset), &dims, 0, &bytes);
    }
    (writer, config, checkpoint)
}

pub fn pairs(arch: &str, config: &ModelConfig) -> Vec<Vec<u8>> {
    let key = |key: &str| format!("{arch}.{key}");
    let count = |name: &str, value| u32_pair(&key(name), value);
    let mut pairs = vec![
        text_pair("general.architecture", arch),
        count("block_count", config.num_layers),
        count("context_length", config.max_position_embeddings),
        count("embedding_length", config.hidden_size),
        count("feed_forward_length", config.intermediate_size),
        count("attention.head_count", config.num_heads),
        count("attention.head_count_kv", config.num_kv_heads),
        count("attention.key_length", config.head_dim),
        count("attention.value_length", config.head_dim),
        f32_pair(&key("attention.layer_norm_rms_epsilon"), config.rms_norm_eps.into()),
        f32_pair(&key("rope.freq_base"), config.ropes[0].theta),
        u32_pair("tokenizer.ggml.bos_token_id", config.bos_token_id.unwrap() as usize),
        u32_pair("tokenizer.ggml.eos_token_id", config.eos_token_ids[0] as usize),
    ];
    if config.norm_offset {
        let scale = f64::from(config.attention_scale);
        pairs.push(pair(&key("attention.scale"), 12, &scale.to_le_bytes()));
    }
    if let Some(cap) = config.attention_softcap {
        pairs.push(f32_pair(&key("attn_logit_softcapping"), cap.into()));
        pairs.push(f32_pair(&key("final_logit_softcapping"), config.final_softcap.unwrap().into()));
    }
    if let Some(window) = config.layers[0].window {
        pairs.push(count("attention.sliding_window", window));
    }
    if config.architecture == Architecture::Gemma3 {
        pairs.push(count("attention.sliding_window_pattern", 3));
    }
    pairs
}

/// One of each family, and the variations that a file tells by its tensors.
pub const CONVERTED: [&str; 9] = [
    "llama-gqa",
    "llama-mha-tied",
    "llama-bias",
    "mistral-sliding",
    "qwen2-bias-tied",
    "qwen3-qknorm",
    "gemma2",
    "gemma3-text",
    "phi3-fused",
];
