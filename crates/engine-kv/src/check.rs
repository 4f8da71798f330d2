use thiserror::Error;

use crate::prefix::NodeId;
use crate::{BlockId, BlockPool, HostBlockId, HostPool, PageTable, SwappedTable};

/// An invariant that does not hold: a bug, never the caller's input.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum InvariantError {
    /// free + referenced = total.
    #[error("{free} blocks are listed as free and {referenced} referenced, of {total}")]
    Total {
        /// Blocks in the free list.
        free: usize,
        /// Blocks with a reference.
        referenced: usize,
        /// Blocks in all.
        total: usize,
    },
    /// A block is free if and only if no table holds it.
    #[error("{block:?} has {refs} references and its being in the free list is {listed}")]
    FreeList {
        /// The block.
        block: BlockId,
        /// Its reference count.
        refs: usize,
        /// Whether the free list holds it.
        listed: bool,
    },
    /// A reference count equals the number of tables that hold the block.
    #[error("{block:?} has {refs} references and {tables} tables hold it")]
    RefCount {
        /// The block.
        block: BlockId,
        /// Its reference count.
        refs: usize,
        /// Tables that hold it.
        tables: usize,
    },
    /// A block that may be written is in one table and not cached.
    #[error("table {table} may write position {position} in {block:?}, which is shared or cached")]
    Writable {
        /// Index of the table.
        table: usize,
        /// A position that may be written.
        position: usize,
        /// Its block.
        block: BlockId,
    },
    /// A table covers exactly what it has written and reserved.
    #[error(
        "table {table} holds {blocks} blocks for {len} written and {reserved} reserved positions"
    )]
    Cover {
        /// Index of the table.
        table: usize,
        /// Entries of the table.
        blocks: usize,
        /// Positions written.
        len: usize,
        /// Positions reserved.
        reserved: usize,
    },
    /// A cached prefix and its block point at each other.
    #[error("{block:?} is cached under prefix {node:?}, which does not lead back to it")]
    CacheLink {
        /// The block.
        block: BlockId,
        /// Number of the prefix.
        node: Option<u32>,
    },
    /// A cached prefix has the hash of its tokens, is found by it, and is needed by something.
    #[error("prefix {node} is broken: {what}")]
    Prefix {
        /// Number of the prefix.
        node: u32,
        /// What does not hold.
        what: &'static str,
    },
    /// A host block is taken if and only if one swapped table holds it.
    #[error("{block:?} is in {tables} swapped tables and its being taken is {taken}")]
    Host {
        /// The host block.
        block: HostBlockId,
        /// Swapped tables that hold it.
        tables: usize,
        /// Whether it counts as taken.
        taken: bool,
    },
}

impl BlockPool {
    /// Checks every invariant of the pool, given all tables that hold its blocks.
    pub fn check(&self, tables: &[&PageTable]) -> Result<(), InvariantError> {
        self.check_free_list()?;
        self.check_references(tables)?;
        for (i, table) in tables.iter().enumerate() {
            self.check_table(i, table)?;
        }
        self.check_cache(tables)
    }

    fn check_free_list(&self) -> Result<(), InvariantError> {
        let total = self.num_blocks();
        let free = self.free.iter().count();
        let referenced = self.blocks.iter().filter(|block| block.refs > 0).count();
        if free + referenced != total || free != self.num_free() {
            return Err(InvariantError::Total { free, referenced, total });
        }
        for (i, state) in self.blocks.iter().enumerate() {
            let block = BlockId(i as u32);
            let listed = self.free.contains(block);
            if listed == (state.refs > 0) {
                return Err(InvariantError::FreeList { block, refs: state.refs as usize, listed });
            }
        }
        Ok(())
    }

    fn check_references(&self, tables: &[&PageTable]) -> Result<(), InvariantError> {
        let mut counts = vec![0; self.num_blocks()];
        for block in tables.iter().flat_map(|table| table.live_blocks()) {
            counts[block.index()] += 1;
        }
        for (i, (state, tables)) in self.blocks.iter().zip(counts).enumerate() {
            let (block, refs) = (BlockId(i as u32), state.refs as usize);
            if refs != tables {
                return Err(InvariantError::RefCount { block, refs, tables });
            }
        }
        Ok(())
    }

    fn check_table(&self, index: usize, table: &PageTable) -> Result<(), InvariantError> {
        let PageTable { len, reserved, .. } = *table;
        let blocks = table.blocks.len();
        let covered = blocks == self.blocks_for(reserved).max(table.released);
        if !covered || reserved < len || table.released * self.block_size > len {
            return Err(InvariantError::Cover { table: index, blocks, len, reserved });
        }
        for position in len..reserved {
            let block = table.blocks[position / self.block_size];
            let state = self.blocks[block.index()];
            if state.refs != 1 || state.node.is_some() {
                return Err(InvariantError::Writable { table: index, position, block });
            }
        }
        Ok(())
    }

    fn check_cache(&self, tables: &[&PageTable]) -> Result<(), InvariantError> {
        for (i, state) in self.blocks.iter().enumerate() {
            let Some(node) = state.node else { continue };
            let block = BlockId(i as u32);
            if self.tree.get(node).is_none_or(|node| node.block != Some(block)) {
                return Err(InvariantError::CacheLink { block, node: Some(node.0) });
            }
        }
        let cached_free = |block: &BlockId| self.blocks[block.index()].node.is_some();
        if self.free.iter().filter(cached_free).count() != self.num_free_cached {
            return Err(InvariantError::Prefix {
                node: 0,
                what: "free cached blocks are miscounted",
            });
        }
        let mut num_nodes = 0;
        let mut refs = std::collections::HashMap::<NodeId, u32>::new();
        for (id, node) in self.tree.iter() {
            num_nodes += 1;
            if let Some(parent) = node.parent {
                *refs.entry(parent).or_default() += 1;
            }
            self.check_node(id)?;
        }
        for tip in tables.iter().filter_map(|table| table.tip) {
            *refs.entry(tip).or_default() += 1;
        }
        for (id, node) in self.tree.iter() {
            if node.refs != refs.get(&id).copied().unwrap_or(0) {
                return Err(InvariantError::Prefix {
                    node: id.0,
                    what: "its holders are miscounted",
                });
            }
        }
        if self.tree.num_indexed() != num_nodes {
            return Err(InvariantError::Prefix { node: 0, what: "the index misses a prefix" });
        }
        Ok(())
    }

    fn check_node(&self, id: NodeId) -> Result<(), InvariantError> {
        let broken = |what| Err(InvariantError::Prefix { node: id.0, what });
        let Some(node) = self.tree.get(id) else { return broken("it is gone") };
        if node.block.is_none() && node.refs == 0 {
            return broken("nothing needs it");
        }
        let parent = node.parent.and_then(|parent| self.tree.get(parent));
        if parent.is_none() && node.parent.is_some() {
            return broken("its parent is gone");
        }
        let expected_len = if parent.is_some() { self.block_size } else { 0 };
        if node.tokens.len() != expected_len {
            return broken("it is not one block long");
        }
        let hash = self.tree.hash(parent.map(|parent| parent.hash), node.namespace, &node.tokens);
        if node.hash != hash {
            return broken("its hash is not that of its tokens");
        }
        let found = match node.parent {
            Some(parent) => self.tree.find_child(parent, &node.tokens),
            None => self.tree.find_root(node.namespace),
        };
        if found != Some(id) {
            return broken("it is not found by its tokens");
        }
        match node.block {
            Some(block) if self.blocks[block.index()].node != Some(id) => {
                Err(InvariantError::CacheLink { block, node: Some(id.0) })
            }
            _ => Ok(()),
        }
    }
}

impl HostPool {
    /// Checks that every host block is free or in exactly one of `tables`, which must be all.
    pub fn check(&self, tables: &[&SwappedTable]) -> Result<(), InvariantError> {
        let mut held = vec![0; self.num_blocks()];
        for block in tables.iter().flat_map(|table| &table.blocks) {
            held[block.0 as usize] += 1;
        }
        let mut free = vec![0; self.num_blocks()];
        for block in self.free_blocks() {
            free[block.0 as usize] += 1;
        }
        for (i, (&tables, &free)) in held.iter().zip(&free).enumerate() {
            let block = HostBlockId(i as u32);
            let taken = self.is_taken(block);
            if tables + free != 1 || taken != (tables == 1) {
                return Err(InvariantError::Host { block, tables, taken });
            }
        }
        Ok(())
    }
}
