use crate::prefix::NodeId;
use crate::{BlockId, BlockPool, Namespace};

/// The blocks of one sequence in order.
///
/// A table changes through the [`BlockPool`] that its blocks come from, and goes back to it with
/// [`BlockPool::release`]; one that is merely dropped keeps its blocks for ever, which
/// [`BlockPool::check`] reports.
#[derive(Debug, Default, PartialEq, Eq)]
#[cfg_attr(test, derive(Clone))]
pub struct PageTable {
    pub(crate) namespace: Namespace,
    pub(crate) blocks: Vec<BlockId>,
    /// Positions written.
    pub(crate) len: usize,
    /// Positions up to here may be written: their blocks are this table's alone.
    pub(crate) reserved: usize,
    /// Leading blocks that fell out of the window; their entries are stale.
    pub(crate) released: usize,
    /// Full blocks that the prefix cache knows.
    pub(crate) sealed: usize,
    /// The prefix of those blocks.
    pub(crate) tip: Option<NodeId>,
}

impl PageTable {
    /// A table without blocks whose prefixes are shared within `namespace`.
    pub fn new(namespace: Namespace) -> Self {
        Self { namespace, ..Self::default() }
    }

    /// Which prefixes this table shares.
    pub fn namespace(&self) -> Namespace {
        self.namespace
    }

    /// Positions whose keys and values are written.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether nothing is written.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Blocks held.
    pub fn num_blocks(&self) -> usize {
        self.blocks.len() - self.released
    }

    /// The blocks held, without those that fell out of the window.
    pub fn live_blocks(&self) -> &[BlockId] {
        &self.blocks[self.released..]
    }

    /// One block per `block_size` positions from position 0. Blocks that fell out of the window
    /// are stood in for by the first one still held, so every entry is a block of this sequence.
    pub fn page_table(&self) -> Vec<BlockId> {
        let mut blocks = self.blocks.clone();
        if let Some(&stand_in) = self.blocks.get(self.released) {
            blocks[..self.released].fill(stand_in);
        }
        blocks
    }

    /// Slots held that hold no position, given the pool's block size.
    pub fn wasted_slots(&self, pool: &BlockPool) -> usize {
        self.blocks.len() * pool.block_size() - self.len
    }
}
