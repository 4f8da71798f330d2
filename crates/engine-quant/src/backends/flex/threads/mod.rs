//! How work on the CPU is spread over threads.
//!
//! Kernels call [`for_each`] and never ask who works. Inside [`Pool::enter`] it is that pool, whose
//! threads wait awake between two operations of a step; elsewhere, as while a model is loaded, it is
//! the current pool of rayon. Work that itself calls [`for_each`] gets one thread, its own.

mod pool;

use std::{cell::Cell, marker::PhantomData};

use rayon::prelude::*;

pub use pool::Pool;

/// Where [`for_each`] finds threads.
#[derive(Clone, Copy)]
enum Current {
    Rayon,
    /// A pool that is borrowed further up the stack of this thread.
    Pool(*const Pool),
    /// This thread works on a part.
    Alone,
}

thread_local! {
    static CURRENT: Cell<Current> = const { Cell::new(Current::Rayon) };
}

/// Puts back what was current, on a panic too.
struct Scope(Current);

impl Scope {
    fn of(current: Current) -> Self {
        Self(CURRENT.replace(current))
    }
}

impl Drop for Scope {
    fn drop(&mut self) {
        CURRENT.set(self.0);
    }
}

impl Pool {
    /// Does `work` on this thread; every [`for_each`] in it runs on the pool.
    ///
    /// While two threads are inside, one of them at a time has the helpers.
    pub fn enter<R>(&self, work: impl FnOnce() -> R) -> R {
        let _scope = Scope::of(Current::Pool(self));
        work()
    }
}

/// Threads that [`for_each`] uses when called from here.
pub fn count() -> usize {
    match CURRENT.get() {
        Current::Rayon => rayon::current_num_threads(),
        // SAFETY: `Pool::enter` borrows the pool for as long as it is current.
        Current::Pool(pool) => unsafe { (*pool).threads() },
        Current::Alone => 1,
    }
}

/// Calls `work` with each number below `parts` once, on all threads, and returns when all are done.
///
/// Parts are handed out one at a time in their order, so that a thread that is late leaves some to
/// the others. Nothing is allocated.
///
/// # Panics
/// If `work` does; parts that nobody had begun by then are left out.
///
/// ```
/// use engine_quant::threads::{Pool, count, for_each};
/// use std::sync::atomic::{AtomicUsize, Ordering};
/// let sum = AtomicUsize::new(0);
/// Pool::new(2)?.enter(|| {
///     assert_eq!(count(), 2);
///     for_each(10, |part| _ = sum.fetch_add(part, Ordering::Relaxed));
/// });
/// assert_eq!(sum.into_inner(), 45);
/// # Ok::<(), std::io::Error>(())
/// ```
pub fn for_each(parts: usize, work: impl Fn(usize) + Send + Sync) {
    match CURRENT.get() {
        Current::Pool(pool) if parts > 1 => {
            let _alone = Scope::of(Current::Alone);
            // SAFETY: as in `count`.
            let is_done = unsafe { (*pool).run(parts, &work) };
            if !is_done {
                (0..parts).for_each(work);
            }
        }
        Current::Rayon if parts > 1 && rayon::current_num_threads() > 1 => {
            (0..parts).into_par_iter().with_max_len(1).for_each(work);
        }
        _ => (0..parts).for_each(work),
    }
}

/// Calls `work` with the number of each chunk of `len` elements, the last one shorter, and the
/// chunk.
///
/// # Panics
/// If `len` is zero, or `work` panics.
pub fn for_each_chunk<T: Send>(
    values: &mut [T],
    len: usize,
    work: impl Fn(usize, &mut [T]) + Send + Sync,
) {
    let chunks = Chunks::new(values, len);
    // SAFETY: each part has one number, and each number is handed out once.
    for_each(chunks.count(), |part| work(part, unsafe { chunks.get(part) }));
}

/// Calls `work` with chunks of the same number of two slices, as many as the first has.
///
/// # Panics
/// If a length is zero, the second slice has fewer chunks, or `work` panics.
pub fn for_each_pair<A: Send, B: Send>(
    (first, first_len): (&mut [A], usize),
    (second, second_len): (&mut [B], usize),
    work: impl Fn(usize, &mut [A], &mut [B]) + Send + Sync,
) {
    let (first, second) = (Chunks::new(first, first_len), Chunks::new(second, second_len));
    assert!(first.count() <= second.count(), "for_each_pair: chunks without a partner");
    for_each(first.count(), |part| {
        // SAFETY: as above.
        let (first, second) = unsafe { (first.get(part), second.get(part)) };
        work(part, first, second);
    });
}

/// A slice in chunks that several threads write, each its own.
struct Chunks<'a, T> {
    start: *mut T,
    len: usize,
    chunk: usize,
    values: PhantomData<&'a mut [T]>,
}

// SAFETY: threads get different chunks, as `get` demands, and elements can go to other threads.
unsafe impl<T: Send> Sync for Chunks<'_, T> {}
// SAFETY: as above.
unsafe impl<T: Send> Send for Chunks<'_, T> {}

impl<'a, T> Chunks<'a, T> {
    fn new(values: &'a mut [T], chunk: usize) -> Self {
        assert!(chunk > 0, "for_each_chunk: chunks of no elements");
        Self { start: values.as_mut_ptr(), len: values.len(), chunk, values: PhantomData }
    }

    fn count(&self) -> usize {
        self.len.div_ceil(self.chunk)
    }

    /// # Safety
    /// No chunk is taken twice.
    #[expect(clippy::mut_from_ref, reason = "chunks do not overlap, and each is taken once")]
    unsafe fn get(&self, number: usize) -> &mut [T] {
        let start = number * self.chunk;
        assert!(start < self.len, "for_each_chunk: there is no such chunk");
        let len = self.chunk.min(self.len - start);
        // SAFETY: the elements are in the slice and, as the caller promises, in nobody else's hands.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(start), len) }
    }
}
