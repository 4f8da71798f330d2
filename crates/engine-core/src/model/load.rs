use std::sync::Arc;

use burn_tensor::{DType, Tensor, TensorData};
use engine_quant::{Dense, WeightMatrix};

use super::{Model, layer::DecoderLayer, layer::LayerShape, layer::Linear};
use crate::{Checkpoint, LoadError, ModelBackend, ModelConfig, Rope};

/// How far loading has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LoadProgress {
    /// Bytes of the checkpoint that have been read.
    pub bytes_done: usize,
    /// Bytes of the checkpoint.
    pub bytes_total: usize,
}

/// Reads a checkpoint's tensors onto the device, one after the other.
///
/// # Errors
/// If a tensor is missing or its shape or type is not what `config` says.
pub fn load<B: ModelBackend>(
    config: ModelConfig,
    checkpoint: &Checkpoint,
    device: &B::Device,
    progress: &mut dyn FnMut(LoadProgress),
) -> Result<Model<B>, LoadError> {
    let mut loader = Loader::<B> {
        config: &config,
        checkpoint,
        device,
        prefix: checkpoint.model_prefix(),
        bytes_done: 0,
        progress,
    };
    let table = [config.vocab_size, config.hidden_size];
    let prefix = loader.prefix;
    let embed_tokens: Arc<dyn WeightMatrix<B>> =
        Arc::from(loader.matrix(&[(format!("{prefix}embed_tokens.weight"), table)])?);
    let layers =
        (0..config.num_layers).map(|i| loader.layer(i)).collect::<Result<Vec<_>, LoadError>>()?;
    let norm = loader.norm(format!("{prefix}norm.weight"), config.hidden_size)?;
    let lm_head = if config.tie_word_embeddings {
        embed_tokens.clone()
    } else {
        Arc::from(loader.matrix(&[("lm_head.weight".to_owned(), table)])?)
    };
    let ropes = config.ropes.iter().map(Rope::new).collect();
    Ok(Model { device: device.clone(), embed_tokens, layers, norm, lm_head, ropes, config })
}

struct Loader<'a, B: ModelBackend> {
    config: &'a ModelConfig,
    checkpoint: &'a Checkpoint,
    device: &'a B::Device,
    prefix: &'static str,
    bytes_done: usize,
    progress: &'a mut dyn FnMut(LoadProgress),
}

impl<B: ModelBackend> Loader<'_, B> {
    fn layer(&mut self, i: usize) -> Result<DecoderLayer<B>, LoadError> {
        let config = self.config;
        let layer = format!("{}layers.{i}.", self.prefix);
        let norm = |name: &str| format!("{layer}{name}.weight");
        let hidden = config.hidden_size;
        let (before_mlp, after_attention, after_mlp) = if config.post_norms {
            (
                "pre_feedforward_layernorm",
                Some("post_attention_layernorm"),
                Some("post_feedforward_layernorm"),
            )
        } else {
            ("post_attention_layernorm", None, None)
        };
        let qk_norm = if config.qk_norm {
            let q = self.norm(norm("self_attn.q_norm"), config.head_dim)?;
            Some((q, self.norm(norm("self_attn.k_norm"), config.head_dim)?))
        } else {
            None
        };
        let mut optional_norm =
            |name: Option<&str>| name.map(|name| self.norm(norm(name), hidden)).transpose();
        Ok(DecoderLayer {
            post_attention_layernorm: optional_norm(after_attention)?,
            post_feedforward_layernorm: optional_norm(after_mlp)?,
            input_layernorm: self.norm(norm("input_layernorm"), hidden)?,
            pre_feedforward_layernorm: self.norm(norm(before_mlp), hidden)?,
            qk_norm,
            qkv_proj: self.qkv_proj(&layer)?,
            o_proj: self.linear(
                &layer,
                &[("self_attn.o_proj", hidden)],
                config.num_heads * config.head_dim,
                config.o_bias,
            )?,
            gate_up_proj: self.gate_up_proj(&layer)?,
            down_proj: self.linear(
                &layer,
                &[("mlp.down_proj", hidden)],
                config.intermediate_size,
                config.mlp_bias,
            )?,
            shape: LayerShape::of(config, i),
        })
    }

    fn qkv_proj(&mut self, layer: &str) -> Result<Linear<B>, LoadError> {
        let config = self.config;
        let q = config.num_heads * config.head_dim;
        let kv = config.kv_row_len();
        let parts: &[(&str, usize)] = if config.fused_projections {
            &[("self_attn.qkv_proj", q + 2 * kv)]
        } else {
            &[("self_attn.q_proj", q), ("self_attn.k_proj", kv), ("self_attn.v_proj", kv)]
        };
        self.linear(layer, parts, config.hidden_size, config.qkv_bias)
    }

    fn gate_up_proj(&mut self, layer: &str) -> Result<Linear<B>, LoadError> {
        let config = self.config;
        let rows = config.intermediate_size;
        let parts: &[(&str, usize)] = if config.fused_projections {
            &[("mlp.gate_up_proj", 2 * rows)]
        } else {
            &[("mlp.gate_proj", rows), ("mlp.up_proj", rows)]
        };
        self.linear(layer, parts, config.hidden_size, config.mlp_bias)
    }

    /// One matrix of the rows of several tensors `(name, rows)`, and its bias likewise.
    fn linear(
        &mut self,
        layer: &str,
        parts: &[(&str, usize)],
        columns: usize,
        has_bias: bool,
    ) -> Result<Linear<B>, LoadError> {
        let weights: Vec<_> = parts
            .iter()
            .map(|(name, rows)| (format!("{layer}{name}.weight"), [*rows, columns]))
            .collect();
        let weight = self.matrix(&weights)?;
        if !has_bias {
            return Ok(Linear { weight, bias: None });
        }
        let mut bias = Vec::new();
        for (name, rows) in parts {
            bias.extend(self.vector(&format!("{layer}{name}.bias"), *rows)?);
        }
        Ok(Linear { weight, bias: Some(self.upload(bias)) })
    }

    fn matrix(
        &mut self,
        parts: &[(String, [usize; 2])],
    ) -> Result<Box<dyn WeightMatrix<B>>, LoadError> {
        let parts: Vec<_> = parts.iter().map(|(name, shape)| (&name[..], &shape[..])).collect();
        let data = self.checkpoint.load_concat(&parts)?;
        self.report(data.bytes.len());
        Ok(Box::new(Dense::<B>::upload(data, self.device)?))
    }

    /// A norm's weight, `[len]`; Gemma stores its difference from one.
    fn norm(&mut self, name: String, len: usize) -> Result<Tensor<B, 1>, LoadError> {
        let mut values = self.vector(&name, len)?;
        if self.config.norm_offset {
            values.iter_mut().for_each(|value| *value += 1.0);
        }
        Ok(self.upload(values))
    }

    fn vector(&mut self, name: &str, len: usize) -> Result<Vec<f32>, LoadError> {
        let data = self.checkpoint.load(name, &[len])?;
        self.report(data.bytes.len());
        Ok(data.iter::<f32>().collect())
    }

    fn upload(&self, values: Vec<f32>) -> Tensor<B, 1> {
        let len = values.len();
        Tensor::from_data(TensorData::new(values, [len]), (self.device, DType::F32))
    }

    fn report(&mut self, bytes: usize) {
        self.bytes_done += bytes;
        let bytes_total = self.checkpoint.num_bytes();
        (self.progress)(LoadProgress { bytes_done: self.bytes_done, bytes_total });
    }
}
