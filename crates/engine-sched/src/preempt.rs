use crate::scheduler::InFlight;
use crate::{Preemption, ScheduledBatch, Scheduler, SequenceId};

impl Scheduler {
    /// Preempts the last of the running sequences behind `place` that holds blocks; false if there
    /// is none. Those before `place` are planned already and keep what they have.
    pub(crate) fn preempt_behind(
        &mut self,
        place: usize,
        batch: &mut ScheduledBatch,
        flight: &mut InFlight,
    ) -> bool {
        let holds = |id: &SequenceId| {
            self.sequences.get(id).is_some_and(|sequence| sequence.table.num_blocks() > 0)
        };
        let Some(behind) = self.running.get(place + 1..) else { return false };
        let Some(last) = behind.iter().rposition(holds) else { return false };
        self.preempt(behind[last], batch, flight);
        true
    }

    /// Takes the blocks of a running sequence and lets it wait again: saved on the host or to be
    /// computed again, whichever is cheaper by what was measured.
    pub(crate) fn preempt(
        &mut self,
        id: SequenceId,
        batch: &mut ScheduledBatch,
        flight: &mut InFlight,
    ) {
        let Some(sequence) = self.sequences.get_mut(&id) else { return };
        self.running.retain(|&other| other != id);
        self.waiting.insert(sequence);
        let (blocks, tokens) = (sequence.table.num_blocks(), sequence.table.len());
        if blocks == 0 && tokens == 0 {
            return;
        }
        let swap = match self.config.preemption {
            Preemption::Cheapest => self.cost.prefers_swap(blocks, tokens),
            Preemption::Swap => true,
            Preemption::Recompute => false,
        };
        if swap
            && let Ok((swapped, moves)) = self.pool.swap_out(&mut sequence.table, &mut self.host)
        {
            sequence.swapped = Some(swapped);
            batch.swap_out.extend(moves);
            flight.swapped_out.push(id);
            self.recorder.preemptions_by_swap += 1;
        } else {
            self.pool.release(&mut sequence.table);
            self.recorder.preemptions_by_recompute += 1;
        }
    }
}
