//! The configuration of a model, from the metadata of its GGUF file.
//!
//! The keys become those of a `config.json`, so that there is one reader of the families.

use serde_json::{Map, Value, json};

use super::{GgufFile, GgufMetadata, names};
use crate::{Architecture, LoadError, ModelConfig, RopeScaling};

/// Names under `general.architecture`.
const ARCHITECTURES: [(&str, Architecture); 6] = [
    ("llama", Architecture::Llama),
    ("qwen2", Architecture::Qwen2),
    ("qwen3", Architecture::Qwen3),
    ("gemma2", Architecture::Gemma2),
    ("gemma3", Architecture::Gemma3),
    ("phi3", Architecture::Phi3),
];

/// Keys that change the mathematics in a way that is not computed here, unless they are zero.
const FOREIGN: [&str; 5] =
    ["expert_count", "attention.clamp_kqv", "embedding_scale", "residual_scale", "logit_scale"];

impl ModelConfig {
    /// The configuration of the model in a GGUF file, with what its tensors say: biases that are
    /// there, tied embeddings, rotary factors.
    ///
    /// `mistral` models are of the architecture `llama` there, without windows.
    ///
    /// ```
    /// use engine_core::{GgufFile, ModelConfig};
    /// # let file = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/data/quant/gguf/stories260K.Q4_0.gguf");
    /// let config = ModelConfig::from_gguf(&GgufFile::open(file)?)?;
    /// assert_eq!((config.num_layers, config.vocab_size), (5, 512));
    /// assert!(config.tie_word_embeddings);
    /// # Ok::<(), engine_core::LoadError>(())
    /// ```
    ///
    /// # Errors
    /// If the architecture is unknown, a key is missing or impossible, or a tensor is of a type
    /// that is not read or has no place in the model.
    pub fn from_gguf(file: &GgufFile) -> Result<Self, LoadError> {
        let metadata = file.metadata();
        let (name, architecture) = architecture(metadata)?;
        check_split(metadata)?;
        let mut keys = Keys { metadata, name, map: Map::new() };
        keys.set("architectures", json!([architecture.name()]));
        keys.sizes()?;
        keys.attention(architecture)?;
        keys.tokens()?;
        let rope_dim = keys.rope()?;
        keys.scaling(file, rope_dim)?;
        let table = file.tensor("token_embd.weight");
        let vocab_size = table.and_then(|table| table.shape.first().copied());
        keys.set("vocab_size", json!(vocab_size));
        keys.set("tie_word_embeddings", json!(file.tensor("output.weight").is_none()));
        let mut config = Self::from_object(&keys.map, file.path())?;

        // The converter has added the one.
        config.norm_offset = false;
        let has = |name: &str| file.tensor(&format!("blk.0.{name}.bias")).is_some();
        if architecture != Architecture::Qwen2 {
            config.qkv_bias = has("attn_q") || has("attn_qkv");
        }
        config.o_bias = has("attn_output");
        config.mlp_bias = has("ffn_gate") || has("ffn_up") || has("ffn_down");
        divide_frequencies(file, &mut config)?;
        check_tensors(file, &config)?;
        Ok(config)
    }
}

fn architecture(metadata: &GgufMetadata) -> Result<(&'static str, Architecture), LoadError> {
    const KEY: &str = "general.architecture";
    let found = metadata.text(KEY)?.ok_or_else(|| metadata.error(KEY, "a name"))?;
    let known = ARCHITECTURES.into_iter().find(|(name, _)| *name == found);
    known.ok_or_else(|| LoadError::UnknownArchitecture {
        file: metadata.file().to_path_buf(),
        found: found.to_owned(),
        known: ARCHITECTURES.iter().map(|(name, _)| *name).collect(),
    })
}

fn check_split(metadata: &GgufMetadata) -> Result<(), LoadError> {
    const KEY: &str = "split.count";
    if metadata.count(KEY)?.is_some_and(|count| count > 1) {
        let expected = "one file: join the parts with `llama-gguf-split --merge`";
        return Err(metadata.error(KEY, expected));
    }
    Ok(())
}

/// Every tensor has a place in the model and a type that is read: found out before the first one
/// is read, which may be minutes earlier.
fn check_tensors(file: &GgufFile, config: &ModelConfig) -> Result<(), LoadError> {
    for tensor in file.tensors() {
        let (path, name) = (file.path().to_path_buf(), tensor.name.to_owned());
        if !names::is_known(tensor.name, config) {
            return Err(LoadError::UnknownTensor { file: path, tensor: name });
        }
        if !tensor.kind.is_readable() {
            let found = tensor.kind.to_string();
            return Err(LoadError::GgufType { file: path, tensor: name, found });
        }
    }
    Ok(())
}

/// Applies `rope_freqs`, if the file has them.
fn divide_frequencies(file: &GgufFile, config: &mut ModelConfig) -> Result<(), LoadError> {
    let [rope, ..] = config.ropes.as_mut_slice() else { return Ok(()) };
    let Some(mut factors) = file.own_vector(names::ROPE[0], rope.rotary_dim / 2)? else {
        return Ok(());
    };
    if let Some(factor) = factors.iter().find(|factor| !(1e-3..=1e6).contains(*factor)) {
        return Err(LoadError::Value {
            file: file.path().to_path_buf(),
            key: names::ROPE[0].into(),
            expected: "numbers from 0.001 to 1000000".into(),
            found: factor.to_string(),
        });
    }
    match rope.scaling {
        RopeScaling::None => (),
        RopeScaling::Linear { factor: all } => {
            factors.iter_mut().for_each(|factor| *factor *= all as f32);
        }
        _ => {
            let key = format!("{}.rope.scaling.type", architecture(file.metadata())?.0);
            let expected = "none or linear beside rope_freqs.weight";
            return Err(file.metadata().error(&key, expected));
        }
    }
    rope.scaling = RopeScaling::Divided { factors };
    Ok(())
}

/// The metadata's keys on their way to those of a `config.json`.
struct Keys<'a> {
    metadata: &'a GgufMetadata,
    /// The architecture, with which most keys begin.
    name: &'static str,
    map: Map<String, Value>,
}

impl Keys<'_> {
    fn set(&mut self, key: &str, value: Value) {
        self.map.insert(key.into(), value);
    }

    fn key(&self, key: &str) -> String {
        format!("{}.{key}", self.name)
    }

    /// A count, or a list of equal ones for the layers; zero is none.
    fn count(&self, key: &str) -> Result<Option<usize>, LoadError> {
        Ok(self.metadata.same_count(&self.key(key))?.filter(|&count| count > 0))
    }

    fn number(&self, key: &str) -> Result<Option<f64>, LoadError> {
        Ok(self.metadata.number(&self.key(key))?.filter(|&number| number != 0.0))
    }

    fn required<T>(&self, key: &str, value: Option<T>) -> Result<T, LoadError> {
        value.ok_or_else(|| self.metadata.error(&self.key(key), "a number above 0"))
    }

    fn set_count(&mut self, key: &str, from: &str) -> Result<usize, LoadError> {
        let count = self.required(from, self.count(from)?)?;
        self.set(key, json!(count));
        Ok(count)
    }

    fn sizes(&mut self) -> Result<(), LoadError> {
        for key in FOREIGN {
            if self.number(key)?.is_some() {
                let expected = "nothing or 0: models with it are not supported";
                return Err(self.metadata.error(&self.key(key), expected));
            }
        }
        self.set_count("num_hidden_layers", "block_count")?;
        self.set_count("intermediate_size", "feed_forward_length")?;
        self.set_count("max_position_embeddings", "context_length")?;
        let hidden = self.set_count("hidden_size", "embedding_length")?;
        let heads = self.set_count("num_attention_heads", "attention.head_count")?;
        let kv_heads = self.count("attention.head_count_kv")?.unwrap_or(heads);
        self.set("num_key_value_heads", json!(kv_heads));
        let head_dim = match self.count("attention.key_length")? {
            Some(head_dim) => head_dim,
            None if hidden.is_multiple_of(heads) => hidden / heads,
            None => {
                let key = self.key("attention.key_length");
                return Err(self.metadata.error(&key, "the width of a head"));
            }
        };
        if self.count("attention.value_length")?.is_some_and(|len| len != head_dim) {
            let key = self.key("attention.value_length");
            return Err(self.metadata.error(&key, format!("the width of the keys, {head_dim}")));
        }
        self.set("head_dim", json!(head_dim));
        const EPS: &str = "attention.layer_norm_rms_epsilon";
        let eps = self.required(EPS, self.metadata.number(&self.key(EPS))?)?;
        self.set("rms_norm_eps", json!(eps));
        Ok(())
    }

    /// Windows, caps and scale.
    fn attention(&mut self, architecture: Architecture) -> Result<(), LoadError> {
        const SCALE: &str = "attention.scale";
        let gemma = matches!(architecture, Architecture::Gemma2 | Architecture::Gemma3);
        let scale = self.number(SCALE)?;
        if gemma {
            let scalar = scale.map(|scale| scale.powi(-2)).or_else(|| self.query_scalar());
            self.set("query_pre_attn_scalar", json!(scalar));
            for key in ["attn_logit_softcapping", "final_logit_softcapping"] {
                if let Some(cap) = self.number(key)? {
                    self.set(key, json!(cap));
                }
            }
        } else if scale.is_some() {
            let expected = "nothing or 0: models with it are not supported";
            return Err(self.metadata.error(&self.key(SCALE), expected));
        }
        if architecture == Architecture::Gemma3
            && let Some(pattern) = self.count("attention.sliding_window_pattern")?
        {
            self.set("sliding_window_pattern", json!(pattern));
        }
        if (gemma || architecture == Architecture::Phi3)
            && let Some(window) = self.count("attention.sliding_window")?
        {
            self.set("sliding_window", json!(window));
        }
        Ok(())
    }

    /// What Gemma's scores are divided by the root of. The files do not say it: llama.cpp knows
    /// the largest models, which differ, by their number of layers.
    fn query_scalar(&self) -> Option<f64> {
        const LARGEST: [(&str, u64); 2] = [("gemma2", 46), ("gemma3", 62)];
        let value = |key: &str| self.map.get(key).and_then(Value::as_u64);
        let largest = LARGEST.contains(&(self.name, value("num_hidden_layers")?));
        let scalar = match largest {
            true => value("hidden_size")? / value("num_attention_heads")?,
            false => value("head_dim")?,
        };
        Some(scalar as f64)
    }

    fn tokens(&mut self) -> Result<(), LoadError> {
        let id = |name: &str| self.metadata.count(&format!("tokenizer.ggml.{name}_token_id"));
        let bos = id("bos")?;
        let mut ends = Vec::new();
        for name in ["eos", "eot", "eom"] {
            ends.extend(id(name)?);
        }
        ends.sort_unstable();
        ends.dedup();
        self.set("bos_token_id", json!(bos));
        self.set("eos_token_id", json!(ends));
        Ok(())
    }

    /// Base and rotated dimensions; returns how many there are of these.
    fn rope(&mut self) -> Result<usize, LoadError> {
        const DIM: &str = "rope.dimension_count";
        if let Some(theta) = self.number("rope.freq_base")? {
            self.set("rope_theta", json!(theta));
        }
        if let Some(theta) = self.number("rope.freq_base_swa")? {
            self.set("rope_local_base_freq", json!(theta));
        }
        let head_dim = self.map.get("head_dim").and_then(Value::as_u64).unwrap_or(0) as usize;
        let rope_dim = self.count(DIM)?.unwrap_or(head_dim);
        if rope_dim > head_dim || !rope_dim.is_multiple_of(2) {
            let expected = format!("an even number up to the width of a head, {head_dim}");
            return Err(self.metadata.error(&self.key(DIM), expected));
        }
        if rope_dim < head_dim {
            // A half more, so that the product cannot be rounded below the whole number.
            let factor = (rope_dim as f64 + 0.5) / head_dim as f64;
            self.set("partial_rotary_factor", json!(factor));
        }
        Ok(rope_dim)
    }

    fn scaling(&mut self, file: &GgufFile, rope_dim: usize) -> Result<(), LoadError> {
        const TYPE: &str = "rope.scaling.type";
        let [_, long, short] = names::ROPE;
        let kind = self.metadata.text(&self.key(TYPE))?;
        let kind = match kind.filter(|kind| *kind != "none") {
            _ if file.tensor(long).is_some() => "longrope",
            None => return Ok(()),
            Some(kind @ ("linear" | "yarn")) => kind,
            Some("longrope") => {
                let expected = "rope_factors_long.weight beside longrope";
                return Err(self.metadata.error(&self.key(TYPE), expected));
            }
            Some(_) => {
                let expected = "none, linear, yarn or longrope";
                return Err(self.metadata.error(&self.key(TYPE), expected));
            }
        };
        let mut scaling = Map::from_iter([("rope_type".to_owned(), json!(kind))]);
        let factor = self.number("rope.scaling.factor")?;
        let mut attention = self.number("rope.scaling.attn_factor")?;
        if kind == "longrope" {
            scaling.insert("long_factor".into(), json!(file.own_vector(long, rope_dim / 2)?));
            scaling.insert("short_factor".into(), json!(file.own_vector(short, rope_dim / 2)?));
        } else {
            scaling.insert("factor".into(), json!(factor));
        }
        if kind == "yarn" {
            // llama.cpp multiplies YaRN's own temperature by it.
            let temperature = 0.1 * factor.unwrap_or(1.0).ln() + 1.0;
            attention = attention.map(|attention| attention * temperature);
            for (key, from) in [("beta_fast", "yarn_beta_fast"), ("beta_slow", "yarn_beta_slow")] {
                if let Some(beta) = self.number(&format!("rope.scaling.{from}"))? {
                    scaling.insert(key.into(), json!(beta));
                }
            }
        }
        if let Some(attention) = attention {
            scaling.insert("attention_factor".into(), json!(attention));
        }
        if let Some(original) = self.count("rope.scaling.original_context_length")? {
            scaling.insert("original_max_position_embeddings".into(), json!(original));
        }
        self.set("rope_scaling", Value::Object(scaling));
        Ok(())
    }
}
