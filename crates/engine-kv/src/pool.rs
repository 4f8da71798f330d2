use thiserror::Error;

use crate::free_list::FreeList;
use crate::prefix::{NodeId, PrefixTree};
use crate::statistics::Counters;
use crate::{BlockId, Namespace, PageTable};

/// Fewer blocks are free than are needed; nothing was changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("{needed} blocks are needed and {free} are free: release or preempt a sequence")]
pub struct OutOfBlocks {
    /// Blocks needed.
    pub needed: usize,
    /// Blocks free.
    pub free: usize,
}

/// What the prefix cache holds of a sequence.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PrefixMatch {
    /// Leading blocks that are cached.
    pub blocks: usize,
    /// Those among them that no table holds: attaching takes them from the free blocks.
    pub free_blocks: usize,
}

#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Block {
    /// Page tables that hold the block.
    pub(crate) refs: u32,
    /// The prefix it is cached under.
    pub(crate) node: Option<NodeId>,
}

/// A fixed set of blocks: who holds them, what is cached in them, which one is taken next.
///
/// ```
/// use engine_kv::{BlockPool, Namespace, PageTable};
/// let mut pool = BlockPool::new(4, 2, true);
/// let prompt = [5, 6, 7];
/// let mut first = PageTable::new(Namespace::default());
/// pool.reserve(&mut first, prompt.len())?;
/// pool.commit(&mut first, prompt.len(), &prompt);
/// // A second sequence with the same beginning shares the full block.
/// let mut second = PageTable::new(Namespace::default());
/// assert_eq!(pool.attach_prefix(&mut second, &[5, 6, 9]), 2);
/// assert_eq!(second.live_blocks()[0], first.live_blocks()[0]);
/// pool.check(&[&first, &second]).unwrap();
/// pool.release(&mut first);
/// pool.release(&mut second);
/// assert_eq!(pool.num_free(), 4);
/// # Ok::<(), engine_kv::OutOfBlocks>(())
/// ```
#[derive(Debug)]
#[cfg_attr(test, derive(Clone))]
pub struct BlockPool {
    pub(crate) blocks: Vec<Block>,
    pub(crate) block_size: usize,
    pub(crate) free: FreeList,
    pub(crate) num_free_cached: usize,
    pub(crate) tree: PrefixTree,
    pub(crate) prefix_caching: bool,
    pub(crate) counters: Counters,
}

impl BlockPool {
    /// `num_blocks` free blocks of `block_size` positions.
    ///
    /// # Panics
    /// If `block_size` is 0.
    pub fn new(num_blocks: usize, block_size: usize, prefix_caching: bool) -> Self {
        Self::with_hash_mask(num_blocks, block_size, prefix_caching, u64::MAX)
    }

    /// Like [`Self::new`], with prefix hashes that keep only the bits of `hash_mask`: with a mask
    /// of 0 all prefixes collide, and everything must still be right.
    pub fn with_hash_mask(
        num_blocks: usize,
        block_size: usize,
        prefix_caching: bool,
        hash_mask: u64,
    ) -> Self {
        assert!(block_size > 0, "a block holds at least one position");
        assert!(num_blocks < u32::MAX as usize, "blocks are numbered with 32 bits");
        Self {
            blocks: vec![Block::default(); num_blocks],
            block_size,
            free: FreeList::full(num_blocks),
            num_free_cached: 0,
            tree: PrefixTree::new(hash_mask),
            prefix_caching,
            counters: Counters::default(),
        }
    }

    /// Blocks in all.
    pub fn num_blocks(&self) -> usize {
        self.blocks.len()
    }

    /// Positions in one block.
    pub fn block_size(&self) -> usize {
        self.block_size
    }

    /// Blocks that no table holds; those with cached prefixes among them are taken last.
    pub fn num_free(&self) -> usize {
        self.free.len()
    }

    /// Free blocks, next to be taken first.
    pub fn free_blocks(&self) -> impl Iterator<Item = BlockId> + '_ {
        self.free.iter()
    }

    /// Tables that hold `block`.
    pub fn ref_count(&self, block: BlockId) -> usize {
        self.blocks.get(block.index()).map_or(0, |block| block.refs as usize)
    }

    /// Whether `block` holds a prefix that a new sequence can share.
    pub fn is_cached(&self, block: BlockId) -> bool {
        self.blocks.get(block.index()).is_some_and(|block| block.node.is_some())
    }

    /// Blocks that `len` positions take.
    pub fn blocks_for(&self, len: usize) -> usize {
        len.div_ceil(self.block_size)
    }

    /// Free blocks that [`Self::reserve`] would take to make `table` writable up to `end`.
    pub fn blocks_to_reserve(&self, table: &PageTable, end: usize) -> usize {
        let more = self.blocks_for(end).saturating_sub(table.blocks.len());
        more + usize::from(end > table.len && self.shared_tail(table).is_some())
    }

    /// Makes the positions of `table` up to `end` writable, by it alone. Returns the block copy
    /// `(from, to)` that must be done before writing, if the last, partial block was shared.
    pub fn reserve(
        &mut self,
        table: &mut PageTable,
        end: usize,
    ) -> Result<Option<(BlockId, BlockId)>, OutOfBlocks> {
        let (needed, free) = (self.blocks_to_reserve(table, end), self.num_free());
        if needed > free {
            return Err(OutOfBlocks { needed, free });
        }
        let mut copy = None;
        if end > table.len
            && let Some(tail) = self.shared_tail(table)
            && let Some(own) = self.allocate()
        {
            let from = std::mem::replace(&mut table.blocks[tail], own);
            self.drop_ref(from);
            self.counters.copies += 1;
            copy = Some((from, own));
        }
        while table.blocks.len() < self.blocks_for(end) {
            table.blocks.extend(self.allocate());
        }
        table.reserved = table.reserved.max(end);
        Ok(copy)
    }

    /// Index of the partial last block of `table` if other tables hold it too.
    fn shared_tail(&self, table: &PageTable) -> Option<usize> {
        let tail = table.len / self.block_size;
        let shared = |block: &BlockId| self.blocks[block.index()].refs > 1;
        (!table.len.is_multiple_of(self.block_size) && table.blocks.get(tail).is_some_and(shared))
            .then_some(tail)
    }

    /// Records that `table` is written up to `len`, which was reserved before. `tokens` are the
    /// sequence's first `len` or more tokens; full blocks become shareable under them.
    ///
    /// # Panics
    /// If `len` goes beyond what was reserved or `tokens` is shorter than `len`.
    pub fn commit(&mut self, table: &mut PageTable, len: usize, tokens: &[u32]) {
        assert!(tokens.len() >= len, "commit: {len} positions, {} tokens", tokens.len());
        self.commit_private(table, len);
        if !self.prefix_caching {
            return;
        }
        let full = tokens[..table.len].chunks_exact(self.block_size);
        for (i, tokens) in full.enumerate().skip(table.sealed) {
            let parent = table.tip.unwrap_or_else(|| self.tree.insert(None, table.namespace, &[]));
            let node = self.tree.insert(Some(parent), table.namespace, tokens);
            self.move_tip(table, Some(node));
            table.sealed += 1;
            let vacant = self.tree.get(node).is_some_and(|node| node.block.is_none());
            let block = table.blocks[i];
            if vacant && i >= table.released && self.blocks[block.index()].node.is_none() {
                self.tree.set_block(node, block);
                self.blocks[block.index()].node = Some(node);
            }
        }
    }

    /// Like [`Self::commit`] for keys that nobody else can use: nothing becomes shareable now.
    ///
    /// # Panics
    /// If `len` goes beyond what was reserved.
    pub fn commit_private(&mut self, table: &mut PageTable, len: usize) {
        assert!(len <= table.reserved, "commit: {len} positions, {} reserved", table.reserved);
        table.len = table.len.max(len);
    }

    fn move_tip(&mut self, table: &mut PageTable, tip: Option<NodeId>) {
        if let Some(tip) = tip {
            self.tree.hold(tip);
        }
        if let Some(old) = std::mem::replace(&mut table.tip, tip) {
            self.tree.unhold(old);
        }
    }

    /// Gives back every block that `table` reserved but has not written.
    pub fn release_unwritten(&mut self, table: &mut PageTable) {
        let written = self.blocks_for(table.len).max(table.released);
        while table.blocks.len() > written {
            if let Some(block) = table.blocks.pop() {
                self.drop_ref(block);
            }
        }
        table.reserved = table.len;
    }

    /// Gives back the blocks of `table` that lie wholly before `position`: they fell out of the
    /// attention window and are never read again. Only written blocks are given back.
    pub fn release_before(&mut self, table: &mut PageTable, position: usize) {
        let keep_from = position.min(table.len) / self.block_size;
        for i in table.released..keep_from {
            self.drop_ref(table.blocks[i]);
        }
        table.released = table.released.max(keep_from);
    }

    /// Gives all blocks of `table` back and empties it. The last block is evicted first.
    pub fn release(&mut self, table: &mut PageTable) {
        self.move_tip(table, None);
        for &block in table.live_blocks().iter().rev() {
            self.drop_ref(block);
        }
        *table = PageTable::new(table.namespace);
    }

    /// A second table over the same written blocks; either copies the partial last one when it
    /// writes on. What `table` had reserved and not written is given back: its last block is not
    /// its own any more.
    pub fn fork(&mut self, table: &mut PageTable) -> PageTable {
        self.release_unwritten(table);
        let child = PageTable {
            namespace: table.namespace,
            blocks: table.blocks.clone(),
            len: table.len,
            reserved: table.len,
            released: table.released,
            sealed: table.sealed,
            tip: table.tip,
        };
        for &block in child.live_blocks() {
            self.add_ref(block);
        }
        if let Some(tip) = child.tip {
            self.tree.hold(tip);
        }
        child
    }

    /// What is cached of a sequence that begins with `tokens`.
    pub fn lookup_prefix(&self, namespace: Namespace, tokens: &[u32]) -> PrefixMatch {
        let mut found = PrefixMatch::default();
        for (_, block) in self.walk_prefix(namespace, tokens) {
            found.blocks += 1;
            found.free_blocks += usize::from(self.blocks[block.index()].refs == 0);
        }
        found
    }

    fn walk_prefix<'a>(
        &'a self,
        namespace: Namespace,
        tokens: &'a [u32],
    ) -> impl Iterator<Item = (NodeId, BlockId)> + 'a {
        let mut node = if self.prefix_caching { self.tree.find_root(namespace) } else { None };
        tokens.chunks_exact(self.block_size).map_while(move |tokens| {
            let child = self.tree.find_child(node?, tokens)?;
            node = Some(child);
            Some((child, self.tree.get(child)?.block?))
        })
    }

    /// Fills the empty `table` with the cached blocks of `tokens`, whole blocks only, and returns
    /// how many positions that are. Pass the tokens that may be taken from the cache: without the
    /// last one if its logits are needed.
    ///
    /// # Panics
    /// If `table` holds blocks.
    pub fn attach_prefix(&mut self, table: &mut PageTable, tokens: &[u32]) -> usize {
        assert!(table.blocks.is_empty(), "attach_prefix: the table holds blocks");
        let found: Vec<_> = self.walk_prefix(table.namespace, tokens).collect();
        for &(_, block) in &found {
            self.add_ref(block);
            table.blocks.push(block);
        }
        self.move_tip(table, found.last().map(|&(node, _)| node));
        table.sealed = found.len();
        table.len = found.len() * self.block_size;
        table.reserved = table.len;
        self.counters.queried_tokens += tokens.len() as u64;
        self.counters.hit_tokens += table.len as u64;
        table.len
    }

    pub(crate) fn allocate(&mut self) -> Option<BlockId> {
        let block = self.free.pop_front()?;
        let state = &mut self.blocks[block.index()];
        state.refs = 1;
        if let Some(node) = state.node.take() {
            self.tree.clear_block(node);
            self.num_free_cached -= 1;
            self.counters.evictions += 1;
        }
        Some(block)
    }

    fn add_ref(&mut self, block: BlockId) {
        let state = &mut self.blocks[block.index()];
        state.refs += 1;
        if state.refs == 1 {
            self.num_free_cached -= usize::from(state.node.is_some());
            self.free.remove(block);
        }
    }

    fn drop_ref(&mut self, block: BlockId) {
        let state = &mut self.blocks[block.index()];
        state.refs -= 1;
        if state.refs > 0 {
            return;
        }
        match state.node {
            Some(_) => {
                self.num_free_cached += 1;
                self.free.push_back(block);
            }
            None => self.free.push_front(block),
        }
    }
}
