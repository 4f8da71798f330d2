use std::{fmt, path::PathBuf, time::Duration};

use engine_quant::Scheme;

use super::CheckpointLayout;

/// What quantizing says as it goes on.
#[derive(Debug)]
#[non_exhaustive]
pub enum QuantizeEvent<'a> {
    /// A file of the model is downloaded.
    Download {
        /// Its name.
        file: &'a str,
        /// Bytes that are there.
        bytes_done: u64,
        /// Bytes in all.
        bytes_total: u64,
    },
    /// The layout of the output.
    Layout {
        /// Never [`CheckpointLayout::Auto`].
        layout: CheckpointLayout,
        /// Why this one.
        reason: &'a str,
    },
    /// The calibration text was cut.
    Calibration {
        /// Sequences that run through the model.
        sequences: usize,
        /// Their tokens.
        tokens: usize,
    },
    /// A matrix was quantized.
    Matrix {
        /// What became of it.
        matrix: &'a QuantizedMatrix,
        /// Its number, from 1.
        number: usize,
        /// How many there are.
        total: usize,
    },
    /// Something that is not as one may have expected, in a line.
    Note(&'a str),
}

/// What became of one matrix.
#[derive(Debug, Clone, PartialEq)]
pub struct QuantizedMatrix {
    /// Its name in the checkpoint, without `.weight`.
    pub name: String,
    /// What it was quantized by.
    pub scheme: Scheme,
    /// What is lost of its output over the calibration text, `‖X · (W − Q)ᵀ‖ / ‖X · Wᵀ‖`; without
    /// one, or for a table, of its numbers, `‖W − Q‖ / ‖W‖`.
    pub error: f64,
    /// The error of the output if it had been rounded to nearest; only with a calibration text.
    pub nearest_error: Option<f64>,
}

/// A model that was quantized.
#[derive(Debug, Clone, PartialEq)]
pub struct QuantizeReport {
    /// The new model's directory.
    pub output: PathBuf,
    /// Its layout, never [`CheckpointLayout::Auto`].
    pub layout: CheckpointLayout,
    /// The matrices in few bits.
    pub matrices: Vec<QuantizedMatrix>,
    /// Their bytes by scheme, in order of first appearance.
    pub schemes: Vec<SchemeBytes>,
    /// Tensors that stayed as they were.
    pub kept: SchemeBytes,
    /// How long it took.
    pub duration: Duration,
}

/// Tensors of one scheme.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SchemeBytes {
    /// What they were quantized by.
    pub scheme: Scheme,
    /// How many there were.
    pub tensors: usize,
    /// Their bytes in the model.
    pub bytes_before: u64,
    /// Their bytes in the output.
    pub bytes_after: u64,
}

impl SchemeBytes {
    pub(super) fn none(scheme: Scheme) -> Self {
        Self { scheme, tensors: 0, bytes_before: 0, bytes_after: 0 }
    }

    pub(super) fn add(&mut self, before: u64, after: u64) {
        self.tensors += 1;
        self.bytes_before += before;
        self.bytes_after += after;
    }
}

impl QuantizeReport {
    /// Bytes of all tensors, before and after.
    pub fn total(&self) -> SchemeBytes {
        let mut total = self.kept;
        for scheme in &self.schemes {
            total.tensors += scheme.tensors;
            total.bytes_before += scheme.bytes_before;
            total.bytes_after += scheme.bytes_after;
        }
        total
    }

    /// The matrix with the largest error.
    pub fn worst(&self) -> Option<&QuantizedMatrix> {
        self.matrices.iter().max_by(|a, b| a.error.total_cmp(&b.error))
    }
}

impl fmt::Display for QuantizeReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "| scheme | tensors | bytes before | bytes after | mean error |")?;
        writeln!(f, "|---|---:|---:|---:|---:|")?;
        let mut row = |name: &str, bytes: &SchemeBytes, error: &str| {
            let SchemeBytes { tensors, bytes_before, bytes_after, .. } = bytes;
            writeln!(f, "| {name} | {tensors} | {bytes_before} | {bytes_after} | {error} |")
        };
        for bytes in &self.schemes {
            let errors = self.matrices.iter().filter(|matrix| matrix.scheme == bytes.scheme);
            let (sum, count) =
                errors.fold((0.0, 0), |(sum, count), matrix| (sum + matrix.error, count + 1));
            let mean = format!("{:.4}", sum / f64::from(count.max(1)));
            row(&bytes.scheme.to_string(), bytes, &mean)?;
        }
        row("kept", &self.kept, "")?;
        row("all", &self.total(), "")?;
        if let Some(worst) = self.worst() {
            writeln!(f, "largest error: {:.4}, {}", worst.error, worst.name)?;
        }
        Ok(())
    }
}
