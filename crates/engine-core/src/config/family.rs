//! The model families as data: what Hugging Face transformers assumes when a key is missing.

use crate::ops::activation::Activation;

/// A family of models, by the class that transformers reads it with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Architecture {
    /// Llama 1 to 3 and what is built like them.
    Llama,
    /// Mistral.
    Mistral,
    /// Qwen 2 and 2.5.
    Qwen2,
    /// Qwen 3, dense.
    Qwen3,
    /// Gemma 2.
    Gemma2,
    /// Gemma 3, text.
    Gemma3,
    /// Phi-3, Phi-3.5-mini, Phi-4.
    Phi3,
}

impl Architecture {
    /// The name under `architectures` in `config.json`.
    pub fn name(self) -> &'static str {
        Family::of(self).class
    }

    /// Every supported name.
    pub fn names() -> Vec<&'static str> {
        FAMILIES.iter().map(|family| family.class).collect()
    }
}

/// Which projections have a bias.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum AttentionBias {
    /// None has.
    Never,
    /// Queries, keys and values always.
    Qkv,
    /// All four if `attention_bias` says so.
    FromConfig,
}

/// Which layers attend to a window.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum WindowRule {
    /// No layer.
    Never,
    /// All layers if `sliding_window` is a number.
    All,
    /// If `use_sliding_window`: the layers from `max_window_layers` on.
    Upper,
    /// All but each `n`-th layer.
    AllButEach(usize),
    /// The same, and `sliding_window_pattern` may change `n`.
    Pattern(usize),
}

/// What distinguishes a family. `None` in a default means that the key is required, or that it
/// follows from others as the field says.
#[derive(Debug)]
pub(super) struct Family {
    pub architecture: Architecture,
    /// Name under `architectures`.
    pub class: &'static str,
    /// Name under `model_type`, for configs without `architectures`.
    pub model_type: &'static str,
    pub num_heads: Option<usize>,
    /// As many as heads when `None`.
    pub num_kv_heads: Option<usize>,
    /// `hidden_size / num_heads` when `None`.
    pub head_dim: Option<usize>,
    pub vocab_size: Option<usize>,
    pub max_position_embeddings: usize,
    pub rms_norm_eps: f64,
    /// The key of the activation, and its default.
    pub activation: (&'static str, Activation),
    pub attention_bias: AttentionBias,
    /// Whether `mlp_bias` is read.
    pub mlp_bias: bool,
    pub qk_norm: bool,
    pub fused_projections: bool,
    pub tie_word_embeddings: bool,
    pub window: WindowRule,
    pub sliding_window: Option<usize>,
    pub bos_token_id: Option<u32>,
    pub eos_token_id: Option<u32>,
    /// What Gemma does differently.
    pub gemma: Option<Gemma>,
}

/// What only Gemma models have.
#[derive(Debug)]
pub(super) struct Gemma {
    pub query_pre_attn_scalar: f64,
    pub attention_softcap: Option<f64>,
    pub final_softcap: Option<f64>,
    /// Base of the windowed layers' own rotary embedding.
    pub local_theta: Option<f64>,
}

impl Family {
    pub(super) fn of(architecture: Architecture) -> &'static Self {
        &FAMILIES[architecture as usize]
    }

    pub(super) fn by_class(name: &str) -> Option<&'static Self> {
        // The multimodal Gemma 3 has the same text part.
        let name = if name == GEMMA3_MULTIMODAL { "Gemma3ForCausalLM" } else { name };
        FAMILIES.iter().find(|family| family.class == name)
    }

    pub(super) fn by_model_type(name: &str) -> Option<&'static Self> {
        FAMILIES.iter().find(|family| family.model_type == name)
    }
}

/// The class of a Gemma 3 with a vision tower, whose text part is read from `text_config`.
pub(super) const GEMMA3_MULTIMODAL: &str = "Gemma3ForConditionalGeneration";

const LLAMA: Family = Family {
    architecture: Architecture::Llama,
    class: "LlamaForCausalLM",
    model_type: "llama",
    num_heads: None,
    num_kv_heads: None,
    head_dim: None,
    vocab_size: None,
    max_position_embeddings: 2048,
    rms_norm_eps: 1e-6,
    activation: ("hidden_act", Activation::Silu),
    attention_bias: AttentionBias::FromConfig,
    mlp_bias: true,
    qk_norm: false,
    fused_projections: false,
    tie_word_embeddings: false,
    window: WindowRule::Never,
    sliding_window: None,
    bos_token_id: Some(1),
    eos_token_id: Some(2),
    gemma: None,
};

const MISTRAL: Family = Family {
    architecture: Architecture::Mistral,
    class: "MistralForCausalLM",
    model_type: "mistral",
    num_kv_heads: Some(8),
    max_position_embeddings: 131_072,
    attention_bias: AttentionBias::Never,
    mlp_bias: false,
    window: WindowRule::All,
    sliding_window: Some(4096),
    ..LLAMA
};

const QWEN2: Family = Family {
    architecture: Architecture::Qwen2,
    class: "Qwen2ForCausalLM",
    model_type: "qwen2",
    num_kv_heads: Some(32),
    max_position_embeddings: 32_768,
    attention_bias: AttentionBias::Qkv,
    mlp_bias: false,
    window: WindowRule::Upper,
    sliding_window: Some(4096),
    bos_token_id: None,
    eos_token_id: None,
    ..LLAMA
};

const QWEN3: Family = Family {
    architecture: Architecture::Qwen3,
    class: "Qwen3ForCausalLM",
    model_type: "qwen3",
    head_dim: Some(128),
    attention_bias: AttentionBias::FromConfig,
    qk_norm: true,
    ..QWEN2
};

const GEMMA2: Family = Family {
    architecture: Architecture::Gemma2,
    class: "Gemma2ForCausalLM",
    model_type: "gemma2",
    num_heads: Some(8),
    num_kv_heads: Some(4),
    head_dim: Some(256),
    vocab_size: Some(256_000),
    max_position_embeddings: 8192,
    activation: ("hidden_activation", Activation::GeluTanh),
    mlp_bias: false,
    tie_word_embeddings: true,
    window: WindowRule::AllButEach(2),
    sliding_window: Some(4096),
    bos_token_id: Some(2),
    eos_token_id: Some(1),
    gemma: Some(Gemma {
        query_pre_attn_scalar: 256.0,
        attention_softcap: Some(50.0),
        final_softcap: Some(30.0),
        local_theta: None,
    }),
    ..LLAMA
};

const GEMMA3: Family = Family {
    architecture: Architecture::Gemma3,
    class: "Gemma3ForCausalLM",
    model_type: "gemma3_text",
    vocab_size: Some(262_208),
    max_position_embeddings: 131_072,
    qk_norm: true,
    window: WindowRule::Pattern(6),
    gemma: Some(Gemma {
        query_pre_attn_scalar: 256.0,
        attention_softcap: None,
        final_softcap: None,
        local_theta: Some(10_000.0),
    }),
    ..GEMMA2
};

const PHI3: Family = Family {
    architecture: Architecture::Phi3,
    class: "Phi3ForCausalLM",
    model_type: "phi3",
    max_position_embeddings: 4096,
    rms_norm_eps: 1e-5,
    attention_bias: AttentionBias::Never,
    mlp_bias: false,
    fused_projections: true,
    window: WindowRule::All,
    eos_token_id: Some(32_000),
    ..LLAMA
};

/// In the order of [`Architecture`].
static FAMILIES: [Family; 7] = [LLAMA, MISTRAL, QWEN2, QWEN3, GEMMA2, GEMMA3, PHI3];
