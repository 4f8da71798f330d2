//! The pool without cleverness: lists that are searched from one end to the other, and whole
//! prefixes where the pool has hashes.

use crate::Namespace;

pub(super) type Key = (Namespace, Vec<u32>);

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct NaivePool {
    pub(super) block_size: usize,
    pub(super) caching: bool,
    pub(super) refs: Vec<usize>,
    pub(super) cached: Vec<Option<Key>>,
    pub(super) free: Vec<usize>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub(super) struct NaiveTable {
    pub(super) blocks: Vec<usize>,
    pub(super) released: usize,
    pub(super) sealed: usize,
}

impl NaivePool {
    pub(super) fn new(num_blocks: usize, block_size: usize, caching: bool) -> Self {
        Self {
            block_size,
            caching,
            refs: vec![0; num_blocks],
            cached: vec![None; num_blocks],
            free: (0..num_blocks).collect(),
        }
    }

    fn allocate(&mut self) -> usize {
        let block = self.free.remove(0);
        self.cached[block] = None;
        self.refs[block] = 1;
        block
    }

    fn add(&mut self, block: usize) {
        self.free.retain(|&other| other != block);
        self.refs[block] += 1;
    }

    pub(super) fn drop(&mut self, block: usize) {
        self.refs[block] -= 1;
        if self.refs[block] == 0 {
            match self.cached[block] {
                Some(_) => self.free.push(block),
                None => self.free.insert(0, block),
            }
        }
    }

    fn find(&self, namespace: Namespace, prefix: &[u32]) -> Option<usize> {
        let is = |key: &Key| key.0 == namespace && key.1 == prefix;
        self.cached.iter().position(|key| key.as_ref().is_some_and(is))
    }

    /// Blocks cached for the beginning of `tokens`.
    pub(super) fn lookup(&self, namespace: Namespace, tokens: &[u32]) -> Vec<usize> {
        let lens = (1..=tokens.len() / self.block_size).map(|blocks| blocks * self.block_size);
        lens.map_while(|len| self.find(namespace, &tokens[..len])).collect()
    }

    pub(super) fn attach(&mut self, table: &mut NaiveTable, namespace: Namespace, tokens: &[u32]) {
        for block in self.lookup(namespace, tokens) {
            self.add(block);
            table.blocks.push(block);
            table.sealed += 1;
        }
    }

    /// Makes `len..end` writable; the copy to do, or `None` if there are too few blocks.
    pub(super) fn reserve(
        &mut self,
        table: &mut NaiveTable,
        len: usize,
        end: usize,
    ) -> Option<Vec<(usize, usize)>> {
        let partial = !len.is_multiple_of(self.block_size);
        let tail = len / self.block_size;
        let shared = end > len && partial && self.refs[table.blocks[tail]] > 1;
        let more = end.div_ceil(self.block_size).saturating_sub(table.blocks.len());
        if more + usize::from(shared) > self.free.len() {
            return None;
        }
        let mut copies = Vec::new();
        if shared {
            let own = self.allocate();
            let from = std::mem::replace(&mut table.blocks[tail], own);
            self.drop(from);
            copies.push((from, own));
        }
        for _ in 0..more {
            table.blocks.push(self.allocate());
        }
        Some(copies)
    }

    pub(super) fn commit(&mut self, table: &mut NaiveTable, namespace: Namespace, tokens: &[u32]) {
        let full = if self.caching { tokens.len() / self.block_size } else { table.sealed };
        for i in table.sealed..full {
            let prefix = &tokens[..(i + 1) * self.block_size];
            let block = table.blocks[i];
            let known = self.find(namespace, prefix).is_some();
            if i >= table.released && self.cached[block].is_none() && !known {
                self.cached[block] = Some((namespace, prefix.to_vec()));
            }
        }
        table.sealed = full;
    }

    pub(super) fn fork(&mut self, table: &NaiveTable) -> NaiveTable {
        for &block in &table.blocks[table.released..] {
            self.add(block);
        }
        table.clone()
    }

    pub(super) fn release_before(&mut self, table: &mut NaiveTable, position: usize) {
        for i in table.released..position / self.block_size {
            self.drop(table.blocks[i]);
            table.released = i + 1;
        }
    }

    pub(super) fn release(&mut self, table: &mut NaiveTable) {
        for &block in table.blocks[table.released..].iter().rev() {
            self.drop(block);
        }
        *table = NaiveTable::default();
    }

    pub(super) fn swap_in(
        &mut self,
        table: &mut NaiveTable,
        namespace: Namespace,
        tokens: &[u32],
        released: usize,
    ) -> Option<usize> {
        let held = tokens.len().div_ceil(self.block_size) - released;
        if held > self.free.len() {
            return None;
        }
        if released == 0 {
            self.attach(table, namespace, tokens);
        }
        let shared = table.blocks.len();
        table.released = released;
        table.blocks.resize(shared + released, 0);
        for _ in shared..held {
            table.blocks.push(self.allocate());
        }
        Some(held - shared)
    }
}
