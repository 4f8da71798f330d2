//! Long use on the real small model: nothing is held in the end, memory stays flat, and an engine
//! that is gone has given everything back.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod common;

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use common::{builder, model};
use engine::{Device, EngineCore, Event, FinishReason, ModelConfig, Request, RequestId};
use engine_sched::simulation::SimulationRng;

const REQUESTS: usize = 6000;
/// Different requests; each comes many times.
const KINDS: usize = 40;
const MAX_SEQUENCES: usize = 64;
const BLOCK_SIZE: usize = 4;
/// Short prompts and long outputs: what was admitted grows until it no longer fits.
const LONGEST_PROMPT: usize = 12;
const LONGEST_OUTPUT: usize = 38;
const LONGEST: usize = LONGEST_PROMPT + LONGEST_OUTPUT;
/// A tenth of what the sequences that may run at once ask for.
const POOL_TOKENS: usize = MAX_SEQUENCES * LONGEST / 10;

/// The tests of this file measure the process, so they take turns.
fn alone() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A field of `/proc/self/status`: bytes for what is in kB, else a count.
fn process_status(field: &str) -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let value = status.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'))?;
    match value.trim().strip_suffix("kB") {
        Some(kib) => Some(kib.trim().parse::<u64>().ok()? << 10),
        None => value.trim().parse().ok(),
    }
}

fn resident_bytes() -> Option<u64> {
    process_status("VmRSS")
}

/// A core whose pool is far too small for what it is asked.
fn small_core() -> EngineCore {
    let config = ModelConfig::load(model("stories260K")).unwrap();
    let bytes_per_token = config.kv_bytes_per_token(engine::KvFormat::F32);
    let core = builder("stories260K", Device::Cpu)
        .threads(2)
        .block_size(BLOCK_SIZE)
        .max_context(LONGEST)
        .kv_cache_bytes(POOL_TOKENS * bytes_per_token)
        .swap_bytes(POOL_TOKENS / 4 * bytes_per_token)
        .max_sequences(MAX_SEQUENCES)
        .max_batched_tokens(128)
        .load_core()
        .unwrap();
    assert_eq!(core.statistics().blocks.num_blocks, POOL_TOKENS / BLOCK_SIZE);
    core
}

/// Greedy requests of different lengths; some share half of their prompt.
fn kind(number: usize) -> Request {
    let mut random = SimulationRng::new(number as u64);
    let mut shared = SimulationRng::new(number as u64 / 4);
    let prompt_len = random.in_range(4..LONGEST_PROMPT + 1);
    let prompt = (0..prompt_len).map(|position| {
        let random = if position < LONGEST_PROMPT / 2 { &mut shared } else { &mut random };
        random.in_range(3..512) as u32
    });
    let output_len = SimulationRng::new(number as u64).in_range(1..LONGEST_OUTPUT + 1);
    Request::tokens(prompt.collect::<Vec<_>>()).max_tokens(output_len).ignore_eos()
}

/// Requests in flight, and what each kind of request gave.
#[derive(Default)]
struct Soak {
    running: HashMap<RequestId, (usize, Vec<u32>)>,
    /// Most tokens that a request of the kind has given so far.
    seen: HashMap<usize, Vec<u32>>,
    completed: usize,
    cancelled: usize,
}

impl Soak {
    /// Submits `requests`, twice as many at once as may run, and cancels some at any moment.
    fn run(&mut self, core: &mut EngineCore, requests: usize, random: &mut SimulationRng) {
        let mut left = requests;
        while left > 0 || core.has_work() {
            while left > 0 && self.running.len() < 2 * MAX_SEQUENCES {
                let number = random.in_range(0..KINDS);
                let id = core.submit(kind(number)).unwrap();
                self.running.insert(id, (number, Vec::new()));
                left -= 1;
            }
            let progress = core.step();
            for (id, event) in progress {
                self.take(id, event.unwrap());
            }
            if random.chance(0.1) {
                self.cancel_one(core, random);
            }
        }
        assert!(self.running.is_empty());
    }

    fn take(&mut self, id: RequestId, event: Event) {
        match event {
            Event::Token { token, .. } => self.running.get_mut(&id).unwrap().1.push(token),
            Event::Finished { reason, .. } => assert_eq!(reason, FinishReason::Length),
            Event::Done(usage) => {
                let (number, tokens) = self.running.remove(&id).unwrap();
                assert_eq!(Some(tokens.len()), kind(number).max_tokens);
                assert_eq!(tokens.len(), usage.completion_tokens);
                self.compare(number, tokens);
                self.completed += 1;
            }
            _ => {}
        }
    }

    fn cancel_one(&mut self, core: &mut EngineCore, random: &mut SimulationRng) {
        let mut ids: Vec<_> = self.running.keys().copied().collect();
        if ids.is_empty() {
            return;
        }
        ids.sort();
        let id = ids[random.in_range(0..ids.len())];
        let (number, tokens) = self.running.remove(&id).unwrap();
        core.cancel(id);
        self.compare(number, tokens);
        self.cancelled += 1;
    }

    /// Equal requests give equal tokens, however often they were disturbed.
    fn compare(&mut self, number: usize, tokens: Vec<u32>) {
        let seen = self.seen.entry(number).or_default();
        let len = seen.len().min(tokens.len());
        assert_eq!(seen[..len], tokens[..len], "request {number}");
        if tokens.len() > seen.len() {
            *seen = tokens;
        }
    }
}

#[test]
fn thousands_of_requests_leave_nothing_behind() {
    let _turn = alone();
    let mut core = small_core();
    let mut random = SimulationRng::new(7);
    let mut soak = Soak::default();
    soak.run(&mut core, REQUESTS / 2, &mut random);
    let half = resident_bytes();
    soak.run(&mut core, REQUESTS / 2, &mut random);
    let whole = resident_bytes();

    let statistics = core.statistics();
    let blocks = statistics.blocks;
    assert_eq!((statistics.waiting, statistics.running), (0, 0));
    assert_eq!((blocks.used_blocks, blocks.held_slots, statistics.used_host_blocks), (0, 0, 0));
    assert!(blocks.cached_blocks <= blocks.num_blocks);
    assert_eq!(soak.completed + soak.cancelled, REQUESTS);
    assert_eq!(statistics.submitted as usize, REQUESTS);
    // Otherwise the test would show nothing.
    let preemptions = statistics.preemptions_by_recompute + statistics.preemptions_by_swap;
    println!(
        "{} completed, {} cancelled, {preemptions} preemptions",
        soak.completed, soak.cancelled
    );
    println!("{half:?} bytes resident, then {whole:?}");
    assert!(soak.cancelled > REQUESTS / 20, "{} cancelled", soak.cancelled);
    assert!(preemptions > 100, "{preemptions} preemptions");
    assert!(statistics.cache.evictions > 100, "{:?}", statistics.cache);
    if let (Some(half), Some(whole)) = (half, whole) {
        let grown = whole.saturating_sub(half);
        assert!(grown <= 1 << 20, "{half} bytes resident, then {whole}");
    }
    assert_eq!(cfg!(target_os = "linux"), half.is_some());

    // The pool is as good as new: a request that needs all of a context runs as it did.
    let alone = small_core();
    let mut answers = [core, alone].map(|mut core| {
        let id = core.submit(kind(0)).unwrap();
        let mut soak = Soak { running: HashMap::from([(id, (0, Vec::new()))]), ..Soak::default() };
        soak.run(&mut core, 0, &mut SimulationRng::new(0));
        soak.seen.remove(&0)
    });
    assert_eq!(answers[0].take(), answers[1].take());
}

/// Loads an engine on its own thread, fills its cache, drops it.
fn load_and_drop() {
    let engine = builder("stories260K", Device::Cpu).threads(2).load().unwrap();
    let prompt: Vec<u32> = (0..400).map(|position| 3 + position % 500).collect();
    let salted =
        |salt| Request { cache_salt: salt, ..Request::tokens(prompt.clone()).max_tokens(2) };
    let running: Vec<_> = (0..14).map(|salt| engine.submit(salted(salt)).unwrap()).collect();
    for generation in running {
        generation.wait().unwrap();
    }
    // Some must still be running when the engine goes.
    let _unfinished = engine.submit(Request::tokens([1]).max_tokens(500).ignore_eos()).unwrap();
    drop(engine);
}

#[test]
fn loading_and_dropping_returns_memory_and_threads() {
    let _turn = alone();
    // The first loads fill what the allocator keeps for later.
    (0..3).for_each(|_| load_and_drop());
    // Threads that were told to end take a moment.
    std::thread::sleep(Duration::from_millis(300));
    let (bytes, threads) = (resident_bytes(), process_status("Threads"));
    (3..10).for_each(|_| load_and_drop());
    let (Some(bytes), Some(threads)) = (bytes, threads) else { return };
    let after = resident_bytes().unwrap();
    println!("resident {bytes}, then {after}");
    // Each engine held a MiB of weights and 7 MiB of filled cache; seven of them came and went.
    assert!(after.saturating_sub(bytes) <= 6 << 20, "{bytes} bytes resident, then {after}");
    let gone = || process_status("Threads").is_some_and(|now| now <= threads);
    let waited = (0..100).any(|_| {
        gone() || {
            std::thread::sleep(Duration::from_millis(20));
            false
        }
    });
    assert!(waited, "{threads} threads, then {:?}", process_status("Threads"));
}
