//! The dense linear algebra of GPTQ in `f64`: one product, and on it a Cholesky factorization and a
//! triangular inverse, both by blocks and on all threads.

use rayon::prelude::*;

/// Columns of a block of the factorizations.
const BLOCK: usize = 64;
/// Columns of a tile of a product; with [`BLOCK`] rows it fits the second cache.
const TILE: usize = 192;
/// Rows of a task.
const TASK_ROWS: usize = 32;

/// A part of a row-major matrix: its first element is `values[0]`.
#[derive(Clone, Copy)]
pub(super) struct Part<'a> {
    pub values: &'a [f64],
    /// Elements from one row to the next.
    pub stride: usize,
}

/// `c −= a · b` with `a [rows, depth]`, `b [depth, width]` and `c [rows, width]`, where
/// `size = [rows, depth, width]`.
pub(super) fn subtract_product(
    c: &mut [f64],
    c_stride: usize,
    a: Part<'_>,
    b: Part<'_>,
    [rows, depth, width]: [usize; 3],
) {
    if rows == 0 || depth == 0 {
        return;
    }
    for tile in (0..width).step_by(TILE) {
        let tile_end = (tile + TILE).min(width);
        for first in (0..rows).step_by(4) {
            let height = (rows - first).min(4);
            // Short blocks repeat their last row, so that one kernel does them all.
            let lines: [&[f64]; 4] = std::array::from_fn(|r| {
                &a.values[(first + r.min(height - 1)) * a.stride..][..depth]
            });
            for column in (tile..tile_end).step_by(4) {
                let columns = (tile_end - column).min(4);
                let sums = if columns == 4 {
                    product_4x4(lines, Part { values: &b.values[column..], stride: b.stride })
                } else {
                    product_edge(lines, Part { values: &b.values[column..], ..b }, columns)
                };
                for (r, sums) in sums.iter().enumerate().take(height) {
                    let c = &mut c[(first + r) * c_stride + column..][..columns];
                    c.iter_mut().zip(sums).for_each(|(c, sum)| *c -= sum);
                }
            }
        }
    }
}

fn product_4x4(lines: [&[f64]; 4], b: Part<'_>) -> [[f64; 4]; 4] {
    let mut sums = [[0.0; 4]; 4];
    let [a0, a1, a2, a3] = lines;
    let factors = a0.iter().zip(a1).zip(a2).zip(a3);
    for ((((a0, a1), a2), a3), b) in factors.zip(b.values.chunks(b.stride)) {
        let Some(b) = b.first_chunk::<4>() else { break };
        for (sums, a) in sums.iter_mut().zip([a0, a1, a2, a3]) {
            for (sum, b) in sums.iter_mut().zip(b) {
                *sum += a * b;
            }
        }
    }
    sums
}

fn product_edge(lines: [&[f64]; 4], b: Part<'_>, columns: usize) -> [[f64; 4]; 4] {
    let mut sums = [[0.0; 4]; 4];
    for (sums, line) in sums.iter_mut().zip(lines) {
        for (a, b) in line.iter().zip(b.values.chunks(b.stride)) {
            sums.iter_mut().zip(&b[..columns]).for_each(|(sum, b)| *sum += a * b);
        }
    }
    sums
}

/// Replaces the symmetric positive definite `matrix [n, n]` by the upper triangular `U` with
/// `Uᵀ · U = matrix⁻¹`; returns whether it is positive definite.
///
/// Reversed, the matrix is `L · Lᵀ`; then `U` is the reversed `L⁻¹`, and the inverse itself is
/// never formed.
pub(super) fn factor_of_inverse(matrix: &mut [f64], n: usize) -> bool {
    matrix.reverse();
    if !cholesky(matrix, n) {
        return false;
    }
    for (row, values) in matrix.chunks_exact_mut(n).enumerate() {
        values[row + 1..].fill(0.0);
    }
    invert_lower(matrix, n);
    matrix.reverse();
    true
}

/// Replaces the lower triangle by `L` with `L · Lᵀ = matrix`; above the diagonal nothing is read
/// and anything may be left.
fn cholesky(matrix: &mut [f64], n: usize) -> bool {
    for start in (0..n).step_by(BLOCK) {
        let end = (start + BLOCK).min(n);
        if !cholesky_diagonal(matrix, n, start..end) {
            return false;
        }
        let (above, below) = matrix.split_at_mut(end * n);
        let diagonal = &above[start * n..];
        below.par_chunks_exact_mut(n).for_each(|row| {
            let panel = &mut row[start..end];
            for j in 0..panel.len() {
                let line = &diagonal[j * n + start..][..j + 1];
                let sum: f64 = panel.iter().zip(&line[..j]).map(|(x, l)| x * l).sum();
                panel[j] = (panel[j] - sum) / line[j];
            }
        });
        let (width, rest) = (end - start, n - end);
        let mut panel = vec![0.0; rest * width];
        let mut transposed = vec![0.0; width * rest];
        for (i, row) in below.chunks_exact(n).enumerate() {
            panel[i * width..][..width].copy_from_slice(&row[start..end]);
            for (k, value) in row[start..end].iter().enumerate() {
                transposed[k * rest + i] = *value;
            }
        }
        below.par_chunks_mut(TASK_ROWS * n).enumerate().for_each(|(task, rows)| {
            let first = task * TASK_ROWS;
            let height = rows.len() / n;
            let a = Part { values: &panel[first * width..], stride: width };
            let b = Part { values: &transposed, stride: rest };
            subtract_product(&mut rows[end..], n, a, b, [height, width, first + height]);
        });
    }
    true
}

/// The diagonal block `range` on its own, row after row.
fn cholesky_diagonal(matrix: &mut [f64], n: usize, range: std::ops::Range<usize>) -> bool {
    for i in range.clone() {
        for j in range.start..=i {
            let line = |row: usize| &matrix[row * n + range.start..][..j - range.start];
            let sum: f64 = line(i).iter().zip(line(j)).map(|(a, b)| a * b).sum();
            let rest = matrix[i * n + j] - sum;
            matrix[i * n + j] = if i == j { rest.sqrt() } else { rest / matrix[j * n + j] };
        }
        // Catches the root of a negative number and of one that is none.
        if !(matrix[i * n + i].is_finite() && matrix[i * n + i] > 0.0) {
            return false;
        }
    }
    true
}

/// Replaces a lower triangular matrix, zero above the diagonal, by its inverse.
fn invert_lower(matrix: &mut [f64], n: usize) {
    for start in (0..n).step_by(BLOCK) {
        let end = (start + BLOCK).min(n);
        let (done, rows) = matrix.split_at_mut(start * n);
        let rows = &mut rows[..(end - start) * n];
        let height = end - start;
        let stripes: Vec<(usize, Vec<f64>)> = (0..start)
            .into_par_iter()
            .step_by(TILE)
            .map(|first| {
                let width = (start - first).min(TILE);
                let mut stripe = vec![0.0; height * width];
                let a = Part { values: &rows[first..], stride: n };
                let b = Part { values: &done[first * n + first..], stride: n };
                subtract_product(&mut stripe, width, a, b, [height, start - first, width]);
                solve_lower(&rows[start..], n, &mut stripe, width);
                (first, stripe)
            })
            .collect();
        let mut diagonal = vec![0.0; height * height];
        (0..height).for_each(|i| diagonal[i * height + i] = 1.0);
        solve_lower(&rows[start..], n, &mut diagonal, height);
        for (first, stripe) in stripes.iter().chain([&(start, diagonal)]) {
            let width = stripe.len() / height;
            for (row, stripe) in rows.chunks_exact_mut(n).zip(stripe.chunks_exact(width)) {
                row[*first..][..width].copy_from_slice(stripe);
            }
        }
    }
}

/// Replaces `x [rows, width]` by `L⁻¹ · x`, with `L` lower triangular and `stride` from row to row.
fn solve_lower(lower: &[f64], stride: usize, x: &mut [f64], width: usize) {
    for i in 0..x.len() / width {
        let (above, row) = x.split_at_mut(i * width);
        let row = &mut row[..width];
        let line = &lower[i * stride..][..i + 1];
        for (factor, above) in line.iter().zip(above.chunks_exact(width)) {
            row.iter_mut().zip(above).for_each(|(x, above)| *x -= factor * above);
        }
        row.iter_mut().for_each(|x| *x /= line[i]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A well-conditioned symmetric matrix with nothing special about it.
    fn matrix(n: usize) -> Vec<f64> {
        let near = |i: usize, j: usize| 1.0 / (1.0 + i.abs_diff(j) as f64);
        let entry = |i: usize, j: usize| near(i, j) + if i == j { 0.5 } else { 0.0 };
        (0..n * n).map(|k| entry(k / n, k % n) + ((k / n * (k % n)) % 7) as f64 * 1e-3).collect()
    }

    #[test]
    fn the_factor_times_the_matrix_is_the_identity() {
        // Below, at and above the sizes of a block, a tile and a kernel.
        for n in [1, 2, 3, 4, 5, 63, 64, 65, 130, 193, 257] {
            let mut matrix = matrix(n);
            for i in 0..n {
                for j in 0..i {
                    matrix[i * n + j] = matrix[j * n + i];
                }
            }
            let mut upper = matrix.clone();
            assert!(factor_of_inverse(&mut upper, n));
            let mut worst = 0.0_f64;
            // U · H · Uᵀ = I says the same as Uᵀ · U = H⁻¹.
            for i in 0..n {
                let line: Vec<f64> = (0..n)
                    .map(|k| (0..n).map(|j| upper[i * n + j] * matrix[j * n + k]).sum())
                    .collect();
                for j in 0..n {
                    let dot: f64 = (0..n).map(|k| line[k] * upper[j * n + k]).sum();
                    worst = worst.max((dot - f64::from(u8::from(i == j))).abs());
                }
                assert!(upper[i * n..i * n + i].iter().all(|&zero| zero == 0.0), "n = {n}");
            }
            assert!(worst < 1e-12, "n = {n}: {worst}");
        }
    }

    #[test]
    fn what_is_not_positive_definite_is_refused() {
        assert!(!factor_of_inverse(&mut [1.0, 2.0, 2.0, 1.0], 2));
        assert!(!factor_of_inverse(&mut [0.0], 1));
        assert!(!factor_of_inverse(&mut [f64::NAN], 1));
    }
}
