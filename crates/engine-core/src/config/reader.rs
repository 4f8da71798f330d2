//! The keys of `config.json`, all but the rotary embedding's and the layers'.

use super::{
    MAX_POSITIONS, ModelConfig,
    family::{AttentionBias, Family},
    json::Fields,
    layers::read_layers,
    rope::{RopeShape, read_ropes},
};
use crate::{LoadError, StoredType, ops::activation::Activation};

/// Limits beyond any model, so that products of sizes cannot overflow and nothing absurd is
/// allocated.
const MAX_WIDTH: usize = 1 << 24;
const MAX_HEADS: usize = 1 << 16;
const MAX_HEAD_DIM: usize = 1 << 12;
const MAX_LAYERS: usize = 1 << 12;

/// Reads the keys of one family.
pub(super) struct Reader<'a> {
    pub fields: &'a Fields<'a>,
    /// The whole file, where a multimodal model has its token ids; otherwise the same.
    pub outer: &'a Fields<'a>,
    pub family: &'static Family,
}

impl Reader<'_> {
    pub(super) fn read(&self) -> Result<ModelConfig, LoadError> {
        let (fields, family) = (self.fields, self.family);
        let width = |key, default| self.count(key, MAX_WIDTH, default);
        let hidden_size = width("hidden_size", None)?;
        let num_layers = self.count("num_hidden_layers", MAX_LAYERS, None)?;
        let num_heads = self.count("num_attention_heads", MAX_HEADS, family.num_heads)?;
        let head_dim = self.head_dim(hidden_size, num_heads)?;
        let max_position_embeddings = self.count(
            "max_position_embeddings",
            MAX_POSITIONS,
            Some(family.max_position_embeddings),
        )?;
        let eps = fields.number("rms_norm_eps", 0.0..=1.0)?.unwrap_or(family.rms_norm_eps);
        let attention_bias = fields.flag("attention_bias")?.unwrap_or(false);
        let all_biases = family.attention_bias == AttentionBias::FromConfig && attention_bias;
        let mlp_bias = fields.flag("mlp_bias")?.unwrap_or(false);
        let scalar = self.query_scalar(head_dim)?;
        let gemma = family.gemma.as_ref();
        let shape = RopeShape { head_dim, max_position_embeddings };
        let ropes = read_ropes(fields, family, &shape)?;
        Ok(ModelConfig {
            architecture: family.architecture,
            hidden_size,
            intermediate_size: width("intermediate_size", None)?,
            num_layers,
            num_heads,
            num_kv_heads: self.num_kv_heads(num_heads)?,
            head_dim,
            vocab_size: width("vocab_size", family.vocab_size)?,
            max_position_embeddings,
            rms_norm_eps: eps as f32,
            activation: self.activation()?,
            norm_offset: gemma.is_some(),
            post_norms: gemma.is_some(),
            qk_norm: family.qk_norm,
            qkv_bias: all_biases || family.attention_bias == AttentionBias::Qkv,
            o_bias: all_biases,
            mlp_bias: mlp_bias && family.mlp_bias,
            fused_projections: family.fused_projections,
            tie_word_embeddings: self.tie()?,
            embed_scale: gemma.map(|_| (hidden_size as f64).sqrt() as f32),
            attention_scale: scalar.powf(-0.5) as f32,
            attention_softcap: self.softcap(
                "attn_logit_softcapping",
                gemma.and_then(|gemma| gemma.attention_softcap),
            )?,
            final_softcap: self
                .softcap("final_logit_softcapping", gemma.and_then(|gemma| gemma.final_softcap))?,
            layers: read_layers(fields, family, num_layers, ropes.len())?,
            ropes,
            bos_token_id: self.token_ids("bos_token_id", family.bos_token_id)?.first().copied(),
            eos_token_ids: self.token_ids("eos_token_id", family.eos_token_id)?,
            dtype: self.dtype()?,
            quantization: None,
        })
    }

    /// A count of at least 1; required when there is no default.
    fn count(&self, key: &str, max: usize, default: Option<usize>) -> Result<usize, LoadError> {
        let count = self.fields.count(key, 1..=max)?.or(default);
        self.fields.require(key, "a whole number", count)
    }

    fn head_dim(&self, hidden_size: usize, num_heads: usize) -> Result<usize, LoadError> {
        let given = self.fields.count("head_dim", 1..=MAX_HEAD_DIM)?.or(self.family.head_dim);
        if let Some(head_dim) = given {
            return Ok(head_dim);
        }
        let head_dim = hidden_size / num_heads;
        if !hidden_size.is_multiple_of(num_heads) || head_dim > MAX_HEAD_DIM {
            let expected = format!(
                "hidden_size {hidden_size} divided by a head's width of at most {MAX_HEAD_DIM}, \
                 or a key head_dim"
            );
            return Err(self.fields.error("num_attention_heads", expected));
        }
        Ok(head_dim)
    }

    fn num_kv_heads(&self, num_heads: usize) -> Result<usize, LoadError> {
        const KEY: &str = "num_key_value_heads";
        let missing = if self.fields.contains(KEY) { None } else { self.family.num_kv_heads };
        let given = self.fields.count(KEY, 1..=MAX_HEADS)?.or(missing);
        let num_kv_heads = given.unwrap_or(num_heads);
        if !num_heads.is_multiple_of(num_kv_heads) {
            let expected = format!("a divisor of num_attention_heads {num_heads}");
            return Err(self.fields.error(KEY, expected));
        }
        Ok(num_kv_heads)
    }

    fn activation(&self) -> Result<Activation, LoadError> {
        let (key, default) = self.family.activation;
        match self.fields.text(key)? {
            None => Ok(default),
            Some("silu" | "swish") => Ok(Activation::Silu),
            Some("gelu_pytorch_tanh" | "gelu_new" | "gelu_fast") => Ok(Activation::GeluTanh),
            Some("gelu") => Ok(Activation::Gelu),
            Some("relu") => Ok(Activation::Relu),
            Some(_) => Err(self.fields.error(key, "silu, gelu, gelu_pytorch_tanh or relu")),
        }
    }

    /// What the attention's scale is the inverse square root of.
    fn query_scalar(&self, head_dim: usize) -> Result<f64, LoadError> {
        let Some(gemma) = &self.family.gemma else { return Ok(head_dim as f64) };
        if self.fields.flag("use_bidirectional_attention")? == Some(true) {
            let expected = "false: only causal attention is supported";
            return Err(self.fields.error("use_bidirectional_attention", expected));
        }
        let given = self.fields.number("query_pre_attn_scalar", 1e-3..=1e9)?;
        Ok(given.unwrap_or(gemma.query_pre_attn_scalar))
    }

    /// A cap on scores: `null` is none, a missing key the family's default.
    fn softcap(&self, key: &str, default: Option<f64>) -> Result<Option<f32>, LoadError> {
        if self.family.gemma.is_none() {
            return Ok(None);
        }
        let missing = if self.fields.contains(key) { None } else { default };
        Ok(self.fields.number(key, 1e-3..=1e9)?.or(missing).map(|cap| cap as f32))
    }

    fn tie(&self) -> Result<bool, LoadError> {
        const KEY: &str = "tie_word_embeddings";
        let inner = self.fields.flag(KEY)?;
        let given = if inner.is_some() { inner } else { self.outer.flag(KEY)? };
        Ok(given.unwrap_or(self.family.tie_word_embeddings))
    }

    /// Token ids of the text part or the whole file: `null` is none, missing the default.
    fn token_ids(&self, key: &str, default: Option<u32>) -> Result<Vec<u32>, LoadError> {
        for place in [self.fields, self.outer] {
            if place.contains(key) {
                return Ok(place.token_ids(key)?.unwrap_or_default());
            }
        }
        Ok(default.into_iter().collect())
    }

    fn dtype(&self) -> Result<Option<StoredType>, LoadError> {
        for place in [self.fields, self.outer] {
            for key in ["dtype", "torch_dtype"] {
                if let Some(name) = place.text(key)? {
                    let stored = match name.trim_start_matches("torch.") {
                        "float32" | "float" => StoredType::F32,
                        "float16" | "half" => StoredType::F16,
                        "bfloat16" => StoredType::Bf16,
                        _ => return Err(place.error(key, "float32, float16 or bfloat16")),
                    };
                    return Ok(Some(stored));
                }
            }
        }
        Ok(None)
    }
}
