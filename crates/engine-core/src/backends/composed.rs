//! The composed references by themselves, on any backend.

use burn_autodiff::{Autodiff, checkpoint::strategy::CheckpointStrategy};
use burn_tensor::backend::Backend;

use crate::CoreOps;

impl<B: Backend, C: CheckpointStrategy> CoreOps for Autodiff<B, C> {}
