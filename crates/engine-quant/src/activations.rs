use std::{fmt, str::FromStr};

/// What activations are rounded to inside a product, before they meet the weights.
///
/// Sums are never narrower than `f32`, and everything between products stays `f32`. Rounding happens
/// for each token by itself, so neither the batch nor the cache has a part in a result.
///
/// | | weights in few bits | `bf16` weights | other weights |
/// |---|---|---|---|
/// | [`F32`](Self::F32) | `f32` | `f32` | `f32` |
/// | [`Bits16`](Self::Bits16) | 16-bit integers, one scale for a few columns | `bf16` | `f32` |
/// | [`Bits8`](Self::Bits8) | 8-bit integers, likewise | `bf16` | `f32` |
///
/// A backend without kernels for the narrower types computes with `f32`, and says so in
/// [`WeightMatrix::activations`](crate::WeightMatrix::activations).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Activations {
    /// As they are.
    #[default]
    F32,
    /// 16 bits.
    Bits16,
    /// 8 bits where the weights are in few bits.
    Bits8,
}

impl Activations {
    /// All of them, the most exact first.
    pub const ALL: [Self; 3] = [Self::F32, Self::Bits16, Self::Bits8];
}

impl fmt::Display for Activations {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::F32 => "f32",
            Self::Bits16 => "16bit",
            Self::Bits8 => "8bit",
        })
    }
}

impl FromStr for Activations {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::ALL
            .into_iter()
            .find(|activations| activations.to_string() == text)
            .ok_or_else(|| format!("activations are f32, 16bit or 8bit, not `{text}`"))
    }
}
