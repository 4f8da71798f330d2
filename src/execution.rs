/// With which operations a model computes.
///
/// Only [`Execution::Kernels`] is meant for use. The other is the definition that the kernels are
/// tested against, and the baseline that shows what they gain; it needs the feature `composed`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Execution {
    /// The engine's own kernels.
    #[default]
    Kernels,
    /// Plain Burn operations one after the other, each with a result of its own in memory.
    Composed,
}

impl Execution {
    /// Whether this build has it.
    pub fn is_available(self) -> bool {
        match self {
            Self::Kernels => true,
            Self::Composed => cfg!(feature = "composed"),
        }
    }
}
