use half::f16;
use rayon::prelude::*;

use super::segments::{STEP, Segment, num_steps, segments, vector_steps};
use crate::{Bits, PackedMatrix, PackedSpec};

/// Rows of a block.
pub const BLOCK_ROWS: usize = 16;

/// Bytes of a line: four of each row, in one cache line.
pub const LINE: usize = BLOCK_ROWS * STEP;

/// Bytes of a block's codes.
fn block_bytes(bits: Bits, segments: &[Segment]) -> usize {
    num_steps(segments) / vector_steps(bits) * LINE
}

/// Codes at the start of a cache line, wherever the allocator has put them.
pub struct Codes {
    /// The codes from `start` on, block after block.
    pub bytes: Vec<u8>,
    /// Less than a line.
    pub start: usize,
}

/// The codes of a matrix.
pub fn pack(matrix: &PackedMatrix) -> Codes {
    let spec = &matrix.spec;
    let [out, width] = spec.shape;
    let (segments, row_bytes) = (segments(spec), spec.row_bytes());
    let block_bytes = block_bytes(spec.bits, &segments);
    let len = out.div_ceil(BLOCK_ROWS) * block_bytes;
    let mut bytes = vec![0; len + LINE];
    let start = bytes.as_ptr().align_offset(LINE).min(LINE);
    bytes.truncate(start + len);
    bytes[start..].par_chunks_mut(block_bytes).enumerate().for_each_init(
        || vec![0; width],
        |codes, (block, bytes)| {
            let rows = block * BLOCK_ROWS..out.min((block + 1) * BLOCK_ROWS);
            for (lane, row) in rows.enumerate() {
                spec.bits.unpack_row(&matrix.codes[row * row_bytes..][..row_bytes], codes);
                for segment in &segments {
                    let codes = &codes[segment.start..][..segment.len];
                    let first = segment.first_step / vector_steps(spec.bits) * LINE;
                    pack_segment(spec.bits, codes, lane, &mut bytes[first..]);
                }
            }
        },
    );
    Codes { bytes, start }
}

fn pack_segment(bits: Bits, codes: &[u8], lane: usize, bytes: &mut [u8]) {
    let mut steps = codes.chunks(STEP).map(|codes| {
        let mut step = [0; STEP];
        step[..codes.len()].copy_from_slice(codes);
        u32::from_le_bytes(step)
    });
    for line in bytes.chunks_exact_mut(LINE) {
        let Some(mut step) = steps.next() else { return };
        if bits == Bits::Four {
            step |= steps.next().unwrap_or(0) << 4;
        }
        line[lane * STEP..][..STEP].copy_from_slice(&step.to_le_bytes());
    }
}

/// The numbers of the groups, those of a block's rows side by side: `[blocks, groups, 16]`, zeros
/// after the last row. One number for the whole matrix stays one.
pub fn regroup<T: Copy + Default>(spec: &PackedSpec, values: &[T]) -> Vec<T> {
    if spec.per_tensor {
        return values.to_vec();
    }
    let groups = spec.groups();
    let mut blocks = vec![T::default(); spec.shape[0].next_multiple_of(BLOCK_ROWS) * groups];
    for (row, values) in values.chunks_exact(groups).enumerate() {
        for (group, &value) in values.iter().enumerate() {
            blocks[place(groups, row, group)] = value;
        }
    }
    blocks
}

/// Where the number of a row's group lies among those of [`regroup`].
fn place(groups: usize, row: usize, group: usize) -> usize {
    (row / BLOCK_ROWS * groups + group) * BLOCK_ROWS + row % BLOCK_ROWS
}

/// Numbers of the groups in the type they are stored in.
#[derive(Clone, Copy)]
pub enum Numbers<'a> {
    F16(&'a [f16]),
    F32(&'a [f32]),
}

impl Numbers<'_> {
    pub fn len(self) -> usize {
        match self {
            Self::F16(values) => values.len(),
            Self::F32(values) => values.len(),
        }
    }

    pub fn get(self, i: usize) -> f32 {
        match self {
            Self::F16(values) => values[i].to_f32(),
            Self::F32(values) => values[i],
        }
    }
}

/// The codes of zero.
#[derive(Clone, Copy)]
pub enum StoredZeros<'a> {
    Fixed(u8),
    PerGroup(&'a [u8]),
}

/// A matrix in this layout where it is stored, all lengths checked.
pub struct Stored<'a> {
    pub spec: PackedSpec,
    pub segments: Vec<Segment>,
    /// `[blocks, lines, 64]`.
    pub codes: &'a [u8],
    /// `[blocks, groups, 16]`, or one.
    pub scales: Numbers<'a>,
    pub zeros: StoredZeros<'a>,
    /// As the scales.
    pub mins: Option<Numbers<'a>>,
}

impl<'a> Stored<'a> {
    pub fn new(
        spec: PackedSpec,
        codes: &'a [u8],
        scales: Numbers<'a>,
        (zeros, mins): (StoredZeros<'a>, Option<Numbers<'a>>),
    ) -> Self {
        let segments = segments(&spec);
        let blocks = spec.shape[0].div_ceil(BLOCK_ROWS);
        let numbers = if spec.per_tensor { 1 } else { blocks * spec.groups() * BLOCK_ROWS };
        let bytes = blocks * block_bytes(spec.bits, &segments);
        assert_eq!(codes.len(), bytes, "packed matrix: bytes of codes");
        assert_eq!(scales.len(), numbers, "packed matrix: scales");
        assert!(mins.is_none_or(|mins| mins.len() == numbers), "packed matrix: minima");
        if let StoredZeros::PerGroup(zeros) = zeros {
            assert_eq!(zeros.len(), numbers, "packed matrix: zero points");
        }
        Self { spec, segments, codes, scales, zeros, mins }
    }

    /// Bytes of a block's codes.
    pub fn block_bytes(&self) -> usize {
        block_bytes(self.spec.bits, &self.segments)
    }

    /// A row's numbers, computed as [`PackedMatrix::dequantize`] does.
    pub fn read_row(&self, row: usize, to: &mut [f32]) {
        let (block, lane) = (row / BLOCK_ROWS, row % BLOCK_ROWS);
        let codes = &self.codes[block * self.block_bytes()..][..self.block_bytes()];
        let steps = vector_steps(self.spec.bits);
        for segment in &self.segments {
            let i = match self.spec.per_tensor {
                true => 0,
                false => place(self.spec.groups(), row, segment.group),
            };
            let (scale, min) = (self.scales.get(i), self.mins.map(|mins| mins.get(i)));
            let zero = f32::from(match self.zeros {
                StoredZeros::Fixed(zero) => zero,
                StoredZeros::PerGroup(zeros) => zeros[i],
            });
            let lines = codes.chunks_exact(LINE).skip(segment.first_step / steps);
            let to = &mut to[segment.start..][..segment.len];
            for (to, line) in to.chunks_mut(STEP * steps).zip(lines) {
                for (column, to) in to.iter_mut().enumerate() {
                    let byte = line[lane * STEP + column % STEP];
                    let code = match self.spec.bits {
                        Bits::Four => byte >> (column / STEP * 4) & 15,
                        Bits::Eight => byte,
                    };
                    let scaled = (f32::from(code) - zero) * scale;
                    *to = min.map_or(scaled, |min| scaled + min);
                }
            }
        }
    }
}
