//! From the tensors of a file to one matrix on the device.

use std::{marker::PhantomData, ops::Range};

use engine_quant::{
    Activations, Dense, Grid, Packed, PackedMatrix, QuantError, QuantOps, RoundToNearest, Scheme,
    SchemePlan, Stacked, WeightMatrix,
};

use super::{
    parts::{MatrixParts, Part},
    report::{LoadEntry, LoadReport, Treatment},
};
use crate::{DenseMatrix, LoadError, StoredMatrix, WeightSource};

/// Reads matrices as the plan wants them and keeps the books.
pub(super) struct MatrixReader<'a> {
    pub source: &'a dyn WeightSource,
    pub plan: &'a SchemePlan,
    pub num_layers: usize,
    pub report: LoadReport,
}

impl MatrixReader<'_> {
    /// The rows of one matrix for products with such activations, neighbours of the same format
    /// joined, and the bytes that were read.
    pub fn read<B: QuantOps>(
        &mut self,
        matrix: &MatrixParts,
        activations: Activations,
    ) -> Result<(Vec<StoredMatrix>, usize), LoadError> {
        let mut rows = MatrixRows::<B>::new(activations, matrix.columns);
        let mut num_bytes = 0;
        let runs: Vec<_> =
            matrix.parts.iter().map(|part| runs(part, self.plan, self.num_layers)).collect();
        for (i, part) in matrix.parts.iter().enumerate() {
            let name = format!("{}.weight", part.tensor);
            let stored = self.source.matrix(&name, [part.rows(), matrix.columns])?;
            num_bytes += stored.num_bytes();
            let matrix = match stored {
                StoredMatrix::Dense(matrix) => matrix,
                StoredMatrix::Packed(packed) => {
                    if runs[i].iter().any(|(_, scheme)| *scheme != Scheme::Keep) {
                        self.report.left_as_stored += 1;
                    }
                    let (format, num_bytes) = (packed.format.clone(), packed.num_bytes());
                    self.enter(&name, format, num_bytes, Treatment::Kept);
                    rows.add(StoredMatrix::Packed(packed)).map_err(quantize_error(&name))?;
                    continue;
                }
            };
            let (kept, quantized) = match is_float(&self.source.stored_type(&name)) {
                true => (Treatment::Kept, Treatment::Quantized),
                false => (Treatment::Dequantized, Treatment::Requantized),
            };
            for (j, (range, scheme)) in runs[i].iter().enumerate() {
                let some = matrix.slice_rows(range.clone());
                let Scheme::Quantize { grid, .. } = *scheme else {
                    let format = some.stored_type().name().to_lowercase();
                    self.enter(&name, format, some.num_bytes(), kept);
                    rows.add(StoredMatrix::Dense(some)).map_err(quantize_error(&name))?;
                    continue;
                };
                self.enter(&name, grid.to_string(), grid.num_bytes(some.shape()), quantized);
                // As many rows as may follow with the same grid.
                let rest = runs[i][j..].iter().chain(runs[i + 1..].iter().flatten());
                let alike = rest.take_while(|(_, other)| other.grid() == Some(grid));
                let most = alike.map(|(range, _)| range.len()).sum();
                rows.round(&some, grid, most).map_err(quantize_error(&name))?;
            }
        }
        let rows = rows.finish().map_err(quantize_error(&matrix.parts[0].tensor))?;
        Ok((rows, num_bytes))
    }

    fn enter(&mut self, name: &str, format: String, num_bytes: usize, treatment: Treatment) {
        let stored_type = self.source.stored_type(name);
        self.report.add(LoadEntry { stored_type, format, treatment, matrices: 1, num_bytes });
    }
}

fn quantize_error(name: &str) -> impl FnOnce(QuantError) -> LoadError + use<> {
    let tensor = name.to_owned();
    |source| LoadError::Quantize { tensor, source }
}

/// The rows of a matrix in the making.
struct MatrixRows<B> {
    activations: Activations,
    columns: usize,
    done: Vec<StoredMatrix>,
    /// Rows of floats that are becoming rows in few bits.
    rounding: Option<(Grid, RoundToNearest)>,
    backend: PhantomData<B>,
}

impl<B: QuantOps> MatrixRows<B> {
    fn new(activations: Activations, columns: usize) -> Self {
        Self { activations, columns, done: Vec::new(), rounding: None, backend: PhantomData }
    }

    /// Rounds rows, `most` at most with those that follow.
    fn round(&mut self, rows: &DenseMatrix, grid: Grid, most: usize) -> Result<(), QuantError> {
        let goes_on = |(last, _): &(Grid, _)| *last == grid && grid != Grid::Int8Tensor;
        if !self.rounding.as_ref().is_some_and(goes_on) {
            self.end_rounding()?;
            let most = if grid == Grid::Int8Tensor { rows.shape()[0] } else { most };
            let spec = grid.spec([most, self.columns]);
            let order = B::code_order(&spec, self.activations);
            self.rounding = Some((grid, RoundToNearest::new(spec.shape, grid, order)?));
        }
        match &mut self.rounding {
            Some((_, rounding)) => rounding.push(rows),
            None => Ok(()),
        }
    }

    fn end_rounding(&mut self) -> Result<(), QuantError> {
        if let Some((_, rounding)) = self.rounding.take() {
            self.stack(StoredMatrix::Packed(rounding.finish()?));
        }
        Ok(())
    }

    fn add(&mut self, rows: StoredMatrix) -> Result<(), QuantError> {
        self.end_rounding()?;
        self.stack(rows);
        Ok(())
    }

    fn finish(mut self) -> Result<Vec<StoredMatrix>, QuantError> {
        self.end_rounding()?;
        Ok(self.done)
    }

    /// Adds rows below others, as one with the last where they are alike.
    fn stack(&mut self, rows: StoredMatrix) {
        match (self.done.pop(), rows) {
            (Some(StoredMatrix::Dense(above)), StoredMatrix::Dense(below)) => {
                match above.stack(below, B::MAX_JOIN_BYTES) {
                    Ok(both) => self.done.push(StoredMatrix::Dense(both)),
                    Err((above, below)) => {
                        self.done.extend([above, below].map(StoredMatrix::Dense));
                    }
                }
            }
            (Some(StoredMatrix::Packed(above)), StoredMatrix::Packed(below)) => {
                match PackedMatrix::stack(vec![above, below], B::MAX_JOIN_BYTES) {
                    Ok(both) => self.done.push(StoredMatrix::Packed(both)),
                    Err(parts) => self.done.extend(parts.into_iter().map(StoredMatrix::Packed)),
                }
            }
            (last, rows) => {
                self.done.extend(last);
                self.done.push(rows);
            }
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

/// Rows on the device as one matrix.
pub(super) fn upload<B: QuantOps>(
    rows: Vec<StoredMatrix>,
    activations: Activations,
    device: &B::Device,
) -> Result<Box<dyn WeightMatrix<B>>, LoadError> {
    let mut parts = rows
        .into_iter()
        .map(|rows| {
            Ok(match rows {
                StoredMatrix::Dense(matrix) => {
                    Box::new(Dense::<B>::upload_for(activations, matrix.into_data(), device)?)
                        as Box<dyn WeightMatrix<B>>
                }
                StoredMatrix::Packed(packed) => {
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
