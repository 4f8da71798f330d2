//! Layouts of matrices in few bits in checkpoints: those that other tools write, and our own.
//!
//! Pure functions between bytes and [`PackedMatrix`], without files. A layout
//! whose groups our kernels have keeps its bits; any other becomes [`Unpacked::Floats`], the same
//! numbers.

pub mod awq;
pub mod bnb;
pub mod gptq;
pub mod native;

use half::f16;

use crate::{GroupValues, PackedMatrix, QuantError, SharedBytes, Zeros};

/// A matrix of a checkpoint.
#[derive(Debug, Clone, PartialEq)]
#[allow(clippy::large_enum_variant, reason = "there is one at a time")]
pub enum Unpacked {
    /// With the bits of the file.
    Packed(PackedMatrix),
    /// Its numbers, row-major `[out, in]`.
    Floats(Vec<f32>),
}

impl Unpacked {
    /// The numbers, row-major `[out, in]`.
    pub fn dequantize(&self) -> Vec<f32> {
        match self {
            Self::Packed(packed) => packed.dequantize(),
            Self::Floats(values) => values.clone(),
        }
    }
}

/// A tensor of a checkpoint that is to be written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NamedTensor {
    /// Its whole name.
    pub name: String,
    /// Type of its elements.
    pub element: Element,
    /// Its shape, outermost dimension first.
    pub shape: Vec<usize>,
    /// Its elements, little-endian.
    pub bytes: SharedBytes,
}

/// Types of elements in [`NamedTensor`]s.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Element {
    /// Unsigned bytes.
    U8,
    /// 32-bit integers.
    I32,
    /// Half precision.
    F16,
    /// Single precision.
    F32,
}

impl NamedTensor {
    pub(crate) fn bytes(name: String, shape: Vec<usize>, bytes: SharedBytes) -> Self {
        Self { name, element: Element::U8, shape, bytes }
    }

    pub(crate) fn words(name: String, shape: Vec<usize>, words: &[u32]) -> Self {
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        Self { name, element: Element::I32, shape, bytes: bytes.into() }
    }

    pub(crate) fn floats(name: String, shape: Vec<usize>, values: &GroupValues) -> Self {
        let (element, bytes): (_, Vec<u8>) = match values {
            GroupValues::F16(values) => {
                (Element::F16, values.iter().flat_map(|value| value.to_le_bytes()).collect())
            }
            GroupValues::F32(values) => {
                (Element::F32, values.iter().flat_map(|value| value.to_le_bytes()).collect())
            }
        };
        Self { name, element, shape, bytes: bytes.into() }
    }
}

/// That `found` things are as many as expected.
pub(crate) fn counted(what: &'static str, expected: usize, found: usize) -> Result<(), QuantError> {
    if expected == found { Ok(()) } else { Err(QuantError::Malformed { what, expected, found }) }
}

/// Word `i` of little-endian words.
fn word(bytes: &[u8], i: usize) -> u32 {
    bytes.as_chunks().0.get(i).map_or(0, |&word| u32::from_le_bytes(word))
}

/// `[rows, columns]` to `[columns, rows]`.
fn transpose<T: Copy>(values: &[T], rows: usize, columns: usize) -> Vec<T> {
    (0..columns).flat_map(|c| (0..rows).map(move |r| values[r * columns + c])).collect()
}

/// [`transpose`] of numbers in their type.
fn transpose_values(values: &GroupValues, rows: usize, columns: usize) -> GroupValues {
    match values {
        GroupValues::F16(values) => GroupValues::F16(transpose::<f16>(values, rows, columns)),
        GroupValues::F32(values) => GroupValues::F32(transpose(values, rows, columns)),
    }
}

/// One zero point for all groups where they have the same.
fn shared_zero(zeros: Vec<u8>) -> Zeros {
    match zeros.first() {
        Some(&first) if zeros.iter().all(|zero| *zero == first) => Zeros::Fixed(first),
        _ => Zeros::PerGroup(zeros),
    }
}

/// The zero points of all groups of a matrix, one each.
fn zero_of_each(zeros: &Zeros, groups: usize) -> Vec<u8> {
    match zeros {
        Zeros::Fixed(zero) => vec![*zero; groups],
        Zeros::PerGroup(zeros) => zeros.clone(),
    }
}

/// The refusal to write a matrix in a layout that cannot hold it.
fn unwritable(layout: &'static str, problem: &'static str) -> QuantError {
    QuantError::Unwritable { layout, problem }
}

/// What GPTQ's and AWQ's layouts cannot express.
fn only_steps(layout: &'static str, matrix: &PackedMatrix) -> Result<(), QuantError> {
    let plain = matrix.spec.levels == crate::Levels::Steps
        && matrix.mins.is_none()
        && matrix.factor == 1.0
        && !matrix.spec.per_tensor;
    if plain { Ok(()) } else { Err(unwritable(layout, "it has scales and zero points alone")) }
}
