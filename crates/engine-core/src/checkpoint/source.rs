//! A checkpoint as a source of weights, whether they are floats or in few bits.

use engine_quant::{
    Bits,
    formats::{gptq::GptqLayout, native::Entry},
};
use safetensors::Dtype;

use super::packed::Parts;
use crate::{Checkpoint, LoadError, QuantizationConfig, StoredMatrix, WeightSource};

impl Checkpoint {
    /// Reads matrices in few bits as `config.json` says they are stored.
    pub fn with_quantization(self, quantization: Option<QuantizationConfig>) -> Self {
        Self { quantization, ..self }
    }

    /// What the decoder's tensor names start with: `model.`, unless the checkpoint is that of a
    /// multimodal model, which keeps its text part deeper, or of the decoder alone.
    pub fn model_prefix(&self) -> &'static str {
        const OTHERS: [&str; 3] = ["language_model.model.", "model.language_model.", ""];
        let has =
            |prefix: &&str| WeightSource::contains(self, &format!("{prefix}embed_tokens.weight"));
        OTHERS.into_iter().find(has).unwrap_or("model.")
    }

    /// The layout of the matrix `name`, and its name without suffix, where it is in few bits.
    fn layout<'a>(&'a self, name: &'a str) -> Option<(&'a QuantizationConfig, &'a str)> {
        let (config, module) = (self.quantization.as_ref()?, name.strip_suffix(".weight")?);
        let any = |suffixes: &[&str]| {
            suffixes.iter().any(|suffix| self.contains(&format!("{module}.{suffix}")))
        };
        let is_packed = match config {
            QuantizationConfig::Gptq { .. } | QuantizationConfig::Awq { .. } => {
                any(&["qweight", "qzeros"])
            }
            QuantizationConfig::BitsAndBytesNf4 => self.dtype_of(name) == Some(Dtype::U8),
            QuantizationConfig::BitsAndBytesInt8 => self.dtype_of(name) == Some(Dtype::I8),
            QuantizationConfig::Native(_) => any(&["codes", "scales"]),
        };
        is_packed.then_some((config, module))
    }
}

impl WeightSource for Checkpoint {
    fn contains(&self, name: &str) -> bool {
        self.contains(name) || self.layout(name).is_some()
    }

    fn num_bytes(&self) -> usize {
        self.num_bytes()
    }

    fn model_prefix(&self) -> &'static str {
        self.model_prefix()
    }

    fn matrix(&self, name: &str, shape: [usize; 2]) -> Result<StoredMatrix, LoadError> {
        let Some((config, module)) = self.layout(name) else {
            return self.dense(name, shape).map(StoredMatrix::Dense);
        };
        let parts = Parts { checkpoint: self, module, shape };
        match config {
            QuantizationConfig::Gptq { bits, group, zero_points, symmetric } => {
                parts.gptq(GptqLayout {
                    shape,
                    bits: *bits,
                    group_size: group.columns(shape[1]),
                    zero_points: *zero_points,
                    symmetric: *symmetric,
                })
            }
            QuantizationConfig::Awq { group } => parts.awq(group.columns(shape[1])),
            QuantizationConfig::BitsAndBytesNf4 => parts.nf4(),
            QuantizationConfig::BitsAndBytesInt8 => parts.int8(),
            QuantizationConfig::Native(config) => parts.native(config.entry(module)),
        }
    }

    fn vector(&self, name: &str, len: usize) -> Result<Vec<f32>, LoadError> {
        Ok(self.load(name, &[len])?.iter::<f32>().collect())
    }

    fn stored_type(&self, name: &str) -> String {
        let Some((config, module)) = self.layout(name) else {
            let dtype = self.dtype_of(name);
            return dtype.map_or_else(|| "nothing".to_owned(), |dtype| dtype.to_string());
        };
        match config {
            QuantizationConfig::Gptq { bits: Bits::Four, .. } => "gptq int4".to_owned(),
            QuantizationConfig::Gptq { bits: Bits::Eight, .. } => "gptq int8".to_owned(),
            QuantizationConfig::Awq { .. } => "awq int4".to_owned(),
            QuantizationConfig::BitsAndBytesNf4 => "bitsandbytes nf4".to_owned(),
            QuantizationConfig::BitsAndBytesInt8 => "bitsandbytes int8".to_owned(),
            QuantizationConfig::Native(config) => {
                let Entry { format, .. } = config.entry(module);
                format.clone()
            }
        }
    }
}
