use crate::{ScheduledBatch, TokenId};

/// What runs a step: the real model, a fake one, a simulated one.
///
/// The contract is that of [`ScheduledBatch`]: the moves in their order, the forward pass, then
/// one token for each entry of `batch.samples`, in that order.
///
/// ```
/// use engine_sched::{Executor, ScheduledBatch, TokenId};
/// /// Says the same word for ever.
/// struct Parrot(TokenId);
/// impl Executor for Parrot {
///     type Error = std::convert::Infallible;
///     fn execute(&mut self, batch: &ScheduledBatch) -> Result<Vec<TokenId>, Self::Error> {
///         Ok(vec![self.0; batch.samples.len()])
///     }
/// }
/// # let _ = Parrot(1).execute(&ScheduledBatch::default());
/// ```
pub trait Executor {
    /// What can go wrong.
    type Error: std::error::Error;

    /// Runs `batch` and returns the sampled tokens.
    ///
    /// After an error the caller aborts the batch; blocks it wrote may hold anything.
    fn execute(&mut self, batch: &ScheduledBatch) -> Result<Vec<TokenId>, Self::Error>;
}

impl<E: Executor + ?Sized> Executor for &mut E {
    type Error = E::Error;

    fn execute(&mut self, batch: &ScheduledBatch) -> Result<Vec<TokenId>, E::Error> {
        (**self).execute(batch)
    }
}
