//! How work on the CPU is spread over threads.

use rayon::prelude::*;

/// Threads that [`for_each`] uses when called from here.
pub fn count() -> usize {
    rayon::current_num_threads()
}

/// Calls `work` with each number below `parts` once, on all threads, and returns when all are done.
///
/// Parts are handed out one at a time in their order, so that a thread that is late leaves some to
/// the others.
pub fn for_each(parts: usize, work: impl Fn(usize) + Send + Sync) {
    if parts < 2 || count() == 1 {
        (0..parts).for_each(work);
    } else {
        (0..parts).into_par_iter().with_max_len(1).for_each(work);
    }
}
