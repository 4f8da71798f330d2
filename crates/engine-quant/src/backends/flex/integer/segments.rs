use crate::{Bits, PackedSpec};

/// Columns of the longest segment: sums of so many products of codes and 16-bit integers, or
/// of two digits, stay below 2³¹.
pub const MAX_COLUMNS: usize = 256;

/// Columns of a step: the bytes that one lane of 32 bits multiplies.
pub const STEP: usize = 4;

/// Neighbouring columns of one group, rounded with one scale.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segment {
    /// First column.
    pub start: usize,
    /// Columns.
    pub len: usize,
    /// Group of a row that they belong to.
    pub group: usize,
    /// First step.
    pub first_step: usize,
    /// Steps, the last ones perhaps beyond the segment's columns.
    pub steps: usize,
}

/// The segments of a row in order: groups of up to 256 columns are one each, longer ones are cut
/// into such of 256 and a rest.
pub fn segments(spec: &PackedSpec) -> Vec<Segment> {
    let width = spec.shape[1];
    let group_size = if spec.per_tensor { width } else { spec.group_size.min(width) };
    let unit = STEP * vector_steps(spec.bits);
    let pieces = group_size.div_ceil(MAX_COLUMNS);
    let mut segments: Vec<Segment> = Vec::with_capacity(width.div_ceil(group_size) * pieces);
    let (mut start, mut group, mut first_step) = (0, 0, 0);
    while start < width {
        let group_end = width.min((group + 1) * group_size);
        let len = MAX_COLUMNS.min(group_end - start);
        let steps = len.div_ceil(unit) * unit / STEP;
        segments.push(Segment { start, len, group, first_step, steps });
        start += len;
        first_step += steps;
        group += usize::from(start == group_end);
    }
    segments
}

/// Steps in a vector of codes.
pub fn vector_steps(bits: Bits) -> usize {
    match bits {
        Bits::Four => 2,
        Bits::Eight => 1,
    }
}

/// Steps of a whole row.
pub fn num_steps(segments: &[Segment]) -> usize {
    segments.last().map_or(0, |last| last.first_step + last.steps)
}
