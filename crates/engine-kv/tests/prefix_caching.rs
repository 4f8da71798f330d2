//! A small world: a pool of a few blocks of two positions, and the very blocks that are shared,
//! kept and evicted, in order.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use engine_kv::{BlockId, BlockPool, Namespace, OutOfBlocks, PageTable, slot};

fn ids(blocks: impl IntoIterator<Item = BlockId>) -> Vec<u32> {
    blocks.into_iter().map(|block| block.0).collect()
}

fn free(pool: &BlockPool) -> Vec<u32> {
    ids(pool.free_blocks())
}

fn blocks(table: &PageTable) -> Vec<u32> {
    ids(table.page_table())
}

/// Runs all of `tokens` and returns the table.
fn run(pool: &mut BlockPool, namespace: Namespace, tokens: &[u32]) -> PageTable {
    let mut table = PageTable::new(namespace);
    pool.attach_prefix(&mut table, &tokens[..tokens.len() - 1]);
    pool.reserve(&mut table, tokens.len()).unwrap();
    pool.commit(&mut table, tokens.len(), tokens);
    table
}

const ANY: Namespace = Namespace { salt: 0, epoch: 0 };

#[test]
fn a_released_sequence_is_found_again_and_evicted_from_its_end() {
    let mut pool = BlockPool::new(6, 2, true);
    let mut first = run(&mut pool, ANY, &[1, 2, 3, 4, 5]);
    assert_eq!(blocks(&first), [0, 1, 2]);
    assert_eq!(free(&pool), [3, 4, 5]);

    // The partial block has nothing to offer and is taken first; of the full ones the last.
    pool.release(&mut first);
    assert_eq!(free(&pool), [2, 3, 4, 5, 1, 0]);

    // The same beginning takes both blocks out of the middle of the free list.
    let mut second = run(&mut pool, ANY, &[1, 2, 3, 4, 9, 9, 9]);
    assert_eq!(blocks(&second), [0, 1, 2, 3]);
    assert_eq!(free(&pool), [4, 5]);
    pool.check(&[&second]).unwrap();
    pool.release(&mut second);
    assert_eq!(free(&pool), [3, 4, 5, 2, 1, 0]);

    // Four blocks for something else: the uncached ones, then the longest prefix's end.
    let mut third = run(&mut pool, ANY, &[7, 7, 7, 7, 7, 7, 7]);
    assert_eq!(blocks(&third), [3, 4, 5, 2]);
    assert_eq!(pool.counters().evictions, 1);
    assert_eq!(pool.lookup_prefix(ANY, &[1, 2, 3, 4, 9, 9]).blocks, 2);
    pool.release(&mut third);
    pool.check(&[]).unwrap();
}

#[test]
fn eviction_is_least_recently_used_across_sequences() {
    let mut pool = BlockPool::new(4, 2, true);
    let mut old = run(&mut pool, ANY, &[1, 1]);
    let mut recent = run(&mut pool, ANY, &[2, 2]);
    pool.release(&mut old);
    pool.release(&mut recent);
    assert_eq!(free(&pool), [2, 3, 0, 1]);
    // Used again, the older one becomes the more recent one.
    let mut again = PageTable::new(ANY);
    assert_eq!(pool.attach_prefix(&mut again, &[1, 1]), 2);
    pool.release(&mut again);
    assert_eq!(free(&pool), [2, 3, 1, 0]);
    let mut other = run(&mut pool, ANY, &[3, 3, 3, 3, 3, 3]);
    assert_eq!(blocks(&other), [2, 3, 1]);
    assert_eq!(pool.lookup_prefix(ANY, &[1, 1]).blocks, 1);
    assert_eq!(pool.lookup_prefix(ANY, &[2, 2]).blocks, 0);
    pool.release(&mut other);
}

#[test]
fn salts_and_epochs_do_not_see_each_other() {
    let mut pool = BlockPool::new(8, 2, true);
    let tokens = [4, 4, 4, 4];
    let (tenant, epoch) = (Namespace { salt: 1, epoch: 0 }, Namespace { salt: 0, epoch: 1 });
    let mut tables: Vec<_> =
        [ANY, tenant, epoch].map(|namespace| run(&mut pool, namespace, &tokens)).into();
    assert_eq!(tables.iter().map(blocks).collect::<Vec<_>>(), [[0, 1], [2, 3], [4, 5]]);
    for table in &mut tables {
        pool.release(table);
    }
    // The same tokens again: each finds its own.
    for namespace in [epoch, ANY, tenant] {
        let mut table = run(&mut pool, namespace, &tokens);
        let expected = [0, 2, 4][(namespace.salt + 2 * namespace.epoch) as usize];
        assert_eq!(blocks(&table)[0], expected);
        pool.release(&mut table);
    }
}

#[test]
fn only_equal_prefixes_are_shared_when_every_hash_collides() {
    let mut pool = BlockPool::with_hash_mask(16, 2, true, 0);
    let mut one = run(&mut pool, ANY, &[1, 2, 3, 4]);
    // The second block's tokens are equal, what comes before them is not.
    let mut two = run(&mut pool, ANY, &[9, 9, 3, 4]);
    pool.check(&[&one, &two]).unwrap();
    pool.release(&mut one);
    pool.release(&mut two);
    for (tokens, hit) in [([1, 2, 3, 4], [0, 1]), ([9, 9, 3, 4], [2, 3])] {
        let mut table = PageTable::new(ANY);
        assert_eq!(pool.attach_prefix(&mut table, &tokens), 4);
        assert_eq!(blocks(&table), hit);
        pool.check(&[&table]).unwrap();
        pool.release(&mut table);
    }
    assert_eq!(pool.lookup_prefix(ANY, &[3, 4]).blocks, 0);
}

#[test]
fn a_block_evicted_from_the_middle_does_not_cut_off_what_follows() {
    let mut pool = BlockPool::new(5, 1, true);
    let mut whole = run(&mut pool, ANY, &[1, 2, 3]);
    // The window moves on: the first block is free while the last ones are in use.
    pool.release_before(&mut whole, 1);
    assert_eq!(blocks(&whole), [1, 1, 2]);
    assert_eq!(free(&pool), [3, 4, 0]);
    let mut other = run(&mut pool, ANY, &[8, 8, 8]);
    assert_eq!(blocks(&other), [3, 4, 0]);
    assert_eq!(pool.lookup_prefix(ANY, &[1, 2, 3]).blocks, 0);
    pool.check(&[&whole, &other]).unwrap();
    pool.release(&mut other);
    // Computed again, the first block leads to the others.
    let mut again = run(&mut pool, ANY, &[1, 5]);
    assert_eq!(pool.lookup_prefix(ANY, &[1, 2, 3]).blocks, 3);
    pool.check(&[&whole, &again]).unwrap();
    pool.release(&mut whole);
    pool.release(&mut again);
    pool.check(&[]).unwrap();
}

#[test]
fn a_fork_copies_the_partial_block_of_the_first_writer_only() {
    let mut pool = BlockPool::new(6, 2, true);
    let mut parent = run(&mut pool, ANY, &[1, 2, 3]);
    let mut child = pool.fork(&mut parent);
    assert_eq!(blocks(&child), [0, 1]);
    assert_eq!(pool.ref_count(BlockId(1)), 2);

    let copy = pool.reserve(&mut child, 4).unwrap();
    assert_eq!(copy, Some((BlockId(1), BlockId(2))));
    assert_eq!(pool.reserve(&mut parent, 4).unwrap(), None);
    pool.commit(&mut child, 4, &[1, 2, 3, 7]);
    pool.commit(&mut parent, 4, &[1, 2, 3, 8]);
    assert_eq!((blocks(&parent), blocks(&child)), (vec![0, 1], vec![0, 2]));
    assert_eq!(slot(&child.page_table(), 2, 3), Some(5));
    pool.check(&[&parent, &child]).unwrap();

    // On a block border there is nothing to copy.
    let mut third = pool.fork(&mut child);
    assert_eq!(pool.reserve(&mut third, 5).unwrap(), None);
    assert_eq!(blocks(&third), [0, 2, 3]);
    assert_eq!(third.wasted_slots(&pool), 2);
    assert_eq!(pool.usage([&parent, &child, &third]).used_blocks, 4);
    for table in [&mut parent, &mut child, &mut third] {
        pool.release(table);
    }
    pool.check(&[]).unwrap();
}

#[test]
fn a_fork_takes_back_what_was_reserved() {
    let mut pool = BlockPool::new(6, 2, true);
    let mut parent = run(&mut pool, ANY, &[1, 2, 3]);
    // Position 3 of the partial block and a block of its own.
    assert_eq!(pool.reserve(&mut parent, 6).unwrap(), None);
    let mut child = pool.fork(&mut parent);
    pool.check(&[&parent, &child]).unwrap();
    assert_eq!((blocks(&parent), blocks(&child)), (vec![0, 1], vec![0, 1]));
    // To write on, it needs a partial block of its own.
    assert_eq!(pool.reserve(&mut parent, 4).unwrap().map(|(from, _)| from), Some(BlockId(1)));
    pool.check(&[&parent, &child]).unwrap();
    pool.release(&mut child);
    pool.release(&mut parent);
}

#[test]
fn what_does_not_fit_changes_nothing() {
    let mut pool = BlockPool::new(2, 2, true);
    let mut table = run(&mut pool, ANY, &[1, 2, 3]);
    let mut child = pool.fork(&mut table);
    let before = format!("{pool:?} {table:?} {child:?}");
    let error = pool.reserve(&mut child, 4).unwrap_err();
    assert_eq!(error, OutOfBlocks { needed: 1, free: 0 });
    assert_eq!(pool.reserve(&mut child, 7), Err(OutOfBlocks { needed: 3, free: 0 }));
    assert_eq!(format!("{pool:?} {table:?} {child:?}"), before);
    pool.release(&mut child);
    pool.release(&mut table);
}

#[test]
fn swapping_in_shares_what_is_still_cached() {
    let mut pool = BlockPool::new(4, 2, true);
    let mut host = engine_kv::HostPool::new(4);
    let tokens = [1, 2, 3, 4, 5];
    let mut table = run(&mut pool, ANY, &tokens);
    let (swapped, moves) = pool.swap_out(&mut table, &mut host).unwrap();
    assert_eq!(
        moves.iter().map(|(from, to)| (from.0, to.0)).collect::<Vec<_>>(),
        [(0, 0), (1, 1), (2, 2)]
    );
    assert_eq!(free(&pool), [2, 3, 1, 0]);
    host.check(&[&swapped]).unwrap();

    // Three blocks for another sequence evict the second block, not the first.
    let mut other = run(&mut pool, ANY, &[8, 8, 8, 8, 8]);
    assert!(pool.swap_in(&swapped, &mut table, &tokens).is_err());
    pool.release(&mut other);
    let moves = pool.swap_in(&swapped, &mut table, &tokens).unwrap();
    assert_eq!(moves.iter().map(|(from, _)| from.0).collect::<Vec<_>>(), [1, 2]);
    assert_eq!(blocks(&table)[0], 0);
    host.release(swapped);
    assert_eq!(host.num_free(), 4);
    pool.commit(&mut table, 5, &tokens);
    pool.check(&[&table]).unwrap();
    pool.release(&mut table);
}

#[test]
fn a_leaked_table_is_noticed() {
    let mut pool = BlockPool::new(4, 2, true);
    let table = run(&mut pool, ANY, &[1, 2, 3]);
    assert!(pool.check(&[&table]).is_ok());
    assert!(pool.check(&[]).is_err());
}
