//! Quantizing a model with the help of a text: GPTQ and AWQ, layer by layer.
//!
//! The hidden states of all calibration sequences go through the model one layer at a time, and only
//! that layer's weights are in memory as floats. Within a layer each stage (queries, keys and values;
//! `o_proj`; gate and up; `down_proj`) sees the inputs that the already quantized ones before it
//! make, the *true sequential* order. AWQ's scales are found first, on the layer in floats, and folded
//! into it so that it computes the same; rounding comes after.

mod batches;
mod calibrated;
mod layer;
mod report;
mod scales;
mod stage;

use burn_tensor::Tensor;
use engine_quant::{Dense, Packed, Scheme, SchemePlan, WeightMatrix, round_to_nearest};

pub use calibrated::CalibratedModel;
pub use report::{
    CalibrateError, CalibratedTensor, CalibrationEvent, MatrixReport, SinkError, UnscaledReason,
};

use crate::{
    LoadError, ModelBackend, ModelConfig, StoredMatrix, WeightSource, ops::norm::rms_norm,
};
use batches::{Batch, batches};
use layer::{Layer, Norm};
use stage::{Stage, StageParts};

/// What is quantized, how, and with the help of what.
#[derive(Clone, Copy)]
pub struct Calibration<'a> {
    /// The model.
    pub config: &'a ModelConfig,
    /// Its weights.
    pub source: &'a dyn WeightSource,
    /// What becomes of each matrix; methods may differ.
    pub plan: &'a SchemePlan,
    /// Token ids of the calibration text, each sequence with its own beginning. Some hundred
    /// sequences of some hundred tokens are enough.
    pub sequences: &'a [Vec<u32>],
}

/// Where events go.
struct Output<'a> {
    sink: &'a mut dyn FnMut(CalibrationEvent) -> Result<(), SinkError>,
    done: usize,
    total: usize,
}

impl Output<'_> {
    fn tensor(&mut self, name: String, tensor: CalibratedTensor) -> Result<(), CalibrateError> {
        self.send(&name.clone(), CalibrationEvent::Tensor(name, tensor))
    }

    fn matrix(&mut self, report: MatrixReport) -> Result<(), CalibrateError> {
        self.done += 1;
        let report = MatrixReport { number: self.done, total: self.total, ..report };
        self.send(&report.name.clone(), CalibrationEvent::Matrix(report))
    }

    fn already_quantized(&mut self, name: &str) -> Result<(), CalibrateError> {
        self.total = self.total.saturating_sub(1);
        self.send(name, CalibrationEvent::AlreadyQuantized(name.to_owned()))
    }

    fn send(&mut self, name: &str, event: CalibrationEvent) -> Result<(), CalibrateError> {
        (self.sink)(event).map_err(|source| CalibrateError::Sink { name: name.to_owned(), source })
    }
}

/// Quantizes a model. Every tensor of the result reaches `sink` once, under the name that it has in
/// the source, as soon as its layer is finished; nothing is kept.
///
/// The embedding is a table without inputs: schemes that calibrate round it to nearest, and so
/// `lm_head` where it is the same matrix.
///
/// ```
/// # #[cfg(feature = "flex")]
/// use engine_core::{CalibrateError, CalibratedModel, Calibration, ModelConfig, WeightSource};
///
/// # #[cfg(feature = "flex")]
/// fn quantize(
///     config: &ModelConfig,
///     source: &dyn WeightSource,
///     sequences: &[Vec<u32>],
/// ) -> Result<CalibratedModel, Box<dyn std::error::Error>> {
///     let plan = "int4:group=32:method=gptq+v_proj=int8".parse()?;
///     let task = Calibration { config, source, plan: &plan, sequences };
///     let model = CalibratedModel::new::<burn_flex::Flex>(&task, &Default::default(), |matrix| {
///         println!("{}/{} {}: {:.4}", matrix.number, matrix.total, matrix.name, matrix.error);
///     })?;
///     Ok(model)
/// }
/// ```
///
/// # Errors
/// If the sequences are empty or of another model, the weights cannot be read or quantized, or the
/// sink fails.
pub fn calibrate<B: ModelBackend>(
    task: &Calibration<'_>,
    device: &B::Device,
    sink: &mut dyn FnMut(CalibrationEvent) -> Result<(), SinkError>,
) -> Result<(), CalibrateError> {
    check(task)?;
    let mut output = Output { sink, done: 0, total: num_quantized(task) };
    let batches = batches::<B>(task.config, task.sequences, device);
    let mut hidden = embed(task, &batches, device, &mut output)?;
    for i in 0..task.config.num_layers {
        let mut layer = Layer::read(task, i, device, &mut output)?;
        scales::scale_layer(&mut layer, &batches, &hidden, &mut output)?;
        quantize_layer(&mut layer, &batches, &mut hidden, &mut output)?;
        layer.emit(&mut output)?;
    }
    finish(task, hidden, device, &mut output)
}

/// Quantizes a layer and takes the hidden states through it.
fn quantize_layer<B: ModelBackend>(
    layer: &mut Layer<B>,
    batches: &[Batch<B>],
    hidden: &mut [Tensor<B, 2>],
    output: &mut Output<'_>,
) -> Result<(), CalibrateError> {
    let inputs: Vec<_> = hidden.iter().map(|x| layer.normed(x, &layer.input_layernorm)).collect();
    layer.qkv.quantize(&inputs, output)?;
    let inputs: Vec<_> = inputs
        .into_iter()
        .zip(batches)
        .map(|(x, batch)| layer.attend(layer.qkv.forward(x), batch))
        .collect();
    layer.o.quantize(&inputs, output)?;
    for (hidden, x) in hidden.iter_mut().zip(inputs) {
        *hidden = hidden.clone() + layer.after_attention(layer.o.forward(x));
    }
    let norm = &layer.pre_feedforward_layernorm;
    let inputs: Vec<_> = hidden.iter().map(|x| layer.normed(x, norm)).collect();
    layer.gate_up.quantize(&inputs, output)?;
    let inputs: Vec<_> =
        inputs.into_iter().map(|x| layer.gated(layer.gate_up.forward(x))).collect();
    layer.down.quantize(&inputs, output)?;
    for (hidden, x) in hidden.iter_mut().zip(inputs) {
        *hidden = hidden.clone() + layer.after_mlp(layer.down.forward(x));
    }
    Ok(())
}

fn check(task: &Calibration<'_>) -> Result<(), CalibrateError> {
    let config = task.config;
    for (sequence, tokens) in task.sequences.iter().enumerate() {
        let (len, max, vocab_size) = (tokens.len(), config.max_context(), config.vocab_size);
        if len > max {
            return Err(CalibrateError::SequenceTooLong { sequence, len, max });
        }
        if let Some(&token) = tokens.iter().find(|token| **token as usize >= vocab_size) {
            return Err(CalibrateError::TokenOutOfRange { sequence, token, vocab_size });
        }
    }
    if task.sequences.iter().all(Vec::is_empty) {
        return Err(CalibrateError::NoTokens);
    }
    if config.fused_projections { check_fused(task) } else { Ok(()) }
}

/// Checks that no rule names a part of a matrix that the checkpoint has as one.
fn check_fused(task: &Calibration<'_>) -> Result<(), CalibrateError> {
    let fused: [(&str, &[&str]); 2] = [
        ("self_attn.qkv_proj", &["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"]),
        ("mlp.gate_up_proj", &["mlp.gate_proj", "mlp.up_proj"]),
    ];
    let (prefix, num_layers) = (task.source.model_prefix(), task.config.num_layers);
    for i in 0..num_layers {
        for (name, parts) in fused {
            let scheme =
                |part: &str| task.plan.scheme_of(&format!("{prefix}layers.{i}.{part}"), num_layers);
            if parts.iter().any(|part| scheme(part) != scheme(parts[0])) {
                return Err(CalibrateError::FusedRule { name: name.to_owned() });
            }
        }
    }
    Ok(())
}

/// Matrices that the plan quantizes.
fn num_quantized(task: &Calibration<'_>) -> usize {
    let config = task.config;
    let parts: &[&str] = if config.fused_projections {
        &["self_attn.qkv_proj", "self_attn.o_proj", "mlp.gate_up_proj", "mlp.down_proj"]
    } else {
        &[
            "self_attn.q_proj",
            "self_attn.k_proj",
            "self_attn.v_proj",
            "self_attn.o_proj",
            "mlp.gate_proj",
            "mlp.up_proj",
            "mlp.down_proj",
        ]
    };
    let quantizes = |name: &str| task.plan.scheme_of(name, config.num_layers) != Scheme::Keep;
    let layers = (0..config.num_layers)
        .flat_map(|i| parts.iter().map(move |part| format!("layers.{i}.{part}")));
    let head = !config.tie_word_embeddings && quantizes("lm_head");
    layers.filter(|name| quantizes(name)).count() + usize::from(head)
}

/// The embeddings of all tokens, from the table as it will be stored.
fn embed<B: ModelBackend>(
    task: &Calibration<'_>,
    batches: &[Batch<B>],
    device: &B::Device,
    output: &mut Output<'_>,
) -> Result<Vec<Tensor<B, 2>>, CalibrateError> {
    let config = task.config;
    let name = format!("{}embed_tokens", task.source.model_prefix());
    let shape = [config.vocab_size, config.hidden_size];
    let mut scheme = task.plan.scheme_of(&name, config.num_layers);
    if config.tie_word_embeddings && scheme == Scheme::Keep {
        scheme = task.plan.scheme_of("lm_head", config.num_layers);
    }
    let stored = match (task.source.matrix(&format!("{name}.weight"), shape)?, scheme) {
        (StoredMatrix::Dense(matrix), Scheme::Quantize { grid, .. }) => {
            let packed = round_to_nearest(&matrix, grid);
            let error = |source| CalibrateError::Quantize { name: name.clone(), source };
            StoredMatrix::Packed(packed.map_err(error)?)
        }
        (stored, _) => stored,
    };
    let table = upload::<B>(&stored, device)?;
    let rows = |batch: &Batch<B>| {
        let rows = table.rows(batch.forward.tokens());
        config.embed_scale.map_or_else(|| rows.clone(), |scale| rows.clone() * scale)
    };
    let hidden = batches.iter().map(rows).collect();
    output.tensor(format!("{name}.weight"), CalibratedTensor::Matrix(stored))?;
    Ok(hidden)
}

fn upload<B: ModelBackend>(
    stored: &StoredMatrix,
    device: &B::Device,
) -> Result<Box<dyn WeightMatrix<B>>, LoadError> {
    Ok(match stored.clone() {
        StoredMatrix::Dense(matrix) => Box::new(Dense::<B>::upload(matrix.into_data(), device)?),
        StoredMatrix::Packed(packed) => Box::new(Packed::<B>::upload(packed, device)?),
    })
}

/// The last norm, and the head where it is a matrix of its own.
fn finish<B: ModelBackend>(
    task: &Calibration<'_>,
    hidden: Vec<Tensor<B, 2>>,
    device: &B::Device,
    output: &mut Output<'_>,
) -> Result<(), CalibrateError> {
    let config = task.config;
    let name = format!("{}norm.weight", task.source.model_prefix());
    let norm = Norm::<B>::read(task, name, config.hidden_size, device)?;
    if !config.tie_word_embeddings {
        let shape = [config.vocab_size, config.hidden_size];
        if task.plan.scheme_of("lm_head", config.num_layers) == Scheme::Keep {
            let name = "lm_head.weight".to_owned();
            let stored = task.source.matrix(&name, shape)?;
            output.tensor(name, CalibratedTensor::Matrix(stored))?;
        } else {
            let parts = &[("lm_head", shape[0], 0..shape[0])];
            let parts = StageParts { prefix: "", parts, columns: shape[1], has_bias: false };
            let mut head = Stage::<B>::read(task, &parts, device, output)?;
            let inputs: Vec<_> = hidden
                .into_iter()
                .map(|x| rms_norm(x, &norm.weight, config.rms_norm_eps))
                .collect();
            head.quantize(&inputs, output)?;
            head.emit(output)?;
        }
    }
    norm.emit(output)
}
