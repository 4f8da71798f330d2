use std::fmt;

use engine_core::{KvFormat, ModelConfig};

/// The arithmetic of what a model needs and what there is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemoryPlan {
    /// Bytes of the weights.
    pub weight_bytes: usize,
    /// How keys and values are stored.
    pub kv_format: KvFormat,
    /// Bytes of the KV storage.
    pub kv_cache_bytes: usize,
    /// Bytes of keys and values of one position over all layers.
    pub kv_bytes_per_token: usize,
    /// Positions that the KV storage holds.
    pub kv_tokens: usize,
    /// Free memory when the plan was made, where the device tells.
    pub free_bytes: Option<usize>,
}

/// Full contexts that the KV storage should hold where memory allows it.
const WANTED_CONTEXTS: usize = 16;
/// The part of the free memory, after the weights, that the KV storage may take by default.
const KV_SHARE: f64 = 0.4;
/// What the KV storage may take by default where free memory is not known.
const KV_DEFAULT_BYTES: usize = 1 << 30;
/// Fewer positions than this are no use to anybody.
const LEAST_TOKENS: usize = 256;

/// How large the KV storage is to be.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum KvSize {
    /// Room for several contexts within a share of the free memory.
    Default,
    /// So many bytes.
    Bytes(usize),
    /// This part of the memory that the weights leave free.
    Fraction(f64),
}

/// What the builder's settings say about the KV storage.
pub(crate) struct KvWish {
    /// How keys and values are stored.
    pub format: KvFormat,
    /// Its size.
    pub size: KvSize,
    /// Positions of the longest sequence.
    pub context: usize,
    /// Whether that length was asked for, and not just the model's own limit.
    pub whole_context: bool,
    /// Positions in one block.
    pub block_size: usize,
}

impl MemoryPlan {
    /// Plans the KV storage: the size that was asked for, else room for several contexts within a
    /// share of the free memory, but at least for a short sequence. Rounded up to whole blocks.
    pub(crate) fn new(
        config: &ModelConfig,
        weight_bytes: usize,
        free_bytes: Option<usize>,
        wish: &KvWish,
    ) -> Self {
        let per_token = config.kv_bytes_per_token(wish.format).max(1);
        let part = |part: f64| match free_bytes {
            Some(free) => (free.saturating_sub(weight_bytes) as f64 * part) as usize,
            None => KV_DEFAULT_BYTES,
        };
        let tokens = match wish.size {
            KvSize::Bytes(bytes) => (bytes / per_token).max(1),
            // Rounding up to a whole block must not exceed the part.
            KvSize::Fraction(fraction) => {
                let tokens = part(fraction) / per_token;
                (tokens - tokens % wish.block_size).max(1)
            }
            KvSize::Default => {
                let share = part(KV_SHARE);
                let wanted = wish.context.saturating_mul(WANTED_CONTEXTS);
                let least = if wish.whole_context { wish.context } else { LEAST_TOKENS };
                (share / per_token).min(wanted).max(least.min(wish.context))
            }
        };
        let block_size = wish.block_size;
        let blocks = tokens.div_ceil(block_size);
        let kv_tokens = blocks.saturating_mul(block_size);
        Self {
            weight_bytes,
            kv_format: wish.format,
            kv_cache_bytes: kv_tokens.saturating_mul(per_token),
            kv_bytes_per_token: per_token,
            kv_tokens,
            free_bytes,
        }
    }

    /// Whether all of it fits into the free memory.
    pub fn fits(&self) -> bool {
        self.free_bytes.is_none_or(|free| self.total_bytes() <= free)
    }

    fn total_bytes(&self) -> usize {
        self.weight_bytes.saturating_add(self.kv_cache_bytes)
    }
}

impl fmt::Display for MemoryPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mib = |bytes: usize| bytes as f64 / f64::from(1 << 20);
        write!(
            f,
            "weights {:.1} MiB + KV cache {:.1} MiB ({}, {} tokens of {} bytes) = {:.1} MiB",
            mib(self.weight_bytes),
            mib(self.kv_cache_bytes),
            self.kv_format,
            self.kv_tokens,
            self.kv_bytes_per_token,
            mib(self.total_bytes()),
        )?;
        match self.free_bytes {
            Some(free) => write!(f, ", {:.1} MiB are free", mib(free)),
            None => f.write_str(", free memory unknown"),
        }
    }
}

/// Free memory of the CPU, in bytes.
pub(crate) fn free_host_bytes() -> Option<usize> {
    let mut system = sysinfo::System::new().ok()?;
    system.refresh_memory();
    let available = usize::try_from(system.available_memory()).ok()?;
    // A container's limit counts more than what the machine has.
    let limit = system.cgroup_limits().and_then(|limits| usize::try_from(limits.free_memory).ok());
    let free = limit.map_or(available, |limit| limit.min(available));
    (free > 0).then_some(free)
}
