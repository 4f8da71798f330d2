use thiserror::Error;

/// Why a matrix could not be stored.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum QuantError {
    /// The data is not a matrix.
    #[error("a weight matrix has two dimensions, found shape {found:?}")]
    NotAMatrix {
        /// The shape that was given.
        found: Vec<usize>,
    },
    /// The element type is not one of the dense formats.
    #[error(
        "dense weights are f32, f16 or bf16, found {found}; convert the checkpoint to one of these"
    )]
    UnsupportedType {
        /// The element type that was given.
        found: String,
    },
    /// A matrix without rows or columns, or groups without columns.
    #[error("a matrix of shape {shape:?} in groups of {group_size} columns holds nothing")]
    Empty {
        /// `[out, in]`.
        shape: [usize; 2],
        /// Columns in a group.
        group_size: usize,
    },
    /// A packed matrix whose parts do not fit together.
    #[error("expected {expected} {what}, found {found}")]
    Malformed {
        /// What was counted.
        what: &'static str,
        /// How many the shape asks for.
        expected: usize,
        /// How many there are.
        found: usize,
    },
    /// A number is infinite or no number.
    #[error("a {what} is not finite: the weights are damaged or too large for half precision")]
    NotFinite {
        /// Which kind of number.
        what: &'static str,
    },
    /// An order of columns names one twice, or one that is not there.
    #[error("the order of columns is no permutation: column {column} is there twice or not at all")]
    NotAPermutation {
        /// The column.
        column: usize,
    },
    /// A column belongs to a group that is not there.
    #[error("column {column} belongs to a group that is not there, there are {groups}")]
    NoSuchGroup {
        /// The input column.
        column: usize,
        /// How many groups there are.
        groups: usize,
    },
    /// A matrix that a layout of files cannot hold.
    #[error("the layout `{layout}` cannot hold this matrix: {problem}; write it in our own")]
    Unwritable {
        /// The layout.
        layout: &'static str,
        /// What the layout demands.
        problem: &'static str,
    },
}
