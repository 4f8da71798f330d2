use burn_tensor::{DType, Int, Tensor, TensorData, backend::Backend};

/// Which positions of a chunk need logits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogitRows {
    /// None: the prompt goes on in a later chunk.
    None,
    /// The last one: the next token will be chosen from it.
    Last,
    /// Every one: prompt log-probabilities, speculation, perplexity.
    All,
}

/// The part of one sequence that runs in this step.
#[derive(Debug, Clone, Copy)]
pub struct SequenceChunk<'a> {
    /// The tokens to compute, `[chunk]`, at least one.
    pub tokens: &'a [u32],
    /// Position of the first of them in the sequence.
    pub start_position: usize,
    /// The sequence's blocks in order; they cover every position up to the chunk's last.
    pub page_table: &'a [u32],
    /// Which of the tokens need logits.
    pub logits: LogitRows,
    /// Length of the sequence that length-dependent RoPE scalings see: all tokens known so far.
    pub rope_len: usize,
}

/// One ragged step on the host: several chunks, one after the other, without padding.
///
/// ```
/// use engine_core::{BatchInput, LogitRows, SequenceChunk};
/// let mut batch = BatchInput::new(4);
/// batch.push(SequenceChunk {
///     tokens: &[11, 12], start_position: 3, page_table: &[7, 2], logits: LogitRows::Last, rope_len: 5,
/// });
/// assert_eq!(batch.slots, [7 * 4 + 3, 2 * 4]);
/// assert_eq!(batch.logit_rows, [1]);
/// ```
#[derive(Debug, Clone, Default)]
pub struct BatchInput {
    /// Token ids, `[tokens]`.
    pub tokens: Vec<u32>,
    /// Position of each token in its sequence, `[tokens]`.
    pub positions: Vec<u32>,
    /// Where each token's key and value go, `[tokens]`: `block_id * block_size + position % block_size`.
    pub slots: Vec<u32>,
    /// Number of each token's sequence in this batch, `[tokens]`.
    pub sequences: Vec<u32>,
    /// First token of each sequence and the number of tokens, `[sequences + 1]`.
    pub query_starts: Vec<u32>,
    /// [`SequenceChunk::rope_len`] of each sequence, `[sequences]`.
    pub rope_lens: Vec<u32>,
    /// Blocks of each sequence, `[sequences][blocks]`.
    pub page_tables: Vec<Vec<u32>>,
    /// Tokens that need logits, `[rows]`, ascending.
    pub logit_rows: Vec<u32>,
    /// Positions in one block.
    pub block_size: usize,
}

impl BatchInput {
    /// An empty batch over blocks of `block_size` positions.
    pub fn new(block_size: usize) -> Self {
        assert!(block_size > 0, "a block holds at least one position");
        Self { query_starts: vec![0], block_size, ..Self::default() }
    }

    /// Adds one sequence's chunk.
    ///
    /// # Panics
    /// If the chunk is empty or its page table does not cover it.
    pub fn push(&mut self, chunk: SequenceChunk<'_>) {
        let end = chunk.start_position + chunk.tokens.len();
        let covered = chunk.page_table.len() * self.block_size;
        assert!(!chunk.tokens.is_empty(), "push: a chunk holds at least one token");
        assert!(covered >= end, "push: the page table covers {covered} positions of {end}");
        let sequence = self.page_tables.len() as u32;
        let first = self.tokens.len() as u32;
        for (i, &token) in chunk.tokens.iter().enumerate() {
            let position = chunk.start_position + i;
            let block = chunk.page_table[position / self.block_size] as usize;
            self.tokens.push(token);
            self.positions.push(position as u32);
            self.slots.push((block * self.block_size + position % self.block_size) as u32);
            self.sequences.push(sequence);
        }
        let end_row = self.tokens.len() as u32;
        match chunk.logits {
            LogitRows::None => {}
            LogitRows::Last => self.logit_rows.push(end_row - 1),
            LogitRows::All => self.logit_rows.extend(first..end_row),
        }
        self.query_starts.push(end_row);
        self.rope_lens.push(chunk.rope_len as u32);
        self.page_tables.push(chunk.page_table.to_vec());
    }

    /// Number of sequences.
    pub fn num_sequences(&self) -> usize {
        self.page_tables.len()
    }

    /// Slot of `position` in sequence number `sequence`.
    pub fn slot(&self, sequence: usize, position: usize) -> usize {
        self.page_tables[sequence][position / self.block_size] as usize * self.block_size
            + position % self.block_size
    }
}

/// Where each part of [`ForwardBatch::meta`] starts.
#[derive(Debug, Clone, Copy)]
pub struct MetaLayout {
    /// Number of tokens; `tokens`, `positions`, `slots` and `sequences` are this long.
    pub num_tokens: usize,
    /// Start of the positions.
    pub positions: usize,
    /// Start of the slots.
    pub slots: usize,
    /// Start of the sequence numbers.
    pub sequences: usize,
    /// Start of the logit rows.
    pub logit_rows: usize,
    /// Start of the page tables, `[sequences, max_blocks]`, short rows padded with zeros.
    pub page_tables: usize,
    /// Columns of the page tables.
    pub max_blocks: usize,
}

/// A step on the device: the host's [`BatchInput`] and the same as one upload.
#[derive(Debug, Clone)]
pub struct ForwardBatch<B: Backend> {
    /// What was packed.
    pub input: BatchInput,
    /// All of it in one `i32` tensor: tokens, positions, slots, sequences, logit rows, page tables.
    pub meta: Tensor<B, 1, Int>,
    /// Where each part of `meta` starts.
    pub layout: MetaLayout,
}

impl<B: Backend> ForwardBatch<B> {
    /// Uploads a batch.
    ///
    /// # Panics
    /// If the batch is empty.
    pub fn upload(input: BatchInput, device: &B::Device) -> Self {
        let num_tokens = input.tokens.len();
        assert!(num_tokens > 0, "upload: the batch is empty");
        let max_blocks = input.page_tables.iter().map(Vec::len).max().unwrap_or(0);
        let logit_rows = 4 * num_tokens;
        let layout = MetaLayout {
            num_tokens,
            positions: num_tokens,
            slots: 2 * num_tokens,
            sequences: 3 * num_tokens,
            logit_rows,
            page_tables: logit_rows + input.logit_rows.len(),
            max_blocks,
        };
        let mut meta = Vec::with_capacity(layout.page_tables + input.num_sequences() * max_blocks);
        let parts =
            [&input.tokens, &input.positions, &input.slots, &input.sequences, &input.logit_rows];
        for part in parts {
            meta.extend(part.iter().map(|&value| value as i32));
        }
        for row in &input.page_tables {
            meta.extend(row.iter().map(|&block| block as i32));
            meta.extend(std::iter::repeat_n(0, max_blocks - row.len()));
        }
        let len = meta.len();
        let meta = Tensor::from_data(TensorData::new(meta, [len]), (device, DType::I32));
        Self { input, meta, layout }
    }

    /// Token ids on the device, `[tokens]`.
    pub fn tokens(&self) -> Tensor<B, 1, Int> {
        self.meta.clone().slice([0..self.layout.num_tokens])
    }

    /// Rows that need logits on the device, `[rows]`.
    pub fn logit_rows(&self) -> Tensor<B, 1, Int> {
        let start = self.layout.logit_rows;
        self.meta.clone().slice([start..start + self.input.logit_rows.len()])
    }

    /// Number of tokens.
    pub fn num_tokens(&self) -> usize {
        self.layout.num_tokens
    }
}
