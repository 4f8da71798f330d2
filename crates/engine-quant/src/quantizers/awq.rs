//! AWQ (Lin et al. 2023): input columns with large activations are scaled up before rounding, so
//! that their numbers lose less, and the activations scaled down to match.
//!
//! Which scales are best is found by trying: [`search_scales`] proposes, and the caller says how much
//! a proposal changes the model's output. Then [`clip`] narrows ranges where that lowers the error.

use rayon::prelude::*;

use super::{
    Hessian,
    linalg::{Part, subtract_product},
};
use crate::{Grid, Group, QuantError, SliceRows, round_to_nearest};

/// Proposals between none and all of the activations' magnitudes.
const STEPS: usize = 20;
/// Ranges that are tried, from whole to half.
const CLIP_STEPS: usize = 10;
/// Of the width between two of them.
const CLIP_STEP: f64 = 0.05;
/// No scale is smaller than this part of the weights' magnitude.
const MIN_SCALE: f64 = 1e-4;

/// What [`search_scales`] found.
#[derive(Debug, Clone, PartialEq)]
pub struct ScaleSearch {
    /// What each input column is multiplied by, `[in]`, with largest · smallest = 1.
    pub scales: Vec<f32>,
    /// The caller's loss with them.
    pub loss: f64,
    /// The loss without scales.
    pub loss_without: f64,
    /// The exponent of the activations' magnitudes; none where no scales were best.
    pub exponent: Option<f64>,
}

/// Mean over the rows of all matrices of `|w|` relative to the largest in its group, `[in]`.
///
/// # Panics
/// If the matrices have different columns.
pub fn magnitude_profile(matrices: &[SliceRows<'_>], group: Group) -> Vec<f64> {
    let columns = matrices.first().map_or(0, |matrix| matrix.columns);
    let group_size = group.columns(columns);
    let mut profile = vec![0.0; columns];
    let mut rows = 0;
    for matrix in matrices {
        assert_eq!(matrix.columns, columns, "magnitude_profile: the matrices differ in columns");
        for row in matrix.values.chunks_exact(columns) {
            for (group, profile) in row.chunks(group_size).zip(profile.chunks_mut(group_size)) {
                let largest = group.iter().fold(0.0_f32, |max, w| max.max(w.abs()));
                let divisor = f64::from(largest) + 1e-6;
                for (sum, w) in profile.iter_mut().zip(group) {
                    *sum += f64::from(w.abs()) / divisor;
                }
            }
            rows += 1;
        }
    }
    profile.iter_mut().for_each(|sum| *sum /= rows.max(1) as f64);
    profile
}

/// Searches the scales `s = |x|^r / profile^(1 − r)` with the lowest loss, over twenty exponents `r`
/// from 0 on and no scales at all.
///
/// `magnitudes [in]` are the means of `|x|` over the activations, `profile [in]` is
/// [`magnitude_profile`]; `loss` is called with each proposal.
///
/// # Errors
/// What `loss` returns.
pub fn search_scales<E>(
    magnitudes: &[f64],
    profile: &[f64],
    mut loss: impl FnMut(&[f32]) -> Result<f64, E>,
) -> Result<ScaleSearch, E> {
    let ones = vec![1.0; magnitudes.len()];
    let loss_without = loss(&ones)?;
    let mut best = ScaleSearch { scales: ones, loss: loss_without, loss_without, exponent: None };
    for step in 0..STEPS {
        let exponent = step as f64 / STEPS as f64;
        let scales = proposal(magnitudes, profile, exponent);
        let loss = loss(&scales)?;
        if loss < best.loss {
            best = ScaleSearch { scales, loss, loss_without, exponent: Some(exponent) };
        }
    }
    Ok(best)
}

fn proposal(magnitudes: &[f64], profile: &[f64], exponent: f64) -> Vec<f32> {
    let scale = |(x, w): (&f64, &f64)| {
        (x.powf(exponent) / (w.powf(1.0 - exponent) + MIN_SCALE)).max(MIN_SCALE)
    };
    let scales: Vec<f64> = magnitudes.iter().zip(profile).map(scale).collect();
    let largest = scales.iter().copied().fold(f64::MIN_POSITIVE, f64::max);
    let smallest = scales.iter().copied().fold(largest, f64::min);
    let middle = (largest * smallest).sqrt();
    scales.iter().map(|s| (s / middle) as f32).collect()
}

/// The numbers of a matrix after scaling its columns, rounding to nearest and scaling back:
/// `[out, in]`, what a model with these scales computes with.
///
/// # Errors
/// As [`round_to_nearest`].
///
/// # Panics
/// If there is not one scale for each column.
pub fn round_scaled(
    matrix: SliceRows<'_>,
    scales: &[f32],
    grid: Grid,
) -> Result<Vec<f32>, QuantError> {
    let scaled = scale_columns(matrix, scales);
    let rows = SliceRows { values: &scaled, ..matrix };
    let mut rounded = round_to_nearest(&rows, grid)?.dequantize();
    for row in rounded.chunks_exact_mut(matrix.columns) {
        row.iter_mut().zip(scales).for_each(|(w, s)| *w /= s);
    }
    Ok(rounded)
}

/// A matrix with each column multiplied by its scale.
///
/// # Panics
/// If there is not one scale for each column.
pub fn scale_columns(matrix: SliceRows<'_>, scales: &[f32]) -> Vec<f32> {
    assert_eq!(scales.len(), matrix.columns, "scale_columns: one scale for each column");
    let rows = matrix.values.chunks_exact(matrix.columns);
    rows.flat_map(|row| row.iter().zip(scales).map(|(w, s)| w * s)).collect()
}

/// Narrows the range of each group of each row to the one, of ten from whole to half, with which
/// rounding changes the group's part of the output least. Returns the clipped numbers, `[out, in]`.
///
/// The time it takes grows with the square of the group.
///
/// # Errors
/// If the matrix has other columns than the Hessian.
pub fn clip(matrix: SliceRows<'_>, hessian: &Hessian, grid: Grid) -> Result<Vec<f32>, QuantError> {
    let columns = matrix.columns;
    if hessian.columns() != columns {
        let what = "columns of the Hessian";
        return Err(QuantError::Malformed { what, expected: columns, found: hessian.columns() });
    }
    let group_size = grid.group().columns(columns);
    let mut result = matrix.values.to_vec();
    for start in (0..columns).step_by(group_size) {
        let range = start..(start + group_size).min(columns);
        let part = hessian.part(range.clone());
        result
            .par_chunks_exact_mut(columns)
            .for_each(|row| clip_group(&mut row[range.clone()], &part, grid));
    }
    Ok(result)
}

/// Clips one group; `hessian [group, group]`.
fn clip_group(group: &mut [f32], hessian: &[f64], grid: Grid) {
    let len = group.len();
    let largest = group.iter().fold(0.0_f32, |max, w| max.max(w.abs()));
    let bound = |step: usize| (f64::from(largest) * (1.0 - CLIP_STEP * step as f64)) as f32;
    let mut errors = vec![0.0; CLIP_STEPS * len];
    for (step, errors) in errors.chunks_exact_mut(len).enumerate() {
        let clipped: Vec<f32> = group.iter().map(|w| w.clamp(-bound(step), bound(step))).collect();
        let params = grid.fit(&clipped);
        for ((error, w), clipped) in errors.iter_mut().zip(group.iter()).zip(&clipped) {
            let rounded = grid.decode(grid.encode(*clipped, params), params);
            *error = f64::from(rounded) - f64::from(*w);
        }
    }
    let mut products = vec![0.0; errors.len()];
    let part = |values| Part { values, stride: len };
    subtract_product(&mut products, len, part(&errors), part(hessian), [CLIP_STEPS, len, len]);
    let products = products.chunks_exact(len).zip(errors.chunks_exact(len));
    let loss = products.map(|(p, e)| -p.iter().zip(e).map(|(p, e)| p * e).sum::<f64>());
    let (mut best, mut lowest) = (0, f64::INFINITY);
    for (step, loss) in loss.enumerate() {
        if loss < lowest {
            (best, lowest) = (step, loss);
        }
    }
    group.iter_mut().for_each(|w| *w = w.clamp(-bound(best), bound(best)));
}
