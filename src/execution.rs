use crate::Device;

/// With which operations a model computes.
///
/// Only [`Execution::Kernels`] is meant for use. The others are the definition that the kernels are
/// tested against, and the baselines that show what they gain.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Execution {
    /// The engine's own kernels.
    #[default]
    Kernels,
    /// Plain Burn operations one after the other, each with a result of its own in memory; needs
    /// the feature `composed`.
    Composed,
    /// Plain Burn operations that Burn merges into kernels while it runs, on GPUs; needs the feature
    /// `fusion`.
    Fusion,
}

impl Execution {
    /// Whether this build has it on this device.
    pub fn is_available(self, device: Device) -> bool {
        self.problem(device).is_none()
    }

    /// Why not.
    pub(crate) fn problem(self, device: Device) -> Option<&'static str> {
        match self {
            Self::Kernels => None,
            Self::Composed if cfg!(feature = "composed") => None,
            Self::Composed => {
                Some("this build has no composed operations: build with the feature `composed`")
            }
            Self::Fusion if device == Device::Cpu => {
                Some("Burn fuses operations on GPUs alone: choose another device")
            }
            Self::Fusion if cfg!(feature = "fusion") => None,
            Self::Fusion => Some("this build cannot fuse: build with the feature `fusion`"),
        }
    }
}
