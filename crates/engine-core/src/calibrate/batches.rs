use burn_tensor::{DType, Tensor};

use crate::{
    BatchInput, ForwardBatch, LayerKv, LogitRows, ModelBackend, ModelConfig, Rope, SequenceChunk,
    model::rope_tables,
};

/// Tokens that run at once, unless a sequence alone has more.
const BATCH_TOKENS: usize = 2048;
const BLOCK_SIZE: usize = 16;

/// Some calibration sequences that run together.
pub(super) struct Batch<B: ModelBackend> {
    pub forward: ForwardBatch<B>,
    /// Cosines and sines of each rotary embedding.
    pub tables: Vec<Tensor<B, 2>>,
    slots: usize,
}

impl<B: ModelBackend> Batch<B> {
    /// Keys and values of one layer.
    pub fn allocate_kv(&self, config: &ModelConfig, device: &B::Device) -> LayerKv<B> {
        let shape = [self.slots, config.kv_row_len()];
        let zeros = || Tensor::zeros(shape, (device, DType::F32));
        LayerKv::F32 { keys: zeros(), values: zeros() }
    }
}

/// All sequences in batches, in their order.
pub(super) fn batches<B: ModelBackend>(
    config: &ModelConfig,
    sequences: &[Vec<u32>],
    device: &B::Device,
) -> Vec<Batch<B>> {
    let ropes: Vec<Rope> = config.ropes.iter().map(Rope::new).collect();
    let mut batches = Vec::new();
    let mut input = BatchInput::new(BLOCK_SIZE);
    let mut blocks = 0;
    let mut finish = |input: &mut BatchInput, blocks: &mut u32| {
        if input.tokens.is_empty() {
            return;
        }
        let input = std::mem::replace(input, BatchInput::new(BLOCK_SIZE));
        let slots = std::mem::take(blocks) as usize * BLOCK_SIZE;
        let tables = rope_tables(&ropes, &input, device);
        batches.push(Batch { forward: ForwardBatch::upload(input, device), tables, slots });
    };
    for tokens in sequences.iter().filter(|tokens| !tokens.is_empty()) {
        if input.tokens.len() + tokens.len() > BATCH_TOKENS {
            finish(&mut input, &mut blocks);
        }
        let end = blocks + tokens.len().div_ceil(BLOCK_SIZE) as u32;
        input.push(SequenceChunk {
            tokens,
            start_position: 0,
            page_table: &(blocks..end).collect::<Vec<_>>(),
            logits: LogitRows::None,
            rope_len: tokens.len(),
        });
        blocks = end;
    }
    finish(&mut input, &mut blocks);
    batches
}
