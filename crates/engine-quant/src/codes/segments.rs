use crate::{Bits, PackedSpec};

/// Columns of the longest segment: sums of so many products of codes and 16-bit integers, or
/// of two digits, stay below 2³¹.
pub(crate) const MAX_COLUMNS: usize = 256;

/// Columns of a step: the bytes that one lane of 32 bits multiplies.
pub(crate) const STEP: usize = 4;

/// Neighbouring columns of one group, rounded with one scale.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Segment {
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
pub(crate) fn segments(spec: &PackedSpec) -> Vec<Segment> {
    let width = spec.shape[1];
    let group_size = if spec.per_tensor { width } else { spec.group_size.min(width) }.max(1);
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
pub(crate) fn vector_steps(bits: Bits) -> usize {
    match bits {
        Bits::Four => 2,
        Bits::Eight => 1,
    }
}

/// Steps of a whole row.
pub(crate) fn num_steps(segments: &[Segment]) -> usize {
    segments.last().map_or(0, |last| last.first_step + last.steps)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Levels;

    #[test]
    fn columns_become_segments_within_groups() {
        let spans = |width: usize, group_size: usize, bits: Bits| -> Vec<_> {
            let levels = Levels::Steps;
            let spec =
                PackedSpec { shape: [1, width], bits, levels, group_size, per_tensor: false };
            let segments = segments(&spec);
            segments.iter().map(|s| (s.start, s.len, s.group, s.first_step, s.steps)).collect()
        };
        assert_eq!(spans(7, 3, Bits::Eight), [(0, 3, 0, 0, 1), (3, 3, 1, 1, 1), (6, 1, 2, 2, 1)]);
        assert_eq!(spans(7, 5, Bits::Four), [(0, 5, 0, 0, 2), (5, 2, 1, 2, 2)]);
        let cut = [(0, 256, 0, 0, 64), (256, 44, 0, 64, 11), (300, 200, 1, 75, 50)];
        assert_eq!(spans(500, 300, Bits::Eight), cut);
        assert_eq!(spans(512, 512, Bits::Four), [(0, 256, 0, 0, 64), (256, 256, 0, 64, 64)]);
    }
}
