//! Measures an engine: how fast it is, and how well its model predicts.
//!
//! * [`perplexity`]: how well a model predicts a text.

#![forbid(unsafe_code)]

pub mod perplexity;
