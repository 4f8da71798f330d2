use std::fmt;

use serde::Serialize;

use super::MatrixError;
use crate::{Machine, Spread};

/// What schemes cost and lose.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct QualityReport {
    /// The machine, if speed was measured.
    pub machine: Option<Machine>,
    /// The model's name.
    pub model: String,
    /// The text's name.
    pub text: String,
    /// Which tokens were scored, with what before them.
    pub method: String,
    /// Tokens that were scored.
    pub scored_tokens: usize,
    /// The reference first, then the candidates in the order in which they were given.
    pub rows: Vec<QualityRow>,
}

/// One candidate.
#[derive(Debug, Clone, PartialEq, Default, Serialize)]
pub struct QualityRow {
    /// The scheme, or the name of the model that was compared.
    pub scheme: String,
    /// Format of keys and values.
    pub kv_cache: String,
    /// Bytes of all weights on the device.
    pub weight_bytes: usize,
    /// Bits for each weight of the quantized matrices, scales and padding included; `None` if
    /// nothing is quantized.
    pub bits_per_weight: Option<f64>,
    /// `exp(mean_nll)`.
    pub perplexity: f64,
    /// Perplexity over the reference's, minus one.
    pub perplexity_change: f64,
    /// Mean negative log-likelihood of the scored tokens, in nats.
    pub mean_nll: f64,
    /// Mean KL(reference ‖ candidate) over the scored positions, in nats.
    pub kl_nats: f64,
    /// Share of the scored positions at which both models hold the same token most likely.
    pub top1_agreement: f64,
    /// Largest relative error of a quantized tensor; `None` if nothing is quantized or columns were
    /// scaled before rounding.
    pub largest_layer_error: Option<f64>,
    /// Mean relative error of the quantized tensors.
    pub mean_layer_error: Option<f64>,
    /// The quantized tensors, the largest error first.
    pub layers: Vec<MatrixError>,
    /// New tokens per second of one sequence, if measured.
    pub decode_tokens_per_s: Option<f64>,
    /// Of `decode_tokens_per_s` over the runs.
    pub decode_tokens_per_s_spread: Option<Spread>,
    /// Most main memory that the process held from loading to decoding, if measured.
    pub peak_memory_bytes: Option<u64>,
    /// Seconds to load, quantizing included.
    pub load_s: f64,
    /// How much was lost.
    pub loss: Loss,
    /// The same in words.
    pub verdict: String,
}

/// How much a model lost, by its KL divergence from the reference in nats.
///
/// The limits are where well-known schemes of large models lie: 8 bits lose less than 0.002, good
/// 4 bits less than 0.02, 3 bits less than 0.1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Loss {
    /// It is the reference, or equal to it.
    #[default]
    None,
    /// Below 0.002.
    NotMeasurable,
    /// Below 0.02.
    Small,
    /// Below 0.1.
    Clear,
    /// 0.1 and more.
    Heavy,
    /// Some logits are no numbers.
    Broken,
}

impl Loss {
    /// The loss of a divergence in nats.
    ///
    /// ```
    /// use engine_bench::quality::Loss;
    /// assert_eq!(Loss::of(0.0004), Loss::NotMeasurable);
    /// assert_eq!(Loss::of(0.02), Loss::Clear);
    /// ```
    pub fn of(kl_nats: f64) -> Self {
        match kl_nats {
            0.0 => Self::None,
            kl if kl < 0.002 => Self::NotMeasurable,
            kl if kl < 0.02 => Self::Small,
            kl if kl < 0.1 => Self::Clear,
            kl if kl.is_finite() => Self::Heavy,
            _ => Self::Broken,
        }
    }
}

impl fmt::Display for Loss {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::None => "no loss",
            Self::NotMeasurable => "no measurable loss",
            Self::Small => "a small loss",
            Self::Clear => "a clear loss",
            Self::Heavy => "a heavy loss",
            Self::Broken => "broken: some logits are no finite numbers",
        })
    }
}

impl QualityRow {
    /// The scheme, and the format of keys and values if it is not the usual one.
    pub fn name(&self) -> String {
        match self.kv_cache.as_str() {
            "f32" => self.scheme.clone(),
            format => format!("{} + KV {format}", self.scheme),
        }
    }

    /// Writes the verdict of a row whose numbers are complete.
    pub(super) fn judge(&mut self, reference_bytes: usize) {
        self.loss = Loss::of(self.kl_nats);
        let percent = 100.0 * self.weight_bytes as f64 / reference_bytes as f64;
        let size = match self.weight_bytes == reference_bytes {
            true => "the same bytes of weights".to_owned(),
            false => format!("{percent:.0} % of the bytes"),
        };
        self.verdict = format!("{}: {size}, {}", self.name(), self.loss);
        let worst: Vec<_> = self.layers.iter().take(3).filter_map(named_error).collect();
        if !worst.is_empty() {
            self.verdict.push_str(&format!("; largest errors {}", worst.join(", ")));
        }
    }

    /// Takes in the errors of the quantized tensors.
    pub(super) fn set_layers(&mut self, mut layers: Vec<MatrixError>) {
        let weights: usize = layers.iter().map(|layer| layer.num_weights).sum();
        let bytes: usize = layers.iter().map(|layer| layer.num_bytes).sum();
        self.bits_per_weight = (weights > 0).then(|| 8.0 * bytes as f64 / weights as f64);
        let errors: Option<Vec<f64>> = layers.iter().map(|layer| layer.relative_error).collect();
        let errors = errors.filter(|errors| !errors.is_empty());
        self.largest_layer_error =
            errors.as_ref().map(|errors| errors.iter().copied().fold(0.0, f64::max));
        self.mean_layer_error =
            errors.map(|errors| errors.iter().sum::<f64>() / errors.len() as f64);
        let error = |layer: &MatrixError| layer.relative_error.unwrap_or(0.0);
        layers.sort_by(|a, b| error(b).total_cmp(&error(a)));
        self.layers = layers;
    }
}

/// `layers.0.mlp.down_proj 9.1 %`.
pub(super) fn named_error(layer: &MatrixError) -> Option<String> {
    let name = layer.name.rsplit_once("layers.").map(|(_, rest)| format!("layers.{rest}"));
    let error = 100.0 * layer.relative_error.filter(|error| *error > 0.0)?;
    let digits = if error < 1.0 { 2 } else { 1 };
    Some(format!("{} {error:.digits$} %", name.as_ref().unwrap_or(&layer.name)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_loss_goes_by_its_divergence() {
        let losses = [0.0, 1e-9, 0.002, 0.02, 0.1, f64::INFINITY, f64::NAN].map(Loss::of);
        let expected = [
            Loss::None,
            Loss::NotMeasurable,
            Loss::Small,
            Loss::Clear,
            Loss::Heavy,
            Loss::Broken,
            Loss::Broken,
        ];
        assert_eq!(losses, expected);
        assert!(losses.is_sorted());
    }
}
