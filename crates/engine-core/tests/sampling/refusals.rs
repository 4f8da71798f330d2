//! Parameters out of range, and logits that leave nothing to choose.

use engine_core::sampling::{
    SampleScratch, SamplingError, SamplingParams, TokenHistory, logprobs_of, sample,
};

fn refused_field(params: SamplingParams) -> Option<&'static str> {
    match params.validate(100) {
        Err(SamplingError::InvalidParameter { field, .. }) => Some(field),
        _ => None,
    }
}

#[test]
fn each_field_is_held_to_its_range() {
    let params = SamplingParams::default;
    let (nan, infinity) = (f32::NAN, f32::INFINITY);
    for value in [nan, -1.0, infinity, 1e-6] {
        assert_eq!(refused_field(params().with_temperature(value)), Some("temperature"));
    }
    for value in [nan, -0.1, 0.0, 1.01, infinity] {
        assert_eq!(refused_field(params().with_top_p(value)), Some("top_p"));
    }
    for value in [nan, -0.1, 1.01, infinity] {
        assert_eq!(refused_field(params().with_min_p(value)), Some("min_p"));
    }
    for value in [nan, -1.0, 0.0, infinity] {
        let refused = params().with_repetition_penalty(value);
        assert_eq!(refused_field(refused), Some("repetition_penalty"));
    }
    for value in [nan, -2.1, 2.1, infinity] {
        assert_eq!(refused_field(params().with_presence_penalty(value)), Some("presence_penalty"));
        let refused = params().with_frequency_penalty(value);
        assert_eq!(refused_field(refused), Some("frequency_penalty"));
    }
    for (token, bias) in [(100, 0.0), (u32::MAX, 1.0), (3, nan), (3, infinity)] {
        assert_eq!(refused_field(params().with_logit_bias(token, bias)), Some("logit_bias"));
    }
    assert_eq!(refused_field(params().with_logprobs(101)), Some("logprobs"));
}

#[test]
fn the_ends_of_the_ranges_are_allowed() {
    let low = SamplingParams {
        temperature: 1e-5,
        top_k: 0,
        top_p: f32::MIN_POSITIVE,
        min_p: 0.0,
        repetition_penalty: f32::MIN_POSITIVE,
        presence_penalty: -2.0,
        frequency_penalty: -2.0,
        logit_bias: vec![(0, f32::NEG_INFINITY)],
        seed: 0,
        logprobs: Some(0),
    };
    let high = SamplingParams {
        temperature: f32::MAX,
        top_k: usize::MAX,
        top_p: 1.0,
        min_p: 1.0,
        repetition_penalty: f32::MAX,
        presence_penalty: 2.0,
        frequency_penalty: 2.0,
        logit_bias: vec![(99, f32::MAX)],
        seed: u64::MAX,
        logprobs: Some(100),
    };
    let mut history = TokenHistory::from_prompt(&[0, 1, u32::MAX]);
    history.push(2);
    for params in [low, high, SamplingParams::greedy(), SamplingParams::default()] {
        assert_eq!(params.validate(100), Ok(()), "{params:?}");
        let logits: Vec<f32> = (0..100).map(|token| 50.0 - token as f32).collect();
        let sampled = sample(&logits, &params, &history, 0, &mut SampleScratch::default());
        assert!(sampled.unwrap().token < 100);
    }
}

#[test]
fn messages_say_field_value_and_range() {
    let message = |params: SamplingParams| params.validate(100).unwrap_err().to_string();
    assert_eq!(
        message(SamplingParams::default().with_temperature(f32::NAN)),
        "sampling parameter `temperature` is NaN: it must be 0 (greedy) or a finite number of at \
         least 0.00001"
    );
    assert_eq!(
        message(SamplingParams::default().with_logit_bias(100, 1.0)),
        "sampling parameter `logit_bias` is 1 for token 100: it must be for a token of the \
         vocabulary, ids 0 to 99"
    );
    assert_eq!(
        message(SamplingParams::default().with_logprobs(200)),
        "sampling parameter `logprobs` is 200: it must be at most the size of the vocabulary, 100"
    );
}

#[test]
fn the_device_may_choose_only_with_a_temperature_or_greed() {
    let params = SamplingParams::default;
    for device in [
        params(),
        SamplingParams::greedy(),
        params().with_temperature(0.5).with_seed(1),
        SamplingParams::greedy().with_top_k(5).with_top_p(0.5).with_min_p(0.5),
        params().with_logit_bias(1, 0.0),
    ] {
        assert!(device.on_device(), "{device:?}");
    }
    for host in [
        params().with_top_k(5),
        params().with_top_p(0.5),
        params().with_min_p(0.5),
        SamplingParams::greedy().with_repetition_penalty(1.1),
        SamplingParams::greedy().with_presence_penalty(0.1),
        SamplingParams::greedy().with_frequency_penalty(0.1),
        SamplingParams::greedy().with_logit_bias(1, 0.1),
        SamplingParams::greedy().with_logprobs(0),
    ] {
        assert!(!host.on_device(), "{host:?}");
    }
}

#[test]
fn nothing_to_choose_is_an_error_and_not_a_token() {
    let (nan, low) = (f32::NAN, f32::NEG_INFINITY);
    let history = TokenHistory::default();
    let mut scratch = SampleScratch::default();
    for params in [
        SamplingParams::greedy(),
        SamplingParams::default(),
        SamplingParams::default().with_top_k(1).with_top_p(0.5).with_min_p(0.5),
        SamplingParams::default().with_logprobs(1),
    ] {
        for (logits, num_nan) in [(vec![], 0), (vec![low; 3], 0), (vec![nan, low, nan], 2)] {
            let error = sample(&logits, &params, &history, 9, &mut scratch).unwrap_err();
            let vocab = logits.len();
            assert_eq!(error, SamplingError::NoCandidate { position: 9, vocab, nan: num_nan });
        }
        let banned = params.with_logit_bias(0, low).with_logit_bias(1, low);
        assert!(sample(&[1.0, 2.0], &banned, &history, 9, &mut scratch).is_err());
    }
    assert_eq!(logprobs_of(&[low, nan], 0, 1), Err(SamplingError::NoDistribution { vocab: 2 }));
    let unknown = SamplingError::UnknownToken { token: 2, vocab: 2 };
    assert_eq!(logprobs_of(&[0.0, 1.0], 2, 1), Err(unknown));
}

#[test]
fn nan_never_wins_and_infinity_always_does() {
    let (nan, infinity, low) = (f32::NAN, f32::INFINITY, f32::NEG_INFINITY);
    let history = TokenHistory::default();
    let mut scratch = SampleScratch::default();
    for params in [
        SamplingParams::greedy(),
        SamplingParams::default(),
        SamplingParams::default().with_top_k(2),
        SamplingParams::default().with_top_p(0.5).with_min_p(0.1),
    ] {
        for position in 0..50 {
            let mut choose =
                |logits: &[f32]| sample(logits, &params, &history, position, &mut scratch);
            assert_eq!(choose(&[nan, -3.0, nan, low]).unwrap().token, 1);
            assert_eq!(choose(&[9.0, nan, infinity, infinity]).unwrap().token, 2);
        }
    }
    let logprobs = logprobs_of(&[9.0, nan, infinity, infinity], 2, 4).unwrap();
    assert!((logprobs.logprob - 0.5f32.ln()).abs() < 1e-6);
    assert_eq!(logprobs.top.len(), 3);
    assert_eq!(logprobs.top[2], (0, low));
}
