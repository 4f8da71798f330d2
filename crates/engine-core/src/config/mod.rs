//! `config.json` and `generation_config.json` of a Hugging Face model directory.

mod family;
mod generation;
pub(crate) mod json;
mod layers;
mod quantization;
mod reader;
mod rope;

use std::path::Path;

use serde_json::{Map, Value};

pub use family::Architecture;
pub use generation::GenerationConfig;
pub use quantization::{NativeConfig, QuantizationConfig};

use crate::{KvFormat, LoadError, RopeConfig, StoredType, ops::activation::Activation};
use family::{Family, GEMMA3_MULTIMODAL};
use json::{Fields, parse_object, read_file};
use quantization::read_quantization;
use reader::Reader;

/// More than any config file has.
const MAX_BYTES: u64 = 16 << 20;
/// Positions are 32-bit integers on the device.
const MAX_POSITIONS: usize = i32::MAX as usize;

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
    /// How matrices are in few bits, where the file says that some are.
    pub quantization: Option<QuantizationConfig>,
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
        Self::from_object(&parse_object(json, file)?, file)
    }

    /// Reads the keys of a `config.json`, whatever file they are from.
    pub(crate) fn from_object(map: &Map<String, Value>, file: &Path) -> Result<Self, LoadError> {
        let fields = Fields::new(file, map);
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
        let quantization = read_quantization(&fields)?;
        let config = if let Class::Named(GEMMA3_MULTIMODAL) = class {
            let text = fields.object("text_config")?;
            let text = fields.require("text_config", "the text part's config", text)?;
            Reader { fields: &text, outer: &fields, family }.read()
        } else {
            Reader { fields: &fields, outer: &fields, family }.read()
        }?;
        Ok(Self { quantization, ..config })
    }

    /// Floats that one position's keys take in one layer, and its values likewise.
    pub fn kv_row_len(&self) -> usize {
        self.num_kv_heads * self.head_dim
    }

    /// Bytes that one position's keys and values take over all layers.
    pub fn kv_bytes_per_token(&self, format: KvFormat) -> usize {
        self.num_layers * 2 * self.num_kv_heads * format.head_bytes(self.head_dim)
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
