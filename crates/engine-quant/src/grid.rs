//! How the numbers of one group become codes, to the bit.
//!
//! All arithmetic is `f32`; scales are rounded to `f16` (nearest, halves to even, subnormals kept)
//! *before* they divide, quotients are rounded to the nearest whole number, halves to even. Where a
//! scale is zero, every code is the one of zero. GPTQ and AWQ choose other codes, or other numbers
//! to code, on the same grids.

use half::f16;

use crate::{Bits, CodeOrder, GroupValues, Levels, PackedMatrix, PackedSpec, SharedBytes, Zeros};

/// The 16 levels of NF4: quantiles of a normal distribution (Dettmers et al. 2023, QLoRA), as
/// bitsandbytes has them.
pub const NF4_LEVELS: [f32; 16] = [
    -1.0,
    -0.696_192_8,
    -0.525_073_05,
    -0.394_917_5,
    -0.284_441_38,
    -0.184_773_43,
    -0.091_050_036,
    0.0,
    0.079_580_3,
    0.160_930_2,
    0.246_112_3,
    0.337_915_24,
    0.440_709_83,
    0.562_617,
    0.722_956_84,
    1.0,
];

/// The columns that share a scale.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Group {
    /// So many neighbours of a row; the last group of a row may be shorter.
    Columns(usize),
    /// A whole row.
    Row,
}

impl Group {
    /// Columns in a group of rows of this length, at least one.
    pub fn columns(self, row_len: usize) -> usize {
        match self {
            Self::Columns(columns) => columns.clamp(1, row_len.max(1)),
            Self::Row => row_len.max(1),
        }
    }
}

/// How a group's range lies on the 16 codes of INT4.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Int4Range {
    /// −7 ..= 7, scale `max|w| / 7`.
    Sym7,
    /// −8 ..= 7, scale `e / −8` where `e` is the first number of largest magnitude, with its sign:
    /// the convention of GGUF's Q4_0.
    Sym8,
    /// −8 ..= 7, scale `2 · max|w| / 15`: GPTQ's `sym = true`.
    Sym15,
    /// 0 ..= 15 with a zero point, from the smallest number to the largest (0 included).
    Asym,
}

/// The grid that a matrix' numbers are rounded to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Grid {
    /// −127 ..= 127, scale `max|w| / 127` of each row.
    Int8,
    /// The same with one scale for the matrix, the baseline that shows why rows have their own.
    Int8Tensor,
    /// 16 equal steps for each group.
    Int4 {
        /// Columns that share a scale.
        group: Group,
        /// How the range lies on the codes.
        range: Int4Range,
    },
    /// The 16 levels of [`NF4_LEVELS`] times `max|w|` of each 64 columns of a row.
    Nf4,
}

/// Scale and zero point of one group.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct GroupParams {
    /// Already rounded to `f16`.
    pub scale: f16,
    /// The code of zero.
    pub zero: u8,
}

impl Grid {
    /// Width of a code.
    pub fn bits(self) -> Bits {
        match self {
            Self::Int8 | Self::Int8Tensor => Bits::Eight,
            Self::Int4 { .. } | Self::Nf4 => Bits::Four,
        }
    }

    /// What a code counts.
    pub fn levels(self) -> Levels {
        match self {
            Self::Nf4 => Levels::Table(NF4_LEVELS),
            _ => Levels::Steps,
        }
    }

    /// The columns that share a scale.
    pub fn group(self) -> Group {
        match self {
            Self::Int8 | Self::Int8Tensor => Group::Row,
            Self::Int4 { group, .. } => group,
            Self::Nf4 => Group::Columns(64),
        }
    }

    /// The zero point that all groups share, or none where each has its own.
    pub fn fixed_zero(self) -> Option<u8> {
        match self {
            Self::Int8 | Self::Int8Tensor => Some(128),
            Self::Int4 { range: Int4Range::Asym, .. } => None,
            Self::Int4 { .. } => Some(8),
            Self::Nf4 => Some(0),
        }
    }

    /// Shape and rules of a matrix `[out, in]` on this grid.
    pub fn spec(self, shape: [usize; 2]) -> PackedSpec {
        PackedSpec {
            shape,
            bits: self.bits(),
            levels: self.levels(),
            group_size: self.group().columns(shape[1]),
            per_tensor: self == Self::Int8Tensor,
        }
    }

    /// A matrix on this grid; of its rows' parameters the first ones count, as many as it has groups.
    pub(crate) fn packed(
        self,
        spec: PackedSpec,
        order: CodeOrder,
        codes: SharedBytes,
        params: &[GroupParams],
    ) -> PackedMatrix {
        let params = &params[..spec.num_groups()];
        PackedMatrix {
            spec,
            format: self.to_string(),
            order,
            codes,
            scales: GroupValues::F16(params.iter().map(|params| params.scale).collect()),
            zeros: match self.fixed_zero() {
                Some(zero) => Zeros::Fixed(zero),
                None => Zeros::PerGroup(params.iter().map(|params| params.zero).collect()),
            },
            mins: None,
            column_order: None,
            factor: 1.0,
        }
    }

    /// Bytes of a matrix `[out, in]` on this grid, scales and zero points included.
    pub fn num_bytes(self, [out, in_]: [usize; 2]) -> usize {
        let groups = match self {
            Self::Int8Tensor => 1,
            _ => out * in_.div_ceil(self.group().columns(in_)),
        };
        let group_bytes = size_of::<f16>() + usize::from(self.fixed_zero().is_none());
        out * self.bits().row_bytes(in_) + groups * group_bytes
    }

    /// Scale and zero point that fit a group.
    pub fn fit(self, group: &[f32]) -> GroupParams {
        let largest = || largest_magnitude(group);
        let symmetric = |scale: f32, zero| GroupParams { scale: f16::from_f32(scale), zero };
        match self {
            Self::Int8 | Self::Int8Tensor => symmetric(largest() / 127.0, 128),
            Self::Nf4 => symmetric(largest(), 0),
            Self::Int4 { range: Int4Range::Sym7, .. } => symmetric(largest() / 7.0, 8),
            Self::Int4 { range: Int4Range::Sym8, .. } => {
                let first = |e: f32, &w: &f32| if w.abs() > e.abs() { w } else { e };
                symmetric(group.iter().fold(0.0, first) / -8.0, 8)
            }
            Self::Int4 { range: Int4Range::Sym15, .. } => symmetric(2.0 * largest() / 15.0, 8),
            Self::Int4 { range: Int4Range::Asym, .. } => {
                let low = group.iter().fold(0.0_f32, |low, &w| low.min(w));
                let high = group.iter().fold(0.0_f32, |high, &w| high.max(w));
                Self::asym_params(low, high)
            }
        }
    }

    /// Scale and zero point of an asymmetric group of 16 codes from `low ≤ 0` to `high ≥ 0`.
    pub fn asym_params(low: f32, high: f32) -> GroupParams {
        let scale = f16::from_f32((high - low) / 15.0);
        let zero = divide(-low, scale.to_f32()).round_ties_even().clamp(0.0, 15.0) as u8;
        GroupParams { scale, zero }
    }

    /// The code of a number.
    #[inline]
    pub fn encode(self, w: f32, params: GroupParams) -> u8 {
        let x = divide(w, params.scale.to_f32());
        match self.steps(params) {
            None => nf4_code(x.clamp(-1.0, 1.0)),
            Some(steps) => steps.code(x),
        }
    }

    /// The codes of the numbers of a group.
    pub(crate) fn encode_group(self, group: &[f32], params: GroupParams, codes: &mut [u8]) {
        let scale = params.scale.to_f32();
        match self.steps(params) {
            Some(steps) if scale != 0.0 => {
                for (code, &w) in codes.iter_mut().zip(group) {
                    *code = steps.code(w / scale);
                }
            }
            _ => {
                for (code, &w) in codes.iter_mut().zip(group) {
                    *code = self.encode(w, params);
                }
            }
        }
    }

    /// How a group's multiples of its scale become codes, where these count steps.
    #[inline]
    fn steps(self, params: GroupParams) -> Option<Steps> {
        let (low, high, zero) = match self {
            Self::Nf4 => return None,
            Self::Int8 | Self::Int8Tensor => (-127.0, 127.0, 128),
            Self::Int4 { range: Int4Range::Sym7, .. } => (-7.0, 7.0, 8),
            Self::Int4 { range: Int4Range::Asym, .. } => {
                let zero = f32::from(params.zero);
                (-zero, 15.0 - zero, params.zero)
            }
            Self::Int4 { .. } => (-8.0, 7.0, 8),
        };
        Some(Steps { low, high, zero })
    }

    /// The number that a code stands for.
    #[inline]
    pub fn decode(self, code: u8, params: GroupParams) -> f32 {
        match self {
            Self::Nf4 => NF4_LEVELS[usize::from(code & 15)] * params.scale.to_f32(),
            _ => (f32::from(code) - f32::from(params.zero)) * params.scale.to_f32(),
        }
    }
}

/// The codes from `low` to `high`, whole numbers, and that of zero.
#[derive(Clone, Copy)]
struct Steps {
    low: f32,
    high: f32,
    zero: u8,
}

impl Steps {
    /// The code of the whole number nearest to `x`, of two the even one. Added to 3 · 2²², `x` is
    /// rounded so, and the sum's lowest bits are the number: that many at a time, where
    /// [`f32::round_ties_even`] is a call for each on CPUs that are not known to have more than SSE2.
    #[inline(always)]
    fn code(self, x: f32) -> u8 {
        const ONES: f32 = 12_582_912.0;
        ((x.clamp(self.low, self.high) + ONES).to_bits() as u8).wrapping_add(self.zero)
    }
}

/// `w / scale`, zero where the scale is.
#[inline]
fn divide(w: f32, scale: f32) -> f32 {
    if scale == 0.0 { 0.0 } else { w / scale }
}

/// The largest magnitude of finite numbers; the bits of magnitudes are in the order of the numbers,
/// and many are compared at a time. If it is not finite, neither is one of the numbers.
pub(crate) fn largest_magnitude(values: &[f32]) -> f32 {
    f32::from_bits(values.iter().fold(0, |max, w| max.max(w.to_bits() & 0x7FFF_FFFF)))
}

/// The number of midpoints between levels that lie below `x`.
#[inline]
pub(crate) fn nf4_code(x: f32) -> u8 {
    let below = |pair: &&[f32]| (pair[0] + pair[1]) / 2.0 < x;
    NF4_LEVELS.windows(2).filter(below).count() as u8
}
