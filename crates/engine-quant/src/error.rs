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
}
