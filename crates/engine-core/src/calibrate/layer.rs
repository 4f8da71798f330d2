use burn_tensor::{DType, Tensor, TensorData};

use super::{
    CalibrateError, CalibratedTensor, Calibration, Output,
    batches::Batch,
    stage::{Stage, StageParts},
};
use crate::{
    ModelBackend, ModelConfig, model::LayerShape, ops::activation::gated, ops::norm::rms_norm,
};

/// The weight of a norm: as the file has it, and as it is used.
pub(super) struct Norm<B: ModelBackend> {
    name: String,
    /// As stored.
    stored: Vec<f32>,
    /// Added to what is stored: Gemma stores the difference from one.
    offset: f32,
    /// `[len]`.
    pub weight: Tensor<B, 1>,
}

impl<B: ModelBackend> Norm<B> {
    pub fn read(
        task: &Calibration<'_>,
        name: String,
        len: usize,
        device: &B::Device,
    ) -> Result<Self, CalibrateError> {
        let stored = task.source.vector(&name, len)?;
        let offset = if task.config.norm_offset { 1.0 } else { 0.0 };
        let weight = Self::upload(&stored, offset, device);
        Ok(Self { name, stored, offset, weight })
    }

    /// Divides what the norm gives by one number for each column.
    pub fn divide(&mut self, divisors: &[f32]) {
        for (stored, divisor) in self.stored.iter_mut().zip(divisors) {
            *stored = (*stored + self.offset) / divisor - self.offset;
        }
        self.weight = Self::upload(&self.stored, self.offset, &self.weight.device());
    }

    pub fn emit(self, output: &mut Output<'_>) -> Result<(), CalibrateError> {
        output.tensor(self.name, CalibratedTensor::Vector(self.stored))
    }

    fn upload(stored: &[f32], offset: f32, device: &B::Device) -> Tensor<B, 1> {
        let values: Vec<f32> = stored.iter().map(|w| w + offset).collect();
        let len = values.len();
        Tensor::from_data(TensorData::new(values, [len]), (device, DType::F32))
    }
}

/// One decoder layer in floats, taken apart where GPTQ and AWQ look into it.
pub(super) struct Layer<B: ModelBackend> {
    pub input_layernorm: Norm<B>,
    pub qkv: Stage<B>,
    qk_norm: Option<(Norm<B>, Norm<B>)>,
    pub o: Stage<B>,
    post_attention_layernorm: Option<Norm<B>>,
    pub pre_feedforward_layernorm: Norm<B>,
    pub gate_up: Stage<B>,
    pub down: Stage<B>,
    post_feedforward_layernorm: Option<Norm<B>>,
    shape: LayerShape,
    config: ModelConfig,
    device: B::Device,
}

impl<B: ModelBackend> Layer<B> {
    pub fn read(
        task: &Calibration<'_>,
        i: usize,
        device: &B::Device,
        output: &mut Output<'_>,
    ) -> Result<Self, CalibrateError> {
        let config = task.config;
        let prefix = &format!("{}layers.{i}.", task.source.model_prefix());
        let hidden = config.hidden_size;
        let norm =
            |name: &str, len| Norm::read(task, format!("{prefix}{name}.weight"), len, device);
        let (before_mlp, after) = if config.post_norms {
            let names = ["post_attention_layernorm", "post_feedforward_layernorm"];
            ("pre_feedforward_layernorm", Some(names))
        } else {
            ("post_attention_layernorm", None)
        };
        let qk_norm = if config.qk_norm {
            let head_dim = config.head_dim;
            Some((norm("self_attn.q_norm", head_dim)?, norm("self_attn.k_norm", head_dim)?))
        } else {
            None
        };
        let (q, kv) = (config.num_heads * config.head_dim, config.kv_row_len());
        let intermediate = config.intermediate_size;
        let mut stage = |parts: &[_], columns, has_bias| {
            Stage::read(task, &StageParts { prefix, parts, columns, has_bias }, device, output)
        };
        let qkv: &[_] = if config.fused_projections {
            &[("self_attn.qkv_proj", q + 2 * kv, q + kv..q + 2 * kv)]
        } else {
            &[
                ("self_attn.q_proj", q, 0..0),
                ("self_attn.k_proj", kv, 0..0),
                ("self_attn.v_proj", kv, 0..kv),
            ]
        };
        let gate_up: &[_] = if config.fused_projections {
            &[("mlp.gate_up_proj", 2 * intermediate, 0..2 * intermediate)]
        } else {
            &[
                ("mlp.gate_proj", intermediate, 0..intermediate),
                ("mlp.up_proj", intermediate, 0..intermediate),
            ]
        };
        Ok(Self {
            input_layernorm: norm("input_layernorm", hidden)?,
            qkv: stage(qkv, hidden, config.qkv_bias)?,
            qk_norm,
            o: stage(&[("self_attn.o_proj", hidden, 0..hidden)], q, config.o_bias)?,
            post_attention_layernorm: after.map(|names| norm(names[0], hidden)).transpose()?,
            pre_feedforward_layernorm: norm(before_mlp, hidden)?,
            gate_up: stage(gate_up, hidden, config.mlp_bias)?,
            down: stage(&[("mlp.down_proj", hidden, 0..hidden)], intermediate, config.mlp_bias)?,
            post_feedforward_layernorm: after.map(|names| norm(names[1], hidden)).transpose()?,
            shape: LayerShape::of(config, i),
            config: config.clone(),
            device: device.clone(),
        })
    }

    /// Whether a value head serves several query heads.
    pub fn has_grouped_heads(&self) -> bool {
        self.config.num_heads != self.config.num_kv_heads
    }

    /// `x` normalised: the input of a stage, `[tokens, hidden]`.
    pub fn normed(&self, x: &Tensor<B, 2>, norm: &Norm<B>) -> Tensor<B, 2> {
        rms_norm(x.clone(), &norm.weight, self.shape.eps)
    }

    /// The input of `o_proj`, from queries, keys and values.
    pub fn attend(&self, qkv: Tensor<B, 2>, batch: &Batch<B>) -> Tensor<B, 2> {
        let mut kv = batch.allocate_kv(&self.config, &self.device);
        let qk_norm = self.qk_norm.as_ref();
        let qk_norm = qk_norm.map(|(q, k)| (q.weight.clone(), k.weight.clone()));
        self.shape.attend(qkv, qk_norm.as_ref(), (&batch.forward, &batch.tables), &mut kv)
    }

    /// The input of `down_proj`, from gate and up.
    pub fn gated(&self, gate_up: Tensor<B, 2>) -> Tensor<B, 2> {
        gated(gate_up, self.shape.activation)
    }

    /// What attention adds to the residual stream, from the output of `o_proj`.
    pub fn after_attention(&self, out: Tensor<B, 2>) -> Tensor<B, 2> {
        self.optional_norm(out, self.post_attention_layernorm.as_ref())
    }

    /// What the MLP adds to the residual stream, from the output of `down_proj`.
    pub fn after_mlp(&self, out: Tensor<B, 2>) -> Tensor<B, 2> {
        self.optional_norm(out, self.post_feedforward_layernorm.as_ref())
    }

    fn optional_norm(&self, out: Tensor<B, 2>, norm: Option<&Norm<B>>) -> Tensor<B, 2> {
        norm.map_or_else(|| out.clone(), |norm| self.normed(&out, norm))
    }

    /// Gives the layer's tensors away.
    pub fn emit(self, output: &mut Output<'_>) -> Result<(), CalibrateError> {
        let pair = self.qk_norm.into_iter().flat_map(|(q, k)| [q, k]);
        let norms = [self.input_layernorm, self.pre_feedforward_layernorm]
            .into_iter()
            .chain(self.post_attention_layernorm)
            .chain(self.post_feedforward_layernorm)
            .chain(pair);
        norms.into_iter().try_for_each(|norm| norm.emit(output))?;
        let stages = [self.qkv, self.o, self.gate_up, self.down];
        stages.into_iter().try_for_each(|stage| stage.emit(output))
    }
}
