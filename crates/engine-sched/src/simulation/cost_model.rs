use std::convert::Infallible;
use std::time::Duration;

use crate::{Executor, ScheduledBatch, TokenId};

/// How long a step takes on an imagined machine.
///
/// Executed, it chooses arbitrary tokens at once: for simulations of load, where lengths matter
/// and words do not.
///
/// ```
/// use engine_sched::simulation::CostModel;
/// use engine_sched::{Scheduler, SchedulerConfig, SequenceRequest};
/// use std::time::Duration;
/// let mut scheduler = Scheduler::new(SchedulerConfig::default())?;
/// scheduler.submit(SequenceRequest::new(vec![1; 100]))?;
/// let batch = scheduler.schedule(Duration::ZERO);
/// let cost = CostModel { token: Duration::from_micros(10), ..CostModel::free() };
/// assert_eq!(cost.duration(&batch), Duration::from_millis(1));
/// # let _ = scheduler.abort(batch, Duration::ZERO);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CostModel {
    /// Every step: weights are read once.
    pub step: Duration,
    /// Every computed token.
    pub token: Duration,
    /// Every computed token for each position before it.
    pub token_position: Duration,
    /// Every block copied on the device.
    pub block_copy: Duration,
    /// Every block moved to or from the host.
    pub block_swap: Duration,
}

impl CostModel {
    /// Everything takes no time.
    pub fn free() -> Self {
        let zero = Duration::ZERO;
        Self { step: zero, token: zero, token_position: zero, block_copy: zero, block_swap: zero }
    }

    /// Duration of a step.
    pub fn duration(&self, batch: &ScheduledBatch) -> Duration {
        let times = |cost: Duration, count: usize| {
            cost.checked_mul(u32::try_from(count).unwrap_or(u32::MAX)).unwrap_or(Duration::MAX)
        };
        let positions = |start: usize, len: usize| len * start + len * len.saturating_sub(1) / 2;
        let attended = batch
            .chunks
            .iter()
            .map(|chunk| positions(chunk.start_position, chunk.tokens.len()))
            .sum();
        let swapped = batch.swap_in.len() + batch.swap_out.len();
        self.step
            .saturating_add(times(self.token, batch.num_tokens()))
            .saturating_add(times(self.token_position, attended))
            .saturating_add(times(self.block_copy, batch.copies.len()))
            .saturating_add(times(self.block_swap, swapped))
    }
}

impl Executor for CostModel {
    type Error = Infallible;

    fn execute(&mut self, batch: &ScheduledBatch) -> Result<Vec<TokenId>, Infallible> {
        Ok(batch.samples.iter().map(|slot| slot.position as TokenId).collect())
    }
}
