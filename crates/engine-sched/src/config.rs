use std::time::Duration;

use thiserror::Error;

/// Lengths between which computed keys stay valid.
///
/// Some RoPE scalings (longrope, dynamic NTK) rotate by angles that depend on the sequence's
/// length, so keys computed while the sequence was in one epoch are wrong in another. A sequence
/// whose known length enters another epoch is computed again from its first token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum CacheEpochs {
    /// Keys do not depend on the length.
    #[default]
    Constant,
    /// Two epochs: lengths up to this one, and lengths above it.
    Threshold(usize),
    /// Lengths up to this one are one epoch; above it each length is its own.
    EveryLengthAbove(usize),
}

impl CacheEpochs {
    /// The epoch of a sequence with `known_len` tokens.
    pub fn epoch(self, known_len: usize) -> u64 {
        match self {
            Self::Constant => 0,
            Self::Threshold(limit) => u64::from(known_len > limit),
            Self::EveryLengthAbove(limit) => known_len.saturating_sub(limit) as u64,
        }
    }
}

/// What becomes of the computed tokens of a sequence that makes room for another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Preemption {
    /// Saved on the host or computed again, whichever was measured to cost less.
    #[default]
    Cheapest,
    /// Saved on the host while it has room.
    Swap,
    /// Computed again.
    Recompute,
}

/// The limits within which the scheduler works.
///
/// ```
/// use engine_sched::{Scheduler, SchedulerConfig};
/// let config = SchedulerConfig { num_blocks: 64, max_context: 512, ..SchedulerConfig::default() };
/// assert!(Scheduler::new(config).is_ok());
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct SchedulerConfig {
    /// Blocks of the device's KV storage.
    pub num_blocks: usize,
    /// Positions in one block.
    pub block_size: usize,
    /// Most tokens in one step.
    pub max_batched_tokens: usize,
    /// Most sequences that hold blocks at once.
    pub max_sequences: usize,
    /// Longest sequence, prompt and new tokens together.
    pub max_context: usize,
    /// Most requests that wait before `submit` refuses.
    pub max_queue: usize,
    /// Whether full blocks are kept and shared between requests with equal prefixes.
    pub prefix_caching: bool,
    /// When computed keys lose their validity.
    pub cache_epochs: CacheEpochs,
    /// Blocks of swap space in host memory; with 0 preempted sequences are recomputed.
    pub num_host_blocks: usize,
    /// What becomes of a preempted sequence's computed tokens.
    pub preemption: Preemption,
    /// Only the last `window` positions are ever read again, in every layer; blocks before them
    /// are given back. `None` unless all layers use sliding-window attention.
    pub window: Option<usize>,
    /// A request that waits longer than this goes before any priority, in order of arrival.
    pub max_wait: Duration,
    /// First guess of the time to compute one token, until steps have been measured.
    pub token_cost: Duration,
    /// First guess of the time to move one block to or from the host, until it was measured.
    pub swap_block_cost: Duration,
}

impl Default for SchedulerConfig {
    fn default() -> Self {
        Self {
            num_blocks: 512,
            block_size: 16,
            max_batched_tokens: 512,
            max_sequences: 64,
            max_context: 4096,
            max_queue: 1024,
            prefix_caching: true,
            cache_epochs: CacheEpochs::Constant,
            num_host_blocks: 0,
            preemption: Preemption::default(),
            window: None,
            max_wait: Duration::from_secs(30),
            token_cost: Duration::from_millis(1),
            swap_block_cost: Duration::from_micros(200),
        }
    }
}

/// A limit that makes no sense.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// A limit that must be positive is zero.
    #[error("{field} is 0: it must be at least 1")]
    Zero {
        /// The field.
        field: &'static str,
    },
    /// Slots are numbered with 32 bits.
    #[error(
        "{field} = {value} is too large: {num_blocks} blocks of {block_size} positions need more \
         slots than 2^31; lower it"
    )]
    TooLarge {
        /// The field.
        field: &'static str,
        /// What it holds.
        value: usize,
        /// Blocks in question.
        num_blocks: usize,
        /// Positions in one block.
        block_size: usize,
    },
}

impl SchedulerConfig {
    /// The first position that is still read once `len` are computed: the next query reads the
    /// `window` positions that end with its own.
    pub(crate) fn oldest_read(&self, len: usize) -> usize {
        self.window.map_or(0, |window| (len + 1).saturating_sub(window))
    }

    /// Checks every limit.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let positive = [
            ("num_blocks", self.num_blocks),
            ("block_size", self.block_size),
            ("max_batched_tokens", self.max_batched_tokens),
            ("max_sequences", self.max_sequences),
            ("max_context", self.max_context),
            ("max_queue", self.max_queue),
            ("window", self.window.unwrap_or(1)),
        ];
        if let Some(&(field, _)) = positive.iter().find(|(_, value)| *value == 0) {
            return Err(ConfigError::Zero { field });
        }
        for (field, value) in
            [("num_blocks", self.num_blocks), ("num_host_blocks", self.num_host_blocks)]
        {
            let slots = value.checked_mul(self.block_size);
            if slots.is_none_or(|slots| slots > i32::MAX as usize) {
                let block_size = self.block_size;
                return Err(ConfigError::TooLarge { field, value, num_blocks: value, block_size });
            }
        }
        Ok(())
    }
}
