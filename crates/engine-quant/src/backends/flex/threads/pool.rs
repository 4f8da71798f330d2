//! Threads that wait awake for the next piece of work.
//!
//! One *job* is a function and a number of parts, which a counter hands out. Who offers a job works
//! on it too, so the others are helpers: one that comes late finds nothing left, and nobody waits
//! for a thread that did not come, be it that others need its core.
//!
//! Everything hangs on one word, [`Shared::gate`]: the number of the job, whether it is open, and
//! how many helpers are inside.
//!
//! 1. The offering thread writes the job while the gate is shut and nobody is inside, and opens it.
//! 2. A helper enters by adding one to a gate that it saw open, in one exchange with the whole word:
//!    it fails if the job is shut or another one by now. Inside, it reads the job and takes parts
//!    until none is left, then subtracts one.
//! 3. The offering thread takes parts until none is left, shuts the gate, so that nobody enters any
//!    more, and waits until nobody is inside. Then every part is done, and nobody holds a reference
//!    to the function or to what it borrows.
//!
//! A helper without work spins for [`SPIN`], then sleeps. It counts itself among the sleepers before
//! it looks at the gate for the last time, and who opens the gate looks at the sleepers after that;
//! all four are sequentially consistent, so one of the two sees the other.

use std::{
    any::Any,
    cell::UnsafeCell,
    hint::spin_loop,
    io,
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    sync::{
        Arc, Condvar, Mutex, PoisonError,
        atomic::{
            AtomicBool, AtomicU64, AtomicUsize,
            Ordering::{AcqRel, Acquire, Relaxed, Release, SeqCst},
        },
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use super::{CURRENT, Current};

/// How long a helper without work stays awake: longer than what lies between two operations of a
/// step, and than most of what lies between two steps.
const SPIN: Duration = Duration::from_micros(100);

/// Looks at the gate between two looks at the clock.
const LOOKS: usize = 64;

/// Looks at the gate until who waits for helpers lets other threads have the core.
const PATIENCE: usize = 1 << 12;

/// One job in the number of jobs.
const JOB: u64 = 1 << 32;
/// Helpers may enter.
const OPEN: u64 = 1 << 31;
/// Helpers are to end.
const STOP: u64 = 1 << 30;
/// The helpers inside.
const INSIDE: u64 = STOP - 1;

type Panic = Box<dyn Any + Send>;

/// A function of a part's number, without its type and lifetime.
#[derive(Clone, Copy)]
struct Job {
    work: *const (),
    call: unsafe fn(*const (), usize),
    parts: usize,
}

/// # Safety
/// `work` points to a `W`.
unsafe fn call<W: Fn(usize) + Sync>(work: *const (), part: usize) {
    // SAFETY: the caller's promise.
    unsafe { (*work.cast::<W>())(part) }
}

/// A value on cache lines of its own.
#[repr(align(128))]
struct Alone<T>(T);

struct Shared {
    /// Number of the job · [`JOB`] + [`OPEN`] + [`STOP`] + helpers inside.
    gate: Alone<AtomicU64>,
    /// The next part of the open job.
    next: Alone<AtomicUsize>,
    job: UnsafeCell<Job>,
    /// Held by who offers a job.
    is_busy: AtomicBool,
    /// Helpers that sleep or are about to.
    sleepers: AtomicUsize,
    bed: Mutex<()>,
    bell: Condvar,
    /// What the first part that panicked on a helper said.
    panic: Mutex<Option<Panic>>,
    spin: Duration,
}

// SAFETY: `job` is written only while the gate is shut and nobody is inside, by the one thread that
// holds `is_busy`, and read only by helpers inside; entering acquires what opening released. What it
// points to can be shared between threads and outlives `Pool::run`, which waits for all inside.
unsafe impl Sync for Shared {}
// SAFETY: as above.
unsafe impl Send for Shared {}

impl Shared {
    /// Takes parts until none is left; one that panics takes all the others with it.
    fn work(&self, job: Job) -> Result<(), Panic> {
        let result = catch_unwind(AssertUnwindSafe(|| {
            loop {
                let part = self.next.0.fetch_add(1, Relaxed);
                if part >= job.parts {
                    return;
                }
                // SAFETY: the job is open, so what it points to is alive and of its type.
                unsafe { (job.call)(job.work, part) };
            }
        }));
        if result.is_err() {
            self.next.0.store(job.parts, Relaxed);
        }
        result
    }

    /// The life of a helper.
    fn help(&self) {
        CURRENT.set(Current::Alone);
        let mut last = 0;
        loop {
            let gate = self.wait(last);
            if gate & STOP != 0 {
                return;
            }
            if self.gate.0.compare_exchange(gate, gate + 1, SeqCst, Relaxed).is_err() {
                // Another helper went in or out, or the job is over.
                continue;
            }
            last = gate / JOB;
            // SAFETY: this helper is inside.
            let job = unsafe { *self.job.get() };
            if let Err(panic) = self.work(job) {
                self.panic.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(panic);
            }
            self.gate.0.fetch_sub(1, Release);
        }
    }

    /// The gate, once another job than `last` is open or the helper is to end.
    fn wait(&self, last: u64) -> u64 {
        let is_due = |gate: u64| gate & STOP != 0 || gate & OPEN != 0 && gate / JOB != last;
        loop {
            let start = Instant::now();
            let mut gate = 0;
            for look in 1_usize.. {
                gate = self.gate.0.load(SeqCst);
                if is_due(gate) {
                    return gate;
                }
                if look.is_multiple_of(LOOKS) && start.elapsed() >= self.spin {
                    break;
                }
                spin_loop();
            }
            // A job that comes and goes while this helper sleeps is a sign that others follow.
            self.sleep(|now| is_due(now) || now / JOB != gate / JOB);
        }
    }

    fn sleep(&self, is_over: impl Fn(u64) -> bool) {
        let mut bed = self.bed.lock().unwrap_or_else(PoisonError::into_inner);
        self.sleepers.fetch_add(1, SeqCst);
        while !is_over(self.gate.0.load(SeqCst)) {
            bed = self.bell.wait(bed).unwrap_or_else(PoisonError::into_inner);
        }
        self.sleepers.fetch_sub(1, SeqCst);
    }

    /// Wakes helpers after the gate has changed.
    fn wake(&self) {
        if self.sleepers.load(SeqCst) > 0 {
            // A helper that saw the gate before the change waits for the bell once the lock is free.
            drop(self.bed.lock().unwrap_or_else(PoisonError::into_inner));
            self.bell.notify_all();
        }
    }
}

/// The threads of one engine's kernels: that which [enters](Pool::enter) and its helpers.
///
/// Helpers stay awake for a moment after each piece of work, so that one that comes soon finds them
/// at once. With more threads than cores they do not: they would take the core from those at work.
pub struct Pool {
    shared: Arc<Shared>,
    helpers: Vec<JoinHandle<()>>,
}

impl std::fmt::Debug for Pool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pool").field("threads", &self.threads()).finish()
    }
}

impl Pool {
    /// A pool of so many threads, of which the caller is one; zero means one.
    ///
    /// # Errors
    /// If the system has no more threads.
    pub fn new(threads: usize) -> io::Result<Self> {
        let cores = thread::available_parallelism().map_or(1, usize::from);
        let shared = Arc::new(Shared {
            gate: Alone(AtomicU64::new(0)),
            next: Alone(AtomicUsize::new(0)),
            job: UnsafeCell::new(Job { work: std::ptr::null(), call: call::<fn(usize)>, parts: 0 }),
            is_busy: AtomicBool::new(false),
            sleepers: AtomicUsize::new(0),
            bed: Mutex::new(()),
            bell: Condvar::new(),
            panic: Mutex::new(None),
            spin: if threads > cores { Duration::ZERO } else { SPIN },
        });
        let mut pool = Self { shared, helpers: Vec::new() };
        for i in 1..threads {
            let shared = pool.shared.clone();
            let name = format!("engine-cpu-{i}");
            pool.helpers.push(thread::Builder::new().name(name).spawn(move || shared.help())?);
        }
        Ok(pool)
    }

    /// The number of threads, with the one that enters.
    pub fn threads(&self) -> usize {
        self.helpers.len() + 1
    }

    /// Does all parts; or nothing, and says so with `false`, if somebody else's are being done.
    pub(super) fn run<W: Fn(usize) + Sync>(&self, parts: usize, work: &W) -> bool {
        let shared = &*self.shared;
        if self.helpers.is_empty() || shared.is_busy.swap(true, Acquire) {
            return false;
        }
        let job = Job { work: std::ptr::from_ref(work).cast(), call: call::<W>, parts };
        // SAFETY: the gate is shut, nobody is inside, and this thread holds `is_busy`.
        unsafe { *shared.job.get() = job };
        shared.next.0.store(0, Relaxed);
        let number = (shared.gate.0.load(Relaxed) / JOB).wrapping_add(1);
        shared.gate.0.store(number.wrapping_mul(JOB) | OPEN, SeqCst);
        shared.wake();
        let ours = shared.work(job);
        shared.gate.0.fetch_and(!OPEN, AcqRel);
        let mut looks = 0;
        while shared.gate.0.load(Acquire) & INSIDE != 0 {
            looks += 1;
            if looks < PATIENCE { spin_loop() } else { thread::yield_now() }
        }
        let theirs = shared.panic.lock().unwrap_or_else(PoisonError::into_inner).take();
        shared.is_busy.store(false, Release);
        if let Some(panic) = ours.err().or(theirs) {
            resume_unwind(panic);
        }
        true
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.gate.0.fetch_or(STOP, SeqCst);
        self.shared.wake();
        for helper in self.helpers.drain(..) {
            // A helper catches what the work does; it has nothing more to say.
            drop(helper.join());
        }
    }
}
