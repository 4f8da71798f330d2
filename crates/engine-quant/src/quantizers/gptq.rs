//! GPTQ (Frantar et al. 2022): the columns of a matrix are rounded one after the other, and each
//! column's error is made up for by those that follow.
//!
//! With `U` upper triangular and `Uᵀ · U = (H + λI)⁻¹`, rounding column `i` from `w` to `q` moves the
//! columns after it by `−(w − q) / U[i, i] · U[i, i+1..]`. Within a block of columns that happens at
//! once; columns after the block get the sum of its corrections as one product.

use std::ops::Range;

use rayon::prelude::*;

use super::{
    Hessian,
    linalg::{Part, factor_of_inverse, subtract_product},
};
use crate::{Bits, CodeOrder, Grid, GroupParams, PackedMatrix, QuantError, Rows, round::largest};

/// Rows that a thread works on at a time.
const TASK_ROWS: usize = 16;
/// How often a Hessian that cannot be factored is tried again, each time with ten times the damping.
const MAX_ATTEMPTS: usize = 6;

/// Options of [`GptqFactor::new`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct GptqOptions {
    /// Columns in the order of falling importance (`act-order`) instead of their own.
    pub act_order: bool,
    /// Parameters of a group from its numbers as they were, and groups along the matrix' own order of
    /// columns, whatever the order in which these are rounded: the result has no order of columns.
    pub static_groups: bool,
    /// Added to the Hessian's diagonal, as a part of its mean.
    pub damp: f64,
    /// Columns between two updates of the rest of the matrix; changes nothing but the speed.
    pub block: usize,
}

impl Default for GptqOptions {
    /// The paper's: own order, parameters of a group when its first column comes up, 0.01, 128.
    fn default() -> Self {
        Self { act_order: false, static_groups: false, damp: 0.01, block: 128 }
    }
}

/// What GPTQ needs to know of a Hessian; one serves all matrices that share their input.
#[derive(Debug, Clone)]
pub struct GptqFactor {
    /// `U [in, in]` in the order of `order`.
    upper: Vec<f64>,
    columns: usize,
    /// Column `k` of `upper` is column `order[k]` of the matrix.
    order: Option<Vec<u32>>,
    static_groups: bool,
    block: usize,
    damp: f64,
}

impl GptqFactor {
    /// Factors a Hessian.
    ///
    /// Columns that no activation reached have no influence on others and are rounded to nearest.
    ///
    /// # Errors
    /// If it cannot be factored however strongly it is damped, or has no columns.
    pub fn new(hessian: &Hessian, options: GptqOptions) -> Result<Self, QuantError> {
        let columns = hessian.columns();
        if columns == 0 {
            return Err(QuantError::Empty { shape: [0, 0], group_size: 0 });
        }
        let diagonal = hessian.diagonal();
        let order = options.act_order.then(|| {
            let mut order: Vec<u32> = (0..columns as u32).collect();
            let importance = |&column: &u32| diagonal[column as usize];
            order.sort_by(|a, b| importance(b).total_cmp(&importance(a)));
            order
        });
        let live: Vec<f64> = diagonal.iter().copied().filter(|d| *d > 0.0).collect();
        let mean = if live.is_empty() { 1.0 } else { live.iter().sum::<f64>() / live.len() as f64 };
        let matrix = hessian.to_matrix();
        let mut damp = options.damp;
        for _ in 0..MAX_ATTEMPTS {
            let mut upper = permuted(&matrix, columns, order.as_deref());
            for d in upper.iter_mut().step_by(columns + 1) {
                *d = if *d > 0.0 { *d } else { mean } + damp * mean;
            }
            if factor_of_inverse(&mut upper, columns) {
                let GptqOptions { static_groups, block, .. } = options;
                return Ok(Self {
                    upper,
                    columns,
                    order,
                    static_groups,
                    block: block.max(1),
                    damp,
                });
            }
            damp = (damp * 10.0).max(1e-4);
        }
        Err(QuantError::NotPositive { damp })
    }

    /// The damping that made the factorization succeed: that of the options, or more.
    pub fn damp(&self) -> f64 {
        self.damp
    }

    /// Where the code of column `k` of `upper` stands in a row.
    fn place(&self, k: usize) -> usize {
        match &self.order {
            Some(order) if self.static_groups => order[k] as usize,
            _ => k,
        }
    }

    /// Blocks of columns such that no group begins inside of one without ending there: parameters of
    /// a group come from its columns as all earlier ones have left them. Static groups set no bounds.
    fn blocks(&self, group_size: usize) -> Vec<Range<usize>> {
        let group_size = if self.static_groups { 1 } else { group_size };
        let step = if group_size <= self.block {
            self.block / group_size * group_size
        } else {
            self.block
        };
        let mut blocks = Vec::new();
        let mut start = 0;
        while start < self.columns {
            let group_end = (start / group_size + 1) * group_size;
            let limit = if group_size <= self.block { self.columns } else { group_end };
            let end = (start + step).min(limit).min(self.columns);
            blocks.push(start..end);
            start = end;
        }
        blocks
    }
}

fn permuted(matrix: &[f64], columns: usize, order: Option<&[u32]>) -> Vec<f64> {
    let Some(order) = order else { return matrix.to_vec() };
    let mut result = vec![0.0; matrix.len()];
    result.par_chunks_exact_mut(columns).zip(order).for_each(|(to, &row)| {
        let from = &matrix[row as usize * columns..][..columns];
        to.iter_mut().zip(order).for_each(|(to, &column)| *to = from[column as usize]);
    });
    result
}

/// Rounds a matrix to a grid so that its output, not its numbers, changes least.
///
/// Groups lie along the order of the factor's columns, which the result carries along, or, where
/// they are static, along the matrix' own.
///
/// ```
/// use engine_quant::{GptqFactor, GptqOptions, Grid, Hessian, SliceRows, gptq};
/// let mut hessian = Hessian::new(2);
/// hessian.add(&[1.0, 0.9, 0.5, 0.6])?;
/// let factor = GptqFactor::new(&hessian, GptqOptions::default())?;
/// let rows = SliceRows { values: &[0.31, -1.27, 0.2, 10.0], columns: 2 };
/// let packed = gptq(&rows, &factor, Grid::Int8)?;
/// assert_eq!(packed.spec.shape, [2, 2]);
/// # Ok::<(), engine_quant::QuantError>(())
/// ```
///
/// # Errors
/// If the matrix has other columns than the factor, or a number is not finite or too large for a
/// scale of half precision.
pub fn gptq(rows: &dyn Rows, factor: &GptqFactor, grid: Grid) -> Result<PackedMatrix, QuantError> {
    let shape @ [out, in_] = rows.shape();
    let spec = grid.spec(shape);
    let group_size = spec.group_size;
    if out == 0 || in_ == 0 {
        return Err(QuantError::Empty { shape, group_size });
    }
    if in_ != factor.columns {
        let what = "columns of the Hessian";
        return Err(QuantError::Malformed { what, expected: in_, found: factor.columns });
    }
    let shared = if spec.per_tensor { Some(grid.fit(&[largest(rows)?])) } else { None };
    let run = Run { grid, factor, group_size, shared, blocks: factor.blocks(group_size) };
    let (row_bytes, groups) = (spec.row_bytes(), in_.div_ceil(group_size));
    let mut codes = vec![0; out * row_bytes];
    let mut params = vec![GroupParams::default(); out * groups];
    codes
        .par_chunks_mut(TASK_ROWS * row_bytes)
        .zip(params.par_chunks_mut(TASK_ROWS * groups))
        .enumerate()
        .try_for_each(|(task, (packed, params))| {
            let mut weights = run.read(rows, task * TASK_ROWS, params)?;
            let mut codes = vec![0; weights.len()];
            run.quantize(&mut weights, &mut codes, params);
            if !params.iter().all(|params| params.scale.is_finite()) {
                return Err(QuantError::NotFinite { what: "scale" });
            }
            for (codes, packed) in codes.chunks(in_).zip(packed.chunks_exact_mut(row_bytes)) {
                Bits::pack_row(spec.bits, codes, packed);
            }
            Ok(())
        })?;
    Ok(PackedMatrix {
        column_order: factor.order.clone().filter(|_| !factor.static_groups),
        ..grid.packed(spec, CodeOrder::Rows, codes.into(), &params)
    })
}

/// One matrix being rounded.
struct Run<'a> {
    grid: Grid,
    factor: &'a GptqFactor,
    group_size: usize,
    shared: Option<GroupParams>,
    blocks: Vec<Range<usize>>,
}

impl Run<'_> {
    /// Rows from `first` on, in the factor's order; `params [rows, groups]`, which say how many, are
    /// set where groups are static.
    fn read(
        &self,
        rows: &dyn Rows,
        first: usize,
        params: &mut [GroupParams],
    ) -> Result<Vec<f64>, QuantError> {
        let columns = self.factor.columns;
        let groups = columns.div_ceil(self.group_size);
        let mut row = vec![0.0; columns];
        let mut weights = vec![0.0; params.len() / groups * columns];
        let lines = weights.chunks_exact_mut(columns).zip(params.chunks_exact_mut(groups));
        for (i, (weights, params)) in lines.enumerate() {
            rows.read_row(first + i, &mut row);
            if !row.iter().all(|w| w.is_finite()) {
                return Err(QuantError::NotFinite { what: "weight" });
            }
            if self.factor.static_groups {
                for (params, group) in params.iter_mut().zip(row.chunks(self.group_size)) {
                    *params = self.shared.unwrap_or_else(|| self.grid.fit(group));
                }
            }
            match &self.factor.order {
                Some(order) => weights
                    .iter_mut()
                    .zip(order)
                    .for_each(|(w, &column)| *w = f64::from(row[column as usize])),
                None => weights.iter_mut().zip(&row).for_each(|(w, &from)| *w = f64::from(from)),
            }
        }
        Ok(weights)
    }

    /// Rounds some rows: `weights` and `codes [rows, in]`, `params [rows, groups]`.
    fn quantize(&self, weights: &mut [f64], codes: &mut [u8], params: &mut [GroupParams]) {
        let columns = self.factor.columns;
        let rows = weights.len() / columns;
        let groups = params.len() / rows;
        for block in &self.blocks {
            let width = block.len();
            let mut errors = vec![0.0; rows * width];
            for (row, errors) in errors.chunks_exact_mut(width).enumerate() {
                let weights = &mut weights[row * columns..][..columns];
                let codes = &mut codes[row * columns..][..columns];
                self.quantize_block(block, weights, codes, &mut params[row * groups..], errors);
            }
            let (end, rest) = (block.end, columns - block.end);
            if rest > 0 {
                let a = Part { values: &errors, stride: width };
                let upper = &self.factor.upper[block.start * columns + end..];
                let b = Part { values: upper, stride: columns };
                subtract_product(&mut weights[end..], columns, a, b, [rows, width, rest]);
            }
        }
    }

    /// Rounds the columns of a block of one row.
    fn quantize_block(
        &self,
        block: &Range<usize>,
        weights: &mut [f64],
        codes: &mut [u8],
        params: &mut [GroupParams],
        errors: &mut [f64],
    ) {
        let columns = self.factor.columns;
        for i in block.clone() {
            let place = self.factor.place(i);
            let params = &mut params[place / self.group_size];
            if !self.factor.static_groups && i.is_multiple_of(self.group_size) {
                let end = (i + self.group_size).min(columns);
                let group = || weights[i..end].iter().map(|&w| w as f32).collect::<Vec<_>>();
                *params = self.shared.unwrap_or_else(|| self.grid.fit(&group()));
            }
            codes[place] = self.grid.encode(weights[i] as f32, *params);
            let rounded = f64::from(self.grid.decode(codes[place], *params));
            let upper = &self.factor.upper[i * columns..][..columns];
            let error = (weights[i] - rounded) / upper[i];
            errors[i - block.start] = error;
            let later = i + 1..block.end;
            for (w, u) in weights[later.clone()].iter_mut().zip(&upper[later]) {
                *w -= error * u;
            }
        }
    }
}
