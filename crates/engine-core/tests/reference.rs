//! The forward pass against the reference implementation, without an engine around it.

use std::path::{Path, PathBuf};

use burn_flex::{Flex, FlexDevice};
use engine_core::{
    BatchInput, Checkpoint, ForwardBatch, KvCache, LogitRows, Model, ModelBackend, ModelConfig,
    SequenceChunk, load,
};
use safetensors::SafeTensors;

const TOLERANCE: f32 = 2e-4;
const BLOCK_SIZE: usize = 3;

fn data() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/data")
}

fn open<B: ModelBackend>(name: &str, device: &B::Device) -> Model<B> {
    let dir = data().join("models").join(name);
    let config = ModelConfig::load(&dir).unwrap();
    load(config, &Checkpoint::open(&dir).unwrap(), device, &mut |_| ()).unwrap()
}

/// Logits `[tokens, vocab]` of one sequence that runs in chunks of the given lengths.
fn run<B: ModelBackend>(
    model: &Model<B>,
    kv: &mut KvCache<B>,
    tokens: &[u32],
    blocks: &[u32],
    chunk: usize,
) -> Vec<f32> {
    let mut logits = Vec::new();
    for (i, tokens_of_chunk) in tokens.chunks(chunk).enumerate() {
        let mut input = BatchInput::new(BLOCK_SIZE);
        input.push(SequenceChunk {
            tokens: tokens_of_chunk,
            start_position: i * chunk,
            page_table: blocks,
            logits: LogitRows::All,
            rope_len: tokens.len(),
        });
        let batch = ForwardBatch::upload(input, model.device());
        logits.extend(model.forward(&batch, kv).unwrap().into_data().iter::<f32>());
    }
    logits
}

#[test]
fn logits_equal_the_reference_whole_and_in_chunks() {
    let device = FlexDevice;
    for entry in std::fs::read_dir(data().join("fixtures")).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|extension| extension != "safetensors") {
            continue;
        }
        let name = path.file_stem().unwrap().to_str().unwrap();
        let model = open::<Flex>(name, &device);
        let bytes = std::fs::read(&path).unwrap();
        let fixture = SafeTensors::deserialize(&bytes).unwrap();
        for prompt in ["prompt0", "prompt1"] {
            let Ok(expected) = fixture.tensor(&format!("{prompt}.logits")) else { continue };
            let expected: Vec<f32> = expected
                .data()
                .chunks_exact(4)
                .map(|b| f32::from_le_bytes(b.try_into().unwrap()))
                .collect();
            let ids = fixture.tensor(&format!("{prompt}.input_ids")).unwrap();
            let ids: Vec<u32> = ids
                .data()
                .chunks_exact(8)
                .map(|b| i64::from_le_bytes(b.try_into().unwrap()) as u32)
                .collect();
            let num_blocks = ids.len().div_ceil(BLOCK_SIZE) as u32;
            let blocks: Vec<u32> = (0..num_blocks).rev().map(|b| b + 2).collect();
            for chunk in [ids.len(), 7, 1] {
                let mut kv = model.allocate_kv((num_blocks as usize + 2) * BLOCK_SIZE);
                let found = run(&model, &mut kv, &ids, &blocks, chunk);
                let difference = found
                    .iter()
                    .zip(&expected)
                    .map(|(a, b)| (a - b).abs())
                    .fold(0.0, |a: f32, b| if b.is_nan() { f32::INFINITY } else { a.max(b) });
                assert_eq!(found.len(), expected.len());
                assert!(difference <= TOLERANCE, "{name} {prompt} chunk {chunk}: {difference}");
            }
        }
    }
}
