#[cfg(feature = "composed")]
mod composed;
#[cfg(feature = "cube")]
pub(crate) mod cube;
#[cfg(feature = "flex")]
pub(crate) mod flex;
#[cfg(feature = "fusion")]
mod fusion;
