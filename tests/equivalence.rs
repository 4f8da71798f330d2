//! What a request gets depends on the request alone: bit for bit on the CPU, to rounding on GPUs.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod common;

use std::cell::RefCell;
use std::collections::HashMap;

use common::{LOGIT_TOLERANCE, builder, devices, model};
use engine::verify::{Comparison, Observation, Setup, Verifier, Workload, WorkloadLimits, observe};
use engine::{
    Device, Engine, EngineBuilder, KvFormat, Preemption, PromptReport, Request, SamplingParams,
    SchemePlan,
};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

/// One of each kind: grouped heads, windows, soft caps, norms of queries and keys, fused
/// projections, scaled positions, tied embeddings, biases, 16-bit weights.
const MODELS: [&str; 9] = [
    "stories260K",
    "mistral-sliding",
    "gemma2",
    "gemma3-text",
    "qwen3-qknorm",
    "qwen2-bias-tied",
    "phi3-fused",
    "llama3-rope-scaled",
    "llama-bf16",
];

fn path(name: &str) -> String {
    model(name).display().to_string()
}

fn engine(name: &str, device: Device) -> EngineBuilder {
    Engine::builder(path(name)).device(device)
}

/// Equal bits on the CPU, the tolerance of logits elsewhere.
fn tolerance(device: Device) -> Option<f32> {
    (device != Device::Cpu).then_some(LOGIT_TOLERANCE)
}

fn check_all(name: &str, device: Device, format: KvFormat, requests: usize, seed: u64) {
    check_quantized(name, "none", device, format, (requests, seed));
}

fn check_quantized(
    name: &str,
    plan: &str,
    device: Device,
    format: KvFormat,
    (requests, seed): (usize, u64),
) {
    let plan: SchemePlan = plan.parse().unwrap();
    let verifier = Verifier::new(path(name), device)
        .quantization(plan.clone())
        .kv_cache_format(format)
        .requests(requests)
        .lengths(36, 14)
        .seed(seed)
        .tolerance(LOGIT_TOLERANCE)
        .open()
        .unwrap();
    for property in verifier.properties() {
        let report = verifier.check(property).unwrap();
        assert!(report.holds(), "{name} {plan} on {device}: {property}: {report:#?}");
        assert!(report.cases >= requests.min(4), "{name}: {property}: {} cases", report.cases);
        assert!(report.exercised > 0, "{name} on {device}: {property} did not occur");
        assert!(report.comparison.values > 100, "{name} on {device}: {property}: {report:#?}");
    }
}

#[test]
fn every_property_holds_for_every_kind_of_model_on_the_cpu() {
    for (seed, name) in (7..).zip(MODELS) {
        check_all(name, Device::Cpu, KvFormat::F32, 8, seed);
    }
}

#[test]
fn every_property_holds_with_keys_and_values_in_int8_on_the_cpu() {
    for (seed, name) in (7..).zip(["stories260K", "gemma2", "qwen3-qknorm"]) {
        check_all(name, Device::Cpu, KvFormat::Int8, 8, seed);
    }
}

#[test]
fn every_property_holds_for_weights_in_few_bits_on_the_cpu() {
    let mixed = "int4:group=32:asym+v_proj=int8+down_proj=none+embeddings=int8";
    for (name, plan) in [
        ("stories260K", "int8+embeddings=int8"),
        ("stories260K", "int4"),
        ("phi3-fused", mixed),
        ("qwen2-bias-tied", "nf4+first=int8:tensor"),
    ] {
        check_quantized(name, plan, Device::Cpu, KvFormat::Int8, (6, 3));
    }
}

#[test]
fn every_property_holds_on_gpus() {
    for device in devices().into_iter().filter(|device| *device != Device::Cpu) {
        check_all("stories260K", device, KvFormat::F32, 6, 1);
        check_all("gemma2", device, KvFormat::F32, 4, 2);
    }
}

/// On a GPU a number that differs by rounding may fall into the neighbouring step, which is seen in
/// the logits; so the same prompt, in two chunks, is compared with what the CPU makes of it.
#[test]
fn keys_and_values_in_int8_give_gpus_what_they_give_the_cpu() {
    let logprobs = |device, format| -> Vec<f32> {
        let engine = builder("stories260K", device)
            .kv_cache_format(format)
            .max_batched_tokens(9)
            .block_size(4)
            .load()
            .unwrap();
        let prompt: Vec<u32> = (0..16).map(|i| 3 + i * 29).collect();
        let request = Request::tokens(prompt).max_tokens(0);
        let report = request.prompt_report(PromptReport::Logprobs(0));
        let prompt = engine.generate(report).unwrap().prompt.unwrap();
        prompt.logprobs.iter().map(|token| token.logprob).collect()
    };
    let [floats, codes] = [KvFormat::F32, KvFormat::Int8].map(|f| logprobs(Device::Cpu, f));
    assert_eq!(codes.len(), 15);
    assert!(common::max_difference(&codes, &floats) > 1e-4, "the format was not used");
    for device in devices().into_iter().filter(|device| *device != Device::Cpu) {
        let found = logprobs(device, KvFormat::Int8);
        let difference = common::max_difference(&found, &codes);
        assert!(difference < 0.02, "{device}: {difference}");
    }
}

/// Any setup that can run requests of at most `longest` tokens with three samples each.
fn setups(longest: usize) -> impl Strategy<Value = Setup> {
    let preemption = prop_oneof![
        Just(Preemption::Swap),
        Just(Preemption::Recompute),
        Just(Preemption::Cheapest)
    ];
    let sizes = (1..24_usize, 1..3 * longest, 3..24_usize, longest..4 * longest, 0..4 * longest);
    let ways = (any::<bool>(), preemption, 1..4_usize, any::<bool>(), any::<Option<u64>>());
    let format = prop_oneof![Just(KvFormat::F32), Just(KvFormat::Int8)];
    let others = (1..3_usize, 0..6_usize, format);
    (sizes, ways, others).prop_map(|(sizes, ways, others)| {
        let (rounds, cancelled_neighbours, kv_format) = others;
        let (block_size, max_batched_tokens, max_sequences, kv_tokens, swap_tokens) = sizes;
        let (prefix_caching, preemption, threads, one_by_one, order_seed) = ways;
        Setup {
            block_size,
            max_batched_tokens,
            max_sequences,
            prefix_caching,
            kv_format,
            kv_tokens: Some(kv_tokens),
            swap_tokens,
            preemption,
            threads: Some(threads),
            one_by_one,
            order_seed,
            rounds,
            cancelled_neighbours,
        }
    })
}

/// A workload and what its requests give alone.
struct Known {
    workload: Workload,
    expected: Vec<Vec<Observation>>,
    kv_bytes: usize,
}

/// Random workloads, each in a few random setups, with everything happening at once.
fn random_combinations(device: Device, models: &'static [&'static str], cases: u32) {
    let limits = |vocab| WorkloadLimits { vocab, max_prompt_tokens: 30, max_new_tokens: 12 };
    let known: RefCell<HashMap<(&str, u64, KvFormat), Known>> = RefCell::default();
    let strategy = (0..models.len(), 0..3_u64, setups(42));
    let config = Config { cases, failure_persistence: None, ..Config::default() };
    TestRunner::new_with_rng(
        config,
        proptest::test_runner::TestRng::deterministic_rng(
            proptest::test_runner::RngAlgorithm::ChaCha,
        ),
    )
    .run(&strategy, |(index, seed, mut setup)| {
        if device != Device::Cpu {
            // Codes that rounding moves are beyond the tolerance of logits.
            setup.kv_format = KvFormat::F32;
        }
        let name = models[index];
        let mut known = known.borrow_mut();
        let Known { workload, expected, kv_bytes } =
            known.entry((name, seed, setup.kv_format)).or_insert_with(|| {
                let plain = Setup { kv_format: setup.kv_format, ..Setup::plain() };
                let mut core = plain.load(engine(name, device), 0, None).unwrap();
                let limits = limits(core.info().config.vocab_size);
                let workload = Workload::random(seed, 10, limits);
                let expected = workload.alone(&mut core).unwrap();
                Known { workload, expected, kv_bytes: core.info().memory.kv_bytes_per_token }
            });
        let mut core = setup.load(engine(name, device), *kv_bytes, Some(42)).unwrap();
        let found = observe(&mut core, workload, &setup).unwrap();
        let mut comparison = Comparison::default();
        for (expected, found) in expected.iter().zip(&found) {
            comparison.add_request(expected, found);
        }
        prop_assert!(
            comparison.holds(tolerance(device)),
            "{name} on {device}, workload {seed}: {comparison:#?}"
        );
        let blocks = core.statistics().blocks;
        prop_assert_eq!(blocks.used_blocks, 0, "blocks were not given back");
        prop_assert_eq!(core.statistics().used_host_blocks, 0, "host blocks were not given back");
        Ok(())
    })
    .unwrap();
}

#[test]
fn random_combinations_change_nothing_on_the_cpu() {
    random_combinations(Device::Cpu, &MODELS, 160);
}

#[test]
fn random_combinations_change_nothing_on_gpus() {
    for device in devices().into_iter().filter(|device| *device != Device::Cpu) {
        random_combinations(device, &["stories260K", "mistral-sliding"], 4);
    }
}

/// More than two hundred sequences in one step, each as if it were alone.
#[test]
fn two_hundred_sequences_at_once_equal_each_alone() {
    for device in devices() {
        // A software GPU would take long over as many lone requests.
        let compared = if device == Device::Cpu { 240 } else { 24 };
        let mut core = builder("stories260K", device)
            .max_sequences(256)
            .max_batched_tokens(1 << 12)
            .kv_cache_bytes(16 << 20)
            .prefix_caching(false)
            .load_core()
            .unwrap();
        let requests: Vec<Request> = (0..240_u32)
            .map(|i| {
                let prompt: Vec<u32> = (0..=i % 7).map(|j| 1 + (i * 31 + j * 17) % 500).collect();
                let sampling = SamplingParams {
                    temperature: [0.0, 0.8, 1.0][i as usize % 3],
                    ..SamplingParams::default()
                };
                Request::tokens(prompt)
                    .max_tokens(12)
                    .sampling(sampling.with_seed(u64::from(i)))
                    .ignore_eos()
            })
            .collect();
        let together = Setup { one_by_one: false, ..Setup::plain() };
        let found = observe(&mut core, &Workload::from_requests(requests.clone()), &together);
        let found = found.unwrap();
        assert!(core.statistics().max_batch_sequences >= 200);
        let first = Workload::from_requests(requests[..compared].to_vec());
        let alone = first.alone(&mut core).unwrap();
        let mut comparison = Comparison::default();
        for (expected, found) in alone.iter().zip(&found) {
            comparison.add_request(expected, found);
        }
        assert!(comparison.holds(tolerance(device)), "{device}: {comparison:#?}");
        assert_eq!(comparison.completions, compared);
    }
}

/// Each step of a completion sees what it would see if the whole text were a prompt.
#[test]
fn decoding_with_the_cache_equals_the_whole_sequence_as_a_prompt() {
    for device in devices() {
        let models = if device == Device::Cpu { &MODELS[..] } else { &MODELS[..2] };
        for name in models {
            let engine: Engine = builder(name, device).prefix_caching(false).load().unwrap();
            let prompt: Vec<u32> = (0..9).map(|i| 3 + i * 29).collect();
            let sampling = SamplingParams::greedy().with_logprobs(16);
            let request = Request::tokens(prompt.clone()).max_tokens(24).sampling(sampling);
            let decoded = engine.generate(request.ignore_eos()).unwrap();
            let whole = [&prompt[..], decoded.tokens()].concat();
            let report = PromptReport::Logprobs(16);
            let request = Request::tokens(whole).max_tokens(0).prompt_report(report);
            let recomputed = engine.generate(request).unwrap().prompt.unwrap();
            let observation = |logprobs: &[_]| Observation {
                tokens: decoded.tokens().to_vec(),
                logprobs: logprobs.to_vec(),
                prompt_logits: Vec::new(),
                finish_reason: engine::FinishReason::Length,
            };
            let mut comparison = Comparison::default();
            comparison.add(
                &observation(&recomputed.logprobs[prompt.len() - 1..]),
                &observation(&decoded.choices[0].logprobs),
            );
            assert!(comparison.holds(tolerance(device)), "{name} on {device}: {comparison:#?}");
            assert_eq!(comparison.values, 24 * 17);
        }
    }
}
