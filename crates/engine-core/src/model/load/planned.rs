use std::ops::Range;

use engine_quant::{Scheme, SchemePlan};

use super::{matrix::runs, parts::MatrixParts};
use crate::ModelConfig;

/// A tensor that is a matrix of the model, and what a plan makes of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlannedTensor {
    /// Its name, such as `model.layers.0.mlp.down_proj.weight`.
    pub name: String,
    /// `[out, in]`.
    pub shape: [usize; 2],
    /// The schemes of its rows from the first to the last; several where rules tell the parts of a
    /// fused tensor apart.
    pub schemes: Vec<(Range<usize>, Scheme)>,
}

/// Every matrix of a model whose tensors' names start with `prefix`
/// ([`crate::WeightSource::model_prefix`]), and what `plan` makes of it.
pub fn planned_tensors(
    config: &ModelConfig,
    prefix: &str,
    plan: &SchemePlan,
) -> Vec<PlannedTensor> {
    let matrices = MatrixParts::all(config, prefix);
    let tensors = matrices.iter().flat_map(|matrix| {
        matrix.parts.iter().map(|part| PlannedTensor {
            name: format!("{}.weight", part.tensor),
            shape: [part.rows(), matrix.columns],
            schemes: runs(part, plan, config.num_layers),
        })
    });
    tensors.collect()
}
