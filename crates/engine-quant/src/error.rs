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
    /// A table of levels for codes that it has no number for.
    #[error("a table of 16 levels belongs to codes of four bits, these have eight")]
    TableOfEight,
    /// An order of columns names one twice, or one that is not there.
    #[error("the order of columns is no permutation: column {column} is there twice or not at all")]
    NotAPermutation {
        /// The column.
        column: usize,
    },
    /// A type of GGUF that is not read.
    #[error(
        "type {found} is not read; read are F32, F16, BF16, Q8_0, Q4_0, Q4_1, Q5_0, Q5_1, Q2_K, \
         Q3_K, Q4_K, Q5_K, Q6_K, IQ4_NL and IQ4_XS: take the model in one of these"
    )]
    UnreadableType {
        /// Its name.
        found: String,
    },
    /// A row that ends within a block.
    #[error("a row of {found} numbers is no whole number of {format} blocks of {block_len}")]
    RowLength {
        /// The type of the blocks.
        format: String,
        /// Numbers in a block.
        block_len: usize,
        /// Numbers in a row.
        found: usize,
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
    /// A Hessian is not positive definite.
    #[error(
        "the Hessian of the activations cannot be factored even when damped by {damp}: use a longer \
         calibration text"
    )]
    NotPositive {
        /// The strongest damping that was tried.
        damp: f64,
    },
}
