use super::*;

/// Runs a check on every instruction set of this CPU.
fn on_each<K: Kernel<Output = ()>>(kernel: impl Fn() -> K) {
    Isa::available().into_iter().for_each(|isa| isa.run(kernel()));
}

fn lanes<S: Simd>(s: S, v: S::V) -> Vec<f32> {
    let mut lanes = vec![0.0; S::LANES];
    // SAFETY: there is room for `LANES` floats.
    unsafe { s.store(lanes.as_mut_ptr(), v) };
    lanes
}

fn vector<S: Simd>(s: S, lanes: &[f32]) -> S::V {
    assert!(lanes.len() >= S::LANES);
    // SAFETY: there are `LANES` floats.
    unsafe { s.load(lanes.as_ptr()) }
}

#[test]
fn the_widest_set_comes_first_and_the_portable_one_is_always_there() {
    let sets = Isa::available();
    assert_eq!(Isa::best(), sets[0]);
    assert_eq!(sets.last().map(|isa| isa.name()), Some("portable"));
}

#[test]
fn every_half_float_is_widened_exactly() {
    struct Widen;
    impl Kernel for Widen {
        type Output = ();
        #[inline(always)]
        fn run<S: Simd>(self, s: S) {
            for first in (0..=u16::MAX).step_by(S::LANES) {
                let bits: Vec<u16> = (0..S::LANES as u16).map(|l| first + l).collect();
                // SAFETY: there are `LANES` numbers; the types have the same size.
                let (half, brain) = unsafe {
                    (s.load_f16(bits.as_ptr().cast()), s.load_bf16(bits.as_ptr().cast()))
                };
                for (l, (half, brain)) in lanes(s, half).iter().zip(lanes(s, brain)).enumerate() {
                    let expected = f16::from_bits(bits[l]).to_f32();
                    let same = half.to_bits() == expected.to_bits();
                    assert!(same || (half.is_nan() && expected.is_nan()), "f16 {:#x}", bits[l]);
                    assert_eq!(brain.to_bits(), u32::from(bits[l]) << 16, "bf16 {:#x}", bits[l]);
                }
            }
        }
    }
    on_each(|| Widen);
}

#[test]
fn partial_loads_fill_up_with_zeros() {
    struct Partial;
    impl Kernel for Partial {
        type Output = ();
        #[inline(always)]
        fn run<S: Simd>(self, s: S) {
            for len in 1..S::LANES {
                let wide: Vec<f32> = (1..=len).map(|i| i as f32).collect();
                let half: Vec<f16> = wide.iter().copied().map(f16::from_f32).collect();
                let brain: Vec<bf16> = wide.iter().copied().map(bf16::from_f32).collect();
                let mut expected = wide.clone();
                expected.resize(S::LANES, 0.0);
                // SAFETY: each vector has `len` elements, fewer than `LANES`.
                unsafe {
                    assert_eq!(lanes(s, s.load_partial(wide.as_ptr(), len)), expected);
                    assert_eq!(lanes(s, f16::load_partial(s, half.as_ptr(), len)), expected);
                    assert_eq!(lanes(s, bf16::load_partial(s, brain.as_ptr(), len)), expected);
                }
            }
        }
    }
    on_each(|| Partial);
}

#[test]
fn four_sums_at_once_have_the_bits_of_single_sums_in_the_stated_order() {
    struct Sums;
    impl Kernel for Sums {
        type Output = ();
        #[inline(always)]
        fn run<S: Simd>(self, s: S) {
            let rows: [Vec<f32>; 4] = std::array::from_fn(|row| {
                (0..S::LANES).map(|l| ((row * 37 + l * 11) as f32).sin() * 1e3).collect()
            });
            let four = s.sum4([
                vector(s, &rows[0]),
                vector(s, &rows[1]),
                vector(s, &rows[2]),
                vector(s, &rows[3]),
            ]);
            for (row, &sum) in rows.iter().zip(&four) {
                let mut parts = row.clone();
                while parts.len() > 4 {
                    let upper = parts.split_off(parts.len() / 2);
                    parts.iter_mut().zip(upper).for_each(|(a, b)| *a += b);
                }
                assert_eq!(sum, (parts[0] + parts[2]) + (parts[1] + parts[3]));
                assert_eq!(sum, s.sum(vector(s, row)));
            }
        }
    }
    on_each(|| Sums);
}

#[test]
fn lane_operations_follow_their_definitions_with_special_values_too() {
    struct Lanes;
    impl Kernel for Lanes {
        type Output = ();
        #[inline(always)]
        fn run<S: Simd>(self, s: S) {
            let values = [0.0, -0.0, 1.5, -2.5, 2.5, f32::INFINITY, f32::NEG_INFINITY, f32::NAN];
            for a in values {
                for b in values {
                    let (va, vb) = (s.splat(a), s.splat(b));
                    let first = |v| lanes(s, v)[0].to_bits();
                    assert_eq!(first(s.max(va, vb)), if a > b { a } else { b }.to_bits());
                    assert_eq!(first(s.min(va, vb)), if a < b { a } else { b }.to_bits());
                    let selected = first(s.select_lt(va, vb, s.splat(1.0), s.splat(2.0)));
                    assert_eq!(selected, if a < b { 1.0_f32 } else { 2.0 }.to_bits());
                }
            }
            for x in [-2.5, -1.5, -0.4, 0.0, 0.5, 1.5, 126.7, 4_000_000.5_f32] {
                assert_eq!(lanes(s, s.round(s.splat(x)))[0], x.round_ties_even());
            }
            for n in -126..=127 {
                assert_eq!(lanes(s, s.exp2_whole(s.splat(n as f32)))[0], 2.0_f32.powi(n));
            }
        }
    }
    on_each(|| Lanes);
}

#[test]
fn every_byte_becomes_its_number() {
    struct Bytes;
    impl Kernel for Bytes {
        type Output = ();
        #[inline(always)]
        fn run<S: Simd>(self, s: S) {
            let bytes: Vec<u8> = (0..=255).collect();
            for (i, bytes) in bytes.chunks_exact(S::LANES).enumerate() {
                let expected: Vec<f32> = (0..S::LANES).map(|l| (i * S::LANES + l) as f32).collect();
                // SAFETY: the chunk has `LANES` bytes.
                assert_eq!(lanes(s, unsafe { s.load_u8(bytes.as_ptr()) }), expected);
            }
        }
    }
    on_each(|| Bytes);
}

#[test]
fn four_bit_codes_are_looked_up_in_the_order_of_columns() {
    struct Lookup;
    impl Kernel for Lookup {
        type Output = ();
        #[inline(always)]
        fn run<S: Simd>(self, s: S) {
            let table: Vec<f32> = (0..16).map(|i| (i as f32 - 7.5) * 0.3).collect();
            let halves = [vector(s, &table), vector(s, &table[16 - S::LANES..])];
            for seed in 0..50_usize {
                let codes: Vec<u8> =
                    (0..32).map(|i| ((i * 7 + seed * i + seed) % 16) as u8).collect();
                let mut chunk = [0; 16];
                crate::Bits::Four.pack_row(&codes, &mut chunk);
                let mut found = Vec::new();
                for i in 0..32 / S::LANES {
                    // SAFETY: the chunk has 16 bytes.
                    found.extend(lanes(s, unsafe { s.lookup_u4(chunk.as_ptr(), i, halves) }));
                }
                let expected: Vec<f32> = codes.iter().map(|&c| table[usize::from(c)]).collect();
                assert_eq!(found, expected, "{} lanes", S::LANES);
            }
        }
    }
    on_each(|| Lookup);
}
