use std::fmt;

/// The type of a tensor's elements in a GGUF file, as ggml numbers and names them.
///
/// Only some can be read: see [`GgufType::is_readable`]. The others are here so that a message can
/// name them and their bytes can be counted.
#[allow(missing_docs, reason = "the names are ggml's own")]
#[allow(non_camel_case_types, reason = "the names are ggml's own")]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum GgufType {
    F32,
    F16,
    BF16,
    F64,
    I8,
    I16,
    I32,
    I64,
    Q8_0,
    Q8_1,
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q2_K,
    Q3_K,
    Q4_K,
    Q5_K,
    Q6_K,
    Q8_K,
    IQ4_NL,
    IQ4_XS,
    IQ1_S,
    IQ1_M,
    IQ2_XXS,
    IQ2_XS,
    IQ2_S,
    IQ3_XXS,
    IQ3_S,
    TQ1_0,
    TQ2_0,
    MXFP4,
}

use GgufType::*;

/// Number in the file, type, numbers in a block, bytes of a block.
const TYPES: [(u32, GgufType, usize, usize); 32] = [
    (0, F32, 1, 4),
    (1, F16, 1, 2),
    (2, Q4_0, 32, 18),
    (3, Q4_1, 32, 20),
    (6, Q5_0, 32, 22),
    (7, Q5_1, 32, 24),
    (8, Q8_0, 32, 34),
    (9, Q8_1, 32, 36),
    (10, Q2_K, 256, 84),
    (11, Q3_K, 256, 110),
    (12, Q4_K, 256, 144),
    (13, Q5_K, 256, 176),
    (14, Q6_K, 256, 210),
    (15, Q8_K, 256, 292),
    (16, IQ2_XXS, 256, 66),
    (17, IQ2_XS, 256, 74),
    (18, IQ3_XXS, 256, 98),
    (19, IQ1_S, 256, 50),
    (20, IQ4_NL, 32, 18),
    (21, IQ3_S, 256, 110),
    (22, IQ2_S, 256, 82),
    (23, IQ4_XS, 256, 136),
    (24, I8, 1, 1),
    (25, I16, 1, 2),
    (26, I32, 1, 4),
    (27, I64, 1, 8),
    (28, F64, 1, 8),
    (29, IQ1_M, 256, 56),
    (30, BF16, 1, 2),
    (34, TQ1_0, 256, 54),
    (35, TQ2_0, 256, 66),
    (39, MXFP4, 32, 17),
];

impl GgufType {
    /// The type with this number in a file.
    pub fn from_number(number: u32) -> Option<Self> {
        TYPES.iter().find(|entry| entry.0 == number).map(|entry| entry.1)
    }

    /// The number in a file.
    pub fn number(self) -> u32 {
        self.entry().0
    }

    /// Numbers in a block; 1 for plain numbers. A row is a whole number of blocks.
    pub fn block_len(self) -> usize {
        self.entry().2
    }

    /// Bytes of a block.
    pub fn block_bytes(self) -> usize {
        self.entry().3
    }

    /// Bytes of a row of `columns` numbers, or `None` if it is no whole number of blocks or too
    /// long to count.
    pub fn row_bytes(self, columns: usize) -> Option<usize> {
        let blocks =
            columns.is_multiple_of(self.block_len()).then(|| columns / self.block_len())?;
        blocks.checked_mul(self.block_bytes())
    }

    /// Bytes that a row of `columns` numbers takes in memory: its packed codes with scales and
    /// mins, or its floats.
    pub fn held_row_bytes(self, columns: usize) -> usize {
        let Some(layout) = super::Layout::of(self) else { return columns * self.block_bytes() };
        let width = if layout.half { size_of::<half::f16>() } else { size_of::<f32>() };
        let numbers = if layout.has_mins { 2 } else { 1 };
        layout.bits.row_bytes(columns) + columns / layout.group_size * numbers * width
    }

    /// Whether these are plain floats that can be read.
    pub fn is_float(self) -> bool {
        matches!(self, F32 | F16 | BF16)
    }

    /// Whether weights of this type can be read.
    pub fn is_readable(self) -> bool {
        self.is_float() || super::Layout::of(self).is_some()
    }

    fn entry(self) -> (u32, Self, usize, usize) {
        TYPES.into_iter().find(|entry| entry.1 == self).unwrap_or(TYPES[0])
    }
}

impl fmt::Display for GgufType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}
