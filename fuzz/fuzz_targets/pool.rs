//! The block pool under any order of operations: its invariants hold after each one, and every
//! position that a sequence can read holds what that sequence wrote there.
#![no_main]

use std::hash::{DefaultHasher, Hash, Hasher};

use engine_kv::{BlockPool, HostPool, Namespace, PageTable, SwappedTable, slot};
use libfuzzer_sys::{arbitrary, fuzz_target};

const SEQUENCES: usize = 4;

#[derive(Debug, arbitrary::Arbitrary)]
struct Input {
    num_blocks: u8,
    host_blocks: u8,
    block_size: u8,
    prefix_caching: bool,
    /// With few bits, prefixes of different tokens have the same hash.
    hash_bits: u8,
    ops: Vec<Op>,
}

#[derive(Debug, arbitrary::Arbitrary)]
enum Op {
    Start { sequence: u8, salt: bool, tokens: Vec<u8> },
    Write { sequence: u8, tokens: Vec<u8> },
    Reserve { sequence: u8, more: u8 },
    ReleaseUnwritten { sequence: u8 },
    Fork { from: u8, to: u8 },
    Window { sequence: u8, window: u8 },
    SwapOut { sequence: u8 },
    SwapIn { sequence: u8 },
    Release { sequence: u8 },
}

#[derive(Default)]
struct Sequence {
    tokens: Vec<u32>,
    table: PageTable,
    /// Positions before this one may not be read any more.
    readable_from: usize,
    swapped: Option<SwappedTable>,
}

struct World {
    pool: BlockPool,
    host: HostPool,
    sequences: [Sequence; SEQUENCES],
    /// What each slot holds: a hash of all tokens up to its own.
    device: Vec<u64>,
    saved: Vec<u64>,
}

fn content(namespace: Namespace, tokens: &[u32]) -> u64 {
    let mut hasher = DefaultHasher::new();
    (namespace, tokens).hash(&mut hasher);
    hasher.finish()
}

impl World {
    fn apply(&mut self, op: &Op) {
        let index = |sequence: u8| usize::from(sequence) % SEQUENCES;
        match op {
            Op::Start { sequence, salt, tokens } => self.start(index(*sequence), *salt, tokens),
            Op::Write { sequence, tokens } => {
                self.write(index(*sequence), tokens.iter().map(|&token| u32::from(token % 4)));
            }
            Op::Reserve { sequence, more } => self.reserve(index(*sequence), usize::from(*more)),
            Op::ReleaseUnwritten { sequence } => {
                let table = &mut self.sequences[index(*sequence)].table;
                self.pool.release_unwritten(table);
                assert!(table.wasted_slots(&self.pool) < self.pool.block_size());
            }
            Op::Fork { from, to } => self.fork(index(*from), index(*to)),
            Op::Window { sequence, window } => {
                let sequence = &mut self.sequences[index(*sequence)];
                let oldest = sequence.table.len().saturating_sub(usize::from(*window));
                self.pool.release_before(&mut sequence.table, oldest);
                sequence.readable_from = sequence.readable_from.max(oldest);
            }
            Op::SwapOut { sequence } => self.swap_out(index(*sequence)),
            Op::SwapIn { sequence } => self.swap_in(index(*sequence)),
            Op::Release { sequence } => self.release(index(*sequence)),
        }
        self.check();
    }

    fn start(&mut self, i: usize, salt: bool, tokens: &[u8]) {
        self.release(i);
        let namespace = Namespace { salt: u64::from(salt), epoch: 0 };
        let tokens: Vec<u32> = tokens.iter().map(|&token| u32::from(token % 4)).collect();
        let sequence = &mut self.sequences[i];
        sequence.table = PageTable::new(namespace);
        let hit = self.pool.attach_prefix(&mut sequence.table, &tokens);
        sequence.tokens = tokens[..hit].to_vec();
        self.write(i, tokens[hit..].iter().copied());
    }

    fn write(&mut self, i: usize, tokens: impl Iterator<Item = u32>) {
        if self.sequences[i].swapped.is_some() {
            return;
        }
        let tokens: Vec<u32> = tokens.take(40).collect();
        self.reserve(i, tokens.len());
        let size = self.pool.block_size();
        let sequence = &mut self.sequences[i];
        let end = sequence.table.len() + tokens.len();
        let table = sequence.table.page_table();
        if !tokens.is_empty() && slot(&table, size, end - 1).is_none() {
            return;
        }
        for token in tokens {
            let position = sequence.tokens.len();
            sequence.tokens.push(token);
            if let Some(slot) = slot(&table, size, position) {
                self.device[slot] = content(sequence.table.namespace(), &sequence.tokens);
            }
        }
        self.pool.commit(&mut sequence.table, end, &sequence.tokens);
    }

    fn reserve(&mut self, i: usize, more: usize) {
        let sequence = &mut self.sequences[i];
        if sequence.swapped.is_some() {
            return;
        }
        let end = sequence.table.len() + more;
        let fits = self.pool.blocks_to_reserve(&sequence.table, end) <= self.pool.num_free();
        let reserved = self.pool.reserve(&mut sequence.table, end);
        assert_eq!(reserved.is_ok(), fits);
        if let Ok(Some((from, to))) = reserved {
            let size = self.pool.block_size();
            let from = from.0 as usize * size;
            self.device.copy_within(from..from + size, to.0 as usize * size);
        }
    }

    fn fork(&mut self, from: usize, to: usize) {
        if from == to || self.sequences[from].swapped.is_some() {
            return;
        }
        self.release(to);
        let parent = &mut self.sequences[from];
        self.sequences[to] = Sequence {
            tokens: parent.tokens.clone(),
            table: self.pool.fork(&mut parent.table),
            readable_from: parent.readable_from,
            swapped: None,
        };
    }

    fn swap_out(&mut self, i: usize) {
        let sequence = &mut self.sequences[i];
        if sequence.swapped.is_some() {
            return;
        }
        let Ok((swapped, moves)) = self.pool.swap_out(&mut sequence.table, &mut self.host) else {
            return;
        };
        let size = self.pool.block_size();
        for (from, to) in moves {
            let (from, to) = (from.0 as usize * size, to.0 as usize * size);
            self.saved[to..to + size].copy_from_slice(&self.device[from..from + size]);
        }
        sequence.swapped = Some(swapped);
    }

    fn swap_in(&mut self, i: usize) {
        let sequence = &mut self.sequences[i];
        let Some(swapped) = sequence.swapped.take() else { return };
        let Ok(moves) = self.pool.swap_in(&swapped, &mut sequence.table, &sequence.tokens) else {
            sequence.swapped = Some(swapped);
            return;
        };
        let size = self.pool.block_size();
        for (from, to) in moves {
            let (from, to) = (from.0 as usize * size, to.0 as usize * size);
            self.device[to..to + size].copy_from_slice(&self.saved[from..from + size]);
        }
        self.host.release(swapped);
        let len = sequence.tokens.len();
        self.pool.commit(&mut sequence.table, len, &sequence.tokens);
    }

    fn release(&mut self, i: usize) {
        let mut sequence = std::mem::take(&mut self.sequences[i]);
        self.pool.release(&mut sequence.table);
        if let Some(swapped) = sequence.swapped {
            self.host.release(swapped);
        }
    }

    fn check(&self) {
        let tables: Vec<&PageTable> = self.sequences.iter().map(|s| &s.table).collect();
        self.pool.check(&tables).unwrap();
        let swapped: Vec<_> = self.sequences.iter().filter_map(|s| s.swapped.as_ref()).collect();
        self.host.check(&swapped).unwrap();
        for sequence in self.sequences.iter().filter(|s| s.swapped.is_none()) {
            let table = sequence.table.page_table();
            for position in sequence.readable_from..sequence.table.len() {
                let slot = slot(&table, self.pool.block_size(), position).unwrap();
                let tokens = &sequence.tokens[..=position];
                assert_eq!(self.device[slot], content(sequence.table.namespace(), tokens));
            }
        }
    }
}

fuzz_target!(|input: Input| {
    let block_size = usize::from(input.block_size % 8) + 1;
    let (num_blocks, host_blocks) = (usize::from(input.num_blocks % 32), input.host_blocks % 16);
    let mask = (1_u64 << (input.hash_bits % 64)) - 1;
    let caching = input.prefix_caching;
    let mut world = World {
        pool: BlockPool::with_hash_mask(num_blocks, block_size, caching, mask),
        host: HostPool::new(usize::from(host_blocks)),
        sequences: Default::default(),
        device: vec![0; num_blocks * block_size],
        saved: vec![0; usize::from(host_blocks) * block_size],
    };
    for op in input.ops.iter().take(200) {
        world.apply(op);
    }
    (0..SEQUENCES).for_each(|i| world.release(i));
    world.check();
    assert_eq!(world.pool.num_free(), world.pool.num_blocks());
    assert_eq!(world.host.num_free(), world.host.num_blocks());
});
