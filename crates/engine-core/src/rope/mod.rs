//! Rotary position embedding: which angle each pair of a head's dimensions turns by at a position.
//!
//! The frequencies follow Hugging Face transformers, rounding included: they are computed in `f32`
//! in the same order, because at large positions the last bit of a frequency moves the logits.

mod frequencies;
mod table;

use frequencies::Frequencies;
use table::Table;

/// The rotary embedding of a model's layers, as read from `config.json`.
#[derive(Debug, Clone, PartialEq)]
pub struct RopeConfig {
    /// Base of the geometric series of wavelengths, more than 1.
    pub theta: f64,
    /// Leading dimensions of a head that are rotated; even.
    pub rotary_dim: usize,
    /// Positions the model declares, before any extension by `scaling`.
    pub max_position_embeddings: usize,
    /// How the series is changed for contexts longer than the trained ones.
    pub scaling: RopeScaling,
}

/// Changes of the frequencies for long contexts, with transformers' names and parameters.
#[derive(Debug, Clone, PartialEq)]
pub enum RopeScaling {
    /// The plain series.
    None,
    /// Every frequency divided by `factor` (position interpolation).
    Linear {
        /// How many times longer the context becomes.
        factor: f64,
    },
    /// The base grows with the sequence once it exceeds `max_position_embeddings` (NTK-aware).
    Dynamic {
        /// How strongly the base grows.
        factor: f64,
    },
    /// Low frequencies divided by `factor`, high ones kept, a ramp between (Llama 3.1).
    Llama3 {
        /// Divisor of the low frequencies.
        factor: f64,
        /// Wavelengths above `original / low_freq_factor` are low frequencies.
        low_freq_factor: f64,
        /// Wavelengths below `original / high_freq_factor` are high frequencies.
        high_freq_factor: f64,
        /// The trained context.
        original_max_position_embeddings: usize,
    },
    /// Interpolation by parts and a temperature of the attention (YaRN, Peng et al. 2023).
    Yarn {
        /// How many times longer the context becomes.
        factor: f64,
        /// The trained context.
        original_max_position_embeddings: usize,
        /// Multiplies cosines and sines; derived from the factor when absent.
        attention_factor: Option<f64>,
        /// Numerator of the derived attention factor, with `mscale_all_dim`.
        mscale: Option<f64>,
        /// Denominator of the derived attention factor, with `mscale`.
        mscale_all_dim: Option<f64>,
        /// Dimensions that turn more often than this in the trained context are kept.
        beta_fast: f64,
        /// Dimensions that turn less often than this are interpolated.
        beta_slow: f64,
        /// Whether the bounds of the ramp are rounded outward to whole dimensions.
        truncate: bool,
    },
    /// One divisor per pair of dimensions: the `rope_freqs` of GGUF files, which hold Llama 3.1's
    /// scaling as numbers.
    Divided {
        /// Divisors of the frequencies, `[rotary_dim / 2]`.
        factors: Vec<f32>,
    },
    /// One divisor per dimension, and another set for long sequences (LongRoPE, Phi-3).
    LongRope {
        /// Divisors up to `original_max_position_embeddings`, `[rotary_dim / 2]`.
        short_factor: Vec<f32>,
        /// Divisors above it, `[rotary_dim / 2]`.
        long_factor: Vec<f32>,
        /// The extension; `max_position_embeddings / original_max_position_embeddings` when absent.
        factor: Option<f64>,
        /// Multiplies cosines and sines; derived from the factor when absent.
        attention_factor: Option<f64>,
        /// The trained context.
        original_max_position_embeddings: usize,
    },
}

/// How the angles depend on the length of the sequence a position belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RopeLength {
    /// Not at all.
    Fixed,
    /// One set of frequencies up to this length, another above it.
    Threshold(usize),
    /// Every length above this one has its own frequencies.
    EveryLengthAbove(usize),
}

impl RopeConfig {
    /// Longest context the frequencies are meant for: `max_position_embeddings`, or what the
    /// scaling extends it to.
    ///
    /// `linear` and `dynamic` multiply it by their factor, `yarn` reaches
    /// `factor * original_max_position_embeddings`; `llama3` and `longrope` checkpoints declare
    /// the extended length already. Never more than `i32::MAX`.
    pub fn max_context(&self) -> usize {
        let times = |len: usize, factor: f64| (len as f64 * factor) as usize;
        let declared = self.max_position_embeddings;
        let reached = match &self.scaling {
            RopeScaling::None
            | RopeScaling::Llama3 { .. }
            | RopeScaling::Divided { .. }
            | RopeScaling::LongRope { .. } => declared,
            RopeScaling::Linear { factor } | RopeScaling::Dynamic { factor } => {
                times(declared, *factor)
            }
            RopeScaling::Yarn { factor, original_max_position_embeddings, .. } => {
                times(*original_max_position_embeddings, *factor)
            }
        };
        reached.max(declared).min(i32::MAX as usize)
    }

    /// How the angles depend on the sequence's length.
    pub fn length(&self) -> RopeLength {
        match &self.scaling {
            RopeScaling::Dynamic { .. } => {
                RopeLength::EveryLengthAbove(self.max_position_embeddings)
            }
            RopeScaling::LongRope { original_max_position_embeddings, .. } => {
                RopeLength::Threshold(*original_max_position_embeddings)
            }
            _ => RopeLength::Fixed,
        }
    }
}

/// Cosines and sines of every position, computed once per position.
///
/// ```
/// use engine_core::{Rope, RopeConfig, RopeScaling};
/// let config = RopeConfig {
///     theta: 10_000.0, rotary_dim: 4, max_position_embeddings: 128, scaling: RopeScaling::None,
/// };
/// let rope = Rope::new(&config);
/// let mut out = [0.0; 4];
/// rope.cos_sin_into(3, 4, &mut out);
/// assert!((out[0] - 3f32.cos()).abs() < 1e-6 && (out[2] - 3f32.sin()).abs() < 1e-6);
/// ```
#[derive(Debug)]
pub struct Rope {
    config: RopeConfig,
    /// Of sequences up to the threshold, if there is one; of all lengths otherwise.
    short: Table,
    /// Of sequences above the threshold.
    long: Option<Table>,
}

impl Rope {
    /// Prepares the frequencies; the tables grow with use.
    ///
    /// # Panics
    /// If `rotary_dim` is zero or odd, or the factors of a `LongRope` or `Divided` are not
    /// `rotary_dim / 2`.
    pub fn new(config: &RopeConfig) -> Self {
        assert!(
            config.rotary_dim > 0 && config.rotary_dim.is_multiple_of(2),
            "Rope::new: rotary_dim is even and positive, got {}",
            config.rotary_dim
        );
        let half = config.rotary_dim / 2;
        let lens = match &config.scaling {
            RopeScaling::LongRope { short_factor, long_factor, .. } => {
                [short_factor.len(), long_factor.len()]
            }
            RopeScaling::Divided { factors } => [factors.len(); 2],
            _ => [half; 2],
        };
        assert_eq!(lens, [half; 2], "Rope::new: there is one factor per pair");
        let positions = config.max_context();
        let table = |rope_len| Table::new(Frequencies::new(config, rope_len), positions);
        let long = match config.length() {
            RopeLength::Threshold(threshold) => Some(table(threshold + 1)),
            _ => None,
        };
        Self { short: table(0), long, config: config.clone() }
    }

    /// Dimensions that are rotated; `cos_sin_into` writes as many numbers.
    pub fn rotary_dim(&self) -> usize {
        self.config.rotary_dim
    }

    /// How the angles depend on the sequence's length.
    pub fn length(&self) -> RopeLength {
        self.config.length()
    }

    /// Writes the cosines of `position`'s angles, then their sines, to `out [rotary_dim]`, in a
    /// sequence of `rope_len` tokens (which only matters as [`Rope::length`] says).
    ///
    /// # Panics
    /// If `out` is not `rotary_dim` long.
    pub fn cos_sin_into(&self, position: usize, rope_len: usize, out: &mut [f32]) {
        assert_eq!(out.len(), self.config.rotary_dim, "cos_sin_into: out is [rotary_dim]");
        match (self.config.length(), &self.long) {
            (RopeLength::Threshold(threshold), Some(long)) if rope_len > threshold => {
                long.read(position, out);
            }
            (RopeLength::EveryLengthAbove(max), _) if rope_len > max => {
                Frequencies::new(&self.config, rope_len).write(position, out);
            }
            _ => self.short.read(position, out),
        }
    }
}
