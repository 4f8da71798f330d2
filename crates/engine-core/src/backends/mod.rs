#[cfg(feature = "cube")]
mod cube;
#[cfg(feature = "flex")]
mod flex;
