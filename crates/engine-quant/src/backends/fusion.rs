//! The composed references, merged by Burn's own fusion.

use burn_fusion::{Fusion, FusionBackend};

use crate::QuantOps;

impl<B: FusionBackend> QuantOps for Fusion<B> {}
