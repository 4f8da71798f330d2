use std::cmp::Reverse;
use std::collections::BTreeSet;
use std::time::Duration;

use crate::SequenceId;
use crate::sequence::Sequence;

/// Sequences that hold no device blocks, in the two orders in which they may leave.
#[derive(Debug, Default)]
pub(crate) struct WaitingQueue {
    by_priority: BTreeSet<(Reverse<i32>, SequenceId)>,
    by_arrival: BTreeSet<(Duration, SequenceId)>,
}

impl WaitingQueue {
    pub(crate) fn len(&self) -> usize {
        self.by_priority.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.by_priority.is_empty()
    }

    pub(crate) fn insert(&mut self, sequence: &Sequence) {
        self.by_priority.insert((Reverse(sequence.terms.priority), sequence.id));
        self.by_arrival.insert((sequence.arrival, sequence.id));
    }

    pub(crate) fn remove(&mut self, sequence: &Sequence) -> bool {
        self.by_arrival.remove(&(sequence.arrival, sequence.id));
        self.by_priority.remove(&(Reverse(sequence.terms.priority), sequence.id))
    }

    pub(crate) fn contains(&self, sequence: &Sequence) -> bool {
        self.by_arrival.contains(&(sequence.arrival, sequence.id))
            && self.by_priority.contains(&(Reverse(sequence.terms.priority), sequence.id))
    }

    /// Who goes first: the earliest if it waited for `max_wait`, otherwise the most important.
    pub(crate) fn head(&self, now: Duration, max_wait: Duration) -> Option<SequenceId> {
        let &(arrival, earliest) = self.by_arrival.first()?;
        if now.saturating_sub(arrival) >= max_wait {
            return Some(earliest);
        }
        self.by_priority.first().map(|&(_, id)| id)
    }

    /// When the longest waiting one arrived.
    pub(crate) fn earliest(&self) -> Option<Duration> {
        self.by_arrival.first().map(|&(arrival, _)| arrival)
    }
}
