use engine_kv::{BlockId, HostBlockId};

use crate::{SequenceId, TokenId};

/// Which rows of a chunk need logits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogitRows {
    /// None: the sequence goes on in a later chunk.
    None,
    /// The last one: the next token is chosen from it.
    Last,
    /// Every one: the request asked for the prompt's logits.
    All,
}

/// The part of one sequence that runs in this step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ScheduledChunk {
    /// Whose tokens these are; a request that has not forked yet runs under its own id.
    pub sequence: SequenceId,
    /// Tokens to compute, `[chunk]`, at least one.
    pub tokens: Vec<TokenId>,
    /// Position of the first of them.
    pub start_position: usize,
    /// The sequence's blocks in order; they cover every position up to the chunk's last.
    pub page_table: Vec<BlockId>,
    /// Which rows need logits. With `All` every row is a prompt position that was not reported
    /// before.
    pub logits: LogitRows,
    /// All tokens known of the sequence: the length that length-dependent RoPE scalings see.
    pub known_len: usize,
}

/// One token to choose.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SampleSlot {
    /// The sequence that gets the token; several samples of one request share a row when they fork.
    pub sequence: SequenceId,
    /// The request it belongs to.
    pub parent: SequenceId,
    /// Which sample of the request this is.
    pub sample_index: usize,
    /// Index into [`ScheduledBatch::chunks`]; the logits are those of that chunk's last row.
    pub chunk: usize,
    /// Position that the new token will have.
    pub position: usize,
}

/// One step: what to move, what to compute, what to sample.
///
/// The executor does, in this order: all of `swap_out`, all of `copies` in list order, all of
/// `swap_in`, the forward pass over `chunks`, the choice of a token for each of `samples`.
#[derive(Debug, Default, PartialEq, Eq)]
#[must_use = "a batch holds blocks until it is committed or aborted"]
pub struct ScheduledBatch {
    pub(crate) step: u64,
    /// The ragged step, one chunk per sequence.
    pub chunks: Vec<ScheduledChunk>,
    /// The tokens to choose, in the order that `commit` expects them.
    pub samples: Vec<SampleSlot>,
    /// Whole blocks to copy on the device, `(from, to)`: the copy of copy-on-write.
    pub copies: Vec<(BlockId, BlockId)>,
    /// Blocks to save in host memory before anything overwrites them.
    pub swap_out: Vec<(BlockId, HostBlockId)>,
    /// Blocks to bring back from host memory.
    pub swap_in: Vec<(HostBlockId, BlockId)>,
    /// Sequences that ended while the step was planned: cancelled, or past their deadline.
    pub finished: Vec<SequenceUpdate>,
}

impl ScheduledBatch {
    /// Whether there is nothing to execute; `finished` may still hold updates.
    pub fn is_empty(&self) -> bool {
        self.chunks.is_empty()
    }

    /// Tokens to compute.
    pub fn num_tokens(&self) -> usize {
        self.chunks.iter().map(|chunk| chunk.tokens.len()).sum()
    }
}

/// Why a sequence ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum FinishReason {
    /// `max_tokens` were generated or the context is full.
    Length,
    /// The model chose this stop token; it is the update's `token`.
    StopToken(TokenId),
    /// The caller cancelled it.
    Cancelled,
    /// Its deadline passed.
    DeadlinePassed,
    /// The executor failed while it ran.
    Failed,
}

/// What became of a sequence in a step. Every sample of every request gets exactly one update
/// with a `finish`, and nothing after it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SequenceUpdate {
    /// The sample.
    pub sequence: SequenceId,
    /// The id that `submit` returned.
    pub parent: SequenceId,
    /// Which sample of the request this is, from 0.
    pub sample_index: usize,
    /// The new token, if there is one.
    pub token: Option<TokenId>,
    /// Set on the last update of the sequence.
    pub finish: Option<FinishReason>,
    /// Prompt tokens whose keys and values came from the prefix cache when it was first admitted.
    pub cached_prompt_tokens: usize,
}
