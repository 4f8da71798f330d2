//! `config.json` and `generation_config.json` of a Hugging Face model directory.

mod family;
mod generation;
pub(crate) mod json;
mod rope;

use std::path::Path;

pub use family::Architecture;
pub use generation::GenerationConfig;

use crate::{LoadError, RopeConfig, StoredType, ops::activation::Activation};
use family::{AttentionBias, Family, GEMMA3_MULTIMODAL, WindowRule};
use json::{Fields, parse_object, read_file};
use rope::{RopeShape, read_ropes};

/// Limits beyond any model, so that products of sizes cannot overflow and nothing absurd is
/// allocated.
const MAX_BYTES: u64 = 16 << 20;
const MAX_WIDTH: usize = 1 << 24;
const MAX_HEADS: usize = 1 << 16;
const MAX_LAYERS: usize = 1 << 12;
pub(crate) const MAX_POSITIONS: usize = i32::MAX as usize;

/// A decoder-only transformer: shapes, and which of the families' variations it has.
///
/// Read from `config.json` in the spelling of transformers 4 (`rope_theta`, `rope_scaling`,
/// `torch_dtype`) or 5 (`rope_parameters`, `dtype`, `layer_types`); a missing key has the value
/// that transformers assumes for the family.
///
/// ```
/// use std::path::Path;
/// use engine_core::{Architecture, ModelConfig};
/// let json = br#"{
///     "architectures": ["LlamaForCausalLM"], "hidden_size": 64, "intermediate_size": 172,
///     "num_hidden_layers": 2, "num_attention_heads": 8, "num_key_value_heads": 4,
///     "vocab_size": 512, "max_position_embeddings": 256
/// }"#;
/// let config = ModelConfig::parse(json, Path::new("config.json"))?;
/// assert_eq!(config.architecture, Architecture::Llama);
/// assert_eq!(config.head_dim, 8);
/// assert_eq!(config.layers.len(), 2);
/// # Ok::<(), engine_core::LoadError>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct ModelConfig {
    /// The family.
    pub architecture: Architecture,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width of the MLP.
    pub intermediate_size: usize,
    /// Number of layers.
    pub num_layers: usize,
    /// Query heads.
    pub num_heads: usize,
    /// Key and value heads; divides `num_heads`.
    pub num_kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Rows of the embedding.
    pub vocab_size: usize,
    /// Positions the model declares; see [`ModelConfig::max_context`].
    pub max_position_embeddings: usize,
    /// Added to the mean square in every norm.
    pub rms_norm_eps: f32,
    /// The gate's non-linearity.
    pub activation: Activation,
    /// Norms multiply by `1 + weight` (Gemma).
    pub norm_offset: bool,
    /// Norms also after attention and after the MLP (Gemma).
    pub post_norms: bool,
    /// Queries and keys are normalised per head (Qwen 3, Gemma 3).
    pub qk_norm: bool,
    /// `q_proj`, `k_proj` and `v_proj` have biases.
    pub qkv_bias: bool,
    /// `o_proj` has a bias.
    pub o_bias: bool,
    /// `gate_proj`, `up_proj` and `down_proj` have biases.
    pub mlp_bias: bool,
    /// The checkpoint stores `qkv_proj` and `gate_up_proj` (Phi-3).
    pub fused_projections: bool,
    /// The output matrix is the embedding.
    pub tie_word_embeddings: bool,
    /// Multiplies the embedding (Gemma: `√hidden_size`).
    pub embed_scale: Option<f32>,
    /// Multiplies `q · k`.
    pub attention_scale: f32,
    /// `cap · tanh(score / cap)` before the softmax.
    pub attention_softcap: Option<f32>,
    /// `cap · tanh(logit / cap)` of the logits.
    pub final_softcap: Option<f32>,
    /// The rotary embeddings: one, or for Gemma 3 that of the full and that of the windowed layers.
    pub ropes: Vec<RopeConfig>,
    /// One entry per layer.
    pub layers: Vec<LayerConfig>,
    /// Token that starts a sequence.
    pub bos_token_id: Option<u32>,
    /// Tokens that end a reply; see [`ModelConfig::stop_token_ids`].
    pub eos_token_ids: Vec<u32>,
    /// The type the weights are said to be stored in; the checkpoint decides.
    pub dtype: Option<StoredType>,
}

/// How one layer differs from the others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LayerConfig {
    /// Positions a query sees, itself included; all when `None`.
    pub window: Option<usize>,
    /// Which of [`ModelConfig::ropes`] it uses.
    pub rope: usize,
}

impl ModelConfig {
    /// Reads `config.json` in `dir`.
    ///
    /// # Errors
    /// If the file cannot be read, is not JSON, names an unknown architecture, or a key is missing,
    /// of the wrong type or out of range.
    pub fn load(dir: impl AsRef<Path>) -> Result<Self, LoadError> {
        let file = dir.as_ref().join("config.json");
        Self::parse(&read_file(&file, MAX_BYTES)?, &file)
    }

    /// Reads the content of a `config.json`; `file` is only for the messages.
    ///
    /// # Errors
    /// As [`ModelConfig::load`].
    pub fn parse(json: &[u8], file: &Path) -> Result<Self, LoadError> {
        let map = parse_object(json, file)?;
        let fields = Fields::new(file, &map);
        let class = class_name(&fields)?;
        let unknown = |found: &str| LoadError::UnknownArchitecture {
            file: file.to_path_buf(),
            found: found.to_owned(),
            known: Architecture::names(),
        };
        let family = match class {
            Class::Named(name) => Family::by_class(name).ok_or_else(|| unknown(name))?,
            Class::Type(name) => Family::by_model_type(name).ok_or_else(|| unknown(name))?,
        };
        if fields.value("quantization_config").is_some() {
            let expected = "nothing: only unquantized checkpoints can be read";
            return Err(fields.error("quantization_config", expected));
        }
        if let Class::Named(GEMMA3_MULTIMODAL) = class {
            let text = fields.object("text_config")?;
            let text = fields.require("text_config", "the text part's config", text)?;
            return Reader { fields: &text, outer: &fields, family }.read();
        }
        Reader { fields: &fields, outer: &fields, family }.read()
    }

    /// Floats that one position's keys take in one layer, and its values likewise.
    pub fn kv_row_len(&self) -> usize {
        self.num_kv_heads * self.head_dim
    }

    /// The longest context the model may be run at.
    ///
    /// Usually `max_position_embeddings`. A `linear`, `dynamic` or `yarn` scaling extends it as
    /// [`RopeConfig::max_context`] says, except in Gemma 3, which declares the extended length.
    /// Some checkpoints of other families with `linear` scaling do so too; for them this is an
    /// upper bound, and the caller may choose less.
    pub fn max_context(&self) -> usize {
        match self.architecture {
            Architecture::Gemma3 => self.max_position_embeddings,
            _ => self.ropes.iter().map(RopeConfig::max_context).min().unwrap_or(0),
        }
    }

    /// The tokens that end a reply: those of `generation_config.json` if it names any, else those
    /// of `config.json`.
    pub fn stop_token_ids<'a>(&'a self, generation: Option<&'a GenerationConfig>) -> &'a [u32] {
        generation
            .and_then(|generation| generation.eos_token_ids.as_deref())
            .unwrap_or(&self.eos_token_ids)
    }
}

#[derive(Clone, Copy)]
enum Class<'a> {
    /// The name under `architectures`.
    Named(&'a str),
    /// The name under `model_type`, when there are no `architectures`.
    Type(&'a str),
}

fn class_name<'a>(fields: &Fields<'a>) -> Result<Class<'a>, LoadError> {
    let names = fields.texts("architectures")?;
    if let Some(&name) = names.as_ref().and_then(|names| names.first()) {
        return Ok(Class::Named(name));
    }
    let model_type = fields.text("model_type")?;
    fields.require("architectures", "a list with one name", model_type).map(Class::Type)
}

/// Reads the keys of one family.
struct Reader<'a> {
    fields: &'a Fields<'a>,
    /// The whole file, where a multimodal model has its token ids; otherwise the same.
    outer: &'a Fields<'a>,
    family: &'static Family,
}

impl Reader<'_> {
    fn read(&self) -> Result<ModelConfig, LoadError> {
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
            layers: self.layers(num_layers, ropes.len())?,
            ropes,
            bos_token_id: self.token_ids("bos_token_id", family.bos_token_id)?.first().copied(),
            eos_token_ids: self.token_ids("eos_token_id", family.eos_token_id)?,
            dtype: self.dtype()?,
        })
    }

    /// A count of at least 1; required when there is no default.
    fn count(&self, key: &str, max: usize, default: Option<usize>) -> Result<usize, LoadError> {
        let count = self.fields.count(key, 1..=max)?.or(default);
        self.fields.require(key, "a whole number", count)
    }

    fn head_dim(&self, hidden_size: usize, num_heads: usize) -> Result<usize, LoadError> {
        let given = self.fields.count("head_dim", 1..=MAX_HEADS)?.or(self.family.head_dim);
        if let Some(head_dim) = given {
            return Ok(head_dim);
        }
        if !hidden_size.is_multiple_of(num_heads) {
            let expected = format!("a divisor of hidden_size {hidden_size}, or a key head_dim");
            return Err(self.fields.error("num_attention_heads", expected));
        }
        Ok(hidden_size / num_heads)
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

    /// Window and rotary embedding of each layer.
    fn layers(&self, num_layers: usize, num_ropes: usize) -> Result<Vec<LayerConfig>, LoadError> {
        let window = self.window()?;
        let by_rule = self.windowed_by_rule(num_layers, window.is_some())?;
        let windowed = self.windowed_by_type(num_layers)?.unwrap_or_else(|| by_rule.clone());
        // These families have one mask for all layers whatever the list says.
        let uniform = matches!(self.family.window, WindowRule::Never | WindowRule::All);
        if uniform && windowed != by_rule {
            let expected = match window {
                Some(_) => "sliding_attention in every layer, because sliding_window is set",
                None => "full_attention in every layer, because there is no sliding_window",
            };
            return Err(self.fields.error("layer_types", expected));
        }
        if window.is_none() && windowed.contains(&true) {
            let expected = "a number, because some layers are windowed";
            return Err(self.fields.error("sliding_window", expected));
        }
        let layer = |windowed: bool| LayerConfig {
            window: window.filter(|_| windowed),
            rope: if windowed { num_ropes - 1 } else { 0 },
        };
        Ok(windowed.into_iter().map(layer).collect())
    }

    /// Width of the windows: `null` is none, a missing key the family's default.
    fn window(&self) -> Result<Option<usize>, LoadError> {
        const KEY: &str = "sliding_window";
        let off = match self.family.window {
            WindowRule::Never => true,
            WindowRule::Upper => !self.fields.flag("use_sliding_window")?.unwrap_or(false),
            WindowRule::All | WindowRule::AllButEach(_) | WindowRule::Pattern(_) => false,
        };
        if off {
            return Ok(None);
        }
        let missing = if self.fields.contains(KEY) { None } else { self.family.sliding_window };
        Ok(self.fields.count(KEY, 1..=MAX_POSITIONS)?.or(missing))
    }

    fn windowed_by_rule(&self, num_layers: usize, any: bool) -> Result<Vec<bool>, LoadError> {
        let windowed: Box<dyn Fn(usize) -> bool> = match self.family.window {
            WindowRule::Never => Box::new(|_| false),
            WindowRule::All => Box::new(|_| any),
            WindowRule::Upper => {
                let full = self.fields.count("max_window_layers", 0..=MAX_POSITIONS)?.unwrap_or(28);
                Box::new(move |layer| any && layer >= full)
            }
            WindowRule::AllButEach(n) => Box::new(move |layer| !(layer + 1).is_multiple_of(n)),
            WindowRule::Pattern(n) => {
                let given = self.fields.count("sliding_window_pattern", 1..=MAX_LAYERS)?;
                let n = given.unwrap_or(n);
                Box::new(move |layer| !(layer + 1).is_multiple_of(n))
            }
        };
        Ok((0..num_layers).map(windowed).collect())
    }

    /// The windowed layers as `layer_types` lists them.
    fn windowed_by_type(&self, num_layers: usize) -> Result<Option<Vec<bool>>, LoadError> {
        const KEY: &str = "layer_types";
        let Some(types) = self.fields.texts(KEY)? else { return Ok(None) };
        if types.len() != num_layers {
            let expected = format!("{num_layers} types, one per layer, not {}", types.len());
            return Err(self.fields.error(KEY, expected));
        }
        let windowed = |name: &&str| match *name {
            "full_attention" => Ok(false),
            "sliding_attention" => Ok(true),
            _ => Err(self.fields.error(KEY, "full_attention or sliding_attention")),
        };
        types.iter().map(windowed).collect::<Result<_, _>>().map(Some)
    }
}
