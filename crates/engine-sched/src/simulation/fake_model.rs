use engine_kv::slot;
use thiserror::Error;

use super::rng::mix;
use crate::{CacheEpochs, Executor, ScheduledBatch, ScheduledChunk, SchedulerConfig, TokenId};

/// What a slot holds before anything was written to it.
const UNWRITTEN: u64 = 0xdead_beef_dead_beef;

/// A model without arithmetic that is as sensitive as a real one to where keys and values are.
///
/// It keeps a KV storage of one number per slot and moves blocks as a batch says. The number
/// written for a position depends on the token, the position, the cache epoch and on what the
/// storage holds for the positions before; the next token depends on every position in the window.
/// A block that was overwritten, not copied, not brought back or computed in another epoch changes
/// the tokens, and [`Self::next_token`] says from the tokens alone what they should have been.
#[derive(Debug, Clone)]
pub struct FakeModel {
    device: Vec<u64>,
    host: Vec<u64>,
    block_size: usize,
    vocab: u32,
    epochs: CacheEpochs,
    window: usize,
}

/// A batch that no model could run: a bug of the scheduler.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum FakeModelError {
    /// The page table does not reach a position of the chunk.
    #[error("chunk {chunk}: no slot for position {position}")]
    NoSlot {
        /// Index of the chunk.
        chunk: usize,
        /// The position.
        position: usize,
    },
    /// A block that does not exist is to be moved.
    #[error("a move names block {block} of {num_blocks}")]
    NoBlock {
        /// The block's number.
        block: u32,
        /// Blocks there are on that side.
        num_blocks: usize,
    },
    /// A sample's chunk does not exist or asks for no logits of its last row.
    #[error("sample {sample} has no logits")]
    NoLogits {
        /// Index of the sample.
        sample: usize,
    },
    /// Two chunks write to one slot.
    #[error("chunk {chunk} writes slot {slot}, which another chunk of the step uses")]
    Overlap {
        /// Index of the second chunk.
        chunk: usize,
        /// The slot.
        slot: usize,
    },
}

impl FakeModel {
    /// A model over the storage that `config` describes, with tokens below `vocab` (at least 1).
    pub fn new(config: &SchedulerConfig, vocab: u32) -> Self {
        Self {
            device: vec![UNWRITTEN; config.num_blocks * config.block_size],
            host: vec![UNWRITTEN; config.num_host_blocks * config.block_size],
            block_size: config.block_size,
            vocab: vocab.max(1),
            epochs: config.cache_epochs,
            window: config.window.unwrap_or(usize::MAX),
        }
    }

    /// The token after `tokens` for sample `sample_index`, from the tokens alone.
    pub fn next_token(&self, tokens: &[TokenId], sample_index: usize) -> TokenId {
        let epoch = self.epochs.epoch(tokens.len());
        let mut kv: Vec<u64> = Vec::with_capacity(tokens.len());
        for (position, &token) in tokens.iter().enumerate() {
            let oldest = (position + 1).saturating_sub(self.window);
            let before = if oldest < position { kv[position - 1] ^ kv[oldest] } else { 0 };
            kv.push(entry(token, position, epoch, before));
        }
        let oldest = tokens.len().saturating_sub(self.window);
        self.choose(kv[oldest..].iter().copied(), sample_index)
    }

    fn choose(&self, kv: impl Iterator<Item = u64>, sample_index: usize) -> TokenId {
        let read = kv.fold(sample_index as u64, |sum, value| mix(sum ^ value));
        (mix(read) % u64::from(self.vocab)) as TokenId
    }

    fn read(
        &self,
        index: usize,
        chunk: &ScheduledChunk,
        position: usize,
    ) -> Result<u64, FakeModelError> {
        let slot = self.slot(index, chunk, position)?;
        Ok(self.device[slot])
    }

    fn slot(
        &self,
        index: usize,
        chunk: &ScheduledChunk,
        position: usize,
    ) -> Result<usize, FakeModelError> {
        slot(&chunk.page_table, self.block_size, position)
            .filter(|&slot| slot < self.device.len())
            .ok_or(FakeModelError::NoSlot { chunk: index, position })
    }

    fn compute(&mut self, index: usize, chunk: &ScheduledChunk) -> Result<(), FakeModelError> {
        let epoch = self.epochs.epoch(chunk.known_len);
        for (i, &token) in chunk.tokens.iter().enumerate() {
            let position = chunk.start_position + i;
            let oldest = (position + 1).saturating_sub(self.window);
            let before = if oldest < position {
                self.read(index, chunk, position - 1)? ^ self.read(index, chunk, oldest)?
            } else {
                0
            };
            let slot = self.slot(index, chunk, position)?;
            self.device[slot] = entry(token, position, epoch, before);
        }
        Ok(())
    }

    fn range(&self, block: u32, on_host: bool) -> Result<std::ops::Range<usize>, FakeModelError> {
        let storage = if on_host { &self.host } else { &self.device };
        let start = block as usize * self.block_size;
        let num_blocks = storage.len() / self.block_size;
        if block as usize >= num_blocks {
            return Err(FakeModelError::NoBlock { block, num_blocks });
        }
        Ok(start..start + self.block_size)
    }

    fn move_blocks(&mut self, batch: &ScheduledBatch) -> Result<(), FakeModelError> {
        for &(from, to) in &batch.swap_out {
            let (from, to) = (self.range(from.0, false)?, self.range(to.0, true)?);
            self.host[to].copy_from_slice(&self.device[from]);
        }
        for &(from, to) in &batch.copies {
            let (from, to) = (self.range(from.0, false)?, self.range(to.0, false)?);
            self.device.copy_within(from, to.start);
        }
        for &(from, to) in &batch.swap_in {
            let (from, to) = (self.range(from.0, true)?, self.range(to.0, false)?);
            self.device[to].copy_from_slice(&self.host[from]);
        }
        Ok(())
    }

    /// All chunks run at the same time: no chunk may write where another one reads or writes.
    fn check_overlap(&self, batch: &ScheduledBatch) -> Result<(), FakeModelError> {
        let mut written = std::collections::HashMap::new();
        for (index, chunk) in batch.chunks.iter().enumerate() {
            for i in 0..chunk.tokens.len() {
                let slot = self.slot(index, chunk, chunk.start_position + i)?;
                if written.insert(slot, index).is_some() {
                    return Err(FakeModelError::Overlap { chunk: index, slot });
                }
            }
        }
        for (index, chunk) in batch.chunks.iter().enumerate() {
            let oldest = (chunk.start_position + 1).saturating_sub(self.window);
            for position in oldest..chunk.start_position {
                let slot = self.slot(index, chunk, position)?;
                if written.contains_key(&slot) {
                    return Err(FakeModelError::Overlap { chunk: index, slot });
                }
            }
        }
        Ok(())
    }
}

fn entry(token: TokenId, position: usize, epoch: u64, before: u64) -> u64 {
    mix(mix(mix(u64::from(token)) ^ position as u64) ^ epoch.rotate_left(32) ^ before)
}

impl Executor for FakeModel {
    type Error = FakeModelError;

    fn execute(&mut self, batch: &ScheduledBatch) -> Result<Vec<TokenId>, FakeModelError> {
        self.check_overlap(batch)?;
        self.move_blocks(batch)?;
        for (index, chunk) in batch.chunks.iter().enumerate() {
            self.compute(index, chunk)?;
        }
        let mut tokens = Vec::with_capacity(batch.samples.len());
        for (sample, slot) in batch.samples.iter().enumerate() {
            let chunk = batch.chunks.get(slot.chunk);
            let with_logits = |chunk: &&ScheduledChunk| {
                chunk.logits != crate::LogitRows::None
                    && chunk.start_position + chunk.tokens.len() == slot.position
            };
            let chunk = chunk.filter(with_logits).ok_or(FakeModelError::NoLogits { sample })?;
            let oldest = slot.position.saturating_sub(self.window);
            let mut read = Vec::with_capacity(slot.position - oldest);
            for position in oldest..slot.position {
                read.push(self.read(slot.chunk, chunk, position)?);
            }
            tokens.push(self.choose(read.into_iter(), slot.sample_index));
        }
        Ok(tokens)
    }
}
