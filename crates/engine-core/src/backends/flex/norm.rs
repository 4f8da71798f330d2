use engine_quant::simd::{self, Isa, Kernel, Simd};
use engine_quant::threads::{for_each_chunk, for_each_pair};

use super::rows_per_task;

/// Normalises each row of `x [tokens, hidden]` in place.
pub fn rms_norm(isa: Isa, x: &mut [f32], weight: &[f32], eps: f32) {
    let hidden = weight.len();
    if x.is_empty() {
        return;
    }
    let chunk = rows_per_task(x.len() / hidden, x.len()) * hidden;
    if chunk >= x.len() {
        return isa.run(Rows { x, weight, eps });
    }
    for_each_chunk(x, chunk, |_, x| isa.run(Rows { x, weight, eps }));
}

/// `sum += x`, then `x` becomes the normalised sum.
pub fn add_rms_norm(isa: Isa, x: &mut [f32], sum: &mut [f32], weight: &[f32], eps: f32) {
    let hidden = weight.len();
    if x.is_empty() {
        return;
    }
    let chunk = rows_per_task(x.len() / hidden, x.len()) * hidden;
    if chunk >= x.len() {
        return isa.run(AddRows { sum, rows: Rows { x, weight, eps } });
    }
    for_each_pair((x, chunk), (sum, chunk), |_, x, sum| {
        isa.run(AddRows { sum, rows: Rows { x, weight, eps } });
    });
}

struct Rows<'a> {
    x: &'a mut [f32],
    weight: &'a [f32],
    eps: f32,
}

impl Kernel for Rows<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        for row in self.x.chunks_exact_mut(self.weight.len()) {
            normalise(s, row, self.weight, self.eps);
        }
    }
}

struct AddRows<'a> {
    sum: &'a mut [f32],
    rows: Rows<'a>,
}

impl Kernel for AddRows<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Rows { x, weight, eps } = self.rows;
        let rows = x.chunks_exact_mut(weight.len());
        for (row, sum) in rows.zip(self.sum.chunks_exact_mut(weight.len())) {
            for (x, sum) in row.iter_mut().zip(sum) {
                *sum += *x;
                *x = *sum;
            }
            normalise(s, row, weight, eps);
        }
    }
}

/// `row / sqrt(mean(row²) + eps) · weight`, in place.
#[inline(always)]
pub fn normalise<S: Simd>(s: S, row: &mut [f32], weight: &[f32], eps: f32) {
    let mean_square = simd::dot(s, row, row) / row.len() as f32;
    let factor = 1.0 / (mean_square + eps).sqrt();
    for (x, weight) in row.iter_mut().zip(weight) {
        *x = *x * factor * weight;
    }
}
