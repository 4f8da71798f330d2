//! AWQ's searches on matrices without a model.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::convert::Infallible;

use engine_quant::{
    Grid, Group, Hessian, Int4Range, SliceRows,
    awq::{clip, magnitude_profile, round_scaled, scale_columns, search_scales},
    round_to_nearest,
};

const GRID: Grid = Grid::Int4 { group: Group::Columns(32), range: Int4Range::Asym };

fn numbers(count: usize, seed: u64) -> Vec<f32> {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (state >> 40) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..count).map(|_| next()).collect()
}

/// Activations of which every ninth column is much larger than the rest.
fn outliers(rows: usize, columns: usize) -> Vec<f32> {
    let mut x = numbers(rows * columns, 11);
    for row in x.chunks_mut(columns) {
        row.iter_mut().step_by(9).for_each(|x| *x *= 30.0);
    }
    x
}

#[test]
fn the_profile_is_relative_to_the_group() {
    let values = [1.0, -2.0, 0.5, 0.0, 4.0, 1.0];
    let matrix = SliceRows { values: &values, columns: 3 };
    let found = magnitude_profile(&[matrix], Group::Columns(2));
    for (found, expected) in found.iter().zip([0.25, 1.0, 1.0]) {
        assert!((found - expected).abs() < 1e-5, "{found} for {expected}");
    }
    // Twice the same rows: the mean stays.
    assert_eq!(magnitude_profile(&[matrix, matrix], Group::Columns(2)), found);
}

#[test]
fn scales_protect_columns_with_large_activations() {
    let (rows, columns) = (64, 75);
    let values = numbers(16 * columns, 12);
    let matrix = SliceRows { values: &values, columns };
    let x = outliers(rows, columns);
    let mut hessian = Hessian::new(columns);
    hessian.add(&x).unwrap();
    let magnitudes: Vec<f64> = (0..columns)
        .map(|c| x.chunks(columns).map(|x| f64::from(x[c].abs())).sum::<f64>() / rows as f64)
        .collect();
    let mut tried = 0;
    let found = search_scales(&magnitudes, &magnitude_profile(&[matrix], GRID.group()), |scales| {
        tried += 1;
        let largest = scales.iter().copied().fold(0.0, f32::max);
        let smallest = scales.iter().copied().fold(f32::INFINITY, f32::min);
        assert!((largest * smallest - 1.0).abs() < 1e-5);
        let rounded = round_scaled(matrix, scales, GRID).unwrap();
        let difference: Vec<f32> = values.iter().zip(rounded).map(|(w, q)| w - q).collect();
        Ok::<_, Infallible>(hessian.mean_square(&difference).unwrap())
    })
    .unwrap();
    assert_eq!(tried, 21);
    assert!(found.exponent.is_some());
    assert!(found.loss < 0.5 * found.loss_without, "{} of {}", found.loss, found.loss_without);
    assert!(found.scales[0] > found.scales[1]);
}

#[test]
fn where_no_proposal_helps_there_are_no_scales() {
    let found = search_scales(&[1.0, 0.0, 3.0], &[0.5, 1.0, 0.0], |scales| {
        let is_proposal = scales.iter().any(|s| *s != 1.0);
        Ok::<_, Infallible>(if is_proposal { 2.0 } else { 1.0 })
    })
    .unwrap();
    assert_eq!((found.scales, found.exponent, found.loss), (vec![1.0; 3], None, 1.0));
    // A dead model: magnitudes and weights of zero still give finite scales.
    let zeros = search_scales(&[0.0; 2], &[0.0; 2], |scales| {
        assert!(scales.iter().all(|s| s.is_finite() && *s > 0.0));
        Ok::<_, Infallible>(0.0)
    });
    assert_eq!(zeros.unwrap().exponent, None);
    assert_eq!(search_scales(&[1.0], &[1.0], |_| Err("no")), Err("no"));
}

#[test]
fn scaling_by_powers_of_two_within_equal_groups_changes_nothing() {
    let columns = 50;
    let values = numbers(3 * columns, 13);
    let matrix = SliceRows { values: &values, columns };
    let plain = round_to_nearest(&matrix, GRID).unwrap().dequantize();
    assert_eq!(round_scaled(matrix, &[4.0; 50], GRID).unwrap(), plain);
    let scaled = scale_columns(matrix, &[4.0; 50]);
    assert!(scaled.iter().zip(&values).all(|(s, w)| *s == w * 4.0));
}

#[test]
fn clipping_never_raises_the_error_of_a_group() {
    // A short last group; and a row, which is one group.
    let (rows, columns) = (40, 75);
    let mut values = numbers(8 * columns, 14);
    values.iter_mut().step_by(41).for_each(|w| *w *= 2.5);
    let matrix = SliceRows { values: &values, columns };
    let mut hessian = Hessian::new(columns);
    hessian.add(&outliers(rows, columns)).unwrap();
    for group in [Group::Columns(32), Group::Row] {
        for range in [Int4Range::Sym7, Int4Range::Sym8, Int4Range::Sym15, Int4Range::Asym] {
            let grid = Grid::Int4 { group, range };
            let clipped = clip(matrix, &hessian, grid).unwrap();
            for (w, c) in values.iter().zip(&clipped) {
                assert!(c.abs() <= w.abs() && c.is_sign_positive() == w.is_sign_positive());
            }
            let error = |from: &[f32], first: usize, last: usize| {
                let rounded = round_to_nearest(&SliceRows { values: from, columns }, grid);
                let mut difference: Vec<f32> =
                    values.iter().zip(rounded.unwrap().dequantize()).map(|(w, q)| w - q).collect();
                for row in difference.chunks_mut(columns) {
                    row[..first].fill(0.0);
                    row[last..].fill(0.0);
                }
                hessian.mean_square(&difference).unwrap()
            };
            let size = group.columns(columns);
            let mut lowered = 0;
            for first in (0..columns).step_by(size) {
                let last = (first + size).min(columns);
                let (before, after) = (error(&values, first, last), error(&clipped, first, last));
                assert!(after <= before * (1.0 + 1e-9), "{grid}: {after} of {before}");
                lowered += usize::from(after < before);
            }
            assert!(lowered > 0, "{grid}");
        }
    }
    assert!(clip(matrix, &Hessian::new(3), GRID).is_err());
}
