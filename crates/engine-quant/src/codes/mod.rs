//! The two orders of codes.

mod segments;

use rayon::prelude::*;

use segments::segments;
pub(crate) use segments::{MAX_COLUMNS, STEP, Segment, num_steps, vector_steps};

use crate::{Bits, PackedSpec, SharedBytes};

/// Rows of a block.
pub(crate) const BLOCK_ROWS: usize = 16;

/// Bytes of a line: four of each row, in one cache line.
pub(crate) const LINE: usize = BLOCK_ROWS * STEP;

/// In which order a packed matrix has its codes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum CodeOrder {
    /// Row after row, each at a multiple of 16 bytes. Codes of eight bits are bytes. Codes of four
    /// bits stand in chunks of 16 bytes for 32 columns: byte `i` has column `i` in its low half and
    /// column `i + 16` in its high half, so that vectors of 16 come out of one load with one shift.
    #[default]
    Rows,
    /// Blocks of 16 rows, each the segments of a row one after the other: the columns of a group, or
    /// of each 256 of a longer one, filled up to a multiple of four (eight bits) or eight (four bits).
    /// A segment is lines of 64 bytes, four for each row: its next four columns, or the next eight,
    /// the first four of these in the lower halves. So the products that round activations to
    /// integers read them, with no step in between when the file has them like this.
    Blocks,
}

impl CodeOrder {
    /// The name in `config.json`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Rows => "rows",
            Self::Blocks => "blocks",
        }
    }
}

/// Where the codes of a matrix lie.
pub(crate) struct CodeLayout {
    spec: PackedSpec,
    order: CodeOrder,
    /// Those of blocks.
    segments: Vec<Segment>,
}

impl CodeLayout {
    pub fn new(spec: &PackedSpec, order: CodeOrder) -> Self {
        let segments = match order {
            CodeOrder::Rows => Vec::new(),
            CodeOrder::Blocks => segments(spec),
        };
        Self { spec: *spec, order, segments }
    }

    pub fn into_segments(self) -> Vec<Segment> {
        self.segments
    }

    /// Rows of a chunk: a row or a block.
    pub fn chunk_rows(&self) -> usize {
        match self.order {
            CodeOrder::Rows => 1,
            CodeOrder::Blocks => BLOCK_ROWS,
        }
    }

    /// Bytes of a chunk.
    pub fn chunk_bytes(&self) -> usize {
        match self.order {
            CodeOrder::Rows => self.spec.row_bytes(),
            CodeOrder::Blocks => num_steps(&self.segments) / vector_steps(self.spec.bits) * LINE,
        }
    }

    /// Chunks of the matrix.
    pub fn chunks(&self) -> usize {
        self.spec.shape[0].div_ceil(self.chunk_rows())
    }

    /// Bytes of all codes.
    pub fn num_bytes(&self) -> usize {
        self.chunks() * self.chunk_bytes()
    }

    /// Puts the codes of row `lane` of a chunk, one in each byte, where there are zeros.
    pub fn write(&self, lane: usize, codes: &[u8], chunk: &mut [u8]) {
        if self.order == CodeOrder::Rows {
            return self.spec.bits.pack_row(codes, chunk);
        }
        let steps = vector_steps(self.spec.bits);
        for segment in &self.segments {
            let codes = &codes[segment.start..][..segment.len];
            let lines = chunk.chunks_exact_mut(LINE).skip(segment.first_step / steps);
            for (codes, line) in codes.chunks(STEP * steps).zip(lines) {
                let (first, second) = codes.split_at(codes.len().min(STEP));
                let word = match self.spec.bits {
                    Bits::Four => word(first) & 0x0F0F_0F0F | (word(second) & 0x0F0F_0F0F) << 4,
                    Bits::Eight => word(first),
                };
                line[lane * STEP..][..STEP].copy_from_slice(&word.to_le_bytes());
            }
        }
    }

    /// Copies the codes of row `row`, one into each byte.
    pub fn read(&self, bytes: &[u8], row: usize, codes: &mut [u8]) {
        let chunk = &bytes[row / self.chunk_rows() * self.chunk_bytes()..][..self.chunk_bytes()];
        if self.order == CodeOrder::Rows {
            return self.spec.bits.unpack_row(chunk, codes);
        }
        let steps = vector_steps(self.spec.bits);
        for segment in &self.segments {
            let codes = &mut codes[segment.start..][..segment.len];
            let lines = chunk.chunks_exact(LINE).skip(segment.first_step / steps);
            for (codes, line) in codes.chunks_mut(STEP * steps).zip(lines) {
                let bytes = &line[row % BLOCK_ROWS * STEP..][..STEP];
                for (column, code) in codes.iter_mut().enumerate() {
                    *code = match self.spec.bits {
                        Bits::Four => bytes[column % STEP] >> (column / STEP * 4) & 15,
                        Bits::Eight => bytes[column % STEP],
                    };
                }
            }
        }
    }

    /// The codes of a matrix of the same shape in this order.
    pub fn reorder(&self, from: &Self, bytes: &[u8]) -> SharedBytes {
        let mut to = Lines::zeroed(self.num_bytes());
        let [out, width] = self.spec.shape;
        to.bytes().par_chunks_exact_mut(self.chunk_bytes().max(1)).enumerate().for_each_init(
            || vec![0; width],
            |codes, (i, chunk)| {
                let rows = i * self.chunk_rows()..out.min((i + 1) * self.chunk_rows());
                for (lane, row) in rows.enumerate() {
                    from.read(bytes, row, codes);
                    self.write(lane, codes, chunk);
                }
            },
        );
        to.into_shared()
    }
}

/// Up to four codes, zeros after them.
fn word(codes: &[u8]) -> u32 {
    let mut bytes = [0; STEP];
    bytes[..codes.len()].copy_from_slice(codes);
    u32::from_le_bytes(bytes)
}

/// Bytes at the start of a cache line, wherever the allocator has put them.
#[derive(Debug)]
pub(crate) struct Lines {
    bytes: Vec<u8>,
    /// Less than a line.
    start: usize,
    len: usize,
}

impl Lines {
    /// Zeros, in memory that is taken when it is written.
    pub fn zeroed(len: usize) -> Self {
        let bytes = vec![0; len + LINE];
        let start = bytes.as_ptr().align_offset(LINE).min(LINE);
        Self { bytes, start, len }
    }

    pub fn bytes(&mut self) -> &mut [u8] {
        &mut self.bytes[self.start..][..self.len]
    }

    pub fn into_shared(self) -> SharedBytes {
        SharedBytes::from(self.bytes).slice(self.start..self.start + self.len)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::Levels;

    proptest! {
        #[test]
        fn both_orders_hold_the_same_codes(
            out in 1..40_usize,
            width in 1..600_usize,
            group_size in 1..600_usize,
            four in any::<bool>(),
            per_tensor in any::<bool>(),
        ) {
            let (bits, max) = if four { (Bits::Four, 15) } else { (Bits::Eight, 255) };
            let levels = Levels::Steps;
            let group_size = group_size.min(width);
            let spec = PackedSpec { shape: [out, width], bits, levels, group_size, per_tensor };
            let code = |row: usize, column: usize| (row * 31 + column * 7 + column / 256) as u8 & max;
            let [rows, blocks] =
                [CodeOrder::Rows, CodeOrder::Blocks].map(|order| CodeLayout::new(&spec, order));
            let mut bytes = vec![0; rows.num_bytes()];
            for (row, chunk) in bytes.chunks_exact_mut(rows.chunk_bytes()).enumerate() {
                let codes: Vec<u8> = (0..width).map(|column| code(row, column)).collect();
                rows.write(0, &codes, chunk);
            }
            let reordered = blocks.reorder(&rows, &bytes);
            prop_assert!(reordered.is_aligned(LINE));
            prop_assert_eq!(reordered.len() % LINE, 0);
            let mut codes = vec![0; width];
            for row in 0..out {
                blocks.read(&reordered, row, &mut codes);
                prop_assert!((0..width).all(|column| codes[column] == code(row, column)));
            }
            prop_assert_eq!(&*rows.reorder(&blocks, &reordered), &bytes[..]);
        }
    }
}
