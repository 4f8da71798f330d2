//! Round to nearest: each number takes the closest point of its group's grid.

use rayon::prelude::*;

use crate::{
    CodeOrder, Grid, GroupParams, PackedMatrix, PackedSpec, QuantError,
    codes::{CodeLayout, Lines},
    formats::counted,
    grid::largest_magnitude,
};

/// A matrix that is read row by row, as it streams out of a file.
pub trait Rows: Sync {
    /// `[out, in]`.
    fn shape(&self) -> [usize; 2];

    /// Writes row `row`, `in` numbers, to `values`.
    fn read_row(&self, row: usize, values: &mut [f32]);
}

/// Rows in memory, `[out, in]`.
#[derive(Debug, Clone, Copy)]
pub struct SliceRows<'a> {
    /// Row-major.
    pub values: &'a [f32],
    /// Columns.
    pub columns: usize,
}

impl Rows for SliceRows<'_> {
    fn shape(&self) -> [usize; 2] {
        [self.values.len() / self.columns.max(1), self.columns]
    }

    fn read_row(&self, row: usize, values: &mut [f32]) {
        values.copy_from_slice(&self.values[row * self.columns..][..self.columns]);
    }
}

/// Rounds a matrix to a grid, on all threads; of its numbers only a row for each thread is in
/// memory at a time.
///
/// ```
/// use engine_quant::{Grid, SliceRows, round_to_nearest};
/// let rows = SliceRows { values: &[0.5, -1.27, 0.0, 10.0], columns: 2 };
/// let packed = round_to_nearest(&rows, Grid::Int8)?;
/// assert!(packed.dequantize().iter().zip(rows.values).all(|(q, w)| (q - w).abs() <= 0.04));
/// # Ok::<(), engine_quant::QuantError>(())
/// ```
///
/// # Errors
/// If a number is not finite, or too large for a scale of half precision.
pub fn round_to_nearest(rows: &dyn Rows, grid: Grid) -> Result<PackedMatrix, QuantError> {
    let mut rounding = RoundToNearest::new(rows.shape(), grid, CodeOrder::Rows)?;
    rounding.push(rows)?;
    rounding.finish()
}

/// A matrix that [`round_to_nearest`] makes of several parts below one another, without a copy of
/// its codes.
#[derive(Debug)]
pub struct RoundToNearest {
    grid: Grid,
    spec: PackedSpec,
    order: CodeOrder,
    codes: Lines,
    params: Vec<GroupParams>,
    /// Rows that are there.
    rows: usize,
}

impl RoundToNearest {
    /// A matrix of up to `out` rows, none yet, with its codes in this order.
    ///
    /// # Errors
    /// If it has no numbers.
    pub fn new(
        shape @ [out, in_]: [usize; 2],
        grid: Grid,
        order: CodeOrder,
    ) -> Result<Self, QuantError> {
        let spec = grid.spec(shape);
        if out == 0 || in_ == 0 {
            return Err(QuantError::Empty { shape, group_size: spec.group_size });
        }
        let codes = Lines::zeroed(spec.code_bytes(order));
        let params = vec![GroupParams::default(); out * spec.groups()];
        Ok(Self { grid, spec, order, codes, params, rows: 0 })
    }

    /// Adds rows below those that are there; all at once where they share one scale.
    ///
    /// # Errors
    /// If they are too many or have other columns, or as [`round_to_nearest`].
    pub fn push(&mut self, rows: &dyn Rows) -> Result<(), QuantError> {
        let ([out, in_], [added, found]) = (self.spec.shape, rows.shape());
        counted("columns", in_, found)?;
        let (first, last) = (self.rows, self.rows + added);
        if last > out || (self.spec.per_tensor && added != out) {
            return Err(QuantError::Malformed { what: "rows", expected: out, found: last });
        }
        let grid = self.grid;
        let shared = match self.spec.per_tensor {
            true => Some(grid.fit(&[largest(rows)?])),
            false => None,
        };
        let layout = CodeLayout::new(&self.spec, self.order);
        let (chunk_rows, chunk_bytes) = (layout.chunk_rows(), layout.chunk_bytes());
        let chunks = first / chunk_rows..last.div_ceil(chunk_rows);
        let groups = self.spec.groups();
        // The rows of each chunk that are added, each with the parameters of its groups.
        let mut rest = &mut self.params[first * groups..last * groups];
        let parts = chunks.clone().map(|chunk| {
            let rows = first.max(chunk * chunk_rows)..last.min((chunk + 1) * chunk_rows);
            let params;
            (params, rest) = std::mem::take(&mut rest).split_at_mut(rows.len() * groups);
            (rows, params)
        });
        let parts: Vec<_> = parts.collect();
        self.codes.bytes()[chunks.start * chunk_bytes..chunks.end * chunk_bytes]
            .par_chunks_exact_mut(chunk_bytes)
            .zip(parts)
            .try_for_each_init(
                || (vec![0.0; in_], vec![0; in_]),
                |(values, codes), (chunk, (chunk_of_rows, params))| {
                    for (row, params) in chunk_of_rows.zip(params.chunks_exact_mut(groups)) {
                        rows.read_row(row - first, values);
                        if !largest_magnitude(values).is_finite() {
                            return Err(QuantError::NotFinite { what: "weight" });
                        }
                        round_row(grid, shared, values, codes, params);
                        if !params.iter().all(|params| params.scale.is_finite()) {
                            return Err(QuantError::NotFinite { what: "scale" });
                        }
                        layout.write(row % chunk_rows, codes, chunk);
                    }
                    Ok(())
                },
            )?;
        self.rows = last;
        Ok(())
    }

    /// The matrix of the rows that were added.
    ///
    /// # Errors
    /// If there are none.
    pub fn finish(self) -> Result<PackedMatrix, QuantError> {
        let Self { grid, mut spec, order, codes, params, rows } = self;
        spec.shape[0] = rows;
        if rows == 0 {
            return Err(QuantError::Empty { shape: spec.shape, group_size: spec.group_size });
        }
        let codes = codes.into_shared().slice(0..spec.code_bytes(order));
        Ok(grid.packed(spec, order, codes, &params))
    }
}

/// Rounds one row: codes one in each byte, and the parameters of its groups.
fn round_row(
    grid: Grid,
    shared: Option<GroupParams>,
    values: &[f32],
    codes: &mut [u8],
    params: &mut [GroupParams],
) {
    let group_size = grid.group().columns(values.len());
    let groups = values.chunks(group_size).zip(codes.chunks_mut(group_size));
    for ((values, codes), params) in groups.zip(params) {
        *params = shared.unwrap_or_else(|| grid.fit(values));
        grid.encode_group(values, *params, codes);
    }
}

/// The largest magnitude of a matrix; an error if a number is not finite.
pub(crate) fn largest(rows: &dyn Rows) -> Result<f32, QuantError> {
    let [out, in_] = rows.shape();
    (0..out)
        .into_par_iter()
        .map_init(
            || vec![0.0; in_],
            |values, row| {
                rows.read_row(row, values);
                let largest = largest_magnitude(values);
                match largest.is_finite() {
                    true => Ok(largest),
                    false => Err(QuantError::NotFinite { what: "weight" }),
                }
            },
        )
        .try_reduce(|| 0.0, |a, b| Ok(a.max(b)))
}
