//! Greedy and temperature choice of tokens, one cube for each row.

use burn_cubecl::{CubeRuntime, tensor::CubeTensor};
use burn_tensor::DType;
use cubecl::prelude::*;

use super::{cube_grid, dims, empty, units_for};
use crate::ops::sample::TokenChoice;
use crate::sampling::rng;

/// Words that describe one row's choice: factor (zero: greedy), seed (low, high), position.
const CHOICE_WORDS: usize = 4;

pub(super) fn choose_tokens<R: CubeRuntime>(
    logits: CubeTensor<R>,
    rows: &[TokenChoice],
) -> CubeTensor<R> {
    let [num_rows, vocab] = dims(&logits);
    let chosen = empty(&logits, [num_rows], DType::I32);
    if num_rows == 0 {
        return chosen;
    }
    let words: Vec<u32> = rows
        .iter()
        .flat_map(|row| {
            let factor = if row.temperature > 0.0 { 1.0 / row.temperature } else { 0.0 };
            [factor.to_bits(), row.seed as u32, (row.seed >> 32) as u32, row.position]
        })
        .collect();
    let (client, units) = (logits.client.clone(), units_for(vocab));
    let choices = client.create_from_slice(bytemuck::cast_slice(&words));
    choose_kernel::launch::<R>(
        &client,
        cube_grid(num_rows),
        CubeDim::new_1d(units as u32),
        logits.into_array_arg(),
        // SAFETY: the buffer was just made of these words.
        unsafe { ArrayArg::from_raw_parts(choices, words.len()) },
        chosen.clone().into_array_arg(),
        num_rows,
        vocab,
        units,
    );
    chosen
}

/// `chosen[r] = argmax(logits[r, ·] · factor + gumbel)`, the first of equals; −1, which as a `u32` is
/// the largest, where no score is a number above −∞.
///
/// A unit takes blocks of four tokens, one random block each, with a stride of all units; the
/// units' best are then compared as a binary tree.
#[cube(launch)]
fn choose_kernel(
    logits: &Array<f32>,
    choices: &Array<u32>,
    chosen: &mut Array<i32>,
    rows: usize,
    vocab: usize,
    #[comptime] units: usize,
) {
    let row = CUBE_POS;
    if row >= rows {
        terminate!();
    }
    let unit = UNIT_POS as usize;
    let factor = f32::reinterpret(choices[row * CHOICE_WORDS]);
    let seed_low = choices[row * CHOICE_WORDS + 1];
    let seed_high = choices[row * CHOICE_WORDS + 2];
    let position = choices[row * CHOICE_WORDS + 3];

    let mut best = f32::min_value();
    let mut best_token = comptime!(u32::MAX).runtime();
    for block in range_stepped(unit, vocab.div_ceil(4), units) {
        let mut noise = Array::<f32>::new(4usize);
        if factor > 0.0f32 {
            let words = philox(block as u32, position, seed_low, seed_high);
            #[unroll]
            for i in 0..4usize {
                noise[i] = gumbel(words[i]);
            }
        }
        #[unroll]
        for i in 0..4usize {
            let token = block * 4 + i;
            if token < vocab {
                let mut score = logits[row * vocab + token];
                if factor > 0.0f32 {
                    score = score * factor + noise[i];
                }
                if score > best {
                    best = score;
                    best_token = token as u32;
                }
            }
        }
    }

    let mut scores = SharedMemory::<f32>::new(units);
    let mut tokens = SharedMemory::<u32>::new(units);
    scores[unit] = best;
    tokens[unit] = best_token;
    sync_cube();
    #[unroll]
    for level in 0..comptime!(units.ilog2()) {
        let stride = comptime!(units >> (level + 1));
        if unit < stride {
            let (score, token) = (scores[unit + stride], tokens[unit + stride]);
            let first_of_equals = score == scores[unit] && token < tokens[unit];
            if score > scores[unit] || first_of_equals {
                scores[unit] = score;
                tokens[unit] = token;
            }
        }
        sync_cube();
    }
    if unit == 0 {
        chosen[row] = tokens[0] as i32;
    }
}

/// The Philox4x32-10 block of counter `(block, position, 0, 0)`, as [`rng::philox`].
#[cube]
fn philox(block: u32, position: u32, seed_low: u32, seed_high: u32) -> Array<u32> {
    let mut counter = Array::<u32>::new(4usize);
    counter[0] = block;
    counter[1] = position;
    counter[2] = 0u32;
    counter[3] = 0u32;
    let mut key_low = seed_low;
    let mut key_high = seed_high;
    for _ in 0..10u32 {
        let (a, b) = (counter[0], counter[2]);
        let high_a = a.mul_hi(comptime!(rng::MULTIPLIERS[0]).runtime());
        let high_b = b.mul_hi(comptime!(rng::MULTIPLIERS[1]).runtime());
        counter[0] = high_b ^ counter[1] ^ key_low;
        counter[2] = high_a ^ counter[3] ^ key_high;
        counter[1] = b * comptime!(rng::MULTIPLIERS[1]);
        counter[3] = a * comptime!(rng::MULTIPLIERS[0]);
        key_low += comptime!(rng::WEYL[0]);
        key_high += comptime!(rng::WEYL[1]);
    }
    counter
}

/// The Gumbel number of a random word, as [`rng::gumbel`].
#[cube]
fn gumbel(word: u32) -> f32 {
    let uniform = (f32::cast_from(word >> 9) + 0.5f32) * comptime!(1.0f32 / 8_388_608.0);
    -ln(-ln(uniform))
}

/// Natural logarithm of a positive normal number to about one unit in the last place.
///
/// Graphics APIs allow their own logarithm an absolute error of 2⁻²¹ around one, which would
/// distort the upper tail of the noise. With `x = 2ᵉ · m`, `m` in [√½, √2), and
/// `s = (m − 1) / (m + 1)`: `ln x = e · ln 2 + 2 (s + s³/3 + s⁵/5 + s⁷/7 + s⁹/9)`.
#[cube]
fn ln(x: f32) -> f32 {
    // The bits of one minus those of √½ move the wrap of the exponent to √½.
    let bits = u32::reinterpret(x) + 0x004a_fb0d;
    let exponent = f32::cast_from(bits >> 23) - 127.0f32;
    let m = f32::reinterpret((bits & 0x007f_ffff) + 0x3f35_04f3);
    let s = (m - 1.0f32) / (m + 1.0f32);
    let z = s * s;
    let series = z * (2.0f32 / 3.0 + z * (0.4f32 + z * (2.0f32 / 7.0 + z * (2.0f32 / 9.0))));
    // ln 2 in two parts, the first of so few bits that its product is exact.
    exponent * 0.693_145_75f32 + (exponent * 1.428_606_8e-6f32 + s * (2.0f32 + series))
}
