//! Round to nearest: each number takes the closest point of its group's grid.

use rayon::prelude::*;

use crate::{Bits, Grid, GroupParams, GroupValues, PackedMatrix, PackedSpec, QuantError, Zeros};

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
    let shape @ [out, in_] = rows.shape();
    let group_size = grid.group().columns(in_);
    if out == 0 || in_ == 0 {
        return Err(QuantError::Empty { shape, group_size });
    }
    let shared = match grid {
        Grid::Int8Tensor => Some(grid.fit(&[largest(rows)?])),
        _ => None,
    };
    let spec = PackedSpec {
        shape,
        bits: grid.bits(),
        levels: grid.levels(),
        group_size,
        per_tensor: shared.is_some(),
    };
    let row_bytes = spec.row_bytes();
    let groups = in_.div_ceil(group_size);
    let mut codes = vec![0; out * row_bytes];
    let mut params = vec![GroupParams { scale: half::f16::ZERO, zero: 0 }; out * groups];
    codes
        .par_chunks_exact_mut(row_bytes)
        .zip(params.par_chunks_exact_mut(groups))
        .enumerate()
        .try_for_each_init(
            || (vec![0.0; in_], vec![0; in_]),
            |(values, codes), (row, (packed, params))| {
                rows.read_row(row, values);
                if !values.iter().all(|w| w.is_finite()) {
                    return Err(QuantError::NotFinite { what: "weight" });
                }
                round_row(grid, shared, values, codes, params);
                if !params.iter().all(|params| params.scale.is_finite()) {
                    return Err(QuantError::NotFinite { what: "scale" });
                }
                Bits::pack_row(spec.bits, codes, packed);
                Ok(())
            },
        )?;
    if let Some(shared) = shared {
        params = vec![shared];
    }
    let scales = params.iter().map(|params| params.scale).collect();
    let zeros = match grid.fixed_zero() {
        Some(zero) => Zeros::Fixed(zero),
        None => Zeros::PerGroup(params.iter().map(|params| params.zero).collect()),
    };
    Ok(PackedMatrix {
        spec,
        format: grid.to_string(),
        codes,
        scales: GroupValues::F16(scales),
        zeros,
        mins: None,
        column_order: None,
        factor: 1.0,
    })
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
        for (code, &w) in codes.iter_mut().zip(values) {
            *code = grid.encode(w, *params);
        }
    }
}

/// The largest magnitude of a matrix.
fn largest(rows: &dyn Rows) -> Result<f32, QuantError> {
    let [out, in_] = rows.shape();
    (0..out)
        .into_par_iter()
        .map_init(
            || vec![0.0; in_],
            |values, row| {
                rows.read_row(row, values);
                let largest = values.iter().fold(0.0_f32, |max, w| max.max(w.abs()));
                match values.iter().all(|w| w.is_finite()) {
                    true => Ok(largest),
                    false => Err(QuantError::NotFinite { what: "weight" }),
                }
            },
        )
        .try_reduce(|| 0.0, |a, b| Ok(a.max(b)))
}
