//! ggml's blocks, one function each: 32 or 256 numbers as codes, scales and mins.
//!
//! Every function writes the codes in the order of the columns. A scale that ggml computes as a
//! product (`d · sc`, in `f32`) is computed so here too, and its `− dmin · m` becomes a min with the
//! opposite sign, so that `(code − zero) · scale + min` rounds where ggml rounds.

use half::f16;

use super::GgufType;
use crate::{Bits, Levels};

/// How a block type becomes a packed matrix.
pub(super) struct Layout {
    pub bits: Bits,
    pub levels: Levels,
    pub group_size: usize,
    /// The code of zero.
    pub zero: u8,
    /// Whether the block holds one half-precision scale, and not products.
    pub half: bool,
    pub has_mins: bool,
    pub unpack: fn(&[u8], &mut Block),
}

/// The numbers of a block; of short blocks and large groups, the first ones.
pub(super) struct Block {
    pub codes: [u8; 256],
    pub scales: [f32; 16],
    pub mins: [f32; 16],
}

/// The levels of IQ4_NL and IQ4_XS, `kvalues_iq4nl` in ggml.
const IQ4_LEVELS: [f32; 16] = [
    -127.0, -104.0, -83.0, -65.0, -49.0, -35.0, -22.0, -10.0, 1.0, 13.0, 25.0, 38.0, 53.0, 69.0,
    89.0, 113.0,
];

const FOUR: Layout = Layout {
    bits: Bits::Four,
    levels: Levels::Steps,
    group_size: 32,
    zero: 0,
    half: true,
    has_mins: false,
    unpack: q4_0,
};
const EIGHT: Layout = Layout { bits: Bits::Eight, ..FOUR };

impl Layout {
    /// The layout of a block type that can be read.
    pub(super) fn of(kind: GgufType) -> Option<Self> {
        let products = |layout| Self { half: false, ..layout };
        Some(match kind {
            GgufType::Q8_0 => Self { zero: 128, unpack: q8_0, ..EIGHT },
            GgufType::Q4_0 => Self { zero: 8, ..FOUR },
            GgufType::Q4_1 => Self { has_mins: true, unpack: q4_1, ..FOUR },
            GgufType::Q5_0 => Self { zero: 16, unpack: q5_0, ..EIGHT },
            GgufType::Q5_1 => Self { has_mins: true, unpack: q5_1, ..EIGHT },
            GgufType::Q2_K => {
                products(Self { group_size: 16, has_mins: true, unpack: q2_k, ..FOUR })
            }
            GgufType::Q3_K => products(Self { group_size: 16, zero: 4, unpack: q3_k, ..FOUR }),
            GgufType::Q4_K => products(Self { has_mins: true, unpack: q4_k, ..FOUR }),
            GgufType::Q5_K => products(Self { has_mins: true, unpack: q5_k, ..EIGHT }),
            GgufType::Q6_K => products(Self { group_size: 16, zero: 32, unpack: q6_k, ..EIGHT }),
            GgufType::IQ4_NL => Self { levels: Levels::Table(IQ4_LEVELS), ..FOUR },
            GgufType::IQ4_XS => {
                products(Self { levels: Levels::Table(IQ4_LEVELS), unpack: iq4_xs, ..FOUR })
            }
            _ => return None,
        })
    }
}

impl Block {
    pub(super) fn new() -> Self {
        Self { codes: [0; 256], scales: [0.0; 16], mins: [0.0; 16] }
    }
}

/// The half-precision number at byte `at`.
fn half(block: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([block[at], block[at + 1]]).to_f32()
}

/// Low halves of the bytes, then their high halves.
fn nibbles(bytes: &[u8], codes: &mut [u8]) {
    let (low, high) = codes.split_at_mut(bytes.len());
    for ((byte, low), high) in bytes.iter().zip(low).zip(high) {
        *low = byte & 15;
        *high = byte >> 4;
    }
}

/// `d`, 32 signed bytes.
fn q8_0(block: &[u8], out: &mut Block) {
    out.scales[0] = half(block, 0);
    for (code, byte) in out.codes.iter_mut().zip(&block[2..34]) {
        *code = byte ^ 0x80;
    }
}

/// `d`, 16 bytes of halves; IQ4_NL is the same with levels.
fn q4_0(block: &[u8], out: &mut Block) {
    out.scales[0] = half(block, 0);
    nibbles(&block[2..18], &mut out.codes[..32]);
}

/// `d`, `m`, 16 bytes of halves.
fn q4_1(block: &[u8], out: &mut Block) {
    out.scales[0] = half(block, 0);
    out.mins[0] = half(block, 2);
    nibbles(&block[4..20], &mut out.codes[..32]);
}

/// 32 fifth bits, then 16 bytes of halves.
fn five_bits(bytes: &[u8], codes: &mut [u8]) {
    nibbles(&bytes[4..20], codes);
    for (i, code) in codes.iter_mut().enumerate() {
        *code |= (bytes[i / 8] >> (i % 8) & 1) << 4;
    }
}

/// `d`, fifth bits, halves.
fn q5_0(block: &[u8], out: &mut Block) {
    out.scales[0] = half(block, 0);
    five_bits(&block[2..22], &mut out.codes[..32]);
}

/// `d`, `m`, fifth bits, halves.
fn q5_1(block: &[u8], out: &mut Block) {
    out.scales[0] = half(block, 0);
    out.mins[0] = half(block, 2);
    five_bits(&block[4..24], &mut out.codes[..32]);
}

/// Two bits of each of 256 numbers out of 64 bytes: 32 bytes hold 128 numbers in four layers.
fn two_bits(bytes: &[u8], codes: &mut [u8; 256]) {
    for (i, codes) in codes.chunks_exact_mut(32).enumerate() {
        let bytes = &bytes[i / 4 * 32..][..32];
        for (code, byte) in codes.iter_mut().zip(bytes) {
            *code = byte >> (i % 4 * 2) & 3;
        }
    }
}

/// 16 bytes of scale and min in halves, two bits each, `d`, `dmin`.
fn q2_k(block: &[u8], out: &mut Block) {
    let (d, dmin) = (half(block, 80), half(block, 82));
    two_bits(&block[16..80], &mut out.codes);
    for (i, &byte) in block[..16].iter().enumerate() {
        out.scales[i] = d * f32::from(byte & 15);
        out.mins[i] = -(dmin * f32::from(byte >> 4));
    }
}

/// 32 bytes of third bits, two bits each, 16 six-bit scales in 12 bytes, `d`.
fn q3_k(block: &[u8], out: &mut Block) {
    let (high, scales, d) = (&block[..32], &block[96..108], half(block, 108));
    two_bits(&block[32..96], &mut out.codes);
    for (i, codes) in out.codes.chunks_exact_mut(32).enumerate() {
        for (code, high) in codes.iter_mut().zip(high) {
            *code |= (high >> i & 1) << 2;
        }
    }
    for (i, scale) in out.scales.iter_mut().enumerate() {
        let low = scales[i % 8] >> (i / 8 * 4) & 15;
        let high = scales[8 + i % 4] >> (i / 4 * 2) & 3;
        *scale = d * (f32::from(low | high << 4) - 32.0);
    }
}

/// `d`, `dmin` and eight six-bit scales and mins in 12 bytes.
fn scales_and_mins(block: &[u8], out: &mut Block) {
    let (d, dmin, bytes) = (half(block, 0), half(block, 2), &block[4..16]);
    for i in 0..8 {
        let (scale, min) = if i < 4 {
            (bytes[i] & 63, bytes[i + 4] & 63)
        } else {
            let low = bytes[i + 4];
            (low & 15 | bytes[i - 4] >> 6 << 4, low >> 4 | bytes[i] >> 6 << 4)
        };
        out.scales[i] = d * f32::from(scale);
        out.mins[i] = -(dmin * f32::from(min));
    }
}

/// Scales and mins, then halves: 32 bytes hold 64 numbers.
fn q4_k(block: &[u8], out: &mut Block) {
    scales_and_mins(block, out);
    for (bytes, codes) in block[16..144].chunks_exact(32).zip(out.codes.chunks_exact_mut(64)) {
        nibbles(bytes, codes);
    }
}

/// Scales and mins, 32 bytes of fifth bits, halves.
fn q5_k(block: &[u8], out: &mut Block) {
    scales_and_mins(block, out);
    for (bytes, codes) in block[48..176].chunks_exact(32).zip(out.codes.chunks_exact_mut(64)) {
        nibbles(bytes, codes);
    }
    for (i, codes) in out.codes.chunks_exact_mut(32).enumerate() {
        for (code, high) in codes.iter_mut().zip(&block[16..48]) {
            *code |= (high >> i & 1) << 4;
        }
    }
}

/// 128 bytes of halves, 64 bytes of upper bits, 16 signed scales, `d`.
fn q6_k(block: &[u8], out: &mut Block) {
    let (low, high, d) = (&block[..128], &block[128..192], half(block, 208));
    two_bits(high, &mut out.codes);
    for (low, codes) in low.chunks_exact(64).zip(out.codes.chunks_exact_mut(128)) {
        let (first, second) = codes.split_at_mut(64);
        for ((byte, first), second) in low.iter().zip(first).zip(second) {
            *first = *first << 4 | byte & 15;
            *second = *second << 4 | byte >> 4;
        }
    }
    for (scale, &byte) in out.scales.iter_mut().zip(&block[192..208]) {
        *scale = d * f32::from(byte as i8);
    }
}

/// `d`, eight six-bit scales (upper bits in 2 bytes, lower in 4), 16 bytes of halves per 32.
fn iq4_xs(block: &[u8], out: &mut Block) {
    let (d, high, low) = (half(block, 0), u16::from_le_bytes([block[2], block[3]]), &block[4..8]);
    for i in 0..8 {
        let low = low[i / 2] >> (i % 2 * 4) & 15;
        let high = (high >> (2 * i) & 3) as u8;
        out.scales[i] = d * (f32::from(low | high << 4) - 32.0);
    }
    for (bytes, codes) in block[8..136].chunks_exact(16).zip(out.codes.chunks_exact_mut(32)) {
        nibbles(bytes, codes);
    }
}
