//! From a file of weights to a model on a device.

mod estimate;
mod matrix;
mod parts;
mod report;
mod tensors;

use std::sync::Arc;

use burn_tensor::{DType, Tensor, TensorData};
use engine_quant::{Activations, SchemePlan, WeightMatrix};

pub use estimate::planned_weight_bytes;
pub use report::{LoadEntry, LoadReport, Treatment};
pub use tensors::MatrixTensor;

use super::{Model, layer::DecoderLayer, layer::LayerShape, layer::Linear};
use crate::{LoadError, ModelBackend, ModelConfig, Rope, StoredMatrix, WeightSource};
use matrix::MatrixReader;
use parts::{MatrixParts, layer_prefix};

/// How far loading has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LoadProgress {
    /// Bytes of the checkpoint that have been read.
    pub bytes_done: usize,
    /// Bytes of the checkpoint.
    pub bytes_total: usize,
}

/// Reads the tensors of a file onto the device, one after the other, and quantizes on the way what
/// `plan` says; of the numbers of a matrix that is quantized, only the stored ones are ever in
/// memory. Quantizing runs on the current rayon pool.
///
/// What became of each matrix is in [`Model::load_report`]. A matrix that the file has in few bits
/// keeps them, whatever the plan says.
///
/// # Errors
/// If a tensor is missing, its shape or type is not what `config` says, or the plan needs a
/// calibration text.
pub fn load<B: ModelBackend>(
    config: ModelConfig,
    source: &dyn WeightSource,
    plan: &SchemePlan,
    device: &B::Device,
    progress: &mut dyn FnMut(LoadProgress),
) -> Result<Model<B>, LoadError> {
    check_plan(&config, source, plan)?;
    let report = LoadReport { file_bytes: source.num_bytes(), ..LoadReport::default() };
    let num_layers = config.num_layers;
    let mut loader = Loader::<B> {
        config: &config,
        reader: MatrixReader { source, plan, num_layers, report },
        device,
        prefix: source.model_prefix(),
        bytes_done: 0,
        progress,
    };
    let prefix = loader.prefix;
    let embed_tokens = loader.read(&MatrixParts::embed_tokens(&config, prefix))?;
    if !config.tie_word_embeddings {
        embed_tokens.iter().for_each(StoredMatrix::scatter);
    }
    let embed_tokens: Arc<dyn WeightMatrix<B>> = Arc::from(loader.upload_matrix(embed_tokens)?);
    // The largest matrices come first: what quantizing them takes for a moment is free again before
    // the others are there.
    let lm_head = if config.tie_word_embeddings {
        embed_tokens.clone()
    } else {
        Arc::from(loader.matrix(&MatrixParts::lm_head(&config))?)
    };
    let layers =
        (0..config.num_layers).map(|i| loader.layer(i)).collect::<Result<Vec<_>, LoadError>>()?;
    let norm = loader.norm(format!("{prefix}norm.weight"), config.hidden_size)?;
    loader.report(usize::MAX);
    let report = loader.reader.report;
    let ropes = config.ropes.iter().map(Rope::new).collect();
    Ok(Model { device: device.clone(), embed_tokens, layers, norm, lm_head, ropes, config, report })
}

/// That the plan can be carried out while loading, and concerns this model.
fn check_plan(
    config: &ModelConfig,
    source: &dyn WeightSource,
    plan: &SchemePlan,
) -> Result<(), LoadError> {
    if plan.needs_calibration() {
        return Err(LoadError::NeedsCalibration { plan: plan.to_string() });
    }
    let matrices = MatrixParts::all(config, source.model_prefix());
    let pieces = matrices.iter().flat_map(|matrix| &matrix.parts).flat_map(|part| &part.pieces);
    let names: Vec<&str> = pieces.flat_map(|piece| &piece.names).map(String::as_str).collect();
    match plan.unmatched_rule(&names, config.num_layers) {
        Some(pattern) => Err(LoadError::UnmatchedRule {
            plan: plan.to_string(),
            pattern: pattern.to_owned(),
            example: names.last().map_or_else(String::new, |name| (*name).to_owned()),
        }),
        None => Ok(()),
    }
}

struct Loader<'a, B: ModelBackend> {
    config: &'a ModelConfig,
    reader: MatrixReader<'a>,
    device: &'a B::Device,
    prefix: &'static str,
    bytes_done: usize,
    progress: &'a mut dyn FnMut(LoadProgress),
}

impl<B: ModelBackend> Loader<'_, B> {
    fn layer(&mut self, i: usize) -> Result<DecoderLayer<B>, LoadError> {
        let config = self.config;
        let layer = layer_prefix(self.prefix, i);
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
            qkv_proj: self.linear(&MatrixParts::qkv_proj(config, &layer), config.qkv_bias)?,
            o_proj: self.linear(&MatrixParts::o_proj(config, &layer), config.o_bias)?,
            gate_up_proj: self
                .linear(&MatrixParts::gate_up_proj(config, &layer), config.mlp_bias)?,
            down_proj: self.linear(&MatrixParts::down_proj(config, &layer), config.mlp_bias)?,
            shape: LayerShape::of(config, i),
        })
    }

    /// One matrix, and its bias likewise.
    fn linear(&mut self, matrix: &MatrixParts, has_bias: bool) -> Result<Linear<B>, LoadError> {
        let weight = self.matrix(matrix)?;
        if !has_bias {
            return Ok(Linear { weight, bias: None });
        }
        let mut bias = Vec::new();
        for part in &matrix.parts {
            bias.extend(self.vector(&format!("{}.bias", part.tensor), part.rows())?);
        }
        Ok(Linear { weight, bias: Some(self.upload(bias)) })
    }

    fn matrix(&mut self, matrix: &MatrixParts) -> Result<Box<dyn WeightMatrix<B>>, LoadError> {
        let rows = self.read(matrix)?;
        self.upload_matrix(rows)
    }

    fn read(&mut self, matrix: &MatrixParts) -> Result<Vec<StoredMatrix>, LoadError> {
        let (rows, num_bytes) = self.reader.read::<B>(matrix, self.activations())?;
        self.report(num_bytes);
        Ok(rows)
    }

    fn upload_matrix(
        &self,
        rows: Vec<StoredMatrix>,
    ) -> Result<Box<dyn WeightMatrix<B>>, LoadError> {
        matrix::upload(rows, self.activations(), self.device)
    }

    fn activations(&self) -> Activations {
        self.reader.plan.activations().unwrap_or_else(B::exact)
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
        let values = self.reader.source.vector(name, len)?;
        self.report(values.len() * size_of::<f32>());
        Ok(values)
    }

    fn upload(&self, values: Vec<f32>) -> Tensor<B, 1> {
        let len = values.len();
        Tensor::from_data(TensorData::new(values, [len]), (self.device, DType::F32))
    }

    fn report(&mut self, bytes: usize) {
        let bytes_total = self.reader.report.file_bytes;
        self.bytes_done = self.bytes_done.saturating_add(bytes).min(bytes_total);
        (self.progress)(LoadProgress { bytes_done: self.bytes_done, bytes_total });
    }
}
