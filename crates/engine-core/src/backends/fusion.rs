//! The composed references, merged by Burn's own fusion.

use burn_fusion::{Fusion, FusionBackend};

use crate::CoreOps;

impl<B: FusionBackend> CoreOps for Fusion<B> {}
