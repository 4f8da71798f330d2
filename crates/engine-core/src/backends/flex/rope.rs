use engine_quant::simd::{Isa, Kernel, Simd};
use engine_quant::threads::for_each_pair;

use super::{
    math::{self, Map},
    norm, rows_per_task,
};
use crate::kv::{MAX_CODE, WORD};

/// Shapes of a row of `qkv` and what is done to its queries and keys.
#[derive(Clone, Copy)]
pub struct Heads<'a> {
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    pub rotary_dim: usize,
    /// Weights of the query and key normalisation, `[head_dim]` each.
    pub norm: Option<(&'a [f32], &'a [f32])>,
    pub eps: f32,
}

/// Normalises and rotates the keys of `qkv [tokens, columns]` in place, and the queries, which it
/// returns, `[tokens, heads · head_dim]`.
pub fn rotate(isa: Isa, qkv: &mut [f32], cos_sin: &[f32], heads: &Heads<'_>) -> Vec<f32> {
    let columns = (heads.heads + 2 * heads.kv_heads) * heads.head_dim;
    let q_len = heads.heads * heads.head_dim;
    if qkv.is_empty() || q_len == 0 {
        return Vec::new();
    }
    let tokens = qkv.len() / columns;
    let mut q = vec![0.0; tokens * q_len];
    let chunk = rows_per_task(tokens, qkv.len());
    let run = |qkv: &mut [f32], q: &mut [f32], first: usize| {
        isa.run(Rows { qkv, q, cos_sin: &cos_sin[first * heads.rotary_dim..], columns, heads });
    };
    if chunk >= tokens {
        run(qkv, &mut q, 0);
    } else {
        for_each_pair((&mut q, chunk * q_len), (qkv, chunk * columns), |i, q, qkv| {
            run(qkv, q, i * chunk);
        });
    }
    q
}

/// Writes `row_len` columns of each row of `rows` from `column` on to row `slots[i]` of `cache`.
pub fn write_rows(cache: &mut [f32], row_len: usize, slots: &[u32], rows: &[f32], column: usize) {
    if slots.is_empty() || row_len == 0 {
        return;
    }
    let columns = rows.len() / slots.len();
    for (row, &slot) in rows.chunks_exact(columns).zip(slots) {
        let start = slot as usize * row_len;
        assert!(
            start + row_len <= cache.len(),
            "rope_kv_write: slot {slot} of a cache with {} slots",
            cache.len() / row_len
        );
        cache[start..start + row_len].copy_from_slice(&row[column..column + row_len]);
    }
}

/// Quantizes `kv_heads · head_dim` columns of each row of `rows` from `column` on and writes codes
/// and scales to row `slots[i]` of the cache.
pub struct WriteCodes<'a> {
    /// `[slots, kv_heads · head_dim]`, each head filled up to whole words.
    pub codes: &'a mut [i8],
    /// `[slots, kv_heads]`.
    pub scales: &'a mut [f32],
    pub slots: &'a [u32],
    pub rows: &'a [f32],
    pub column: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
}

impl Kernel for WriteCodes<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self { codes, scales, slots, rows, column, kv_heads, head_dim } = self;
        if slots.is_empty() || kv_heads * head_dim == 0 {
            return;
        }
        let columns = rows.len() / slots.len();
        let pitch = head_dim.next_multiple_of(WORD);
        let mut quotients = vec![0.0; head_dim];
        for (row, &slot) in rows.chunks_exact(columns).zip(slots) {
            let first = slot as usize * kv_heads;
            assert!(
                first + kv_heads <= scales.len() && (first + kv_heads) * pitch <= codes.len(),
                "rope_kv_write: slot {slot} of a cache with {} slots",
                scales.len() / kv_heads
            );
            let heads = row[column..].chunks_exact(head_dim).take(kv_heads);
            let coded = codes[first * pitch..].chunks_exact_mut(pitch);
            for ((x, codes), scale) in heads.zip(coded).zip(&mut scales[first..]) {
                quotients.copy_from_slice(x);
                *scale = quantize(s, &mut quotients, codes);
            }
        }
    }
}

/// `x / scale`, rounded to a code.
#[derive(Clone, Copy)]
struct Code {
    scale: f32,
}

impl Map for Code {
    #[inline(always)]
    fn apply<S: Simd>(self, s: S, x: S::V) -> S::V {
        let code = s.round(s.div(x, s.splat(self.scale)));
        s.min(s.splat(MAX_CODE), s.max(s.splat(-MAX_CODE), code))
    }
}

/// Writes the codes of one head, which `x` does not outlive, and returns their scale; see
/// [`crate::CodedRows`].
#[inline(always)]
fn quantize<S: Simd>(s: S, x: &mut [f32], codes: &mut [i8]) -> f32 {
    const NOT_FINITE: u32 = f32::INFINITY.to_bits();
    codes.fill(0);
    // Magnitudes are in the order of their bits, and NaN is the largest.
    let largest = x.iter().fold(0, |largest, x| x.abs().to_bits().max(largest));
    if largest >= NOT_FINITE {
        return f32::NAN;
    }
    let scale = f32::from_bits(largest) / MAX_CODE;
    if scale > 0.0 {
        math::map_in_place(s, x, Code { scale });
        codes.iter_mut().zip(x).for_each(|(code, x)| *code = *x as i8);
    }
    scale
}

struct Rows<'a> {
    qkv: &'a mut [f32],
    q: &'a mut [f32],
    cos_sin: &'a [f32],
    columns: usize,
    heads: &'a Heads<'a>,
}

impl Kernel for Rows<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Heads { heads, kv_heads, head_dim, rotary_dim, norm, eps } = *self.heads;
        let (q_len, kv_len) = (heads * head_dim, kv_heads * head_dim);
        let rows = self.qkv.chunks_exact_mut(self.columns).zip(self.q.chunks_exact_mut(q_len));
        for (token, (row, q)) in rows.enumerate() {
            let angles = &self.cos_sin[token * rotary_dim..][..rotary_dim];
            let (cos, sin) = angles.split_at(rotary_dim / 2);
            let (queries, keys_values) = row.split_at_mut(q_len);
            q.copy_from_slice(queries);
            let parts = [(q, norm.map(|n| n.0)), (&mut keys_values[..kv_len], norm.map(|n| n.1))];
            for (part, weight) in parts {
                for head in part.chunks_exact_mut(head_dim) {
                    if let Some(weight) = weight {
                        norm::normalise(s, head, weight, eps);
                    }
                    rotate_head(head, cos, sin);
                }
            }
        }
    }
}

/// `(a, b)` becomes `(a · cos − b · sin, b · cos + a · sin)`.
#[inline(always)]
fn rotate_head(head: &mut [f32], cos: &[f32], sin: &[f32]) {
    let (first, rest) = head.split_at_mut(cos.len());
    let pairs = first.iter_mut().zip(rest).zip(cos.iter().zip(sin));
    for ((a, b), (cos, sin)) in pairs {
        (*a, *b) = (*a * cos - *b * sin, *b * cos + *a * sin);
    }
}
