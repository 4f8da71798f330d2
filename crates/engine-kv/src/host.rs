use crate::{BlockId, HostBlockId, OutOfBlocks};

/// The swap space in host memory: which of its blocks are taken.
#[derive(Debug)]
#[cfg_attr(test, derive(Clone))]
pub struct HostPool {
    free: Vec<HostBlockId>,
    taken: Vec<bool>,
}

/// A sequence whose keys and values lie in host memory.
#[derive(Debug, PartialEq, Eq)]
#[cfg_attr(test, derive(Clone))]
pub struct SwappedTable {
    pub(crate) blocks: Vec<HostBlockId>,
    pub(crate) len: usize,
    pub(crate) released: usize,
}

impl SwappedTable {
    /// Positions saved.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether nothing is saved.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The host blocks in order; those that fell out of the window are not among them.
    pub fn blocks(&self) -> &[HostBlockId] {
        &self.blocks
    }
}

/// Moves of a table from the device to the host.
pub type SwapOut = Vec<(BlockId, HostBlockId)>;
/// Moves of a table from the host to the device.
pub type SwapIn = Vec<(HostBlockId, BlockId)>;

impl HostPool {
    /// `num_blocks` free blocks.
    pub fn new(num_blocks: usize) -> Self {
        let free = (0..num_blocks as u32).rev().map(HostBlockId).collect();
        Self { free, taken: vec![false; num_blocks] }
    }

    /// Blocks in all.
    pub fn num_blocks(&self) -> usize {
        self.taken.len()
    }

    /// Blocks that are free.
    pub fn num_free(&self) -> usize {
        self.free.len()
    }

    /// Takes `count` blocks, or none if there are not as many.
    pub(crate) fn allocate(&mut self, count: usize) -> Result<Vec<HostBlockId>, OutOfBlocks> {
        let free = self.free.len();
        let Some(rest) = free.checked_sub(count) else {
            return Err(OutOfBlocks { needed: count, free });
        };
        let blocks: Vec<HostBlockId> = self.free.drain(rest..).rev().collect();
        for block in &blocks {
            self.taken[block.0 as usize] = true;
        }
        Ok(blocks)
    }

    /// Gives the blocks of `table` back.
    pub fn release(&mut self, table: SwappedTable) {
        for &block in table.blocks.iter().rev() {
            self.taken[block.0 as usize] = false;
            self.free.push(block);
        }
    }

    pub(crate) fn free_blocks(&self) -> &[HostBlockId] {
        &self.free
    }

    pub(crate) fn is_taken(&self, block: HostBlockId) -> bool {
        self.taken.get(block.0 as usize).copied().unwrap_or(false)
    }
}
