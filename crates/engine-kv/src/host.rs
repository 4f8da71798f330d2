use crate::{BlockId, BlockPool, HostBlockId, OutOfBlocks, PageTable};

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

impl BlockPool {
    /// Moves `table` to the host: returns the copies to do before anything overwrites its blocks.
    pub fn swap_out(
        &mut self,
        table: &mut PageTable,
        host: &mut HostPool,
    ) -> Result<(SwappedTable, SwapOut), OutOfBlocks> {
        self.release_unwritten(table);
        let blocks = host.allocate(table.num_blocks())?;
        let moves = table.live_blocks().iter().copied().zip(blocks.iter().copied()).collect();
        let swapped = SwappedTable { blocks, len: table.len, released: table.released };
        self.counters.swapped_out_blocks += swapped.blocks.len() as u64;
        self.release(table);
        Ok((swapped, moves))
    }

    /// Free blocks that [`Self::swap_in`] needs at most.
    pub fn blocks_to_swap_in(&self, swapped: &SwappedTable) -> usize {
        swapped.blocks.len()
    }

    /// Brings `swapped` back into the empty `table` and returns the copies to do before it is
    /// read. Leading blocks that are still cached under `tokens`, the sequence's first tokens, are
    /// shared instead. The host blocks stay taken until [`HostPool::release`]: call it once the
    /// copies are done.
    ///
    /// # Panics
    /// If `table` holds blocks.
    pub fn swap_in(
        &mut self,
        swapped: &SwappedTable,
        table: &mut PageTable,
        tokens: &[u32],
    ) -> Result<SwapIn, OutOfBlocks> {
        let (needed, free) = (self.blocks_to_swap_in(swapped), self.num_free());
        if needed > free {
            return Err(OutOfBlocks { needed, free });
        }
        assert!(table.blocks.is_empty(), "swap_in: the table holds blocks");
        if swapped.released == 0 {
            let counters = self.counters;
            self.attach_prefix(table, &tokens[..tokens.len().min(swapped.len)]);
            self.counters = counters;
        }
        let shared = table.blocks.len();
        // Stand-ins for what fell out of the window; they are never read and not held.
        table.blocks.resize(shared + swapped.released, BlockId(0));
        table.released = swapped.released;
        let mut moves = SwapIn::new();
        for &host in &swapped.blocks[shared..] {
            if let Some(block) = self.allocate() {
                table.blocks.push(block);
                moves.push((host, block));
            }
        }
        table.len = swapped.len;
        table.reserved = swapped.len;
        self.counters.swapped_in_blocks += moves.len() as u64;
        Ok(moves)
    }
}
