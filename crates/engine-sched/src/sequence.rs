use std::cmp::Reverse;
use std::sync::Arc;
use std::time::Duration;

use engine_kv::{PageTable, SwappedTable};

use crate::{FinishReason, SequenceId, SequenceUpdate, TokenId};

/// What every sample of a request has in common.
#[derive(Debug)]
pub(crate) struct Terms {
    pub(crate) parent: SequenceId,
    pub(crate) num_samples: usize,
    pub(crate) prompt_len: usize,
    /// Length at which the sequence ends.
    pub(crate) max_len: usize,
    pub(crate) stop_tokens: Vec<TokenId>,
    pub(crate) min_tokens: usize,
    pub(crate) priority: i32,
    pub(crate) deadline: Option<Duration>,
    pub(crate) salt: u64,
    pub(crate) prompt_logits: bool,
}

/// One sample, or a request that has not forked yet.
#[derive(Debug)]
pub(crate) struct Sequence {
    pub(crate) id: SequenceId,
    pub(crate) terms: Arc<Terms>,
    /// Which sample this is, or `None` while it stands for all samples of its request.
    pub(crate) sample_index: Option<usize>,
    /// All tokens known, prompt first.
    pub(crate) tokens: Vec<TokenId>,
    /// The computed tokens are those that the table has written.
    pub(crate) table: PageTable,
    /// Where the computed tokens are while they are not on the device.
    pub(crate) swapped: Option<SwappedTable>,
    /// Prompt positions whose logits were delivered.
    pub(crate) reported_rows: usize,
    pub(crate) cached_prompt_tokens: usize,
    pub(crate) arrival: Duration,
    /// Whether it was ever admitted.
    pub(crate) admitted: bool,
    pub(crate) last_token_at: Option<Duration>,
    /// Tokens that the batch in flight computes.
    pub(crate) planned: usize,
    pub(crate) cancelled: bool,
}

/// The order in which sequences get blocks and budget; the smallest goes first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Rank {
    /// Waited too long: in order of arrival, whatever the priority.
    Overdue(Duration, SequenceId),
    /// By priority, then in order of submission.
    Regular(Reverse<i32>, SequenceId),
}

impl Rank {
    /// Whether this may take away what `other` holds to be admitted: not among equals.
    pub(crate) fn outclasses(self, other: Rank) -> bool {
        match (self, other) {
            (Rank::Overdue(..), Rank::Regular(..)) => true,
            (Rank::Regular(mine, _), Rank::Regular(theirs, _)) => mine < theirs,
            _ => false,
        }
    }
}

impl Sequence {
    /// Samples that this stands for.
    pub(crate) fn num_samples(&self) -> usize {
        if self.sample_index.is_some() { 1 } else { self.terms.num_samples }
    }

    /// Tokens computed, on the device or saved on the host.
    pub(crate) fn computed(&self) -> usize {
        self.swapped.as_ref().map_or(self.table.len(), SwappedTable::len)
    }

    /// Known tokens that are not computed.
    pub(crate) fn remaining(&self) -> usize {
        self.tokens.len().saturating_sub(self.computed())
    }

    /// Whether a token will be chosen once all known ones are computed.
    pub(crate) fn wants_token(&self) -> bool {
        self.tokens.len() < self.terms.max_len
    }

    pub(crate) fn rank(&self, now: Duration, max_wait: Duration) -> Rank {
        if now.saturating_sub(self.arrival) >= max_wait {
            Rank::Overdue(self.arrival, self.id)
        } else {
            Rank::Regular(Reverse(self.terms.priority), self.id)
        }
    }

    /// Why the sequence ends with the token it just got, if it does.
    pub(crate) fn finish_after(&self, token: TokenId) -> Option<FinishReason> {
        let generated = self.tokens.len() - self.terms.prompt_len;
        if generated > self.terms.min_tokens && self.terms.stop_tokens.contains(&token) {
            return Some(FinishReason::StopToken(token));
        }
        (!self.wants_token()).then_some(FinishReason::Length)
    }

    /// An update for sample `sample_index` of this sequence.
    pub(crate) fn update(
        &self,
        sample_index: usize,
        token: Option<TokenId>,
        finish: Option<FinishReason>,
    ) -> SequenceUpdate {
        SequenceUpdate {
            sequence: self.terms.sample_id(sample_index),
            parent: self.terms.parent,
            sample_index,
            token,
            finish,
            cached_prompt_tokens: self.cached_prompt_tokens,
        }
    }

    /// The samples this stands for.
    pub(crate) fn sample_indices(&self) -> std::ops::Range<usize> {
        match self.sample_index {
            Some(index) => index..index + 1,
            None => 0..self.terms.num_samples,
        }
    }
}

impl Terms {
    /// Id of a sample: the request's own if there is only one.
    pub(crate) fn sample_id(&self, sample_index: usize) -> SequenceId {
        match self.num_samples {
            1 => self.parent,
            _ => SequenceId(self.parent.0 + 1 + sample_index as u64),
        }
    }
}
