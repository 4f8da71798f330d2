use half::f16;

use crate::codes::{BLOCK_ROWS, CodeLayout, LINE, STEP, Segment, vector_steps};
use crate::{Bits, CodeOrder, PackedSpec};

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
    /// Bytes of a block's codes.
    pub block_bytes: usize,
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
        let layout = CodeLayout::new(&spec, CodeOrder::Blocks);
        let blocks = layout.chunks();
        let numbers = if spec.per_tensor { 1 } else { blocks * spec.groups() * BLOCK_ROWS };
        assert_eq!(codes.len(), layout.num_bytes(), "packed matrix: bytes of codes");
        assert_eq!(scales.len(), numbers, "packed matrix: scales");
        assert!(mins.is_none_or(|mins| mins.len() == numbers), "packed matrix: minima");
        if let StoredZeros::PerGroup(zeros) = zeros {
            assert_eq!(zeros.len(), numbers, "packed matrix: zero points");
        }
        let (block_bytes, segments) = (layout.chunk_bytes(), layout.into_segments());
        Self { spec, segments, block_bytes, codes, scales, zeros, mins }
    }

    /// A row's numbers, computed as [`PackedMatrix::dequantize`] does.
    pub fn read_row(&self, row: usize, to: &mut [f32]) {
        let (block, lane) = (row / BLOCK_ROWS, row % BLOCK_ROWS);
        let codes = &self.codes[block * self.block_bytes..][..self.block_bytes];
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
