//! From the tensors of a file to one matrix on the device.

use std::ops::Range;

use burn_tensor::TensorData;
use engine_quant::{
    Activations, Dense, Packed, PackedMatrix, QuantOps, Scheme, SchemePlan, Stacked, WeightMatrix,
    round_to_nearest,
};

use super::{
    dense::{DenseRows, join, slice_rows},
    parts::{MatrixParts, Part},
    report::{LoadEntry, LoadReport, Treatment},
};
use crate::{LoadError, StoredMatrix, WeightSource};

/// Rows of a matrix, on the host.
pub(super) enum Rows {
    Dense(TensorData),
    Packed(PackedMatrix),
}

/// Reads matrices as the plan wants them and keeps the books.
pub(super) struct MatrixReader<'a> {
    pub source: &'a dyn WeightSource,
    pub plan: &'a SchemePlan,
    pub num_layers: usize,
    pub report: LoadReport,
}

impl MatrixReader<'_> {
    /// The rows of one matrix, neighbours of the same format joined, and the bytes that were read.
    pub fn read(&mut self, matrix: &MatrixParts) -> Result<(Vec<Rows>, usize), LoadError> {
        let (mut rows, mut num_bytes) = (Vec::new(), 0);
        for part in &matrix.parts {
            let name = format!("{}.weight", part.tensor);
            match self.source.matrix(&name, [part.rows(), matrix.columns])? {
                StoredMatrix::Dense(data) => {
                    num_bytes += data.bytes.len();
                    self.place_dense(part, &name, data, &mut rows)?;
                }
                StoredMatrix::Packed(packed) => {
                    num_bytes += packed.num_bytes();
                    self.place_packed(part, &name, packed, &mut rows);
                }
            }
        }
        Ok((rows, num_bytes))
    }

    fn place_packed(&mut self, part: &Part, name: &str, packed: PackedMatrix, to: &mut Vec<Rows>) {
        let wanted = runs(part, self.plan, self.num_layers);
        if wanted.iter().any(|(_, scheme)| *scheme != Scheme::Keep) {
            self.report.left_as_stored += 1;
        }
        self.place(name, Rows::Packed(packed), Treatment::Kept, to);
    }

    fn place_dense(
        &mut self,
        part: &Part,
        name: &str,
        data: TensorData,
        to: &mut Vec<Rows>,
    ) -> Result<(), LoadError> {
        let floats = is_float(&self.source.stored_type(name));
        let kept = if floats { Treatment::Kept } else { Treatment::Dequantized };
        let quantized = if floats { Treatment::Quantized } else { Treatment::Requantized };
        let runs = runs(part, self.plan, self.num_layers);
        if let [(_, Scheme::Keep)] = runs[..] {
            self.place(name, Rows::Dense(data), kept, to);
            return Ok(());
        }
        for (rows, scheme) in runs {
            let Scheme::Quantize { grid, .. } = scheme else {
                self.place(name, Rows::Dense(slice_rows(&data, rows)), kept, to);
                continue;
            };
            let packed = round_to_nearest(&DenseRows { data: &data, rows }, grid)
                .map_err(|source| LoadError::Quantize { tensor: name.to_owned(), source })?;
            self.place(name, Rows::Packed(packed), quantized, to);
        }
        Ok(())
    }

    fn place(&mut self, name: &str, rows: Rows, treatment: Treatment, to: &mut Vec<Rows>) {
        self.report.add(LoadEntry {
            stored_type: self.source.stored_type(name),
            format: rows.format(),
            treatment,
            matrices: 1,
            num_bytes: rows.num_bytes(),
        });
        push(to, rows);
    }
}

impl Rows {
    fn format(&self) -> String {
        match self {
            Self::Dense(data) => format!("{:?}", data.dtype).to_lowercase(),
            Self::Packed(packed) => packed.format.clone(),
        }
    }

    fn num_bytes(&self) -> usize {
        match self {
            Self::Dense(data) => data.bytes.len(),
            Self::Packed(packed) => packed.num_bytes(),
        }
    }
}

/// Whether a type of a file is one of floats.
pub(super) fn is_float(stored_type: &str) -> bool {
    matches!(stored_type, "F32" | "F16" | "BF16")
}

/// The rows of a tensor with their schemes, neighbours of the same scheme together.
pub(super) fn runs(part: &Part, plan: &SchemePlan, layers: usize) -> Vec<(Range<usize>, Scheme)> {
    let mut runs: Vec<(Range<usize>, Scheme)> = Vec::new();
    for piece in &part.pieces {
        let names: Vec<_> = piece.names.iter().map(String::as_str).collect();
        let scheme = plan.scheme_of_any(&names, layers);
        match runs.last_mut() {
            Some((rows, last)) if *last == scheme => rows.end += piece.rows,
            last => {
                let start = last.map_or(0, |(rows, _)| rows.end);
                runs.push((start..start + piece.rows, scheme));
            }
        }
    }
    runs
}

/// Adds rows below others, as one with the last where they are alike.
fn push(all: &mut Vec<Rows>, rows: Rows) {
    match (all.pop(), rows) {
        (Some(Rows::Dense(above)), Rows::Dense(below)) => {
            all.push(Rows::Dense(join(above, below)));
        }
        (Some(Rows::Packed(above)), Rows::Packed(below)) => {
            match PackedMatrix::stack(vec![above, below]) {
                Ok(both) => all.push(Rows::Packed(both)),
                Err(parts) => all.extend(parts.into_iter().map(Rows::Packed)),
            }
        }
        (last, rows) => {
            all.extend(last);
            all.push(rows);
        }
    }
}

/// Rows on the device as one matrix.
pub(super) fn upload<B: QuantOps>(
    rows: Vec<Rows>,
    activations: Activations,
    device: &B::Device,
) -> Result<Box<dyn WeightMatrix<B>>, LoadError> {
    let mut parts = rows
        .into_iter()
        .map(|rows| {
            Ok(match rows {
                Rows::Dense(data) => Box::new(Dense::<B>::upload_for(activations, data, device)?)
                    as Box<dyn WeightMatrix<B>>,
                Rows::Packed(packed) => {
                    Box::new(Packed::<B>::upload_for(activations, packed, device)?)
                }
            })
        })
        .collect::<Result<Vec<_>, LoadError>>()?;
    match parts.pop() {
        Some(only) if parts.is_empty() => Ok(only),
        last => {
            parts.extend(last);
            Ok(Box::new(Stacked::new(parts)?))
        }
    }
}
