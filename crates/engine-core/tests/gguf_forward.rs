//! Models out of GGUF files compute what their checkpoints compute.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]
#![cfg(feature = "flex")]

mod gguf_file;

use burn_flex::{Flex, FlexDevice};
use engine_core::{
    BatchInput, Checkpoint, ForwardBatch, GgufFile, KvFormat, LogitRows, ModelConfig,
    SequenceChunk, Treatment, WeightSource, load, planned_weight_bytes,
};
use engine_quant::SchemePlan;
use gguf_file::convert::{CONVERTED, convert, data};
use safetensors::SafeTensors;

/// Logits of all tokens, `[tokens, vocab]`.
fn logits(config: &ModelConfig, source: &dyn WeightSource, tokens: &[u32]) -> Vec<f32> {
    let plan = SchemePlan::default();
    let model = load::<Flex>(config.clone(), source, &plan, &FlexDevice, &mut |_| ()).unwrap();
    assert_eq!(planned_weight_bytes(config, source, &plan), source.held_bytes());
    let kept = model.load_report().entries.iter().all(|e| e.treatment == Treatment::Kept);
    assert!(kept, "{}", model.load_report());
    let mut input = BatchInput::new(tokens.len());
    input.push(SequenceChunk {
        tokens,
        start_position: 0,
        page_table: &[0],
        logits: LogitRows::All,
        rope_len: tokens.len(),
    });
    let mut kv = model.allocate_kv(tokens.len(), KvFormat::F32);
    let batch = ForwardBatch::upload(input, &FlexDevice);
    model.forward(&batch, &mut kv).unwrap().into_data().to_vec().unwrap()
}

fn difference(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

#[test]
fn logits_of_every_file_are_those_of_the_reference() {
    let bytes = std::fs::read(data().join("quant/gguf/logits.safetensors")).unwrap();
    let reference = SafeTensors::deserialize(&bytes).unwrap();
    let (mut worst, mut files) = (0.0_f32, 0);
    for name in reference.names() {
        let Some(prompt) = name.strip_suffix(".input_ids") else { continue };
        let (file, _) = prompt.rsplit_once('.').unwrap();
        let file = GgufFile::open(data().join(format!("quant/gguf/{file}.gguf"))).unwrap();
        let config = ModelConfig::from_gguf(&file).unwrap();
        let ids = reference.tensor(name).unwrap();
        let ids = ids.data().as_chunks().0.iter().map(|&id| i64::from_le_bytes(id) as u32);
        let expected = reference.tensor(&format!("{prompt}.logits")).unwrap();
        let expected = expected.data().as_chunks().0.iter().map(|&x| f32::from_le_bytes(x));
        let found = logits(&config, &file, &ids.collect::<Vec<_>>());
        let difference = difference(&found, &expected.collect::<Vec<_>>());
        assert!(difference <= 2e-4, "{prompt}: logits differ by {difference}");
        (worst, files) = (worst.max(difference), files + 1);
    }
    assert_eq!(files, 30);
    eprintln!("largest difference: {worst}");
}

#[test]
fn every_family_computes_the_same_from_both_files() {
    let tokens: Vec<u32> = (0..40).map(|i| (i * 37 + 11) % 128).collect();
    for name in CONVERTED.into_iter().filter(|name| *name != "mistral-sliding") {
        let (writer, config, checkpoint): (_, _, Checkpoint) = convert(name);
        let file = writer.open().unwrap();
        let from_gguf = ModelConfig::from_gguf(&file).unwrap();
        let found = logits(&from_gguf, &file, &tokens);
        let expected = logits(&config, &checkpoint, &tokens);
        let difference = difference(&found, &expected);
        assert!(difference <= 1e-5, "{name}: logits differ by {difference}");
    }
}
