use super::*;
use crate::Bits;

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

fn codes(len: usize, seed: u32, max: u8) -> Vec<u8> {
    numbers(len, seed).iter().map(|x| ((x + 1.0) / 2.0 * f32::from(max)).round() as u8).collect()
}

/// What formats differ in, beside shape and groups.
#[derive(Debug, Clone, Copy)]
struct Kind {
    bits: Bits,
    half: bool,
    zeros: bool,
    mins: bool,
}

fn kinds() -> impl Iterator<Item = Kind> {
    (0..16).map(|i| {
        let has = |bit: i32| i >> bit & 1 == 1;
        let bits = if has(0) { Bits::Four } else { Bits::Eight };
        Kind { bits, half: has(1), zeros: has(2), mins: has(3) }
    })
}

/// A matrix of random codes, scales (negative ones too), zero points and minima.
fn matrix(kind: Kind, shape: [usize; 2], group_size: usize, per_tensor: bool) -> PackedMatrix {
    let Kind { bits, half, zeros, mins } = kind;
    let spec = PackedSpec { shape, bits, levels: Levels::Steps, group_size, per_tensor };
    let max = if bits == Bits::Four { 15 } else { 255 };
    let row_bytes = spec.row_bytes();
    let mut packed = vec![0; shape[0] * row_bytes];
    for (row, packed) in packed.chunks_exact_mut(row_bytes).enumerate() {
        bits.pack_row(&codes(shape[1], row as u32 + 5, max), packed);
    }
    let groups = spec.num_groups();
    let values = |seed| match (half, numbers(groups, seed)) {
        (true, values) => GroupValues::F16(values.into_iter().map(f16::from_f32).collect()),
        (false, values) => GroupValues::F32(values),
    };
    let matrix = PackedMatrix {
        spec,
        format: "test".into(),
        order: CodeOrder::Rows,
        codes: packed.into(),
        scales: values(71),
        zeros: match zeros {
            true => Zeros::PerGroup(codes(groups, 72, max)),
            false => Zeros::Fixed(max / 2 + 1),
        },
        mins: mins.then(|| values(73)),
        column_order: None,
        factor: 1.0,
    };
    matrix.check().unwrap();
    matrix
}

/// The definition, one number after the other.
fn plain_product<const D: usize>(matrix: &PackedMatrix, x: &[f32]) -> Vec<f32> {
    let spec = &matrix.spec;
    let [out, width] = spec.shape;
    let group_size = if spec.per_tensor { width } else { spec.group_size };
    let mut codes = vec![vec![0; width]; out];
    for (row, codes) in codes.iter_mut().enumerate() {
        let bytes = spec.row_bytes();
        spec.bits.unpack_row(&matrix.codes[row * bytes..][..bytes], codes);
    }
    let mut y = vec![0.0_f32; x.len() / width * out];
    for (x, y) in x.chunks_exact(width).zip(y.chunks_exact_mut(out)) {
        let mut start = 0;
        while start < width {
            let group_end = (start / group_size + 1) * group_size;
            let segment = start..width.min(group_end).min(start + 256);
            let largest = x[segment.clone()].iter().fold(0.0_f32, |max, x| max.max(x.abs()));
            let a = largest / [127.0, 32512.0, 4_128_768.0][D - 1];
            let round = |x: f32| if a == 0.0 { 0 } else { (x / a).round_ties_even() as i64 };
            let q: Vec<i64> = x[segment.clone()].iter().copied().map(round).collect();
            let sum: i64 = q.iter().sum();
            for (row, y) in y.iter_mut().enumerate() {
                let group = spec.group_of(row, start);
                let zero = match &matrix.zeros {
                    Zeros::Fixed(zero) => i64::from(*zero),
                    Zeros::PerGroup(zeros) => i64::from(zeros[group]),
                };
                let codes = &codes[row][segment.clone()];
                let sum_of = |digits: &dyn Fn(i64) -> i64| {
                    let products = q.iter().zip(codes);
                    let d: i64 =
                        products.map(|(&q, &code)| digits(q) * (i64::from(code) - zero)).sum();
                    assert!(d.abs() < 1 << 31, "sums of a segment fit into 32 bits");
                    d as f32
                };
                let top = |q: i64| if D == 3 { (q + 16384) >> 15 } else { 0 };
                let d = 32768_f32.mul_add(sum_of(&top), sum_of(&|q| q - 32768 * top(q)));
                *y = matrix.scales.get(group).mul_add(a * d, *y);
                if let Some(mins) = &matrix.mins {
                    *y = mins.get(group).mul_add(a * sum as f32, *y);
                }
            }
            start = segment.end;
        }
    }
    y
}

fn bits_of(values: &[f32]) -> Vec<u32> {
    values.iter().map(|x| x.to_bits()).collect()
}

/// The product on every instruction set against the definition, the numbers against
/// [`PackedMatrix::dequantize`], bit for bit.
fn check(matrix: &PackedMatrix, rows: &[usize], case: &str) {
    let [out, width] = matrix.spec.shape;
    let tensors = upload(matrix.clone(), Activations::Bits16);
    assert_eq!(
        bits_of(slice(&to_f32(&tensors))),
        bits_of(&matrix.dequantize()),
        "numbers of {case}"
    );
    let tensors = Tensors::of(&tensors);
    let stored = tensors.stored();
    assert!(stored.codes.as_ptr().addr().is_multiple_of(64), "codes begin a cache line");
    for &rows in rows {
        let x = numbers(rows * width, rows as u32);
        let (one, two) = (plain_product::<1>(matrix, &x), plain_product::<2>(matrix, &x));
        let three = plain_product::<3>(matrix, &x);
        for isa in Isa::available() {
            let found = product::product::<1>(isa, &x, &stored, rows);
            assert_eq!(bits_of(&found), bits_of(&one), "{isa:?} {rows}x{out} {case}");
            let found = product::product::<2>(isa, &x, &stored, rows);
            assert_eq!(bits_of(&found), bits_of(&two), "{isa:?} {rows}x{out} {case}");
            let found = product::product::<3>(isa, &x, &stored, rows);
            assert_eq!(bits_of(&found), bits_of(&three), "{isa:?} {rows}x{out} {case}");
        }
    }
}

#[test]
fn every_format_has_the_bits_of_the_definition_on_every_instruction_set() {
    for kind in kinds() {
        for shape @ [_, width] in [[1, 1], [3, 7], [9, 200], [40, 256], [17, 1030]] {
            for group in [1, 3, 8, 16, 24, 32, 64, 100, 128, 256, 300, 513, width] {
                let case = format!("{kind:?}, {shape:?} in groups of {group}");
                check(&matrix(kind, shape, group, false), &[1, 2, 7], &case);
            }
            check(&matrix(kind, shape, 16, true), &[1, 7], "one group");
        }
    }
}

#[test]
fn every_number_of_rows_has_the_bits_of_the_definition() {
    for bits in [Bits::Four, Bits::Eight] {
        let kind = Kind { bits, half: true, zeros: false, mins: false };
        for (shape, group) in [([33, 70], 70), ([131, 64], 32), ([48, 300], 100)] {
            let rows: Vec<usize> = (1..=26).chain([97, 200]).collect();
            check(&matrix(kind, shape, group, false), &rows, &format!("{kind:?}, {shape:?}"));
        }
    }
}

#[test]
fn blocks_of_tokens_and_of_columns_change_no_bit() {
    for bits in [Bits::Four, Bits::Eight] {
        let kind = Kind { bits, half: true, zeros: true, mins: true };
        let matrix = matrix(kind, [70, 5632], 176, false);
        check(&matrix, &[1, 100], "wide");
    }
}

#[test]
fn the_largest_sums_fit() {
    for kind in
        [Bits::Four, Bits::Eight].map(|bits| Kind { bits, half: false, zeros: true, mins: false })
    {
        for zero in [0, 255] {
            let mut extreme = matrix(kind, [16, 512], 512, false);
            let code = 255 - zero;
            extreme.codes = vec![code; extreme.codes.len()].into();
            extreme.zeros =
                Zeros::PerGroup(vec![if kind.bits == Bits::Four { zero & 15 } else { zero }; 16]);
            let tensors = upload(extreme.clone(), Activations::Bits16);
            let tensors = Tensors::of(&tensors);
            // Beside the largest number those whose two lower digits are largest, and least.
            let below = |q: i32| {
                let mut x = vec![q as f32; 512];
                (x[0], x[256]) = (4_128_768.0, 4_128_768.0);
                x
            };
            let all = [vec![1.0; 512], vec![-1.0; 512], below(16383), below(-16384)];
            for x in all {
                let expected = [plain_product::<2>(&extreme, &x), plain_product::<3>(&extreme, &x)];
                for isa in Isa::available() {
                    let found = product::product::<2>(isa, &x, &tensors.stored(), 1);
                    assert_eq!(bits_of(&found), bits_of(&expected[0]), "{isa:?}");
                    let found = product::product::<3>(isa, &x, &tensors.stored(), 1);
                    assert_eq!(bits_of(&found), bits_of(&expected[1]), "{isa:?}");
                }
            }
        }
    }
}

#[test]
fn tokens_become_tiles_that_kernels_know() {
    let lens = |tokens, max| -> Vec<usize> {
        let tiles: Vec<_> = activations::token_tiles(tokens, max).collect();
        let mut next = 0;
        for tile in &tiles {
            assert_eq!(tile.first, next);
            next += tile.len;
        }
        assert_eq!(next, tokens);
        tiles.into_iter().map(|tile| tile.len).collect()
    };
    assert_eq!(lens(0, 6), [0; 0]);
    assert_eq!(lens(7, 6), [4, 2, 1]);
    assert_eq!(lens(5, 6), [4, 1]);
    assert_eq!(lens(16, 12), [6, 6, 4]);
    assert_eq!(lens(13, 12), [6, 6, 1]);
    for max in [2, 4, 6, 12] {
        for tokens in 1..100 {
            let known = |len: &usize| *len <= max && kernel::TILE_TOKENS.contains(len);
            assert!(lens(tokens, max).iter().all(known), "{tokens} tokens in tiles of {max}");
        }
    }
}
