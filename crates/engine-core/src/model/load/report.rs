use std::fmt;

/// What became of the matrices of a file.
///
/// Vectors (norms, biases) are always `f32` and not counted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LoadReport {
    /// Bytes of all tensors in the file.
    pub file_bytes: usize,
    /// Matrices that became the same, in order of first appearance.
    pub entries: Vec<LoadEntry>,
    /// Matrices that a rule wanted in few bits and that the file already has in few bits: they stay
    /// as they are.
    pub left_as_stored: usize,
}

/// Matrices of the same type that became the same.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoadEntry {
    /// The type in the file, such as `BF16`, `Q4_K` or `gptq int4`.
    pub stored_type: String,
    /// The format in memory, such as `bf16` or `int4:group=32:sym8`.
    pub format: String,
    /// How the one became the other.
    pub treatment: Treatment,
    /// How many matrices; rows of one tensor that became different things count once each.
    pub matrices: usize,
    /// Bytes in memory.
    pub num_bytes: usize,
}

/// How a matrix of a file became the one in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Treatment {
    /// The same numbers, and the same codes where they are in few bits.
    Kept,
    /// From floats to few bits.
    Quantized,
    /// From few bits to floats: the same numbers in a form that takes more memory, as there is no
    /// kernel for the file's.
    Dequantized,
    /// From few bits to floats and then, as the plan asked for it, to other bits.
    Requantized,
}

impl LoadReport {
    pub(super) fn add(&mut self, entry: LoadEntry) {
        let same = |old: &&mut LoadEntry| {
            old.stored_type == entry.stored_type
                && old.format == entry.format
                && old.treatment == entry.treatment
        };
        match self.entries.iter_mut().find(same) {
            Some(old) => {
                old.matrices += entry.matrices;
                old.num_bytes += entry.num_bytes;
            }
            None => self.entries.push(entry),
        }
    }
}

impl fmt::Display for LoadEntry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { stored_type, format, treatment, matrices, num_bytes } = self;
        write!(f, "{matrices} {stored_type} ")?;
        match treatment {
            Treatment::Kept => f.write_str("kept")?,
            Treatment::Quantized => write!(f, "quantized to {format}")?,
            Treatment::Dequantized => write!(f, "dequantized to {format}")?,
            Treatment::Requantized => write!(f, "requantized to {format}")?,
        }
        write!(f, " ({:.1} MiB)", *num_bytes as f64 / f64::from(1 << 20))
    }
}

impl fmt::Display for LoadReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("matrices: ")?;
        for (i, entry) in self.entries.iter().enumerate() {
            write!(f, "{}{entry}", if i == 0 { "" } else { ", " })?;
        }
        if self.left_as_stored > 0 {
            let count = self.left_as_stored;
            write!(f, "; {count} that the plan wanted to quantize are in few bits already")?;
        }
        Ok(())
    }
}
