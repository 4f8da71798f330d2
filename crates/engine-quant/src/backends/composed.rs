//! The composed references by themselves, on any backend.

use burn_autodiff::{Autodiff, checkpoint::strategy::CheckpointStrategy};
use burn_tensor::backend::Backend;

use crate::QuantOps;

impl<B: Backend, C: CheckpointStrategy> QuantOps for Autodiff<B, C> {}
