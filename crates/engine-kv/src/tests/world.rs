//! The pool and its naive model side by side, with a storage that shows what a block really holds.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};

use super::naive::{NaivePool, NaiveTable};
use crate::{BlockId, BlockPool, HostPool, Namespace, PageTable, SwappedTable, slot};

/// One operation on sequence `usize`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Op {
    /// Starts with these tokens, sharing what is cached.
    Start(usize, Namespace, Vec<u32>),
    /// Writes one more token.
    Extend(usize, u32),
    /// Reserves this many positions and then gives the unwritten blocks back.
    Speculate(usize, usize),
    /// Forks into the second sequence.
    Fork(usize, usize),
    /// Only this many positions are read again.
    Window(usize, usize),
    SwapOut(usize),
    SwapIn(usize),
    Release(usize),
}

#[derive(Debug, Clone, Default)]

struct Sequence {
    tokens: Vec<u32>,
    namespace: Namespace,
    table: PageTable,
    naive: NaiveTable,
    swapped: Option<SwappedTable>,
    naive_released: usize,
}

#[derive(Debug, Clone)]
pub(super) struct World {
    pub(super) pool: BlockPool,
    host: HostPool,
    pub(super) naive: NaivePool,
    sequences: Vec<Sequence>,
    /// For each slot the hash of the prefix whose key it holds.
    device: Vec<u64>,
    host_storage: Vec<u64>,
}

fn content(namespace: Namespace, tokens: &[u32]) -> u64 {
    let mut hasher = DefaultHasher::new();
    (namespace, tokens).hash(&mut hasher);
    hasher.finish()
}

impl World {
    pub(super) fn new(pool: BlockPool, num_host_blocks: usize, num_sequences: usize) -> Self {
        let (num_blocks, block_size) = (pool.num_blocks(), pool.block_size());
        Self {
            host: HostPool::new(num_host_blocks),
            naive: NaivePool::new(num_blocks, block_size, pool.prefix_caching),
            sequences: (0..num_sequences).map(|_| Sequence::default()).collect(),
            device: vec![0; num_blocks * block_size],
            host_storage: vec![0; num_host_blocks * block_size],
            pool,
        }
    }

    pub(super) fn is_live(&self, i: usize) -> bool {
        !self.sequences[i].tokens.is_empty()
    }

    pub(super) fn is_swapped(&self, i: usize) -> bool {
        self.sequences[i].swapped.is_some()
    }

    /// What decides how the world goes on.
    pub(super) fn state(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        self.naive.hash(&mut hasher);
        for sequence in &self.sequences {
            (&sequence.tokens, sequence.namespace, &sequence.naive).hash(&mut hasher);
            format!("{:?} {:?}", sequence.table, sequence.swapped).hash(&mut hasher);
        }
        format!("{:?}", self.host).hash(&mut hasher);
        hasher.finish()
    }

    /// Applies `op` to the pool and to the model, as far as it makes sense, and compares them.
    pub(super) fn apply(&mut self, op: &Op) {
        match *op {
            Op::Start(i, namespace, ref tokens) if !self.is_live(i) && !tokens.is_empty() => {
                self.start(i, namespace, tokens);
            }
            Op::Extend(i, token) if self.on_device(i) => {
                self.write(i, &[token]);
            }
            Op::Speculate(i, count) if self.on_device(i) => self.speculate(i, count),
            Op::Fork(from, to) if self.on_device(from) && !self.is_live(to) => self.fork(from, to),
            Op::Window(i, window) if self.on_device(i) => {
                let Self { pool, naive, sequences, .. } = self;
                let sequence = &mut sequences[i];
                let oldest = sequence.tokens.len().saturating_sub(window);
                pool.release_before(&mut sequence.table, oldest);
                naive.release_before(&mut sequence.naive, oldest);
            }
            Op::SwapOut(i) if self.on_device(i) => self.swap_out(i),
            Op::SwapIn(i) if self.is_swapped(i) => self.swap_in(i),
            Op::Release(i) if self.is_live(i) => self.release(i),
            _ => {}
        }
        self.check();
    }

    fn on_device(&self, i: usize) -> bool {
        self.is_live(i) && !self.is_swapped(i)
    }

    fn start(&mut self, i: usize, namespace: Namespace, tokens: &[u32]) {
        let Self { pool, naive, sequences, .. } = self;
        let sequence = &mut sequences[i];
        *sequence = Sequence { namespace, ..Sequence::default() };
        sequence.table = PageTable::new(namespace);
        let usable = &tokens[..tokens.len() - 1];
        assert_eq!(
            pool.lookup_prefix(namespace, usable).blocks,
            naive.lookup(namespace, usable).len()
        );
        let hit = pool.attach_prefix(&mut sequence.table, usable);
        naive.attach(&mut sequence.naive, namespace, usable);
        sequence.tokens = tokens[..hit].to_vec();
        if !self.write(i, &tokens[hit..]) {
            self.release(i);
        }
    }

    /// Writes `tokens` after those of sequence `i`; false if there is no room.
    fn write(&mut self, i: usize, tokens: &[u32]) -> bool {
        let Self { pool, naive, sequences, device, .. } = self;
        let sequence = &mut sequences[i];
        let (len, end) = (sequence.tokens.len(), sequence.tokens.len() + tokens.len());
        let fits = pool.blocks_to_reserve(&sequence.table, end) <= pool.num_free();
        let reserved = pool.reserve(&mut sequence.table, end);
        let expected = naive.reserve(&mut sequence.naive, len, end);
        assert_eq!((reserved.is_ok(), fits), (expected.is_some(), expected.is_some()));
        let (Ok(copy), Some(copies)) = (reserved, expected) else { return false };
        let copy: Vec<_> = copy.iter().map(|(from, to)| (from.index(), to.index())).collect();
        assert_eq!(copy, copies);
        for (from, to) in copies {
            let size = pool.block_size();
            device.copy_within(from * size..(from + 1) * size, to * size);
        }
        pool.check(&Self::tables(sequences)).unwrap();
        let sequence = &mut sequences[i];
        let page_table = sequence.table.page_table();
        for &token in tokens {
            let position = sequence.tokens.len();
            sequence.tokens.push(token);
            let slot = slot(&page_table, pool.block_size(), position).unwrap();
            device[slot] = content(sequence.namespace, &sequence.tokens);
        }
        pool.commit(&mut sequence.table, end, &sequence.tokens);
        naive.commit(&mut sequence.naive, sequence.namespace, &sequence.tokens);
        true
    }

    fn speculate(&mut self, i: usize, count: usize) {
        let Self { pool, naive, sequences, device, .. } = self;
        let sequence = &mut sequences[i];
        let len = sequence.tokens.len();
        let reserved = pool.reserve(&mut sequence.table, len + count);
        let expected = naive.reserve(&mut sequence.naive, len, len + count);
        assert_eq!(reserved.is_ok(), expected.is_some());
        for (from, to) in expected.into_iter().flatten() {
            let size = pool.block_size();
            device.copy_within(from * size..(from + 1) * size, to * size);
        }
        pool.check(&Self::tables(sequences)).unwrap();
        let sequence = &mut sequences[i];
        pool.release_unwritten(&mut sequence.table);
        let written = pool.blocks_for(len).max(sequence.naive.released);
        while sequence.naive.blocks.len() > written {
            let block = sequence.naive.blocks.pop().unwrap();
            naive.drop(block);
        }
    }

    fn fork(&mut self, from: usize, to: usize) {
        let parent = &mut self.sequences[from];
        self.sequences[to] = Sequence {
            tokens: parent.tokens.clone(),
            namespace: parent.namespace,
            table: self.pool.fork(&mut parent.table),
            naive: self.naive.fork(&parent.naive),
            swapped: None,
            naive_released: 0,
        };
    }

    fn swap_out(&mut self, i: usize) {
        let Self { pool, naive, sequences, host, device, host_storage, .. } = self;
        let sequence = &mut sequences[i];
        let held = sequence.naive.blocks.len() - sequence.naive.released;
        let fits = held <= host.num_free();
        let swapped = pool.swap_out(&mut sequence.table, host);
        assert_eq!(swapped.is_ok(), fits);
        let Ok((swapped, moves)) = swapped else { return };
        let size = pool.block_size();
        for (from, to) in moves {
            let (from, to) = (from.index() * size, to.0 as usize * size);
            host_storage[to..to + size].copy_from_slice(&device[from..from + size]);
        }
        sequence.naive_released = sequence.naive.released;
        naive.release(&mut sequence.naive);
        sequence.swapped = Some(swapped);
    }

    fn swap_in(&mut self, i: usize) {
        let Self { pool, naive, sequences, host, device, host_storage, .. } = self;
        let sequence = &mut sequences[i];
        let Some(swapped) = sequence.swapped.take() else { return };
        let moves = pool.swap_in(&swapped, &mut sequence.table, &sequence.tokens);
        let Sequence { namespace, ref tokens, naive_released, .. } = *sequence;
        let expected = naive.swap_in(&mut sequence.naive, namespace, tokens, naive_released);
        assert_eq!(moves.as_ref().ok().map(Vec::len), expected);
        let Ok(moves) = moves else {
            sequence.swapped = Some(swapped);
            return;
        };
        let size = pool.block_size();
        for (from, to) in moves {
            let (from, to) = (from.0 as usize * size, to.index() * size);
            device[to..to + size].copy_from_slice(&host_storage[from..from + size]);
        }
        host.release(swapped);
        pool.commit(&mut sequence.table, tokens.len(), tokens);
        naive.commit(&mut sequence.naive, namespace, tokens);
    }

    fn release(&mut self, i: usize) {
        let sequence = &mut self.sequences[i];
        self.pool.release(&mut sequence.table);
        self.naive.release(&mut sequence.naive);
        if let Some(swapped) = sequence.swapped.take() {
            self.host.release(swapped);
        }
        *sequence = Sequence::default();
    }

    fn tables(sequences: &[Sequence]) -> Vec<&PageTable> {
        sequences.iter().map(|sequence| &sequence.table).collect()
    }

    /// Ends everything; nothing may be left.
    pub(super) fn release_all(&mut self) {
        for i in 0..self.sequences.len() {
            self.release(i);
        }
        self.check();
        assert_eq!(self.pool.num_free(), self.pool.num_blocks());
        assert_eq!(self.host.num_free(), self.host.num_blocks());
    }

    fn check(&self) {
        self.pool.check(&Self::tables(&self.sequences)).unwrap();
        let swapped: Vec<_> = self.sequences.iter().filter_map(|s| s.swapped.as_ref()).collect();
        self.host.check(&swapped).unwrap();
        let free: Vec<_> = self.pool.free_blocks().map(BlockId::index).collect();
        assert_eq!(free, self.naive.free);
        for (block, cached) in self.naive.cached.iter().enumerate() {
            assert_eq!(self.pool.is_cached(BlockId(block as u32)), cached.is_some());
        }
        for sequence in &self.sequences {
            let blocks: Vec<_> = sequence.table.live_blocks().iter().map(|b| b.index()).collect();
            assert_eq!(blocks, sequence.naive.blocks[sequence.naive.released..]);
            self.check_content(sequence);
        }
    }

    /// Every position that can still be read holds what the sequence wrote there.
    fn check_content(&self, sequence: &Sequence) {
        let size = self.pool.block_size();
        let page_table = sequence.table.page_table();
        assert!(sequence.table.wasted_slots(&self.pool) < size);
        for position in sequence.naive.released * size..sequence.table.len() {
            let slot = slot(&page_table, size, position).unwrap();
            let expected = content(sequence.namespace, &sequence.tokens[..=position]);
            assert_eq!(self.device[slot], expected, "position {position} of {sequence:?}");
        }
    }
}

/// How often each state was continued from, by depth left.
pub(super) type Seen = HashMap<u64, usize>;
