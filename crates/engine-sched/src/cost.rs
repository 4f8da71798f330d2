use std::time::Duration;

/// How much less a step counts than the one after it.
const DECAY: f64 = 0.98;
/// A measurement this many times what was expected is taken for a hiccup and cut to it.
const OUTLIER: f64 = 4.0;
/// How fast an estimate that keeps blocks from being moved, and so is not measured any more, goes
/// back to the first guess.
const DOUBT: f64 = 0.02;

/// What computing and moving cost, learnt from the steps.
///
/// A step of `t` tokens that moves `m` blocks is taken to last `a + b t + c m`. Steps without
/// moves give `a` and `b` by least squares over the recent past, the others then give `c`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct CostEstimate {
    token_guess: f64,
    swap_guess: f64,
    swap_block: f64,
    weight: f64,
    tokens: f64,
    seconds: f64,
    tokens_squared: f64,
    tokens_seconds: f64,
}

impl CostEstimate {
    pub(crate) fn new(token: Duration, swap_block: Duration) -> Self {
        Self {
            token_guess: token.as_secs_f64(),
            swap_guess: swap_block.as_secs_f64(),
            swap_block: swap_block.as_secs_f64(),
            weight: 0.0,
            tokens: 0.0,
            seconds: 0.0,
            tokens_squared: 0.0,
            tokens_seconds: 0.0,
        }
    }

    /// Learns from a step that took `elapsed`.
    pub(crate) fn observe(&mut self, tokens: usize, moved_blocks: usize, elapsed: Duration) {
        let (tokens, seconds) = (tokens as f64, elapsed.as_secs_f64());
        if seconds <= 0.0 {
            return;
        }
        let (base, slope) = self.line();
        let computing = base + slope * tokens;
        if moved_blocks > 0 {
            let moving = (seconds - computing).max(0.0) / moved_blocks as f64;
            self.swap_block += 0.3 * (moving.min(OUTLIER * self.swap_block) - self.swap_block);
            self.swap_block = self.swap_block.max(1e-9);
            return;
        }
        let seconds = if self.weight < 8.0 { seconds } else { seconds.min(OUTLIER * computing) };
        self.weight = self.weight * DECAY + 1.0;
        self.tokens = self.tokens * DECAY + tokens;
        self.seconds = self.seconds * DECAY + seconds;
        self.tokens_squared = self.tokens_squared * DECAY + tokens * tokens;
        self.tokens_seconds = self.tokens_seconds * DECAY + tokens * seconds;
    }

    /// `(a, b)`: seconds of a step without tokens, and of each token.
    fn line(&self) -> (f64, f64) {
        if self.weight < 1.0 || self.tokens <= 0.0 {
            return (0.0, self.token_guess);
        }
        let mean = self.tokens / self.weight;
        let mean_seconds = self.seconds / self.weight;
        let variance = self.tokens_squared / self.weight - mean * mean;
        let covariance = self.tokens_seconds / self.weight - mean * mean_seconds;
        // Steps of nearly one size say nothing about the slope.
        if variance < 1e-2 * mean * mean || covariance <= 0.0 {
            return (0.0, (mean_seconds / mean).min(self.token_guess));
        }
        let slope = covariance / variance;
        ((mean_seconds - slope * mean).max(0.0), slope)
    }

    /// Time to compute one more token in a step.
    pub(crate) fn token(&self) -> Duration {
        Duration::try_from_secs_f64(self.line().1).unwrap_or(Duration::MAX)
    }

    /// Time to move one block between device and host.
    pub(crate) fn swap_block(&self) -> Duration {
        Duration::try_from_secs_f64(self.swap_block).unwrap_or(Duration::MAX)
    }

    /// Whether moving `blocks` out and back costs less than computing `tokens` again.
    pub(crate) fn prefers_swap(&mut self, blocks: usize, tokens: usize) -> bool {
        let prefers = 2.0 * self.swap_block * (blocks as f64) < self.line().1 * tokens as f64;
        if !prefers && self.swap_block > self.swap_guess {
            self.swap_block += DOUBT * (self.swap_guess - self.swap_block);
        }
        prefers
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn step(cost: &mut CostEstimate, tokens: usize, moved: usize) {
        let time = 5e-3 + 1e-4 * tokens as f64 + 2e-3 * moved as f64;
        cost.observe(tokens, moved, Duration::from_secs_f64(time));
    }

    fn close(time: Duration, expected: f64) -> bool {
        (time.as_secs_f64() / expected - 1.0).abs() < 0.1
    }

    #[test]
    fn tokens_and_moves_are_told_apart() {
        let mut cost = CostEstimate::new(Duration::from_secs(1), Duration::from_micros(500));
        for tokens in 1..60 {
            step(&mut cost, tokens * 7 % 50, 0);
            step(&mut cost, tokens * 3 % 50, 1 + tokens % 3);
        }
        assert!(close(cost.token(), 1e-4), "{cost:?}");
        assert!(close(cost.swap_block(), 2e-3), "{cost:?}");
        // 4 blocks of 16 tokens: 16 ms out and back against 6.4 ms.
        assert!(!cost.prefers_swap(4, 64));
        assert!(cost.prefers_swap(1, 64));
    }

    #[test]
    fn a_hiccup_does_not_rule_moves_out_for_ever() {
        let mut cost = CostEstimate::new(Duration::from_millis(1), Duration::from_micros(1));
        for tokens in 1..60 {
            step(&mut cost, tokens, 0);
        }
        for _ in 0..20 {
            cost.observe(1, 1, Duration::from_secs(100));
        }
        assert!(!cost.prefers_swap(1, 16));
        let tries = (0..10_000).find(|_| cost.prefers_swap(1, 16));
        assert!(tries.is_some(), "{cost:?}");
    }

    #[test]
    fn steps_of_one_size_keep_the_guess_as_a_limit() {
        let mut cost = CostEstimate::new(Duration::from_micros(10), Duration::ZERO);
        for _ in 0..20 {
            step(&mut cost, 1, 0);
        }
        assert!(close(cost.token(), 1e-5), "{cost:?}");
    }
}
