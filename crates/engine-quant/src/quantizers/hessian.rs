use rayon::prelude::*;

use super::linalg::{Part, subtract_product};
use crate::QuantError;

/// Rows that are widened to `f64` at a time.
const CHUNK_ROWS: usize = 128;
/// Columns of a task.
const TASK_COLUMNS: usize = 64;

/// Second derivatives of a matrix' output error with respect to any row of the matrix:
/// `H = 2/N · Σ x · xᵀ` over the `N` activations `x [in]` that reach it.
///
/// Sums are `f64`. It is the same for all matrices that share their input.
///
/// ```
/// use engine_quant::Hessian;
/// let mut hessian = Hessian::new(2);
/// hessian.add(&[1.0, 0.0, 3.0, 2.0])?;
/// assert_eq!(hessian.to_matrix(), [10.0, 6.0, 6.0, 4.0]);
/// # Ok::<(), engine_quant::QuantError>(())
/// ```
#[derive(Debug, Clone)]
pub struct Hessian {
    columns: usize,
    rows: usize,
    /// `Σ x · xᵀ`, of which only the lower triangle is kept up to date.
    sums: Vec<f64>,
}

impl Hessian {
    /// Of no activations yet, each `columns` long.
    pub fn new(columns: usize) -> Self {
        Self { columns, rows: 0, sums: vec![0.0; columns * columns] }
    }

    /// Length of an activation.
    pub fn columns(&self) -> usize {
        self.columns
    }

    /// Activations so far.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Adds activations, `[rows, columns]`.
    ///
    /// # Errors
    /// If the last row is not full or a number is not finite; nothing is added then.
    pub fn add(&mut self, activations: &[f32]) -> Result<(), QuantError> {
        let columns = self.columns;
        let rows = activations.len() / columns.max(1);
        check("activations", rows * columns, activations)?;
        let mut wide = vec![0.0; CHUNK_ROWS * columns];
        for chunk in activations.chunks(CHUNK_ROWS * columns.max(1)) {
            let depth = chunk.len() / columns;
            wide.iter_mut().zip(chunk).for_each(|(wide, x)| *wide = f64::from(*x));
            let wide = &wide[..chunk.len()];
            self.sums.par_chunks_mut(TASK_COLUMNS * columns).enumerate().for_each(|(i, sums)| {
                let (first, height) = (i * TASK_COLUMNS, sums.len() / columns);
                // Negative, because the product is subtracted.
                let mut transposed = vec![0.0; height * depth];
                for (row, x) in wide.chunks_exact(columns).enumerate() {
                    for (column, x) in x[first..first + height].iter().enumerate() {
                        transposed[column * depth + row] = -x;
                    }
                }
                let a = Part { values: &transposed, stride: depth };
                let b = Part { values: wide, stride: columns };
                subtract_product(sums, columns, a, b, [height, depth, first + height]);
            });
        }
        self.rows += rows;
        Ok(())
    }

    /// Adds `Σ x · xᵀ` of `rows` activations that was summed elsewhere, such as on a GPU,
    /// `[columns, columns]`.
    ///
    /// # Errors
    /// If it has another size or a number is not finite.
    pub fn add_gram(&mut self, gram: &[f32], rows: usize) -> Result<(), QuantError> {
        check("products of activations", self.columns * self.columns, gram)?;
        self.sums.par_iter_mut().zip(gram).for_each(|(sum, product)| *sum += f64::from(*product));
        self.rows += rows;
        Ok(())
    }

    /// The diagonal, `[columns]`.
    pub fn diagonal(&self) -> Vec<f64> {
        (0..self.columns).map(|i| self.sums[i * (self.columns + 1)] * self.factor()).collect()
    }

    /// All of it, `[columns, columns]`.
    pub fn to_matrix(&self) -> Vec<f64> {
        self.part(0..self.columns)
    }

    /// The square on the diagonal over these columns, `[range, range]`.
    pub(super) fn part(&self, range: std::ops::Range<usize>) -> Vec<f64> {
        let (len, factor) = (range.len(), self.factor());
        let mut part = vec![0.0; len * len];
        part.par_chunks_exact_mut(len.max(1)).enumerate().for_each(|(i, row)| {
            for (j, value) in row.iter_mut().enumerate() {
                let (low, high) = (range.start + i.min(j), range.start + i.max(j));
                *value = self.sums[high * self.columns + low] * factor;
            }
        });
        part
    }

    /// Half of `tr(D · H · Dᵀ)`: the mean over the activations of the squared length of `D · x`, with
    /// `difference D [out, columns]`. Of `W − Q` it is the output's error, of `W` its size.
    ///
    /// # Errors
    /// If the last row is not full or a number is not finite.
    pub fn mean_square(&self, difference: &[f32]) -> Result<f64, QuantError> {
        let columns = self.columns;
        let rows = difference.len() / columns.max(1);
        check("weights", rows * columns, difference)?;
        let matrix = self.to_matrix();
        let sum: f64 = difference
            .par_chunks(CHUNK_ROWS * columns.max(1))
            .map(|chunk| {
                let wide: Vec<f64> = chunk.iter().map(|&x| f64::from(x)).collect();
                let mut products = vec![0.0; wide.len()];
                let a = Part { values: &wide, stride: columns };
                let b = Part { values: &matrix, stride: columns };
                let size = [wide.len() / columns, columns, columns];
                subtract_product(&mut products, columns, a, b, size);
                -products.iter().zip(&wide).map(|(product, x)| product * x).sum::<f64>()
            })
            .sum();
        Ok(sum / 2.0)
    }

    fn factor(&self) -> f64 {
        2.0 / self.rows.max(1) as f64
    }
}

fn check(what: &'static str, expected: usize, numbers: &[f32]) -> Result<(), QuantError> {
    if numbers.len() != expected {
        return Err(QuantError::Malformed { what, expected, found: numbers.len() });
    }
    match numbers.par_iter().all(|x| x.is_finite()) {
        true => Ok(()),
        false => Err(QuantError::NotFinite { what: "activation" }),
    }
}
