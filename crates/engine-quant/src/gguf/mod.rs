//! Matrices of GGUF files: from ggml's blocks to packed rows, no bit lost.

mod blocks;
mod kind;
mod matrix;

use blocks::Layout;
pub use kind::GgufType;
pub use matrix::GgufMatrix;
