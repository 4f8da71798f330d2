//! Which instruction sets the kernels may use.

use std::{env, str::FromStr, sync::LazyLock};

use thiserror::Error;

/// Names the widest instruction set that kernels may use: `avx512`, `avx-vnni`, `avx2` or
/// `portable`. Without it they use the widest one of the CPU.
///
/// It is for measuring what other CPUs would do, and for finding out whether an odd result is an
/// instruction set's; it is read once.
pub const VARIABLE: &str = "ENGINE_ISA";

/// A step in what the CPU kernels are compiled for, the narrowest first.
///
/// ```
/// use engine_quant::InstructionSet;
/// assert_eq!("avx2".parse(), Ok(InstructionSet::Avx2));
/// assert!(InstructionSet::Avx2 < InstructionSet::Avx512);
/// assert!("sse9".parse::<InstructionSet>().is_err());
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum InstructionSet {
    /// What the compiler makes of plain Rust: SSE2, NEON.
    Portable,
    /// AVX2 with FMA and F16C.
    Avx2,
    /// The same with products of bytes.
    AvxVnni,
    /// AVX-512, with products of bytes and of `bf16` where there are such.
    Avx512,
}

/// A name that is no instruction set's.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("unknown instruction set `{name}`: use avx512, avx-vnni, avx2 or portable")]
pub struct UnknownInstructionSet {
    /// What was given.
    pub name: String,
}

impl FromStr for InstructionSet {
    type Err = UnknownInstructionSet;

    fn from_str(name: &str) -> Result<Self, UnknownInstructionSet> {
        Ok(match name {
            "portable" => Self::Portable,
            "avx2" => Self::Avx2,
            "avx-vnni" => Self::AvxVnni,
            "avx512" => Self::Avx512,
            _ => return Err(UnknownInstructionSet { name: name.to_owned() }),
        })
    }
}

static WIDEST: LazyLock<Result<InstructionSet, UnknownInstructionSet>> =
    LazyLock::new(|| match env::var(VARIABLE) {
        Ok(name) => name.parse(),
        Err(_) => Ok(InstructionSet::Avx512),
    });

impl InstructionSet {
    /// The widest one that kernels may use, whether the CPU has it or not.
    ///
    /// # Errors
    /// If [`VARIABLE`] has another name; then there is no limit.
    pub fn widest() -> Result<Self, UnknownInstructionSet> {
        WIDEST.clone()
    }

    /// Whether kernels may use this one.
    pub(crate) fn is_allowed(self) -> bool {
        WIDEST.as_ref().map_or(true, |widest| self <= *widest)
    }
}
