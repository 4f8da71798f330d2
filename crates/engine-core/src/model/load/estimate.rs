use engine_quant::{Scheme, SchemePlan};

use super::{
    matrix::{is_float, runs},
    parts::MatrixParts,
};
use crate::{ModelConfig, WeightSource};

/// Bytes that the weights of a file will take once `plan` is carried out, from shapes and types
/// alone: exact for what the plan quantizes, [`WeightSource::held_bytes`] for the rest.
pub fn planned_weight_bytes(
    config: &ModelConfig,
    source: &dyn WeightSource,
    plan: &SchemePlan,
) -> usize {
    let (mut read, mut made) = (0, 0);
    for matrix in MatrixParts::all(config, source.model_prefix()) {
        for part in &matrix.parts {
            let stored_type = source.stored_type(&format!("{}.weight", part.tensor));
            if !is_float(&stored_type) {
                continue;
            }
            let bytes_each = if stored_type == "F32" { 4 } else { 2 };
            for (rows, scheme) in runs(part, plan, config.num_layers) {
                if let Scheme::Quantize { grid, .. } = scheme {
                    read += rows.len() * matrix.columns * bytes_each;
                    made += grid.num_bytes([rows.len(), matrix.columns]);
                }
            }
        }
    }
    source.held_bytes().saturating_sub(read) + made
}
