//! GPTQ and AWQ on the trained models reach the perplexities and divergences of the reference.

#![cfg(feature = "cpu")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test that cannot go on has failed"
)]

mod common;

use std::path::PathBuf;

use burn_flex::Flex;
use common::data;
use engine::Tokenizer;
use engine_bench::perplexity::Method;
use engine_core::{
    BatchInput, CalibratedModel, Calibration, Checkpoint, ForwardBatch, KvFormat, LogitRows, Model,
    ModelConfig, SequenceChunk, WeightSource, load,
};
use engine_quant::SchemePlan;
use serde_json::Value;

fn directory(model: &str) -> PathBuf {
    let trained = data().join("models").join(model);
    if trained.exists() { trained } else { data().join("quant/models").join(model) }
}

fn source(model: &str) -> (ModelConfig, Checkpoint) {
    let directory = directory(model);
    (ModelConfig::load(&directory).unwrap(), Checkpoint::open(&directory).unwrap())
}

fn load_from(config: &ModelConfig, source: &dyn WeightSource) -> Model<Flex> {
    load(config.clone(), source, &SchemePlan::default(), &Default::default(), &mut |_| ()).unwrap()
}

/// Logits of every position but the last, `[windows][tokens − 1][vocab]`.
fn logits(model: &Model<Flex>, windows: &[Vec<u32>]) -> Vec<Vec<f32>> {
    let forward = |tokens: &Vec<u32>| {
        let mut input = BatchInput::new(16);
        input.push(SequenceChunk {
            tokens,
            start_position: 0,
            page_table: &(0..tokens.len().div_ceil(16) as u32).collect::<Vec<_>>(),
            logits: LogitRows::All,
            rope_len: tokens.len(),
        });
        let mut kv = model.allocate_kv(tokens.len().next_multiple_of(16), KvFormat::F32);
        let batch = ForwardBatch::upload(input, model.device());
        let data = model.forward(&batch, &mut kv).unwrap().into_data();
        let mut values: Vec<f32> = data.iter::<f32>().collect();
        values.truncate((tokens.len() - 1) * model.config().vocab_size);
        values
    };
    windows.iter().map(forward).collect()
}

fn log_probabilities(logits: &[f32]) -> Vec<f64> {
    let max = f64::from(logits.iter().copied().fold(f32::NEG_INFINITY, f32::max));
    let sum: f64 = logits.iter().map(|&x| (f64::from(x) - max).exp()).sum();
    logits.iter().map(|&x| f64::from(x) - max - sum.ln()).collect()
}

/// A text with the logits of the float model.
struct Scored {
    name: &'static str,
    windows: Vec<Vec<u32>>,
    floats: Vec<Vec<f32>>,
}

impl Scored {
    /// Perplexity, and divergence from the float model.
    fn score(&self, model: &Model<Flex>) -> (f64, f64) {
        let vocab = model.config().vocab_size;
        let (mut nll, mut divergence, mut count) = (0.0, 0.0, 0);
        let found = logits(model, &self.windows);
        for ((tokens, found), floats) in self.windows.iter().zip(&found).zip(&self.floats) {
            let rows = found.chunks(vocab).zip(floats.chunks(vocab)).zip(&tokens[1..]);
            for ((found, float), &next) in rows {
                let (q, p) = (log_probabilities(found), log_probabilities(float));
                nll -= q[next as usize];
                divergence += p.iter().zip(&q).map(|(p, q)| p.exp() * (p - q)).sum::<f64>();
                count += 1;
            }
        }
        ((nll / f64::from(count)).exp(), divergence / f64::from(count))
    }
}

/// One of the trained models with its calibration and its scored texts.
struct Trained {
    name: &'static str,
    config: ModelConfig,
    source: Checkpoint,
    sequences: Vec<Vec<u32>>,
    scored: Vec<Scored>,
    limits: Value,
}

impl Trained {
    fn new(
        name: &'static str,
        (calibration, method): (&str, &str),
        texts: &[(&'static str, &str, &str)],
    ) -> Self {
        let (config, source) = source(name);
        let tokenizer = Tokenizer::load(directory(name)).unwrap();
        let windows = |path: &str, method: &str| -> Vec<Vec<u32>> {
            let text = std::fs::read_to_string(data().join(path)).unwrap();
            let context = config.max_position_embeddings;
            let encode = |part: &str| tokenizer.encode(part, false);
            let (text, method) = match method {
                "per_line" => (text.replace('\n', "<|endoftext|>"), "per-document"),
                method => (text, method),
            };
            let method: Method = method.parse().unwrap();
            let windows = method.windows(&text, config.bos_token_id, context, encode).unwrap();
            windows.into_iter().map(|window| window.tokens).collect()
        };
        let floats = load_from(&config, &source);
        let scored = texts
            .iter()
            .map(|&(name, path, method)| {
                let windows = windows(path, method);
                Scored { name, floats: logits(&floats, &windows), windows }
            })
            .collect();
        let file = std::fs::read(data().join("quant/ppl.json")).unwrap();
        let limits: Value = serde_json::from_slice(&file).unwrap();
        let sequences = windows(calibration, method);
        let limits = limits["models"][name].clone();
        assert_eq!(sequences.len() as u64, limits["calibration"]["documents"].as_u64().unwrap());
        let tokens: usize = sequences.iter().map(Vec::len).sum();
        assert_eq!(tokens as u64, limits["calibration"]["tokens"].as_u64().unwrap());
        Self { name, config, source, sequences, scored, limits }
    }

    fn stories() -> Self {
        let texts = [
            ("tinystories", "text/tinystories_sample.txt", "per-document"),
            ("alice", "text/excerpt_alice.txt", "chunked:256"),
        ];
        Self::new("stories260K", ("quant/text/tinystories_calib.txt", "per_line"), &texts)
    }

    fn bard() -> Self {
        let texts = [("bard_valid", "quant/text/bard_valid_excerpt.txt", "chunked:256")];
        Self::new("bard1m", ("quant/text/bard_calib.txt", "chunked:256"), &texts)
    }

    fn calibrate(&self, plan: &str) -> CalibratedModel {
        let plan: SchemePlan = plan.parse().unwrap();
        let (config, source) = (&self.config, &self.source);
        let task = Calibration { config, source, plan: &plan, sequences: &self.sequences };
        CalibratedModel::new::<Flex>(&task, &Default::default(), |_| ()).unwrap()
    }

    /// Quantizes by each scheme, `(plan, name of the reference)`; returns the perplexities of the
    /// first text.
    fn check(&self, schemes: &[(&str, &str)]) -> Vec<f64> {
        let mut failed = Vec::new();
        let mut found = Vec::new();
        for (plan, reference) in schemes {
            let calibrated = self.calibrate(plan);
            assert_eq!(calibrated.matrices.len(), 7 * self.config.num_layers);
            let model = load_from(&self.config, &calibrated);
            for scored in &self.scored {
                let limits = &self.limits["approximate"][reference];
                let number = |what: &str| limits["reach_or_beat"][scored.name][what].as_f64();
                let ppl_limit = number("perplexity").unwrap();
                let mut kl_limit = number("kl_mean_nats").unwrap();
                let nearest = &limits["rtn_with_the_same_format"]["result"][scored.name];
                // Clipping must gain something even where there are no outliers to protect.
                if reference.ends_with("clip") {
                    kl_limit = kl_limit.min(nearest["kl_mean_nats"].as_f64().unwrap());
                }
                let (ppl, kl) = scored.score(&model);
                let line = format!(
                    "{} {} {plan}: perplexity {ppl:.4} of {ppl_limit}, divergence {kl:.5} of {kl_limit:.5}",
                    self.name, scored.name
                );
                eprintln!("{line}");
                if !(ppl <= ppl_limit && kl <= kl_limit) {
                    failed.push(line);
                }
                found.push(ppl);
            }
        }
        assert!(failed.is_empty(), "missed:\n{}", failed.join("\n"));
        found
    }
}

const GPTQ_32: [(&str, &str); 5] = [
    ("int4:group=32:method=gptq", "gptq_g32_asym"),
    ("int4:group=32:sym15:method=gptq", "gptq_g32_sym"),
    ("int4:group=32:method=gptq:actorder", "gptq_g32_asym_actorder"),
    ("int4:group=32:sym15:method=gptq:actorder", "gptq_g32_sym_actorder"),
    ("int4:group=32:sym15:method=gptq:actorder:static", "gptq_g32_sym_actorder_static"),
];

const AWQ_32: [(&str, &str); 2] = [
    ("int4:group=32:method=awq", "awq_g32_asym_clip"),
    ("int4:group=32:method=awq:noclip", "awq_g32_asym"),
];

#[test]
fn gptq_reaches_the_reference_on_stories() {
    let perplexities = Trained::stories().check(&GPTQ_32);
    assert!(perplexities[0] <= 3.77, "{}", perplexities[0]);
}

#[test]
fn awq_reaches_the_reference_on_stories() {
    Trained::stories().check(&AWQ_32);
}

#[test]
fn gptq_reaches_the_reference_on_bard() {
    let bard = Trained::bard();
    bard.check(&GPTQ_32);
    bard.check(&[
        ("int4:group=128:method=gptq", "gptq_g128_asym"),
        ("int4:group=128:sym15:method=gptq", "gptq_g128_sym"),
        ("int4:group=128:method=gptq:actorder", "gptq_g128_asym_actorder"),
        ("int4:group=128:sym15:method=gptq:actorder", "gptq_g128_sym_actorder"),
        ("int4:group=128:sym15:method=gptq:actorder:static", "gptq_g128_sym_actorder_static"),
    ]);
}

#[test]
fn awq_reaches_the_reference_on_bard() {
    let bard = Trained::bard();
    bard.check(&AWQ_32);
    bard.check(&[
        ("int4:group=128:method=awq", "awq_g128_asym_clip"),
        ("int4:group=128:method=awq:noclip", "awq_g128_asym"),
    ]);
}

#[test]
fn gptq_reports_less_error_than_rounding_to_nearest() {
    let stories = Trained::stories();
    let calibrated = stories.calibrate("int4:group=32:method=gptq");
    for report in &calibrated.matrices {
        assert!(report.error < report.nearest_error, "{report:?}");
        assert!(report.error > 0.0 && report.raised_damp.is_none());
    }
}
