use std::fmt;

use engine_sched::{Preemption, Statistics};

use super::workload::Random;
use super::{Setup, Workload, WorkloadLimits};

/// Something that must not change what a request gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Property {
    /// Decoding with the cache equals computing the whole sequence again.
    CachedEqualsRecomputed,
    /// A prompt cut into chunks equals the whole.
    ChunkedEqualsWhole,
    /// A batch equals each request alone.
    BatchedEqualsAlone,
    /// The block size of the cache.
    AnyBlockSize,
    /// The order in which requests come.
    AnyOrder,
    /// A prefix from the cache equals one that was computed.
    PrefixHitEqualsMiss,
    /// A sequence that lost its blocks and was computed again equals an undisturbed one.
    PreemptedByRecompute,
    /// A sequence that was saved on the host and brought back equals an undisturbed one.
    PreemptedBySwap,
    /// Several completions of one request equal separate requests.
    ForkedEqualsSeparate,
    /// Neighbours that are cancelled equal none.
    CancelledNeighbours,
    /// The number of threads of the CPU kernels.
    AnyThreads,
    /// All of them at once, in random combinations.
    Everything,
}

impl Property {
    /// All of them, in the order of a report.
    pub const ALL: [Self; 12] = [
        Self::CachedEqualsRecomputed,
        Self::ChunkedEqualsWhole,
        Self::BatchedEqualsAlone,
        Self::AnyBlockSize,
        Self::AnyOrder,
        Self::PrefixHitEqualsMiss,
        Self::PreemptedByRecompute,
        Self::PreemptedBySwap,
        Self::ForkedEqualsSeparate,
        Self::CancelledNeighbours,
        Self::AnyThreads,
        Self::Everything,
    ];

    /// The setups that disturb requests in this way.
    pub(super) fn setups(self, limits: &WorkloadLimits, threads: usize, seed: u64) -> Vec<Setup> {
        let plain = Setup::plain();
        let together = Setup { one_by_one: false, ..Setup::plain() };
        let longest = limits.max_prompt_tokens + limits.max_new_tokens;
        match self {
            Self::CachedEqualsRecomputed => vec![plain],
            Self::ChunkedEqualsWhole => [1, 3, 8]
                .map(|max_batched_tokens| Setup { max_batched_tokens, ..plain.clone() })
                .into(),
            Self::BatchedEqualsAlone | Self::ForkedEqualsSeparate => vec![together],
            Self::AnyBlockSize => {
                [1, 5, 32].map(|block_size| Setup { block_size, ..together.clone() }).into()
            }
            Self::AnyOrder => {
                vec![Setup { order_seed: Some(seed ^ 1), max_sequences: 3, ..together }]
            }
            Self::PrefixHitEqualsMiss => {
                vec![Setup { prefix_caching: true, block_size: 4, rounds: 2, ..plain }]
            }
            Self::PreemptedByRecompute => vec![Setup {
                kv_tokens: Some(longest),
                block_size: 4,
                preemption: Preemption::Recompute,
                ..together
            }],
            Self::PreemptedBySwap => vec![Setup {
                kv_tokens: Some(longest),
                swap_tokens: 16 * longest,
                block_size: 4,
                preemption: Preemption::Swap,
                ..together
            }],
            Self::CancelledNeighbours => vec![Setup { cancelled_neighbours: 6, ..together }],
            Self::AnyThreads => [1, threads + 1]
                .map(|threads| Setup { threads: Some(threads), ..together.clone() })
                .into(),
            Self::Everything => {
                let mut random = Random::new(seed ^ 0x5eed);
                (0..4).map(|_| Setup::random(&mut random, limits)).collect()
            }
        }
    }

    /// How often what the property is about happened in a run.
    pub(super) fn exercised(
        self,
        statistics: &Statistics,
        workload: &Workload,
        setup: &Setup,
    ) -> u64 {
        let preempted = statistics.preemptions_by_recompute;
        match self {
            Self::PrefixHitEqualsMiss => statistics.cache.hit_tokens,
            Self::PreemptedByRecompute => preempted,
            Self::PreemptedBySwap => statistics.preemptions_by_swap,
            Self::ForkedEqualsSeparate => workload.num_forked() as u64,
            Self::CancelledNeighbours => setup.cancelled_neighbours as u64,
            Self::Everything => preempted + statistics.preemptions_by_swap + statistics.steps,
            _ => statistics.steps,
        }
    }
}

impl fmt::Display for Property {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::CachedEqualsRecomputed => "cached = recomputed",
            Self::ChunkedEqualsWhole => "chunked = whole",
            Self::BatchedEqualsAlone => "batched = alone",
            Self::AnyBlockSize => "any block size",
            Self::AnyOrder => "any order of requests",
            Self::PrefixHitEqualsMiss => "prefix hit = miss",
            Self::PreemptedByRecompute => "preempted and recomputed = undisturbed",
            Self::PreemptedBySwap => "preempted and swapped = undisturbed",
            Self::ForkedEqualsSeparate => "forked = separate",
            Self::CancelledNeighbours => "cancelled neighbours = none",
            Self::AnyThreads => "any number of threads",
            Self::Everything => "all of these at once",
        })
    }
}
