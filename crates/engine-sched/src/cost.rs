use std::time::Duration;

/// How much a step counts for less than the one after it.
const DECAY: f64 = 0.98;

/// What computing and moving cost, learnt from the steps.
///
/// A step of `t` tokens that moves `m` blocks is taken to last `a + b t + c m`. Steps without
/// moves give `a` and `b` by least squares over the recent past, the others then give `c`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct CostEstimate {
    token_guess: f64,
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
        if moved_blocks > 0 {
            let (base, slope) = self.line();
            let moving = (seconds - base - slope * tokens).max(0.0) / moved_blocks as f64;
            self.swap_block += 0.3 * (moving - self.swap_block);
            return;
        }
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
    pub(crate) fn prefers_swap(&self, blocks: usize, tokens: usize) -> bool {
        2.0 * self.swap_block * (blocks as f64) < self.line().1 * tokens as f64
    }
}
