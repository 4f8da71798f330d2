use burn_tensor::{ElementConversion, cast::ToElement};
use half::f16;

use super::*;

/// Numbers in −1 .. 1 that have no pattern.
fn numbers(len: usize, seed: u32) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9E37_79B9) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        state as f32 / 2_147_483_648.0 - 1.0
    };
    (0..len).map(|_| next()).collect()
}

/// Whether results equal the exact product to rounding, and have the bits of a row alone.
fn check_product(
    name: &str,
    [rows, out, width]: [usize; 3],
    (x, weight): (&[f64], &[f64]),
    product: impl Fn(std::ops::Range<usize>) -> Vec<f32>,
) {
    let y = product(0..rows);
    for (i, &y) in y.iter().enumerate() {
        let (row, column) = (i / out, i % out);
        let products = (0..width).map(|k| x[row * width + k] * weight[column * width + k]);
        let (exact, size) = products.fold((0.0, 0.0), |(sum, size), p| (sum + p, size + p.abs()));
        let error = (f64::from(y) - exact).abs();
        assert!(
            error <= 1e-6 * size,
            "{name} {rows}x{out}x{width} [{row}, {column}]: {y}, exact {exact}"
        );
    }
    for row in 0..rows {
        let alone = product(row..row + 1);
        assert_eq!(alone, y[row * out..][..out], "{name} row {row} of {rows}");
    }
}

fn check<W: StoredFloat + ToElement>([rows, out, width]: [usize; 3]) {
    let x = numbers(rows * width, 1);
    let weight: Vec<W> = numbers(out * width, 2).into_iter().map(|w| w.elem()).collect();
    let wide: Vec<f64> = x.iter().copied().map(f64::from).collect();
    let stored: Vec<f64> = weight.iter().map(|w| w.to_f64()).collect();
    for isa in Isa::available() {
        check_product(isa.name(), [rows, out, width], (&wide, &stored), |part| {
            product(isa, &x[part.start * width..part.end * width], &weight, [part.len(), out])
        });
    }
}

const SHAPES: [[usize; 2]; 8] =
    [[1, 1], [3, 7], [131, 64], [9, 172], [7, 2048], [6, 4101], [1, 33], [5, 1025]];

#[test]
fn every_instruction_set_gives_the_product_and_the_same_bits_for_a_row_alone() {
    for rows in [1, 2, 3, 5, 6, 7, 8, 13, 17, 24, 33, 49, 100] {
        for [out, width] in SHAPES {
            check::<f32>([rows, out, width]);
            check::<f16>([rows, out, width]);
            check::<bf16>([rows, out, width]);
        }
    }
}

#[test]
fn bf16_products_are_those_of_the_rounded_activations() {
    if !multiplies_bf16() {
        return;
    }
    for rows in [1, 2, 3, 6, 7, 13, 17, 24, 100] {
        for [out, width] in SHAPES {
            let x = numbers(rows * width, 1);
            let weight: Vec<bf16> =
                numbers(out * width, 2).into_iter().map(bf16::from_f32).collect();
            let rounded: Vec<f64> = x.iter().map(|&x| bf16::from_f32(x).to_f64()).collect();
            let stored: Vec<f64> = weight.iter().map(|w| w.to_f64()).collect();
            check_product("bf16", [rows, out, width], (&rounded, &stored), |part| {
                product_bf16(&x[part.start * width..part.end * width], &weight, [part.len(), out])
            });
        }
    }
}

#[test]
fn bf16_products_of_what_is_no_number_are_none() {
    let (weight, others) = (vec![bf16::ONE; 3 * 40], [f32::NAN, f32::INFINITY, f32::MAX]);
    for rows in [1, 9] {
        for other in others {
            let mut x = vec![1.0; rows * 40];
            x[5] = other;
            let y = product_bf16(&x, &weight, [rows, 3]);
            assert!(y[..3].iter().all(|y| !y.is_finite() || other == f32::MAX), "{other}: {y:?}");
            assert!(y[3..].iter().all(|&y| y == 40.0), "{other} stays in its row: {y:?}");
        }
    }
}

#[test]
fn parallel_products_are_the_same_bits_on_any_number_of_threads() {
    let (out, width) = (131, 1400);
    let weight: Vec<bf16> = numbers(out * width, 4).into_iter().map(bf16::from_f32).collect();
    for rows in [1, 7, 300, 1200] {
        let x = numbers(rows * width, 3);
        let on = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| {
                let wide = product(Isa::best(), &x, &weight, [rows, out]);
                [wide, product_bf16(&x, &weight, [rows, out])]
            })
        };
        let one = on(1);
        for threads in [2, 3, 8] {
            assert_eq!(one, on(threads), "{threads} threads, {rows} rows");
        }
    }
}
