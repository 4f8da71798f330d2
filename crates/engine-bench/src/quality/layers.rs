//! How far stored matrices are from the numbers that they stand for.

use std::{ops::Range, path::Path};

use engine::{ModelConfig, Scheme, SchemePlan};
use engine_core::{Checkpoint, GgufFile, LoadError, MatrixTensor, StoredMatrix, WeightSource};
use engine_quant::{PackedMatrix, SliceRows, round_to_nearest};
use serde::Serialize;

use crate::BenchError;

/// One tensor that is stored in other numbers than the reference has.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct MatrixError {
    /// The tensor without `.weight`, such as `model.layers.0.mlp.down_proj`.
    pub name: String,
    /// Its format, such as `int4:group=32:sym8`.
    pub format: String,
    /// Numbers that are stored in that format.
    pub num_weights: usize,
    /// Bytes that they take.
    pub num_bytes: usize,
    /// `‖W − Q‖ / ‖W‖`, Frobenius norms; `None` where the columns were scaled before rounding, so
    /// that the two are no longer the same matrix.
    pub relative_error: Option<f64>,
}

/// The configuration of a model, from its directory or its GGUF file.
pub(super) fn read_config(path: &Path) -> Result<ModelConfig, LoadError> {
    if path.is_file() {
        return ModelConfig::from_gguf(&GgufFile::open(path)?);
    }
    ModelConfig::load(path)
}

/// The weights of a model, from its directory or its GGUF file.
pub(super) fn open_weights(
    path: &Path,
    config: &ModelConfig,
) -> Result<Box<dyn WeightSource>, LoadError> {
    if path.is_file() {
        return Ok(Box::new(GgufFile::open(path)?));
    }
    Ok(Box::new(Checkpoint::open(path)?.with_quantization(config.quantization.clone())))
}

/// The errors of the tensors that `plan` quantizes.
pub(super) fn errors_of_plan(
    reference: &dyn WeightSource,
    config: &ModelConfig,
    plan: &SchemePlan,
) -> Result<Vec<MatrixError>, BenchError> {
    let mut errors = Vec::new();
    for tensor in MatrixTensor::all(config, reference.model_prefix()) {
        let schemes = tensor.schemes(plan, config.num_layers);
        let values = match reference.matrix(&weight(&tensor.name), tensor.shape)? {
            // What the file has in few bits stays as it is.
            StoredMatrix::Packed(packed) => {
                errors.push(as_stored(tensor.name, &packed));
                continue;
            }
            StoredMatrix::Dense(_) if schemes.iter().all(|(_, s)| *s == Scheme::Keep) => {
                continue;
            }
            StoredMatrix::Dense(matrix) => matrix.to_f32(),
        };
        errors.push(error_of_schemes(tensor.name, tensor.shape[1], &schemes, &values)?);
    }
    Ok(errors)
}

/// The errors of the tensors that another file of the same model has in few bits.
pub(super) fn errors_of_model(
    reference: &dyn WeightSource,
    candidate: &dyn WeightSource,
    config: &ModelConfig,
) -> Result<Vec<MatrixError>, BenchError> {
    let rescaled = is_rescaled(reference, candidate, config)?;
    let mut errors = Vec::new();
    let (prefix, other_prefix) = (reference.model_prefix(), candidate.model_prefix());
    for tensor in MatrixTensor::all(config, prefix) {
        let other_name = match tensor.name.strip_prefix(prefix) {
            Some(rest) => weight(&format!("{other_prefix}{rest}")),
            None => weight(&tensor.name),
        };
        let stored_type = candidate.stored_type(&other_name);
        // Floats of another width are not what is priced here.
        if matches!(stored_type.as_str(), "F32" | "F16" | "BF16") {
            continue;
        }
        let values = reference.matrix(&weight(&tensor.name), tensor.shape)?.to_f32();
        let stored = candidate.matrix(&other_name, tensor.shape)?;
        let (format, num_bytes) = match &stored {
            StoredMatrix::Packed(packed) => (packed.format.clone(), packed.num_bytes()),
            StoredMatrix::Dense(matrix) => (stored_type, matrix.num_bytes()),
        };
        let error = relative(&[Squares::of(&values, &stored.to_f32())]);
        errors.push(MatrixError {
            name: tensor.name,
            format,
            num_weights: values.len(),
            num_bytes,
            relative_error: (!rescaled).then_some(error),
        });
    }
    Ok(errors)
}

fn error_of_schemes(
    name: String,
    columns: usize,
    schemes: &[(Range<usize>, Scheme)],
    values: &[f32],
) -> Result<MatrixError, BenchError> {
    let (mut formats, mut squares): (Vec<String>, Vec<Squares>) = (Vec::new(), Vec::new());
    let (mut num_weights, mut num_bytes) = (0, 0);
    for (rows, scheme) in schemes {
        let values = &values[rows.start * columns..rows.end * columns];
        let Scheme::Quantize { grid, .. } = scheme else {
            squares.push(Squares::of(values, values));
            continue;
        };
        let packed = round_to_nearest(&SliceRows { values, columns }, *grid).map_err(|source| {
            BenchError::Config(LoadError::Quantize { tensor: name.clone(), source })
        })?;
        squares.push(Squares::of(values, &packed.dequantize()));
        num_weights += values.len();
        num_bytes += packed.num_bytes();
        if !formats.contains(&packed.format) {
            formats.push(packed.format);
        }
    }
    Ok(MatrixError {
        name,
        format: formats.join(" + "),
        num_weights,
        num_bytes,
        relative_error: Some(relative(&squares)),
    })
}

fn as_stored(name: String, packed: &PackedMatrix) -> MatrixError {
    let [out, in_] = packed.spec.shape;
    MatrixError {
        name,
        format: packed.format.clone(),
        num_weights: out * in_,
        num_bytes: packed.num_bytes(),
        relative_error: Some(0.0),
    }
}

/// Whether norms before the matrices changed by more than rounding them explains: AWQ divides them
/// by what it multiplies the columns with.
fn is_rescaled(
    reference: &dyn WeightSource,
    candidate: &dyn WeightSource,
    config: &ModelConfig,
) -> Result<bool, BenchError> {
    let (prefix, other_prefix) = (reference.model_prefix(), candidate.model_prefix());
    let norms = ["input_layernorm", "post_attention_layernorm", "pre_feedforward_layernorm"];
    for layer in 0..config.num_layers {
        for norm in norms {
            let name = |prefix: &str| format!("{prefix}layers.{layer}.{norm}.weight");
            if !reference.contains(&name(prefix)) || !candidate.contains(&name(other_prefix)) {
                continue;
            }
            let a = reference.vector(&name(prefix), config.hidden_size)?;
            let b = candidate.vector(&name(other_prefix), config.hidden_size)?;
            if a.iter().zip(&b).any(|(a, b)| (a - b).abs() > 0.02 * a.abs().max(1e-3)) {
                return Ok(true);
            }
        }
    }
    Ok(false)
}

fn weight(name: &str) -> String {
    format!("{name}.weight")
}

/// `‖W − Q‖²` and `‖W‖²` of some numbers.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Squares {
    pub error: f64,
    pub norm: f64,
}

impl Squares {
    pub fn of(values: &[f32], stored: &[f32]) -> Self {
        let square = |value: f64| value * value;
        let errors = values.iter().zip(stored).map(|(&w, &q)| square(f64::from(w) - f64::from(q)));
        Self { error: errors.sum(), norm: values.iter().map(|&w| square(f64::from(w))).sum() }
    }
}

/// `‖W − Q‖ / ‖W‖` of a matrix in parts; 0 for zeros that stayed zeros.
pub(super) fn relative(parts: &[Squares]) -> f64 {
    let error: f64 = parts.iter().map(|squares| squares.error).sum();
    let norm: f64 = parts.iter().map(|squares| squares.norm).sum();
    if error == 0.0 { 0.0 } else { (error / norm).sqrt() }
}

#[cfg(test)]
mod tests {
    use engine_quant::{Grid, Group, Int4Range, Method};

    use super::*;

    #[test]
    fn the_error_is_that_of_the_whole_tensor_and_the_bytes_those_of_its_quantized_rows() {
        // One step is 1 and numbers lie a quarter of it off; the row that is kept adds its norm.
        let values = [7.0, 0.25, 3.0, 4.0];
        let grid = Grid::Int4 { group: Group::Row, range: Int4Range::Sym7 };
        let quantize = Scheme::Quantize { grid, method: Method::Nearest };
        let schemes = [(0..1, quantize), (1..2, Scheme::Keep)];
        let found = error_of_schemes("gate_up_proj".to_owned(), 2, &schemes, &values).unwrap();
        let expected = (0.0625_f64 / (49.0625 + 25.0)).sqrt();
        assert!((found.relative_error.unwrap() - expected).abs() < 1e-12);
        // A chunk of codes and one scale.
        assert_eq!((found.num_weights, found.num_bytes), (2, 18));
        assert_eq!(relative(&[Squares::of(&[0.0; 3], &[0.0; 3])]), 0.0);
    }
}
