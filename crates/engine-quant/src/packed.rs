//! The one stored form of every matrix in few bits, on the host.
//!
//! `value = (level(code) − zero) · scale + min`, with scale, zero and min of the code's group. That
//! covers round-to-nearest, GPTQ and AWQ (zero points), NF4 and IQ4 (tables of levels) and GGUF's
//! blocks (mins), each with its own bits.

use half::f16;

use crate::{CodeOrder, QuantError, SharedBytes, codes::CodeLayout};

/// Width of a code.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Bits {
    /// 0 ..= 15.
    Four,
    /// 0 ..= 255.
    Eight,
}

/// Columns of a chunk of four-bit codes; 16 bytes.
pub const CHUNK: usize = 32;

impl Bits {
    /// Bytes of a row's codes.
    pub fn row_bytes(self, columns: usize) -> usize {
        match self {
            Self::Four => columns.div_ceil(CHUNK) * 16,
            Self::Eight => columns.next_multiple_of(16),
        }
    }

    /// Packs a row's codes, one in each byte, into `packed`, [`Bits::row_bytes`] long.
    pub fn pack_row(self, codes: &[u8], packed: &mut [u8]) {
        packed.fill(0);
        match self {
            Self::Eight => packed[..codes.len()].copy_from_slice(codes),
            Self::Four => {
                for (chunk, bytes) in codes.chunks(CHUNK).zip(packed.chunks_exact_mut(16)) {
                    for (i, code) in chunk.iter().enumerate() {
                        bytes[i % 16] |= (code & 15) << (i / 16 * 4);
                    }
                }
            }
        }
    }

    /// Unpacks a row's codes, one into each byte: the inverse of [`Bits::pack_row`].
    pub fn unpack_row(self, packed: &[u8], codes: &mut [u8]) {
        match self {
            Self::Eight => {
                let columns = codes.len();
                codes.copy_from_slice(&packed[..columns]);
            }
            Self::Four => {
                for (chunk, bytes) in codes.chunks_mut(CHUNK).zip(packed.chunks_exact(16)) {
                    for (i, code) in chunk.iter_mut().enumerate() {
                        *code = bytes[i % 16] >> (i / 16 * 4) & 15;
                    }
                }
            }
        }
    }
}

/// What a code counts.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Levels {
    /// Steps of the group's scale: the level is the code itself.
    Steps,
    /// Four-bit codes number these levels.
    Table([f32; 16]),
}

/// Numbers of the groups, in the type that the format stores them in.
#[derive(Debug, Clone, PartialEq)]
pub enum GroupValues {
    /// Half precision.
    F16(Vec<f16>),
    /// Single precision.
    F32(Vec<f32>),
}

impl GroupValues {
    /// How many there are.
    pub fn len(&self) -> usize {
        match self {
            Self::F16(values) => values.len(),
            Self::F32(values) => values.len(),
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Number `i`.
    pub fn get(&self, i: usize) -> f32 {
        match self {
            Self::F16(values) => values[i].to_f32(),
            Self::F32(values) => values[i],
        }
    }

    /// All of them as `f32`.
    pub fn to_f32(&self) -> Vec<f32> {
        (0..self.len()).map(|i| self.get(i)).collect()
    }

    /// Bytes of all of them.
    pub fn num_bytes(&self) -> usize {
        match self {
            Self::F16(values) => values.len() * 2,
            Self::F32(values) => values.len() * 4,
        }
    }

    fn append(&mut self, other: Self) -> bool {
        match (self, other) {
            (Self::F16(to), Self::F16(mut from)) => to.append(&mut from),
            (Self::F32(to), Self::F32(mut from)) => to.append(&mut from),
            _ => return false,
        }
        true
    }
}

/// The codes of zero.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Zeros {
    /// One for all groups.
    Fixed(u8),
    /// One for each group, `[out, groups]`.
    PerGroup(Vec<u8>),
}

/// Shape and rules of a packed matrix: everything but its numbers.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PackedSpec {
    /// `[out, in]`.
    pub shape: [usize; 2],
    /// Width of a code.
    pub bits: Bits,
    /// What a code counts.
    pub levels: Levels,
    /// Columns that share a scale; the last group of a row may be shorter.
    pub group_size: usize,
    /// Whether one group is the whole matrix.
    pub per_tensor: bool,
}

impl PackedSpec {
    /// Groups in a row.
    pub fn groups(&self) -> usize {
        if self.per_tensor { 1 } else { self.shape[1].div_ceil(self.group_size) }
    }

    /// Groups in the matrix.
    pub fn num_groups(&self) -> usize {
        if self.per_tensor { 1 } else { self.shape[0] * self.groups() }
    }

    /// The group of a row's column.
    pub fn group_of(&self, row: usize, column: usize) -> usize {
        if self.per_tensor { 0 } else { row * self.groups() + column / self.group_size }
    }

    /// Bytes of a row's codes in [`CodeOrder::Rows`].
    pub fn row_bytes(&self) -> usize {
        self.bits.row_bytes(self.shape[1])
    }

    /// Rows or blocks, and the bytes of each.
    pub fn code_shape(&self, order: CodeOrder) -> [usize; 2] {
        let layout = CodeLayout::new(self, order);
        [layout.chunks(), layout.chunk_bytes()]
    }

    /// Bytes of all codes.
    pub fn code_bytes(&self, order: CodeOrder) -> usize {
        let [chunks, bytes] = self.code_shape(order);
        chunks * bytes
    }
}

/// A matrix in few bits, on the host.
///
/// ```
/// use engine_quant::{CodeOrder, Grid, SliceRows, round_to_nearest};
/// let rows = SliceRows { values: &[0.5, -1.27, 0.0, 10.0], columns: 2 };
/// let matrix = round_to_nearest(&rows, Grid::Int8)?;
/// let blocks = matrix.clone().into_order(CodeOrder::Blocks);
/// assert_eq!(blocks.dequantize(), matrix.dequantize());
/// # Ok::<(), engine_quant::QuantError>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct PackedMatrix {
    /// Shape and rules.
    pub spec: PackedSpec,
    /// The name that reports show, such as `int4:group=32:asym` or `q4_k`.
    pub format: String,
    /// In this order the codes are.
    pub order: CodeOrder,
    /// `[out, row_bytes]`, or blocks of rows.
    pub codes: SharedBytes,
    /// `[out, groups]`; one where the group is the whole matrix.
    pub scales: GroupValues,
    /// The codes of zero.
    pub zeros: Zeros,
    /// Added to every number of a group, `[out, groups]`.
    pub mins: Option<GroupValues>,
    /// Packed column `k` multiplies column `order[k]` of the input: GPTQ's act-order keeps a
    /// group's columns together this way.
    pub column_order: Option<Vec<u32>>,
    /// Multiplies every number after all else, a rounding of its own: bitsandbytes' INT8 has
    /// 1/127 there. Otherwise 1.
    pub factor: f32,
}

impl PackedMatrix {
    /// Checks that all lengths fit the shape, that scales are finite and the order a permutation.
    ///
    /// # Errors
    /// [`QuantError::Malformed`] says what does not fit.
    pub fn check(&self) -> Result<(), QuantError> {
        let spec = &self.spec;
        let [out, in_] = spec.shape;
        let malformed = |what, expected: usize, found: usize| {
            if expected == found {
                return Ok(());
            }
            Err(QuantError::Malformed { what, expected, found })
        };
        if out == 0 || in_ == 0 || spec.group_size == 0 {
            return Err(QuantError::Empty { shape: spec.shape, group_size: spec.group_size });
        }
        if spec.bits == Bits::Eight && spec.levels != Levels::Steps {
            return Err(QuantError::TableOfEight);
        }
        malformed("bytes of codes", spec.code_bytes(self.order), self.codes.len())?;
        malformed("scales", spec.num_groups(), self.scales.len())?;
        if let Zeros::PerGroup(zeros) = &self.zeros {
            malformed("zero points", spec.num_groups(), zeros.len())?;
        }
        if let Some(mins) = &self.mins {
            malformed("minima", spec.num_groups(), mins.len())?;
        }
        let mut numbers = [Some(&self.scales), self.mins.as_ref()].into_iter().flatten();
        if !numbers.all(|values| (0..values.len()).all(|i| values.get(i).is_finite())) {
            return Err(QuantError::NotFinite { what: "scale" });
        }
        if let Some(order) = &self.column_order {
            malformed("columns in the order", in_, order.len())?;
            let mut seen = vec![false; in_];
            for &column in order {
                match seen.get_mut(column as usize) {
                    Some(seen) if !*seen => *seen = true,
                    _ => return Err(QuantError::NotAPermutation { column: column as usize }),
                }
            }
        }
        Ok(())
    }

    /// Bytes of codes row by row, scales, zero points, minima and column order.
    pub fn num_bytes(&self) -> usize {
        let zeros = match &self.zeros {
            Zeros::Fixed(_) => 0,
            Zeros::PerGroup(zeros) => zeros.len(),
        };
        self.spec.code_bytes(CodeOrder::Rows)
            + self.scales.num_bytes()
            + zeros
            + self.mins.as_ref().map_or(0, GroupValues::num_bytes)
            + self.column_order.as_ref().map_or(0, |order| order.len() * size_of::<u32>())
    }

    /// The same matrix with its codes in this order; they are copied if they are in another one.
    pub fn into_order(self, order: CodeOrder) -> Self {
        if order == self.order {
            return self;
        }
        let codes = CodeLayout::new(&self.spec, order).reorder(&self.code_layout(), &self.codes);
        Self { order, codes, ..self }
    }

    fn code_layout(&self) -> CodeLayout {
        CodeLayout::new(&self.spec, self.order)
    }

    /// Calls `see` with the number of each row and its codes, one in each byte.
    pub fn for_rows(&self, mut see: impl FnMut(usize, &[u8])) {
        let [out, in_] = self.spec.shape;
        let (layout, mut codes) = (self.code_layout(), vec![0; in_]);
        for row in 0..out {
            layout.read(&self.codes, row, &mut codes);
            see(row, &codes);
        }
    }

    /// Row `row` in the order of the packed columns, [`PackedMatrix::factor`] not applied.
    fn packed_row(&self, row: usize, codes: &[u8], values: &mut [f32]) {
        let spec = &self.spec;
        let groups = codes.chunks(spec.group_size).zip(values.chunks_mut(spec.group_size));
        for (g, (codes, values)) in groups.enumerate() {
            let group = spec.group_of(row, g * spec.group_size);
            let scale = self.scales.get(group);
            let min = self.mins.as_ref().map(|mins| mins.get(group));
            let zero = f32::from(match &self.zeros {
                Zeros::Fixed(zero) => *zero,
                Zeros::PerGroup(zeros) => zeros[group],
            });
            for (value, &code) in values.iter_mut().zip(codes.iter()) {
                let level = match &spec.levels {
                    Levels::Steps => f32::from(code),
                    Levels::Table(levels) => levels[usize::from(code)],
                };
                let scaled = (level - zero) * scale;
                *value = min.map_or(scaled, |min| scaled + min);
            }
        }
    }

    /// The numbers, `f32 [out, in]` in row-major order: the definition that every kernel equals.
    pub fn dequantize(&self) -> Vec<f32> {
        let [out, in_] = self.spec.shape;
        let mut result = vec![0.0; out * in_];
        let mut packed = vec![0.0; in_];
        self.for_rows(|row, codes| {
            let values = &mut result[row * in_..][..in_];
            self.packed_row(row, codes, &mut packed);
            match &self.column_order {
                Some(order) => {
                    for (&column, &value) in order.iter().zip(&packed) {
                        values[column as usize] = value;
                    }
                }
                None => values.copy_from_slice(&packed),
            }
            if self.factor != 1.0 {
                values.iter_mut().for_each(|value| *value *= self.factor);
            }
        });
        result
    }

    /// Puts the rows of several matrices below one another, or gives them back as they were if
    /// their rules differ. Codes that are neighbours stay where they are; others are copied if they
    /// have at most `max_copy` bytes.
    ///
    /// # Errors
    /// The matrices themselves.
    pub fn stack(parts: Vec<Self>, max_copy: usize) -> Result<Self, Vec<Self>> {
        let alike = |a: &Self, b: &Self| {
            let unshaped = |spec: PackedSpec| PackedSpec { shape: [0, spec.shape[1]], ..spec };
            !a.spec.per_tensor
                && unshaped(a.spec) == unshaped(b.spec)
                && a.format == b.format
                && a.column_order == b.column_order
                && a.factor == b.factor
                && std::mem::discriminant(&a.scales) == std::mem::discriminant(&b.scales)
                && a.mins.as_ref().map(std::mem::discriminant)
                    == b.mins.as_ref().map(std::mem::discriminant)
                && match (&a.zeros, &b.zeros) {
                    (Zeros::Fixed(a), Zeros::Fixed(b)) => a == b,
                    (Zeros::PerGroup(_), Zeros::PerGroup(_)) => true,
                    _ => false,
                }
        };
        if parts.is_empty() || !parts[1..].iter().all(|part| alike(&parts[0], part)) {
            return Err(parts);
        }
        let Some((order, codes)) = stack_codes(&parts, max_copy) else { return Err(parts) };
        let mut parts = parts.into_iter();
        let Some(mut all) = parts.next() else { return Err(Vec::new()) };
        (all.order, all.codes) = (order, codes);
        for mut part in parts {
            all.spec.shape[0] += part.spec.shape[0];
            all.scales.append(part.scales);
            if let (Zeros::PerGroup(to), Zeros::PerGroup(from)) = (&mut all.zeros, &mut part.zeros)
            {
                to.append(from);
            }
            if let (Some(to), Some(from)) = (&mut all.mins, part.mins) {
                to.append(from);
            }
        }
        Ok(all)
    }
}

/// The codes of matrices below one another: as they are, if only the last has a chunk that is not
/// full, and otherwise row by row.
fn stack_codes(parts: &[PackedMatrix], max_copy: usize) -> Option<(CodeOrder, SharedBytes)> {
    let order = parts[0].order;
    let full =
        |part: &PackedMatrix| part.spec.shape[0].is_multiple_of(part.code_layout().chunk_rows());
    let as_they_are =
        parts.iter().all(|part| part.order == order) && parts[..parts.len() - 1].iter().all(full);
    if as_they_are {
        let codes: Vec<_> = parts.iter().map(|part| part.codes.clone()).collect();
        return Some((order, SharedBytes::join(&codes, max_copy)?));
    }
    if parts.iter().map(|part| part.codes.len()).sum::<usize>() > max_copy {
        return None;
    }
    let in_rows = |part: &PackedMatrix| part.clone().into_order(CodeOrder::Rows).codes;
    let codes: Vec<_> = parts.iter().map(in_rows).collect();
    Some((CodeOrder::Rows, SharedBytes::join(&codes, usize::MAX)?))
}
