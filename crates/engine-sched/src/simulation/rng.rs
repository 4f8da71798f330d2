use std::time::Duration;

/// A small random number generator (splitmix64), the same on every machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SimulationRng(u64);

impl SimulationRng {
    /// A generator that only depends on `seed`.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next 64 bits.
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.0)
    }

    /// A number from 0 to 1, without 1.
    pub fn unit(&mut self) -> f64 {
        (self.bits() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// A number of `range`; its start if it is empty.
    pub fn in_range(&mut self, range: std::ops::Range<usize>) -> usize {
        range.start + (self.unit() * range.len() as f64) as usize
    }

    /// True with probability `p`.
    pub fn chance(&mut self, p: f64) -> bool {
        self.unit() < p
    }

    /// The time to the next arrival of a Poisson process of `rate` per second.
    pub fn arrival_gap(&mut self, rate: f64) -> Duration {
        let seconds = -(1.0 - self.unit()).ln() / rate.max(f64::MIN_POSITIVE);
        Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX)
    }
}

/// Spreads every bit of `value` over all bits of the result.
pub(crate) fn mix(value: u64) -> u64 {
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}
