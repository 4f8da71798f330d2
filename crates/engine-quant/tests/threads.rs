//! The pool of the CPU kernels does every part once, whatever happens around it.
#![cfg(feature = "flex")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

use std::{
    collections::HashSet,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    thread,
    time::{Duration, Instant},
};

use engine_quant::threads::{Pool, count, for_each, for_each_chunk, for_each_pair};

const ROUNDS: usize = if cfg!(miri) { 20 } else { 20_000 };
const THREADS: [usize; 4] = [1, 2, 3, 8];

/// How often each part is done.
fn tally(parts: usize) -> Vec<usize> {
    let done: Vec<_> = (0..parts).map(|_| AtomicUsize::new(0)).collect();
    for_each(parts, |part| _ = done[part].fetch_add(1, Relaxed));
    done.into_iter().map(AtomicUsize::into_inner).collect()
}

#[test]
fn every_part_is_done_once_by_any_number_of_threads() {
    for threads in THREADS {
        Pool::new(threads).unwrap().enter(|| {
            assert_eq!(count(), threads);
            for round in 0..ROUNDS / threads {
                let parts = round % 9;
                assert_eq!(tally(parts), vec![1; parts], "{threads} threads, round {round}");
            }
        });
    }
}

#[test]
fn what_a_job_wrote_is_seen_by_who_offered_it_and_by_the_next_job() {
    for threads in THREADS {
        Pool::new(threads).unwrap().enter(|| {
            let mut values = vec![0_usize; 67];
            for round in 0..ROUNDS / threads {
                for_each_chunk(&mut values, 5, |_, chunk| chunk.iter_mut().for_each(|v| *v += 1));
                assert!(values.iter().all(|v| *v == round + 1), "{threads} threads");
            }
        });
    }
}

#[test]
fn chunks_are_those_of_the_slice_and_pairs_have_one_number() {
    for threads in THREADS {
        Pool::new(threads).unwrap().enter(|| {
            let mut numbers = [usize::MAX; 10];
            for_each_chunk(&mut numbers, 4, |i, chunk| chunk.fill(i));
            assert_eq!(numbers, [0, 0, 0, 0, 1, 1, 1, 1, 2, 2]);
            let (mut a, mut b) = ([0_u8; 5], [0_u32; 9]);
            for_each_pair((&mut a, 2), (&mut b, 3), |i, a, b| {
                a.fill(i as u8);
                b.fill(i as u32 + 10);
            });
            assert_eq!((a, b), ([0, 0, 1, 1, 2], [10, 10, 10, 11, 11, 11, 12, 12, 12]));
            for_each_chunk(&mut [0_u8; 0], 1, |_, _| panic!("there is nothing"));
        });
    }
}

#[test]
fn a_panic_of_any_part_reaches_the_caller_and_the_pool_goes_on() {
    for threads in THREADS {
        let pool = Pool::new(threads).unwrap();
        for bad in 0..7 {
            let work = |part| {
                if part == bad {
                    std::panic::panic_any(bad);
                }
            };
            let caught = catch_unwind(AssertUnwindSafe(|| pool.enter(|| for_each(7, work))));
            assert_eq!(caught.unwrap_err().downcast_ref(), Some(&bad), "{threads} threads");
            assert_eq!(count(), rayon::current_num_threads(), "the scope ended");
            assert_eq!(pool.enter(|| tally(50)), vec![1; 50], "{threads} threads");
        }
    }
}

#[test]
fn all_threads_take_part_and_work_inside_a_part_stays_on_its_thread() {
    let seen = Mutex::new(HashSet::new());
    Pool::new(3).unwrap().enter(|| {
        let start = Instant::now();
        while seen.lock().unwrap().len() < 3 {
            assert!(start.elapsed() < Duration::from_secs(60), "a thread never took part");
            for_each(3, |_| {
                let me = thread::current().id();
                seen.lock().unwrap().insert(me);
                assert_eq!(count(), 1);
                for_each(4, |_| assert_eq!(thread::current().id(), me));
                thread::sleep(Duration::from_micros(50));
            });
            assert_eq!(count(), 3);
        }
    });
}

#[test]
fn sleeping_helpers_wake_and_a_pool_that_never_worked_ends() {
    let pool = Pool::new(4).unwrap();
    for pause in [0, 50, 90, 110, 200, 1000, 5000] {
        for _ in 0..ROUNDS / 1000 + 1 {
            thread::sleep(Duration::from_micros(pause));
            assert_eq!(pool.enter(|| tally(5)), [1; 5]);
        }
    }
    drop(pool);
    for _ in 0..ROUNDS / 200 {
        drop(Pool::new(3).unwrap());
    }
}

#[test]
fn threads_that_enter_one_pool_together_each_get_their_own_work_done() {
    let pool = Pool::new(3).unwrap();
    thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                pool.enter(|| (0..ROUNDS / 20).for_each(|_| assert_eq!(tally(6), [1; 6])));
            });
        }
    });
}

#[test]
fn scopes_nest_and_outside_of_all_the_work_is_done_too() {
    let [one, two] = [1, 2].map(|threads| Pool::new(threads).unwrap());
    two.enter(|| {
        assert_eq!(one.enter(count), 1);
        assert_eq!(count(), 2);
    });
    assert_eq!(count(), rayon::current_num_threads());
    assert_eq!(tally(100), vec![1; 100]);
}
