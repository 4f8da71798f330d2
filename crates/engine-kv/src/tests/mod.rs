//! The pool against its naive model: by chance in worlds of any shape, and exhaustively in a small
//! one.

mod naive;
mod world;

use proptest::prelude::*;
use world::{Op, Seen, World};

use crate::{BlockPool, Namespace};

fn namespace() -> impl Strategy<Value = Namespace> {
    (0..2u64, 0..2u64).prop_map(|(salt, epoch)| Namespace { salt, epoch })
}

fn op() -> impl Strategy<Value = Op> {
    let i = 0..5usize;
    prop_oneof![
        3 => (i.clone(), namespace(), prop::collection::vec(0..2u32, 1..14))
            .prop_map(|(i, namespace, tokens)| Op::Start(i, namespace, tokens)),
        6 => (i.clone(), 0..2u32).prop_map(|(i, token)| Op::Extend(i, token)),
        1 => (i.clone(), 0..9usize).prop_map(|(i, count)| Op::Speculate(i, count)),
        2 => (i.clone(), 0..5usize).prop_map(|(from, to)| Op::Fork(from, to)),
        1 => (i.clone(), 0..6usize).prop_map(|(i, window)| Op::Window(i, window)),
        1 => i.clone().prop_map(Op::SwapOut),
        2 => i.clone().prop_map(Op::SwapIn),
        2 => i.prop_map(Op::Release),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 1500,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn the_pool_does_what_the_naive_pool_does(
        (num_blocks, block_size, num_host_blocks) in (1..16usize, 1..5usize, 0..8usize),
        caching in prop::bool::weighted(0.9),
        hash_mask in prop::sample::select(vec![0, 1, u64::MAX]),
        ops in prop::collection::vec(op(), 1..80),
    ) {
        let pool = BlockPool::with_hash_mask(num_blocks, block_size, caching, hash_mask);
        let mut world = World::new(pool, num_host_blocks, 5);
        for op in &ops {
            world.apply(op);
        }
        world.release_all();
    }
}

/// Every operation that makes sense on three sequences. Empty places are alike: only the first one
/// is filled.
fn possible(world: &World) -> Vec<Op> {
    let empty = (0..3).find(|&i| !world.is_live(i));
    let mut ops = Vec::new();
    if let Some(i) = empty {
        ops.push(Op::Start(i, Namespace::default(), vec![0, 0, 1]));
        ops.push(Op::Start(i, Namespace::default(), vec![0, 0, 1, 1, 0]));
    }
    for i in (0..3).filter(|&i| world.is_live(i)) {
        ops.push(Op::Release(i));
        if world.is_swapped(i) {
            ops.push(Op::SwapIn(i));
            continue;
        }
        ops.extend([Op::Extend(i, 0), Op::Extend(i, 1), Op::SwapOut(i), Op::Window(i, 1)]);
        ops.extend(empty.map(|to| Op::Fork(i, to)));
    }
    ops
}

/// Applies all sequences of `depth` operations. Two ways to the same state go on as one.
fn explore(world: &World, depth: usize, seen: &mut Seen) -> u64 {
    let mut applied = 0;
    for op in possible(world) {
        let mut next = world.clone();
        next.apply(&op);
        applied += 1;
        let known = seen.entry(next.state()).or_default();
        if *known < depth {
            *known = depth;
            if depth > 1 {
                applied += explore(&next, depth - 1, seen);
            } else {
                next.release_all();
            }
        }
    }
    applied
}

#[test]
fn every_way_through_a_tiny_pool_is_right() {
    for hash_mask in [0, u64::MAX] {
        let world = World::new(BlockPool::with_hash_mask(4, 2, true, hash_mask), 3, 3);
        let mut seen = Seen::new();
        let applied = explore(&world, 7, &mut seen);
        println!("{applied} operations, {} states", seen.len());
        assert!(applied > 1000 && seen.len() > 500);
    }
}
