use std::{fmt, str::FromStr};

/// What activations are rounded to inside a product, before they meet the weights.
///
/// Sums are never narrower than `f32`, and everything between products stays `f32`. Rounding happens
/// for each token by itself, so neither the batch nor the cache has a part in a result.
///
/// | | weights in few bits | `bf16` weights | other weights |
/// |---|---|---|---|
/// | [`F32`](Self::F32) | `f32` | `f32` | `f32` |
/// | [`Bits24`](Self::Bits24) | 24-bit integers, one scale for a few columns | `f32` | `f32` |
/// | [`Bits16`](Self::Bits16) | 16-bit integers, likewise | `bf16` | `f32` |
/// | [`Bits8`](Self::Bits8) | 8-bit integers, likewise | `bf16` | `f32` |
///
/// A backend without kernels for the narrower types computes with `f32`, and says so in
/// [`WeightMatrix::activations`](crate::WeightMatrix::activations).
///
/// With 24 bits an activation is off by at most 2⁻²³ of the largest one beside it and sums are exact
/// but for one rounding for each few columns, so results are as near to the exact ones as those of
/// `f32`, which rounds every product and every sum. They are what a model is loaded with where the
/// CPU multiplies integers faster than floats; see [`QuantOps::exact`](crate::QuantOps::exact).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Activations {
    /// As they are.
    F32,
    /// 24 bits where the weights are in few bits, otherwise as they are.
    Bits24,
    /// 16 bits.
    Bits16,
    /// 8 bits where the weights are in few bits.
    Bits8,
}

impl Activations {
    /// All of them, the most exact first.
    pub const ALL: [Self; 4] = [Self::F32, Self::Bits24, Self::Bits16, Self::Bits8];
}

impl fmt::Display for Activations {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::F32 => "f32",
            Self::Bits24 => "24bit",
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
            .ok_or_else(|| format!("activations are f32, 24bit, 16bit or 8bit, not `{text}`"))
    }
}
