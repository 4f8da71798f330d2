//! Wrong requests, cancelled requests, dead engines and broken models: typed errors, and nothing
//! hangs or leaks. And what a request is promised: stops, limits, log-probabilities, events.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod common;

use std::time::{Duration, Instant};

use common::tiny::TinyModel;
use common::{builder, devices};
use engine::{
    Device, Engine, EngineError, Event, FinishReason, GenerateError, Message, PromptReport,
    Request, RunError, SamplingParams, SubmitError,
};

const PROMPT: &str = "Once upon a time";

fn stories() -> Engine {
    builder("stories260K", Device::Cpu).load().unwrap()
}

/// Waits until nothing runs and every block is free.
fn assert_idle(engine: &Engine) {
    let started = Instant::now();
    loop {
        let statistics = engine.statistics();
        if statistics.running + statistics.waiting + statistics.blocks.used_blocks == 0 {
            return;
        }
        assert!(started.elapsed() < Duration::from_secs(30), "not idle: {statistics:#?}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

#[test]
fn wrong_requests_are_refused_and_harm_nobody() {
    let engine = builder("stories260K", Device::Cpu).max_sequences(4).load().unwrap();
    let refuse = |request: Request| engine.submit(request).unwrap_err();
    let sampled = |params: SamplingParams| Request::text(PROMPT).sampling(params);
    let default = SamplingParams::default;

    assert!(matches!(refuse(Request::tokens([])), SubmitError::EmptyPrompt));
    assert!(matches!(
        refuse(Request::tokens([1, 512])),
        SubmitError::TokenOutOfRange { token: 512, position: 1, vocab: 512 }
    ));
    assert!(matches!(
        refuse(Request::tokens(vec![1; 500]).max_tokens(13)),
        SubmitError::TooLong { prompt: 500, new: 13, context: 512 }
    ));
    let endless = refuse(Request::tokens([1]).max_tokens(usize::MAX));
    assert!(matches!(endless, SubmitError::TooLong { .. }));
    assert!(matches!(refuse(Request::text(PROMPT).n(0)), SubmitError::NoCompletion));
    for n in [5, usize::MAX] {
        assert!(matches!(refuse(Request::text(PROMPT).n(n)), SubmitError::Scheduler(_)), "{n}");
    }
    assert!(matches!(refuse(Request::text(PROMPT).stop("")), SubmitError::Stop(_)));
    assert!(matches!(refuse(Request::chat([Message::user("hi")])), SubmitError::NoChatTemplate));
    for params in [
        default().with_temperature(f32::NAN),
        default().with_temperature(-1.0),
        default().with_top_p(0.0),
        default().with_min_p(1.5),
        default().with_repetition_penalty(0.0),
        default().with_logit_bias(512, 1.0),
        default().with_logit_bias(1, f32::NAN),
        default().with_logprobs(513),
    ] {
        assert!(matches!(refuse(sampled(params.clone())), SubmitError::Sampling(_)), "{params:?}");
    }
    let no_tokenizer = builder("llama-bias", Device::Cpu).load().unwrap();
    for request in [Request::text(PROMPT), Request::tokens([1]).stop("x")] {
        let refused = no_tokenizer.submit(request).unwrap_err();
        assert!(matches!(refused, SubmitError::NoTokenizer));
    }

    let completion = engine.generate(Request::text(PROMPT).max_tokens(8)).unwrap();
    assert_eq!(completion.text(), ", there was a little girl");
    assert_eq!(engine.statistics().submitted, 1);
}

#[test]
fn absurd_but_legal_numbers_are_taken_as_they_are_meant() {
    let engine = stories();
    let mut request = Request::text(PROMPT).max_tokens(8);
    request.timeout = Some(Duration::MAX);
    request.priority = i32::MIN;
    request.cache_salt = u64::MAX;
    let completion = engine.generate(request.seed(u64::MAX).n(2)).unwrap();
    assert_eq!(completion.text(), ", there was a little girl");
    let report = PromptReport::Logprobs(usize::MAX);
    let request = Request::text(PROMPT).max_tokens(0).prompt_report(report);
    let prompt = engine.generate(request).unwrap().prompt.unwrap();
    assert_eq!(prompt.logprobs[0].top.len(), 512);
}

#[test]
fn wrong_settings_are_refused() {
    let refuse = |builder: engine::EngineBuilder| builder.load().map(|_| ()).unwrap_err();
    let cpu = || builder("stories260K", Device::Cpu);
    for builder in [
        cpu().threads(0),
        cpu().block_size(0),
        cpu().max_context(0),
        cpu().max_batched_tokens(0),
        cpu().max_sequences(0),
        cpu().max_queue(0),
        cpu().max_context(513),
        cpu().kv_cache_bytes(32 * 1280).max_context(33),
        cpu().swap_bytes(usize::MAX),
        cpu().kv_cache_fraction(0.0),
        cpu().kv_cache_fraction(1.01),
        cpu().kv_cache_fraction(f64::NAN),
    ] {
        assert!(matches!(refuse(builder), EngineError::Setting { .. }));
    }
    let too_much = refuse(cpu().kv_cache_bytes(usize::MAX));
    assert!(matches!(too_much, EngineError::DoesNotFit(_)), "{too_much}");
    let too_much = refuse(cpu().block_size(usize::MAX));
    assert!(matches!(too_much, EngineError::DoesNotFit(_)), "{too_much}");
}

#[test]
fn a_small_cache_shortens_the_context_and_says_so() {
    let engine = builder("stories260K", Device::Cpu).kv_cache_bytes(32 * 1280).load().unwrap();
    assert_eq!(engine.info().max_context, 32);
    assert_eq!(engine.info().memory.kv_cache_bytes, 32 * 1280);
    let engine = builder("stories260K", Device::Cpu).kv_cache_bytes(1).load().unwrap();
    assert_eq!(engine.info().max_context, 16, "one block");
}

#[test]
fn a_cache_may_be_a_part_of_the_free_memory() {
    let load = |part| builder("stories260K", Device::Cpu).kv_cache_fraction(part).load().unwrap();
    let memory = load(0.002).info().memory.clone();
    let part = 0.002 * (memory.free_bytes.unwrap() - memory.weight_bytes) as f64;
    let block = (16 * memory.kv_bytes_per_token) as f64;
    let found = memory.kv_cache_bytes as f64;
    assert!(found <= part && found > part - block, "{found} of {part}");
}

#[test]
fn a_full_queue_says_so_and_empties_again() {
    let mut core = builder("stories260K", Device::Cpu).max_queue(2).load_core().unwrap();
    let request = || Request::text(PROMPT).max_tokens(2);
    core.submit(request()).unwrap();
    core.submit(request()).unwrap();
    let full = core.submit(request()).unwrap_err();
    assert!(matches!(full, SubmitError::Scheduler(_)), "{full}");
    while core.has_work() {
        core.step();
    }
    core.submit(request()).unwrap();
}

#[test]
fn dropping_a_generation_cancels_it_and_frees_its_blocks() {
    let engine = stories();
    for taken in [0, 1, 5] {
        let mut generations: Vec<_> = (1..4)
            .map(|n| {
                let request = Request::text(PROMPT).max_tokens(400).n(n).ignore_eos();
                engine.submit(request).unwrap()
            })
            .collect();
        for generation in &mut generations {
            for event in generation.take(taken) {
                event.unwrap();
            }
        }
        drop(generations);
        assert_idle(&engine);
    }
    let statistics = engine.statistics();
    assert_eq!(statistics.cancelled, 3 * (1 + 2 + 3));
    assert_eq!(engine.generate(Request::text(PROMPT).max_tokens(3)).unwrap().tokens().len(), 3);
}

#[test]
fn dropping_the_engine_ends_what_runs() {
    let engine = stories();
    let generation = engine.submit(Request::text(PROMPT).max_tokens(400).ignore_eos()).unwrap();
    drop(engine);
    assert_eq!(generation.wait().unwrap_err(), GenerateError::EngineStopped);
}

#[test]
fn an_engine_loads_again_after_it_was_dropped() {
    for device in devices() {
        let run = || {
            let engine = builder("stories260K", device).load().unwrap();
            let completion = engine.generate(Request::text(PROMPT).max_tokens(8)).unwrap();
            completion.text().to_owned()
        };
        for _ in 0..3 {
            assert_eq!(run(), ", there was a little girl");
        }
    }
}

#[test]
fn stop_texts_end_a_completion_wherever_tokens_begin() {
    let engine = stories();
    let request = || Request::text(PROMPT).max_tokens(40);
    let whole = engine.generate(request()).unwrap();
    let text = whole.text();
    assert!(text.is_ascii() && text.len() > 80, "{text}");
    for (start, len) in (0..70).step_by(3).zip([1, 7, 2, 12, 4].into_iter().cycle()) {
        let stop = &text[start..start + len];
        let cut = text.find(stop).unwrap();
        let completion = engine.generate(request().stop(stop)).unwrap();
        assert_eq!(completion.text(), &text[..cut], "stop {stop:?}");
        let reason = &completion.choices[0].finish_reason;
        assert_eq!(*reason, FinishReason::StopText(stop.to_owned()));
        assert!(completion.tokens().len() <= whole.tokens().len());

        let mut request = request().stop("never there").stop(stop);
        request.include_stop = true;
        let completion = engine.generate(request).unwrap();
        assert_eq!(completion.text(), &text[..cut + stop.len()], "stop {stop:?} included");
    }
    assert_idle(&engine);
}

#[test]
fn a_stop_text_that_only_begins_is_not_lost() {
    let engine = stories();
    let request = || Request::text(PROMPT).max_tokens(8);
    let text = engine.generate(request()).unwrap().text().to_owned();
    let nearly = format!("{}#", &text[text.len() - 5..]);
    let completion = engine.generate(request().stop(nearly)).unwrap();
    assert_eq!(completion.text(), text);
    assert_eq!(completion.choices[0].finish_reason, FinishReason::Length);
}

#[test]
fn stop_tokens_end_a_completion() {
    let engine = stories();
    let whole = engine.generate(Request::text(PROMPT).max_tokens(20)).unwrap();
    let token = whole.tokens()[11];
    let first = whole.tokens().iter().position(|t| *t == token).unwrap();
    let mut request = Request::text(PROMPT).max_tokens(20);
    request.stop_tokens = vec![511, token];
    let stopped = engine.generate(request.clone()).unwrap();
    assert_eq!(stopped.tokens(), &whole.tokens()[..=first]);
    assert_eq!(stopped.choices[0].finish_reason, FinishReason::StopToken(token));
    let without = stopped.text().to_owned();
    request.include_stop = true;
    let with = engine.generate(request).unwrap();
    assert!(with.text().len() > without.len() && with.text().starts_with(&without));
    assert!(whole.text().starts_with(with.text()));
}

#[test]
fn the_end_of_a_story_ends_a_completion_unless_ignored() {
    let engine = stories();
    let ended = engine.generate(Request::text(PROMPT)).unwrap();
    assert_eq!(ended.choices[0].finish_reason, FinishReason::StopToken(1));
    assert!(!ended.text().contains("<s>"), "{}", ended.text());
    let len = ended.tokens().len();
    let on = engine.generate(Request::text(PROMPT).max_tokens(len + 5).ignore_eos()).unwrap();
    assert_eq!(on.choices[0].finish_reason, FinishReason::Length);
    assert_eq!(on.tokens().len(), len + 5);
    assert_eq!(&on.tokens()[..len], ended.tokens());
    let endless = engine.generate(Request::text(PROMPT).ignore_eos()).unwrap();
    let total = endless.usage.prompt_tokens + endless.tokens().len();
    assert_eq!(total, 512, "no limit goes to the end of the context");
}

#[test]
fn logit_bias_bans_and_forces() {
    let engine = stories();
    let greedy = engine.generate(Request::text(PROMPT).max_tokens(6)).unwrap();
    let first = greedy.tokens()[0];
    let banned = SamplingParams::greedy().with_logit_bias(first, f32::NEG_INFINITY);
    let request = Request::text(PROMPT).max_tokens(30).sampling(banned).ignore_eos();
    let without = engine.generate(request).unwrap();
    assert!(!without.tokens().contains(&first));
    let forced = SamplingParams::default().with_logit_bias(300, 1000.0);
    let request = Request::text(PROMPT).max_tokens(6).sampling(forced);
    assert_eq!(engine.generate(request).unwrap().tokens(), [300; 6]);
    let mut none = SamplingParams::greedy();
    none.logit_bias = (0..512).map(|token| (token, f32::NEG_INFINITY)).collect();
    let error = engine.generate(Request::text(PROMPT).sampling(none)).unwrap_err();
    assert!(matches!(error, RunError::Generate(GenerateError::Sampling { .. })), "{error}");
    assert_idle(&engine);
}

#[test]
fn penalties_count_what_was_generated() {
    let engine = stories();
    let sampling = SamplingParams::greedy().with_frequency_penalty(0.6).with_presence_penalty(0.9);
    let request = Request::text(PROMPT).max_tokens(40).sampling(sampling.with_logprobs(512));
    let completion = engine.generate(request.ignore_eos()).unwrap();
    let mut counts = [0.0; 512];
    let mut changed = false;
    for (token, logprobs) in completion.tokens().iter().zip(&completion.choices[0].logprobs) {
        // Penalties are subtracted, so log-probabilities order tokens as logits do.
        let penalised = |(token, logprob): &(u32, f32)| {
            let count: f32 = counts[*token as usize];
            (logprob - 0.6 * count - if count > 0.0 { 0.9 } else { 0.0 }, *token)
        };
        let best = logprobs.top.iter().map(penalised).max_by(|a, b| a.0.total_cmp(&b.0)).unwrap();
        assert_eq!(*token, best.1);
        changed |= logprobs.top[0].0 != *token;
        counts[*token as usize] += 1.0;
    }
    assert!(changed, "the penalties never mattered");
}

#[test]
fn log_probabilities_are_a_distribution_in_order() {
    let engine = stories();
    let sampling = SamplingParams::greedy().with_logprobs(512);
    let request = Request::text(PROMPT).max_tokens(10).sampling(sampling);
    let completion = engine.generate(request).unwrap();
    let choice = &completion.choices[0];
    assert_eq!(choice.logprobs.len(), choice.tokens.len());
    for (token, logprobs) in choice.tokens.iter().zip(&choice.logprobs) {
        assert_eq!(logprobs.token, *token);
        assert_eq!(logprobs.top[0], (*token, logprobs.logprob), "greedy takes the likeliest");
        assert!(logprobs.top.windows(2).all(|pair| pair[0].1 >= pair[1].1));
        let sum: f64 = logprobs.top.iter().map(|(_, p)| f64::from(*p).exp()).sum();
        assert!((sum - 1.0).abs() < 1e-5, "{sum}");
    }
    let plain = engine.generate(Request::text(PROMPT).max_tokens(10)).unwrap();
    assert_eq!(plain.tokens(), completion.tokens());
    assert!(plain.choices[0].logprobs.is_empty());
}

#[test]
fn prompt_log_probabilities_are_those_of_the_prompts_logits() {
    let engine = stories();
    let ids = engine.info().tokenizer.as_ref().unwrap().encode(PROMPT, true).unwrap();
    let ask = |report| {
        let request = Request::tokens(ids.clone()).max_tokens(0).prompt_report(report);
        engine.generate(request).unwrap().prompt.unwrap()
    };
    let logits = ask(PromptReport::Logits).logits;
    let logprobs = ask(PromptReport::Logprobs(3)).logprobs;
    assert_eq!(logits.len(), ids.len() * 512);
    assert_eq!(logprobs.len(), ids.len() - 1);
    for ((row, next), found) in logits.chunks(512).zip(&ids[1..]).zip(&logprobs) {
        let log_sum = row.iter().map(|x| f64::from(*x).exp()).sum::<f64>().ln();
        let expected = f64::from(row[*next as usize]) - log_sum;
        assert_eq!(found.token, *next);
        assert!((f64::from(found.logprob) - expected).abs() < 1e-5);
        let largest = row.iter().copied().fold(f32::MIN, f32::max);
        assert_eq!(row[found.top[0].0 as usize], largest);
    }
}

#[test]
fn several_completions_draw_with_seeds_in_a_row() {
    let engine = stories();
    let request = || Request::text(PROMPT).max_tokens(12).temperature(1.0).ignore_eos();
    let several = engine.generate(request().seed(40).n(4)).unwrap();
    assert_eq!(several.choices.len(), 4);
    for (seed, choice) in (40..).zip(&several.choices) {
        let one = engine.generate(request().seed(seed)).unwrap();
        assert_eq!((choice.text.as_str(), &choice.tokens[..]), (one.text(), one.tokens()));
    }
    assert_ne!(several.choices[0].tokens, several.choices[1].tokens);
    assert_eq!(several.usage.completion_tokens, 48);
}

#[test]
fn a_request_ends_when_its_time_is_over() {
    let engine = stories();
    let mut late = Request::text(PROMPT).n(2).prompt_report(PromptReport::Logits);
    late.timeout = Some(Duration::ZERO);
    let completion = engine.generate(late).unwrap();
    let reasons: Vec<_> = completion.choices.iter().map(|c| c.finish_reason.clone()).collect();
    assert_eq!(reasons, [FinishReason::TimedOut, FinishReason::TimedOut]);
    assert_eq!(completion.prompt, None, "no half of a report");

    let mut core = builder("stories260K", Device::Cpu).load_core().unwrap();
    let mut request = Request::text(PROMPT).max_tokens(100).ignore_eos();
    request.timeout = Some(Duration::from_millis(300));
    core.submit(request).unwrap();
    let mut events = core.step();
    std::thread::sleep(Duration::from_millis(310));
    while core.has_work() {
        events.extend(core.step());
    }
    let tokens = events.iter().filter(|(_, e)| matches!(e, Ok(Event::Token { .. }))).count();
    assert_eq!(tokens, 1, "what was there before the time was over stays");
    let timed_out = |e: &Event| matches!(e, Event::Finished { reason: FinishReason::TimedOut, .. });
    assert!(events.iter().any(|(_, e)| timed_out(e.as_ref().unwrap())));
    assert_eq!(core.statistics().blocks.used_blocks, 0);
}

#[test]
fn events_add_up_to_the_completion() {
    let engine = stories();
    let requests: Vec<_> = (0..6)
        .map(|i| {
            let request = Request::text(["Once upon a time", "Lily", "The dog"][i % 3]);
            request.max_tokens(20 + i).temperature(0.9).seed(i as u64).n(1 + i % 2)
        })
        .map(|request| request.prompt_report(PromptReport::Logprobs(1)))
        .collect();
    let streams: Vec<_> = requests.iter().map(|r| engine.submit(r.clone()).unwrap()).collect();
    for (request, stream) in requests.iter().zip(streams) {
        let events: Vec<Event> = stream.map(Result::unwrap).collect();
        let whole = engine.generate(request.clone()).unwrap();
        assert!(
            matches!(&events[0], Event::Prompt(prompt) if Some(prompt) == whole.prompt.as_ref())
        );
        assert!(matches!(events.last(), Some(Event::Done(_))));
        for (i, choice) in whole.choices.iter().enumerate() {
            let (mut text, mut tokens, mut ended) = (String::new(), Vec::new(), false);
            for event in &events {
                match event {
                    Event::Token { index, token, text: piece, .. } if *index == i => {
                        assert!(!ended);
                        tokens.push(*token);
                        text += piece;
                    }
                    Event::Finished { index, text: rest, reason } if *index == i => {
                        assert_eq!(*reason, choice.finish_reason);
                        text += rest;
                        ended = true;
                    }
                    _ => {}
                }
            }
            assert!(ended);
            assert_eq!((text, tokens), (choice.text.clone(), choice.tokens.clone()));
        }
    }
}

#[test]
fn many_threads_share_an_engine() {
    let engine = stories();
    let request = |i: u64| Request::text(PROMPT).max_tokens(16).temperature(0.8).seed(i);
    let alone: Vec<_> =
        (0..8).map(|i| engine.generate(request(i)).unwrap().tokens().to_vec()).collect();
    let threads: Vec<_> = (0..8)
        .map(|i| {
            let engine = engine.clone();
            std::thread::spawn(move || engine.generate(request(i)).unwrap().tokens().to_vec())
        })
        .collect();
    for (thread, alone) in threads.into_iter().zip(alone) {
        assert_eq!(thread.join().unwrap(), alone);
    }
}

#[test]
fn weights_that_are_not_numbers_give_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let model = TinyModel { vocab: 131, ..TinyModel::default() };
    let mut weights = model.weights(5);
    weights.fill("model.layers.0.mlp.down_proj.weight", f32::NAN);
    weights.save(folder.path());
    for device in devices() {
        let path = folder.path().display().to_string();
        let engine = Engine::builder(path).device(device).kv_cache_bytes(1 << 20).load().unwrap();
        let request = || Request::tokens([1, 2, 3]).max_tokens(5);
        for request in [
            request(),
            request().n(3),
            request().temperature(1.0),
            request().temperature(1.0).n(2),
            request().sampling(SamplingParams::default().with_top_k(5)),
            request().sampling(SamplingParams::greedy().with_logprobs(2)),
            request().max_tokens(0).prompt_report(PromptReport::Logprobs(1)),
            request().n(2).prompt_report(PromptReport::Logprobs(1)),
        ] {
            let error = engine.generate(request.clone()).unwrap_err();
            let typed = matches!(error, RunError::Generate(GenerateError::Sampling { .. }));
            assert!(typed, "{device}: {error} for {request:?}");
            assert!(error.to_string().contains("check the weights"), "{error}");
        }
        assert_idle(&engine);
    }
}
