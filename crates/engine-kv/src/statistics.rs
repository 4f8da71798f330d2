use crate::{BlockPool, PageTable};

/// What happened since the pool was made.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counters {
    /// Tokens that [`BlockPool::attach_prefix`] was asked for.
    pub queried_tokens: u64,
    /// Tokens among them that were cached.
    pub hit_tokens: u64,
    /// Cached blocks that were taken for something else.
    pub evictions: u64,
    /// Blocks copied because two sequences shared one that was written to.
    pub copies: u64,
    /// Blocks moved to the host.
    pub swapped_out_blocks: u64,
    /// Blocks moved back.
    pub swapped_in_blocks: u64,
}

/// How full the pool is, now.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// Blocks in all.
    pub num_blocks: usize,
    /// Blocks that tables hold.
    pub used_blocks: usize,
    /// Free blocks with a cached prefix.
    pub cached_blocks: usize,
    /// Slots that tables hold without a written position, at most one partial block per table
    /// between steps.
    pub wasted_slots: usize,
    /// Slots that tables hold, shared ones once per table.
    pub held_slots: usize,
}

impl Usage {
    /// Part of the blocks that tables hold, 0 to 1.
    pub fn utilisation(&self) -> f64 {
        ratio(self.used_blocks, self.num_blocks)
    }

    /// Part of the held slots that hold no position, 0 to 1.
    pub fn fragmentation(&self) -> f64 {
        ratio(self.wasted_slots, self.held_slots)
    }
}

fn ratio(part: usize, whole: usize) -> f64 {
    if whole == 0 { 0.0 } else { part as f64 / whole as f64 }
}

impl Counters {
    /// Part of the tokens asked for that were cached, 0 to 1.
    pub fn hit_rate(&self) -> f64 {
        if self.queried_tokens == 0 {
            0.0
        } else {
            self.hit_tokens as f64 / self.queried_tokens as f64
        }
    }
}

impl BlockPool {
    /// What happened so far.
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// How full the pool is with these tables, which must be all there are.
    pub fn usage<'a>(&self, tables: impl IntoIterator<Item = &'a PageTable>) -> Usage {
        let mut usage = Usage {
            num_blocks: self.num_blocks(),
            used_blocks: self.num_blocks() - self.num_free(),
            cached_blocks: self.num_free_cached,
            ..Usage::default()
        };
        for table in tables {
            usage.wasted_slots += table.wasted_slots(self);
            usage.held_slots += table.num_blocks() * self.block_size();
        }
        usage
    }
}
