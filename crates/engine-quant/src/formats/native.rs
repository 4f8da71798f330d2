//! Our own layout, for what no other one holds: INT8 by rows, INT4 in any group, NF4.
//!
//! The tensors of a matrix `X` are the fields of [`PackedMatrix`]:
//!
//! | name | elements | shape |
//! |---|---|---|
//! | `X.codes` | `U8` | `[rows or blocks of 16 rows, bytes of each]`, in the [`CodeOrder`] of the entry |
//! | `X.scales` | `F16` or `F32` | `[out, groups]`, or `[1, 1]` if one for the matrix |
//! | `X.zeros` | `U8` | as `scales`; only if groups have their own |
//! | `X.mins` | as `scales` | as `scales`; only if there are any |
//! | `X.levels` | `F32` | `[16]`; only if codes number levels |
//! | `X.column_order` | `I32` | `[in]`; only if columns are in another order |
//!
//! Everything else is an [`Entry`], which stands in `config.json`.

use super::{NamedTensor, counted};
use crate::{
    Bits, CodeOrder, GroupValues, Levels, PackedMatrix, PackedSpec, QuantError, SharedBytes, Zeros,
};

/// What a matrix' tensors do not say.
#[derive(Debug, Clone, PartialEq)]
pub struct Entry {
    /// The name that reports show.
    pub format: String,
    /// Width of a code.
    pub bits: Bits,
    /// Columns that share a scale; a whole row if none.
    pub group_size: Option<usize>,
    /// Whether one scale serves the whole matrix.
    pub per_tensor: bool,
    /// The zero point of all groups; none where each has its own.
    pub zero: Option<u8>,
    /// Multiplies every number after all else.
    pub factor: f32,
    /// In which order the codes are.
    pub order: CodeOrder,
}

/// The tensors of one matrix, as the file has them.
#[derive(Debug, Clone)]
pub struct NativeTensors<'a> {
    /// Where the file has them.
    pub codes: SharedBytes,
    /// `[out, groups]`.
    pub scales: GroupValues,
    /// `[out, groups]`.
    pub zeros: Option<&'a [u8]>,
    /// `[out, groups]`.
    pub mins: Option<GroupValues>,
    /// `[16]`.
    pub levels: Option<Vec<f32>>,
    /// `[in]`.
    pub column_order: Option<Vec<u32>>,
}

impl Entry {
    /// Shape and rules of a matrix `[out, in]` with this entry.
    pub fn spec(&self, shape: [usize; 2], levels: Levels) -> PackedSpec {
        let group_size = self.group_size.unwrap_or(shape[1]).clamp(1, shape[1].max(1));
        PackedSpec { shape, bits: self.bits, levels, group_size, per_tensor: self.per_tensor }
    }
}

/// Reads a matrix of shape `[out, in]`.
///
/// # Errors
/// If something does not fit, as [`PackedMatrix::check`] says.
pub fn unpack(
    shape: [usize; 2],
    entry: &Entry,
    tensors: NativeTensors<'_>,
) -> Result<PackedMatrix, QuantError> {
    let levels = match tensors.levels {
        None => Levels::Steps,
        Some(levels) => {
            let found = levels.len();
            let levels = levels.try_into();
            let expected = 16;
            let malformed = |_| QuantError::Malformed { what: "levels", expected, found };
            Levels::Table(levels.map_err(malformed)?)
        }
    };
    if let (Levels::Table(levels), bits) = (levels, entry.bits) {
        counted("bits of codes that number levels", 4, if bits == Bits::Four { 4 } else { 8 })?;
        if !levels.iter().all(|level| level.is_finite()) {
            return Err(QuantError::NotFinite { what: "level" });
        }
    }
    let zeros = match (tensors.zeros, entry.zero) {
        (Some(zeros), None) => Zeros::PerGroup(zeros.to_vec()),
        (None, Some(zero)) => Zeros::Fixed(zero),
        (zeros, _) => {
            let found = usize::from(zeros.is_some()) * 2;
            return Err(QuantError::Malformed { what: "kinds of zero points", expected: 1, found });
        }
    };
    if !entry.factor.is_finite() {
        return Err(QuantError::NotFinite { what: "factor" });
    }
    let packed = PackedMatrix {
        spec: entry.spec(shape, levels),
        format: entry.format.clone(),
        order: entry.order,
        codes: tensors.codes,
        scales: tensors.scales,
        zeros,
        mins: tensors.mins,
        column_order: tensors.column_order,
        factor: entry.factor,
    };
    packed.check()?;
    Ok(packed)
}

/// Writes a matrix: its entry, and its tensors under `name.codes` and so on. Codes that count steps
/// are written in [`CodeOrder::Blocks`], which the fastest products read where the file is mapped.
pub fn pack(name: &str, matrix: PackedMatrix) -> (Entry, Vec<NamedTensor>) {
    let order = match matrix.spec.levels {
        Levels::Steps => CodeOrder::Blocks,
        Levels::Table(_) => CodeOrder::Rows,
    };
    let matrix = matrix.into_order(order);
    let spec = matrix.spec;
    let [out, in_] = spec.shape;
    let per_group =
        if spec.per_tensor { vec![1, 1] } else { vec![out, in_.div_ceil(spec.group_size)] };
    let called = |part: &str| format!("{name}.{part}");
    let mut tensors = vec![
        NamedTensor::bytes(called("codes"), spec.code_shape(matrix.order).to_vec(), matrix.codes),
        NamedTensor::floats(called("scales"), per_group.clone(), &matrix.scales),
    ];
    let zero = match matrix.zeros {
        Zeros::Fixed(zero) => Some(zero),
        Zeros::PerGroup(zeros) => {
            tensors.push(NamedTensor::bytes(called("zeros"), per_group.clone(), zeros.into()));
            None
        }
    };
    if let Some(mins) = &matrix.mins {
        tensors.push(NamedTensor::floats(called("mins"), per_group, mins));
    }
    if let Levels::Table(levels) = spec.levels {
        let levels = GroupValues::F32(levels.to_vec());
        tensors.push(NamedTensor::floats(called("levels"), vec![16], &levels));
    }
    if let Some(order) = &matrix.column_order {
        tensors.push(NamedTensor::words(called("column_order"), vec![in_], order));
    }
    let entry = Entry {
        format: matrix.format,
        bits: spec.bits,
        group_size: (spec.group_size < in_).then_some(spec.group_size),
        per_tensor: spec.per_tensor,
        zero,
        factor: matrix.factor,
        order: matrix.order,
    };
    (entry, tensors)
}
