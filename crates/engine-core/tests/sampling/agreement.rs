//! The library's token is the naive implementation's, bit for bit, ties included.

use std::collections::HashSet;

use engine_core::sampling::{SampleScratch, SamplingParams, TokenHistory, logprobs_of, sample};
use proptest::prelude::*;

use crate::{Seen, chosen, naive, spread_logits};

/// Logits on a coarse grid, full of ties, some of them ruled out, at least one not.
fn tied_logits(vocab: usize) -> impl Strategy<Value = Vec<f32>> {
    let logit = prop_oneof![
        12 => (-8i8..8).prop_map(|step| f32::from(step) * 0.5),
        1 => Just(-0.0f32),
        1 => Just(f32::NEG_INFINITY),
        1 => Just(f32::NAN),
    ];
    prop::collection::vec(logit, vocab).prop_map(|mut logits| {
        logits[0] = if logits[0] > f32::NEG_INFINITY { logits[0] } else { 0.25 };
        logits
    })
}

fn any_logits() -> impl Strategy<Value = Vec<f32>> {
    let vocab = prop_oneof![Just(1usize), Just(2), Just(131), 3usize..400];
    vocab.prop_flat_map(|vocab| {
        prop_oneof![
            tied_logits(vocab),
            any::<u64>().prop_map(move |seed| spread_logits(vocab, seed)),
            Just(vec![1.5; vocab]),
        ]
    })
}

fn any_params() -> impl Strategy<Value = SamplingParams> {
    let filters = (
        prop_oneof![Just(0.0f32), Just(1.0), Just(0.5), 0.05f32..3.0],
        prop_oneof![Just(0usize), Just(1), 1usize..50, Just(usize::MAX)],
        prop_oneof![Just(1.0f32), Just(0.5), 0.001f32..1.0],
        prop_oneof![Just(0.0f32), Just(1.0), Just((-0.5f32).exp()), 0.0f32..0.5],
    );
    let penalties = (
        prop_oneof![Just(1.0f32), Just(2.0), 0.5f32..2.0],
        prop_oneof![Just(0.0f32), Just(0.5), -2.0f32..2.0],
        prop_oneof![Just(0.0f32), Just(0.5), -2.0f32..2.0],
        prop::collection::vec((0u32..131, prop_oneof![Just(0.5f32), -5.0f32..5.0]), 0..4),
    );
    (filters, penalties, any::<u64>()).prop_map(|(filters, penalties, seed)| SamplingParams {
        temperature: filters.0,
        top_k: filters.1,
        top_p: filters.2,
        min_p: filters.3,
        repetition_penalty: penalties.0,
        presence_penalty: penalties.1,
        frequency_penalty: penalties.2,
        logit_bias: penalties.3,
        seed,
        logprobs: None,
    })
}

fn any_seen() -> impl Strategy<Value = Seen> {
    let tokens = || prop::collection::vec(0u32..140, 0..12);
    (tokens(), tokens()).prop_map(|(prompt, generated)| Seen { prompt, generated })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn the_token_is_the_naive_one(
        logits in any_logits(),
        params in any_params(),
        seen in any_seen(),
        position in any::<u32>(),
    ) {
        let kept = naive::kept(&logits, &params, &seen);
        let token = chosen(&logits, &params, &seen, position);
        prop_assert!(kept.iter().any(|one| one.token == token));
        prop_assert_eq!(token, naive::chosen(&logits, &params, &seen, position));
    }

    #[test]
    fn nothing_but_the_arguments_matters(
        logits in any_logits(),
        other in any_logits(),
        params in any_params(),
        seen in any_seen(),
        position in any::<u32>(),
    ) {
        let fresh = chosen(&logits, &params, &seen, position);
        let mut scratch = SampleScratch::default();
        sample(&other, &params, &TokenHistory::default(), position, &mut scratch).unwrap();
        let reused = sample(&logits, &params, &seen.history(), position, &mut scratch).unwrap();
        prop_assert_eq!(reused.token, fresh);
        let asked = params.clone().with_logprobs(1);
        let asked = sample(&logits, &asked, &seen.history(), position, &mut scratch).unwrap();
        prop_assert_eq!(asked.token, fresh);
        // The order in which tokens were seen, and tokens that cannot be chosen, change nothing.
        let mut reordered = seen.clone();
        reordered.prompt.reverse();
        reordered.generated.reverse();
        let mut padded = logits.clone();
        padded.resize(logits.len() + 150, f32::NEG_INFINITY);
        let mut padded_params = params.clone();
        padded_params.logit_bias.retain(|&(token, _)| (token as usize) < logits.len());
        prop_assert_eq!(chosen(&padded, &padded_params, &reordered, position), fresh);
    }

    #[test]
    fn the_nucleus_is_minimal(logits in any_logits(), top_p in 0.001f32..1.0) {
        let params = SamplingParams::default().with_top_p(top_p);
        let all = naive::distribution(&logits, &SamplingParams::default(), &Seen::default());
        // What can be drawn, found out by drawing: each kept token is drawn at some position.
        let kept: HashSet<u32> =
            (0..200).map(|position| chosen(&logits, &params, &Seen::default(), position)).collect();
        let smallest = kept.iter().map(|&token| all[token as usize]).fold(1.0, f64::min);
        let above: f64 = all.iter().filter(|&&probability| probability > smallest).sum();
        prop_assert!(above < f64::from(top_p) + 1e-6, "{} before the last", above);
    }

    #[test]
    fn log_probabilities_are_those_of_the_definition(
        logits in any_logits(),
        num_top in 0usize..20,
        token in any::<prop::sample::Index>(),
    ) {
        let exact = naive::distribution(&logits, &SamplingParams::default(), &Seen::default());
        let token = token.index(logits.len()) as u32;
        let logprobs = logprobs_of(&logits, token, num_top).unwrap();
        let near = |logprob: f32, token: u32| {
            let exact = exact[token as usize].ln();
            exact == f64::from(logprob) || (exact - f64::from(logprob)).abs() < 1e-5
        };
        prop_assert!(near(logprobs.logprob, token));
        let order = naive::kept(&logits, &SamplingParams::default(), &Seen::default());
        let expected: Vec<u32> = order.iter().map(|one| one.token).take(num_top).collect();
        let top: Vec<u32> = logprobs.top.iter().map(|&(token, _)| token).collect();
        prop_assert_eq!(top, expected);
        prop_assert!(logprobs.top.iter().all(|&(token, logprob)| near(logprob, token)));
    }
}

#[test]
fn a_large_vocabulary_agrees_too() {
    let filters = SamplingParams::default().with_temperature(0.9).with_seed(3);
    let rising: Vec<f32> = (0..32_000).map(|token| token as f32 * 1e-4).collect();
    let tied: Vec<f32> = (0..32_000).map(|token| (token % 7) as f32).collect();
    for logits in [spread_logits(32_000, 1), rising, tied] {
        for params in [
            filters.clone(),
            filters.clone().with_top_k(1),
            filters.clone().with_top_k(50),
            filters.clone().with_top_k(20_000).with_top_p(0.9),
            filters.clone().with_top_p(0.95).with_min_p(0.01),
        ] {
            for position in 0..3 {
                let seen = Seen { prompt: vec![1, 5, 31_999], generated: vec![5, 5, 7] };
                let expected = naive::chosen(&logits, &params, &seen, position);
                assert_eq!(chosen(&logits, &params, &seen, position), expected, "{params:?}");
            }
        }
    }
}

#[test]
fn borders_keep_ties_as_documented() {
    let drawn = |logits: &[f32], params: SamplingParams| {
        let draws = (0..400).map(|position| chosen(logits, &params, &Seen::default(), position));
        let mut tokens: Vec<u32> = draws.collect::<HashSet<_>>().into_iter().collect();
        tokens.sort_unstable();
        tokens
    };
    let params = SamplingParams::default;
    // Top-k: everything that equals the second.
    assert_eq!(drawn(&[1.0, 0.0, 1.0, 2.0, 1.0], params().with_top_k(2)), [0, 2, 3, 4]);
    // Top-p: equal tokens by id, and no more than reach the mass.
    assert_eq!(drawn(&[0.0; 10], params().with_top_p(0.3)), [0, 1, 2]);
    assert_eq!(drawn(&[0.0; 4], params().with_top_p(0.5)), [0, 1]);
    assert_eq!(drawn(&[0.0; 4], params().with_top_p(0.51)), [0, 1, 2]);
    assert_eq!(drawn(&[0.0, 9.0, 0.0], params().with_top_p(1e-30)), [1]);
    // Min-p: exactly as probable as asked is enough.
    let half = 0.5f32.ln();
    assert_eq!(drawn(&[0.0, half, half - 0.01], params().with_min_p(0.5)), [0, 1]);
    assert_eq!(drawn(&[0.0, -1e-3, 0.0], params().with_min_p(1.0)), [0, 2]);
}

#[cfg(feature = "flex")]
#[test]
fn a_temperature_alone_gives_the_token_of_the_device_operation() {
    use burn_flex::Flex;
    use burn_tensor::{Tensor, TensorData};
    use engine_core::ops::sample::{TokenChoice, choose_tokens};

    for vocab in [1usize, 2, 131, 32_000] {
        let rows = [(0.0, 0), (1.0, 7), (0.3, 8), (1.7, u64::MAX), (0.01, 9)];
        let logits: Vec<Vec<f32>> =
            (0..rows.len()).map(|row| spread_logits(vocab, row as u64)).collect();
        let choices: Vec<TokenChoice> = (0u32..)
            .zip(rows)
            .map(|(row, (temperature, seed))| TokenChoice { temperature, seed, position: 40 + row })
            .collect();
        let tensor = Tensor::<Flex, 2>::from_data(
            TensorData::new(logits.concat(), [rows.len(), vocab]),
            &Default::default(),
        );
        let on_device: Vec<i64> =
            choose_tokens(tensor, &choices).into_data().iter::<i64>().collect();
        for ((logits, choice), on_device) in logits.iter().zip(&choices).zip(on_device) {
            let params = SamplingParams::default()
                .with_temperature(choice.temperature)
                .with_seed(choice.seed);
            assert!(params.on_device());
            let token = chosen(logits, &params, &Seen::default(), choice.position);
            assert_eq!(i64::from(token), on_device, "vocabulary {vocab}, {choice:?}");
        }
    }
}
