use engine_kv::{InvariantError, PageTable, SwappedTable};
use thiserror::Error;

use crate::sequence::Sequence;
use crate::{Scheduler, SequenceId};

/// An invariant of the scheduler that does not hold: a bug, never the caller's input.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum CheckError {
    /// An invariant of the block pool.
    #[error(transparent)]
    Pool(#[from] InvariantError),
    /// A sequence is not in exactly one of the two places.
    #[error("{sequence:?} is waiting: {waiting}, running: {running} times")]
    Place {
        /// The sequence.
        sequence: SequenceId,
        /// Whether it waits.
        waiting: bool,
        /// How often it is listed as running.
        running: usize,
    },
    /// A list names sequences that do not exist, or misses some that do.
    #[error("{listed} sequences are listed and {known} exist")]
    Unknown {
        /// Sequences listed.
        listed: usize,
        /// Sequences that exist.
        known: usize,
    },
    /// More sequences run than may.
    #[error("{running} sequences run and {max_sequences} may")]
    Sequences {
        /// Sequences that run.
        running: usize,
        /// The limit.
        max_sequences: usize,
    },
    /// The state of one sequence contradicts itself.
    #[error("{sequence:?}: {what}")]
    Sequence {
        /// The sequence.
        sequence: SequenceId,
        /// What does not hold.
        what: &'static str,
    },
}

impl Scheduler {
    /// Checks every invariant of the scheduler and of its block pool.
    pub fn check(&self) -> Result<(), CheckError> {
        let tables: Vec<&PageTable> = self.sequences.values().map(|s| &s.table).collect();
        self.pool.check(&tables)?;
        let in_flight = self.in_flight.iter().flat_map(|flight| &flight.swapped_in);
        let swapped: Vec<&SwappedTable> =
            self.sequences.values().filter_map(|s| s.swapped.as_ref()).chain(in_flight).collect();
        self.host.check(&swapped)?;
        let (mut places, mut listed) = (0, self.waiting.len());
        for &id in &self.running {
            listed += 1;
            places += self.sequences.get(&id).map_or(0, |sequence| sequence.num_samples());
        }
        if listed != self.sequences.len() {
            return Err(CheckError::Unknown { listed, known: self.sequences.len() });
        }
        if places > self.config.max_sequences {
            let max_sequences = self.config.max_sequences;
            return Err(CheckError::Sequences { running: places, max_sequences });
        }
        let watched = self.count(|sequence| sequence.terms.deadline.is_some());
        if watched != self.deadlines.len() {
            return Err(CheckError::Unknown { listed: self.deadlines.len(), known: watched });
        }
        let mut parted = 0;
        for (terms, live) in self.forked.values() {
            let samples = (0..terms.num_samples).map(|index| terms.sample_id(index));
            let exist = samples.filter(|id| self.sequences.contains_key(id)).count();
            if exist != *live || exist == 0 {
                return Err(CheckError::Unknown { listed: *live, known: exist });
            }
            parted += exist;
        }
        let samples = self.count(|s| s.terms.num_samples > 1 && s.sample_index.is_some());
        if samples != parted {
            return Err(CheckError::Unknown { listed: parted, known: samples });
        }
        self.sequences.keys().try_for_each(|&id| self.check_sequence(id))
    }

    fn count(&self, is: impl Fn(&Sequence) -> bool) -> usize {
        self.sequences.values().filter(|sequence| is(sequence)).count()
    }

    fn check_sequence(&self, id: SequenceId) -> Result<(), CheckError> {
        let broken = |what| Err(CheckError::Sequence { sequence: id, what });
        let Some(sequence) = self.sequences.get(&id) else { return broken("it is gone") };
        let waiting = self.waiting.contains(sequence);
        let running = self.running.iter().filter(|&&other| other == id).count();
        if usize::from(waiting) + running != 1 {
            return Err(CheckError::Place { sequence: id, waiting, running });
        }
        if sequence.id != id {
            return broken("it is kept under another id");
        }
        let on_device = sequence.table.num_blocks() > 0 || !sequence.table.is_empty();
        if waiting && on_device {
            return broken("it waits and holds blocks");
        }
        if sequence.swapped.is_some() && on_device {
            return broken("it is on the device and on the host");
        }
        let flight = self.in_flight.as_ref();
        let in_flight = flight.is_some_and(|flight| flight.sequences.contains(&id));
        if in_flight != (sequence.planned > 0) {
            return broken("it and the batch in flight disagree about its chunk");
        }
        if sequence.remaining() == 0 {
            return broken("it has nothing left to compute");
        }
        if sequence.tokens.len() > sequence.terms.max_len {
            return broken("it is longer than it may become");
        }
        let epoch = self.config.cache_epochs.epoch(sequence.tokens.len());
        if sequence.table.namespace().epoch != epoch {
            return broken("its keys were computed in another epoch");
        }
        match sequence.terms.deadline {
            Some(deadline) if !self.deadlines.contains(&(deadline, id)) => {
                broken("its deadline is not watched")
            }
            _ => Ok(()),
        }
    }
}
