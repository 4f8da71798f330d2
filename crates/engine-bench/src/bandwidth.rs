use std::{hint::black_box, thread, time::Instant};

/// A buffer that no cache holds.
const LARGE_BYTES: usize = 1 << 30;
/// Large enough for most caches, and quickly there and gone: what is measured between other things.
const BRIEF_BYTES: usize = 256 << 20;
/// The best of this many passes counts: the others shared the machine.
const PASSES: usize = 7;
/// Independent sums, so that the processor can use its vectors and need not wait for any of them.
const LANES: usize = 32;

/// Bytes per second that `threads` threads read from memory together, each its own part of a
/// buffer of at most `memory_bytes / 8`, the best of several passes.
pub fn read_bandwidth(threads: usize, memory_bytes: u64) -> f64 {
    measure(threads, LARGE_BYTES, memory_bytes)
}

/// The same in a tenth of a second: what the memory gives just now.
pub(crate) fn brief_read_bandwidth(threads: usize, memory_bytes: u64) -> f64 {
    measure(threads, BRIEF_BYTES, memory_bytes)
}

fn measure(threads: usize, buffer_bytes: usize, memory_bytes: u64) -> f64 {
    let limit = usize::try_from(memory_bytes / 8).unwrap_or(buffer_bytes);
    let words = buffer_bytes.min(limit).max(1 << 20) / size_of::<u64>();
    let part = (words / threads.max(1)).max(LANES);
    let mut parts: Vec<Vec<u64>> = vec![Vec::new(); threads.max(1)];
    // Each thread writes its part first, so that its pages are its own.
    thread::scope(|scope| {
        for (buffer, seed) in parts.iter_mut().zip(1_u64..) {
            scope.spawn(move || buffer.resize(part, seed));
        }
    });
    let pass = || {
        let start = Instant::now();
        thread::scope(|scope| {
            for buffer in &parts {
                scope.spawn(|| black_box(sum(black_box(buffer))));
            }
        });
        start.elapsed().as_secs_f64()
    };
    let best = (0..PASSES).map(|_| pass()).fold(f64::INFINITY, f64::min);
    (parts.len() * part * size_of::<u64>()) as f64 / best
}

fn sum(words: &[u64]) -> u64 {
    let mut sums = [0_u64; LANES];
    for chunk in words.chunks_exact(LANES) {
        for (sum, word) in sums.iter_mut().zip(chunk) {
            *sum = sum.wrapping_add(*word);
        }
    }
    sums.iter().fold(0, |total, sum| total.wrapping_add(*sum))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_every_whole_chunk() {
        assert_eq!(sum(&vec![3; 4 * LANES]), 12 * LANES as u64);
    }

    #[test]
    fn memory_is_read_faster_than_a_disk_and_slower_than_light() {
        for rate in [read_bandwidth(2, 256 << 20), brief_read_bandwidth(1, 256 << 20)] {
            assert!(rate > 1e8 && rate < 1e14, "{rate}");
        }
    }
}
