//! Choosing the next token from logits, on the host.

pub mod rng;
